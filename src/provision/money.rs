//! Estimates what a stack costs, from a file of prices.

use serde::Serialize;
use serde_json::Value;

use super::resource::Kind;
use super::settings::Settings;
use super::stack::Stack;
use crate::scaling_policy::Policy;
use crate::scaling_policy::cost::{CallsPerImage, FixedResources, InstancePrice, Machines, Prices};

/// A waiting worker or web process polls its queue three times a minute.
const LONG_POLLS_PER_HOUR: f64 = 180.0;
/// `autoscale`, beside each web process, reads the depth every 5 s while there is no worker.
const READINGS_PER_HOUR: f64 = 720.0;
static NO_PRICE: InstancePrice = InstancePrice::NONE;
/// Size of the bundle.
const STORED_GB: f64 = 0.1;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cost {
    pub currency: String,
    /// Date of the prices.
    pub prices_of: String,
    pub prices_region: String,
    /// Absent if the price of an instance type is unknown.
    pub at_rest_month: Option<f64>,
    pub per_million_images: f64,
    pub at_max_day: Option<f64>,
    pub at_max_hour: Option<f64>,
    /// Instance types of the stack whose price is unknown.
    pub unknown_types: Vec<String>,
    pub workers: String,
    pub most_workers: u32,
}

pub(super) fn cost(settings: &Settings, stack: &Stack, prices: &Prices) -> Cost {
    let cpu = stack.bundle.cpu;
    let preferred = settings.worker_types(cpu).remove(0);
    let spot_share = f64::from(settings.spot_percent) / 100.0;
    let machines = |instance, count, spot_share| Machines {
        instance,
        count,
        spot_share,
        volume_gb: f64::from(stack.volume_gigabytes),
        has_public_ipv4: stack.has_public_addresses,
    };
    let (of_worker, of_web) = (prices.instance(&preferred).ok(), prices.instance(settings.web_type(cpu)).ok());
    let mut unknown_types = Vec::new();
    if of_worker.is_none() {
        unknown_types.push(preferred.clone());
    }
    if of_web.is_none() && settings.web_instances > 0 {
        unknown_types.push(settings.web_type(cpu).to_owned());
    }
    // Machines without a price count as none. The estimate is then not shown.
    let workers = machines(of_worker.unwrap_or(&NO_PRICE), settings.bounds.min(), spot_share);
    let most = Machines { count: settings.bounds.max(), ..workers };
    let web = machines(of_web.unwrap_or(&NO_PRICE), settings.web_instances, 0.0);
    let follows_metric = matches!(settings.policy, Policy::Target(_));
    let processes = f64::from(settings.bounds.min() + settings.web_instances);
    let standing = FixedResources {
        alarms: alarm_metrics(stack),
        // Target tracking creates two alarms: one to scale out and one to scale in.
        high_resolution_alarms: if follows_metric { 2 } else { 0 },
        custom_metrics: u32::from(follows_metric),
        dashboards: 1,
        stored_gb: STORED_GB,
        sqs_requests_per_hour: LONG_POLLS_PER_HOUR * processes + READINGS_PER_HOUR * f64::from(settings.web_instances),
    };
    let estimate = prices.estimate(&web, (&workers, &most), &standing, &CallsPerImage::UNBATCHED);
    let known = |figure: f64| unknown_types.is_empty().then_some(figure);
    Cost {
        currency: prices.currency.clone(),
        prices_of: prices.date.clone(),
        prices_region: prices.region.clone(),
        at_rest_month: known(estimate.idle_month),
        per_million_images: estimate.per_million_images,
        at_max_day: known(estimate.at_max_day),
        at_max_hour: known(estimate.at_max_hour),
        unknown_types,
        workers: preferred,
        most_workers: settings.bounds.max(),
    }
}

/// The number of alarm metrics: an alarm is billed for each metric that it reads.
fn alarm_metrics(stack: &Stack) -> u32 {
    let alarms = stack.resources.iter().filter(|resource| resource.kind == Kind::Alarm);
    let metrics = alarms.map(|alarm| {
        let queries = alarm.properties.get("Metrics").and_then(Value::as_array);
        queries.map_or(1, |queries| queries.iter().filter(|query| query.get("MetricStat").is_some()).count())
    });
    metrics.sum::<usize>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_billed_for_each_metric_they_read() {
        // Scaling out reads one metric, scaling in three, scaling from zero two.
        assert_eq!(alarm_metrics(&Settings::for_tests("imgcls").stack_for_tests()), 10);
    }
}
