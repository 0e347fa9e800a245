//! The cost of a fleet, with the machines, volumes and addresses that `imgcls provision` makes.

use std::time::Duration;

use serde::Serialize;

use super::config::PlanConfig;
use super::search::{Fleet, Machine};
use crate::scaling_policy::cost::{CallsPerImage, HOURS_PER_MONTH, InstancePrice, Machines, Prices};

/// Size of the root volume of Debian's AMI.
const VOLUME_GB: f64 = 8.0;

pub(super) struct Money<'a> {
    prices: &'a Prices,
    spot_share: f64,
    span: Duration,
    web_hour: f64,
}

/// A fleet on machines of a type, with its price.
pub(super) struct Choice<'a> {
    pub instance_type: String,
    pub machine: Machine,
    pub fleet: &'a Fleet,
    pub worker_hours: f64,
    pub cost: Cost,
}

/// Costs of the load, in the currency of the prices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Cost {
    /// Machines of the workers, each with a volume and a public address.
    pub workers: f64,
    /// Machines of the web tier.
    pub web: f64,
    /// Calls of queue and store, without batching.
    pub calls: f64,
    pub total: f64,
    /// The total if the load is repeated for a month.
    pub month: f64,
    pub per_million_images: Option<f64>,
}

impl<'a> Money<'a> {
    /// # Errors
    /// One line if the price of the web tier's machines is not known.
    pub(super) fn new(config: &PlanConfig, prices: &'a Prices, span: Duration) -> anyhow::Result<Money<'a>> {
        let (count, name) = &config.web;
        let instance = prices.instance(name).map_err(anyhow::Error::msg)?;
        let web_hour = prices.machines_hour(&machines(instance, *count, 0.0), 0.0);
        Ok(Money { prices, spot_share: config.spot_share, span, web_hour })
    }

    pub(super) fn choice<'f>(
        &self,
        instance_type: &str,
        instance: &InstancePrice,
        machine: Machine,
        fleet: &'f Fleet,
    ) -> Choice<'f> {
        let worker_hours = fleet.paid_seconds / 3600.0;
        let hour = self.prices.machines_hour(&machines(instance, 1, self.spot_share), fleet.utilization);
        let workers = worker_hours * hour;
        let hours = self.span.as_secs_f64() / 3600.0;
        let web = self.web_hour * hours;
        let calls = self.prices.images(&CallsPerImage::UNBATCHED, fleet.arrivals);
        let total = workers + web + calls;
        let cost = Cost {
            workers,
            web,
            calls,
            total,
            month: total / hours * HOURS_PER_MONTH,
            per_million_images: (fleet.completed > 0).then(|| total / fleet.completed as f64 * 1e6),
        };
        Choice { instance_type: instance_type.to_owned(), machine, fleet, worker_hours, cost }
    }
}

fn machines(instance: &InstancePrice, count: u32, spot_share: f64) -> Machines<'_> {
    Machines { instance, count, spot_share, volume_gb: VOLUME_GB, has_public_ipv4: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_tier_is_paid_for_with_its_volume_and_address() {
        let prices = Prices::built_in();
        let instance = prices.instance("t3.small").expect("a type of the file");
        let hour = prices.machines_hour(&machines(instance, 2, 0.0), 0.0);
        assert!((hour - 2.0 * (0.0208 + 8.0 * 0.08 / 730.0 + 0.005)).abs() < 1e-9, "{hour}");
    }
}
