//! The cost of a fleet: prices as a plain value, and sums over plain inputs. All figures are in the currency of the
//! prices. The built-in prices are dated; a file in the same format replaces them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// AWS quotes prices for a month of this length.
pub(crate) const HOURS_PER_MONTH: f64 = 730.0;
/// An instance is billed by the second, but for at least this time.
pub(crate) const MIN_BILLED_TIME: Duration = Duration::from_mins(1);

const BUILT_IN: &str = include_str!("prices.toml");

/// The prices of one region.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// The date of the prices, such as `2026-11-24`.
    pub(crate) date: String,
    pub(crate) region: String,
    /// The currency, such as `USD`.
    pub(crate) currency: String,
    pub(crate) sqs: Sqs,
    pub(crate) s3: S3,
    pub(crate) cloudwatch: CloudWatch,
    /// Absent in older price files.
    pub(crate) logs: Option<Logs>,
    pub(crate) ebs: Ebs,
    pub(crate) network: Network,
    /// Absent in older price files.
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) spot: Spot,
    /// Prices by instance type, such as `c7g.large`.
    instances: BTreeMap<String, InstancePrice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sqs {
    pub(crate) per_million_requests: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct S3 {
    pub(crate) put_per_thousand: f64,
    pub(crate) get_per_thousand: f64,
    pub(crate) storage_gb_month: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloudWatch {
    pub(crate) alarm_month: f64,
    pub(crate) high_resolution_alarm_month: f64,
    pub(crate) metric_month: f64,
    pub(crate) dashboard_month: f64,
    /// Calls that publish metrics. Absent in older price files.
    pub(crate) requests_per_thousand: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logs {
    pub(crate) ingested_gb: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ebs {
    pub(crate) gp3_gb_month: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) public_ipv4_hour: f64,
}

/// An Application Load Balancer.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadBalancer {
    pub(crate) hour: f64,
    /// An hour of a load balancer capacity unit. For images it is a gigabyte that passes.
    pub(crate) capacity_unit_hour: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spot {
    pub(crate) share_of_on_demand: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstancePrice {
    pub(crate) vcpus: u32,
    /// `x86_64` or `arm64`.
    pub(crate) cpu: String,
    /// Price of an on-demand hour.
    pub(crate) hour: f64,
    /// Price of a Spot hour, if it is known better than by the common share.
    pub(crate) spot_hour: Option<f64>,
    /// For burstable types: the share of each vCPU that may be used permanently.
    pub(crate) baseline: Option<f64>,
    /// For burstable types: the long-term price of a vCPU hour above the baseline.
    pub(crate) surplus_vcpu_hour: Option<f64>,
}

impl InstancePrice {
    /// The price of a type that is not known.
    pub(crate) const NONE: InstancePrice = InstancePrice {
        vcpus: 0,
        cpu: String::new(),
        hour: 0.0,
        spot_hour: None,
        baseline: None,
        surplus_vcpu_hour: None,
    };
}

/// Machines of one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machines<'a> {
    pub(crate) instance: &'a InstancePrice,
    pub(crate) count: u32,
    /// The share of Spot instances, 0 to 1.
    pub(crate) spot_share: f64,
    /// Size of the gp3 volume of each machine.
    pub(crate) volume_gb: f64,
    pub(crate) has_public_ipv4: bool,
}

/// Resources besides machines that are billed by the month, with or without load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct FixedResources {
    /// The number of metrics that alarms read; each is billed.
    pub(crate) alarms: u32,
    pub(crate) high_resolution_alarms: u32,
    pub(crate) custom_metrics: u32,
    pub(crate) dashboards: u32,
    /// Objects in S3.
    pub(crate) stored_gb: f64,
    /// Long polls and depth readings of an idle stack.
    pub(crate) sqs_requests_per_hour: f64,
    /// Calls that publish metrics.
    pub(crate) metric_requests_per_hour: f64,
    /// The logs of all machines in a month.
    pub(crate) log_gb_per_month: f64,
    pub(crate) load_balancers: u32,
    /// Public addresses besides those of machines.
    pub(crate) public_addresses: u32,
}

/// Mean number of calls for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CallsPerImage {
    pub(crate) sqs_requests: f64,
    pub(crate) s3_puts: f64,
    pub(crate) s3_gets: f64,
}

impl CallsPerImage {
    /// Web tier: put the image, send the request. Worker: receive, get the image, put the result, send the reply,
    /// delete the request. Web tier: receive the reply, delete it. This is the upper bound: under load, ten SQS calls
    /// become one.
    pub(crate) const UNBATCHED: CallsPerImage = CallsPerImage { sqs_requests: 6.0, s3_puts: 2.0, s3_gets: 1.0 };
}

/// The cost of a stack, as a plan shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// A month with the minimum number of workers and no images.
    pub(crate) idle_month: f64,
    /// SQS and S3 calls of a million images, without the machines.
    pub(crate) per_million_images: f64,
    /// A day with the maximum number of workers under full load, without the calls of the images.
    pub(crate) at_max_day: f64,
    /// The maximum cost of an hour of machines.
    pub(crate) at_max_hour: f64,
}

impl Prices {
    /// The prices that are built into the binary.
    pub fn built_in() -> Prices {
        Prices::parse(BUILT_IN).expect("the built-in prices are valid; this is a bug")
    }

    /// Reads prices from TOML.
    ///
    /// # Errors
    /// One line that says where in the text the error is and what is wrong.
    pub fn parse(text: &str) -> Result<Prices, String> {
        let prices: Prices = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            format!("line {line}: {}", error.message().lines().next().unwrap_or("not TOML"))
        })?;
        prices.check()?;
        Ok(prices)
    }

    /// Rejects values that would turn a typing error into a bill that looks good.
    fn check(&self) -> Result<(), String> {
        if self.instances.is_empty() {
            return Err("[instances] has no type".to_owned());
        }
        let instances = self.instances.iter().flat_map(|(name, price)| {
            [price.hour, price.spot_hour.unwrap_or(0.0), price.surplus_vcpu_hour.unwrap_or(0.0)]
                .map(|figure| (format!("an instance hour of {name}"), figure, f64::MAX))
                .into_iter()
                .chain([(format!("the baseline of {name}"), price.baseline.unwrap_or(0.0), 1.0)])
        });
        let CloudWatch {
            alarm_month,
            high_resolution_alarm_month,
            metric_month,
            dashboard_month,
            requests_per_thousand,
        } = self.cloudwatch;
        let others = [
            ("sqs.per_million_requests", self.sqs.per_million_requests),
            ("s3.put_per_thousand", self.s3.put_per_thousand),
            ("s3.get_per_thousand", self.s3.get_per_thousand),
            ("s3.storage_gb_month", self.s3.storage_gb_month),
            ("cloudwatch.alarm_month", alarm_month),
            ("cloudwatch.high_resolution_alarm_month", high_resolution_alarm_month),
            ("cloudwatch.metric_month", metric_month),
            ("cloudwatch.dashboard_month", dashboard_month),
            ("cloudwatch.requests_per_thousand", requests_per_thousand.unwrap_or(0.0)),
            ("logs.ingested_gb", self.logs.map_or(0.0, |logs| logs.ingested_gb)),
            ("ebs.gp3_gb_month", self.ebs.gp3_gb_month),
            ("network.public_ipv4_hour", self.network.public_ipv4_hour),
            ("load_balancer.hour", self.load_balancer.map_or(0.0, |price| price.hour)),
            ("load_balancer.capacity_unit_hour", self.load_balancer.map_or(0.0, |price| price.capacity_unit_hour)),
        ]
        .map(|(name, figure)| (name.to_owned(), figure, f64::MAX));
        let share = [("spot.share_of_on_demand".to_owned(), self.spot.share_of_on_demand, 1.0)];
        for (name, figure, most) in instances.chain(others).chain(share) {
            if !(0.0..=most).contains(&figure) {
                return Err(format!("{name} is {figure}, which is not a valid price or share"));
            }
        }
        match self.instances.iter().find(|(_, price)| price.vcpus == 0) {
            Some((name, _)) => Err(format!("{name} has no vCPU")),
            None => Ok(()),
        }
    }

    /// The usage for which a file of an older form has no price. It counts as free.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let metrics = self.cloudwatch.requests_per_thousand.is_none().then_some("calls that publish metrics");
        metrics.into_iter().chain(self.logs.is_none().then_some("logs")).collect()
    }

    /// # Errors
    /// One line that lists the known types.
    pub(crate) fn instance(&self, name: &str) -> Result<&InstancePrice, String> {
        self.instances.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.instances.keys().map(String::as_str).collect();
            format!(
                "no price of instance type {name:?}; known types are {}; give others with --prices FILE",
                known.join(", ")
            )
        })
    }

    /// All types with their prices, by name.
    pub(crate) fn instances(&self) -> impl Iterator<Item = (&str, &InstancePrice)> {
        self.instances.iter().map(|(name, price)| (name.as_str(), price))
    }

    /// An hour of one instance, a mix of on-demand and Spot, at a mean vCPU load from 0 to 1.
    pub(crate) fn instance_hour(&self, instance: &InstancePrice, spot_share: f64, utilization: f64) -> f64 {
        let spot_hour = instance.spot_hour.unwrap_or(instance.hour * self.spot.share_of_on_demand);
        let above_baseline = (utilization - instance.baseline.unwrap_or(1.0)).max(0.0);
        let surplus = above_baseline * f64::from(instance.vcpus) * instance.surplus_vcpu_hour.unwrap_or(0.0);
        instance.hour * (1.0 - spot_share) + spot_hour * spot_share + surplus
    }

    /// An hour of machines with their volumes and addresses, at a mean vCPU load from 0 to 1.
    pub(crate) fn machines_hour(&self, machines: &Machines<'_>, utilization: f64) -> f64 {
        let Machines { instance, count, spot_share, volume_gb, has_public_ipv4 } = *machines;
        let volume = volume_gb * self.ebs.gp3_gb_month / HOURS_PER_MONTH;
        let address = if has_public_ipv4 { self.network.public_ipv4_hour } else { 0.0 };
        f64::from(count) * (self.instance_hour(instance, spot_share, utilization) + volume + address)
    }

    pub(crate) fn fixed_month(&self, fixed: &FixedResources) -> f64 {
        let cloudwatch = self.cloudwatch;
        f64::from(fixed.alarms) * cloudwatch.alarm_month
            + f64::from(fixed.high_resolution_alarms) * cloudwatch.high_resolution_alarm_month
            + f64::from(fixed.custom_metrics) * cloudwatch.metric_month
            + f64::from(fixed.dashboards) * cloudwatch.dashboard_month
            + fixed.stored_gb * self.s3.storage_gb_month
            + fixed.sqs_requests_per_hour * HOURS_PER_MONTH * self.sqs.per_million_requests / 1e6
            + fixed.metric_requests_per_hour * HOURS_PER_MONTH * cloudwatch.requests_per_thousand.unwrap_or(0.0) / 1e3
            + fixed.log_gb_per_month * self.logs.map_or(0.0, |logs| logs.ingested_gb)
            + f64::from(fixed.load_balancers) * HOURS_PER_MONTH * self.load_balancer.map_or(0.0, |price| price.hour)
            + f64::from(fixed.public_addresses) * HOURS_PER_MONTH * self.network.public_ipv4_hour
    }

    /// The calls of `count` images.
    pub(crate) fn images(&self, calls: &CallsPerImage, count: u64) -> f64 {
        let each = calls.sqs_requests * self.sqs.per_million_requests / 1e6
            + calls.s3_puts * self.s3.put_per_thousand / 1e3
            + calls.s3_gets * self.s3.get_per_thousand / 1e3;
        each * count as f64
    }

    /// Estimates the cost of a stack. `web` and `fewest` always run; they are idle in the idle month. `most` are the
    /// workers at full load, including the fewest.
    pub(crate) fn estimate(
        &self,
        web: &Machines<'_>,
        (fewest, most): (&Machines<'_>, &Machines<'_>),
        fixed: &FixedResources,
        calls: &CallsPerImage,
    ) -> Estimate {
        let idle_hour = self.machines_hour(web, 0.0) + self.machines_hour(fewest, 0.0);
        let at_max_hour = self.machines_hour(web, 1.0) + self.machines_hour(most, 1.0);
        let fixed_month = self.fixed_month(fixed);
        Estimate {
            idle_month: idle_hour * HOURS_PER_MONTH + fixed_month,
            per_million_images: self.images(calls, 1_000_000),
            at_max_day: at_max_hour * 24.0 + fixed_month / HOURS_PER_MONTH * 24.0,
            at_max_hour,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-9, "{actual} is not {expected}");
    }

    #[test]
    fn calls_of_a_million_images_have_the_known_price() {
        let prices = Prices::built_in();
        close(prices.images(&CallsPerImage::UNBATCHED, 1_000_000), 10.40 + 2.40);
        close(prices.images(&CallsPerImage::UNBATCHED, 0), 0.0);
    }

    #[test]
    fn machines_are_priced_by_type_spot_share_and_load() {
        let prices = Prices::built_in();
        let graviton = prices.instance("c7g.large").expect("a type of the file");
        let plain = Machines { instance: graviton, count: 4, spot_share: 0.0, volume_gb: 0.0, has_public_ipv4: false };
        close(prices.machines_hour(&plain, 1.0), 4.0 * 0.0725);
        close(prices.machines_hour(&Machines { spot_share: 0.5, ..plain }, 1.0), 4.0 * 0.0725 * 0.7);
        let furnished = Machines { volume_gb: 10.0, has_public_ipv4: true, ..plain };
        close(prices.machines_hour(&furnished, 0.0), 4.0 * (0.0725 + 0.8 / 730.0 + 0.005));
        let burstable = Machines { instance: prices.instance("t3.small").expect("a type"), count: 1, ..plain };
        close(prices.machines_hour(&burstable, 0.2), 0.0208);
        close(prices.machines_hour(&burstable, 1.0), 0.0208 + 0.8 * 2.0 * 0.05);
    }

    #[test]
    fn estimate_is_the_sum_of_its_parts() {
        let prices = Prices::built_in();
        let instance = prices.instance("c6i.large").expect("a type of the file");
        let web = Machines { instance, count: 1, spot_share: 0.0, volume_gb: 0.0, has_public_ipv4: false };
        let (none, most) = (Machines { count: 0, ..web }, Machines { count: 4, ..web });
        let fixed = FixedResources {
            alarms: 3,
            custom_metrics: 1,
            dashboards: 1,
            stored_gb: 10.0,
            sqs_requests_per_hour: 1000.0,
            metric_requests_per_hour: 360.0,
            log_gb_per_month: 2.0,
            ..FixedResources::default()
        };
        let estimate = prices.estimate(&web, (&none, &most), &fixed, &CallsPerImage::UNBATCHED);
        let fixed = 0.3 + 0.3 + 3.0 + 0.23 + 0.292 + 2.628 + 1.0;
        close(estimate.idle_month, 0.085 * 730.0 + fixed);
        close(estimate.at_max_hour, 5.0 * 0.085);
        close(estimate.at_max_day, 5.0 * 0.085 * 24.0 + fixed / 730.0 * 24.0);
        close(estimate.per_million_images, 12.8);
    }

    #[test]
    fn invalid_price_file_is_refused_with_its_line() {
        let good = BUILT_IN;
        for (text, expected) in [
            (good.replace("per_million_requests = 0.40", "per_million_requests = cheap"), "line 12"),
            (
                good.replace("per_million_requests = 0.40", "per_million_request = 0.40"),
                "unknown field `per_million_request`",
            ),
            (good.replace("gp3_gb_month = 0.08", "gp3_gb_month = -0.08"), "ebs.gp3_gb_month is -0.08"),
            (good.replace("hour = 0.0725", "hour = nan"), "an instance hour of c7g.large is NaN"),
            (good.replace("share_of_on_demand = 0.4", "share_of_on_demand = 40"), "spot.share_of_on_demand is 40"),
            (good.replace("date = \"2026-11-24\"\n", ""), "missing field `date`"),
            (String::new(), "missing field"),
        ] {
            let error = Prices::parse(&text).expect_err(expected);
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
        let unknown = Prices::built_in().instance("c99.huge").expect_err("no such type");
        assert!(unknown.contains("c7g.large") && unknown.contains("--prices"), "{unknown}");
    }
}
