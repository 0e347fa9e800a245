//! What a fleet costs: prices as a plain value, and sums over plain inputs. All figures are in the currency of the
//! prices. The prices carried in the binary are dated; a file of the same form takes their place.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// AWS counts a month as this when it quotes one.
pub const HOURS_PER_MONTH: f64 = 730.0;
/// An instance is billed by the second, but for at least this long.
pub const LEAST_BILLED: Duration = Duration::from_mins(1);

const BUILT_IN: &str = include_str!("prices.toml");

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// When they were written down, `2026-11-24`.
    pub date: String,
    pub region: String,
    /// `USD`.
    pub currency: String,
    pub sqs: Sqs,
    pub s3: S3,
    pub cloudwatch: CloudWatch,
    pub ebs: Ebs,
    pub network: Network,
    pub spot: Spot,
    /// By type, `c7g.large`.
    instances: BTreeMap<String, InstancePrice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sqs {
    pub per_million_requests: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    pub put_per_thousand: f64,
    pub get_per_thousand: f64,
    pub storage_gb_month: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudWatch {
    pub alarm_month: f64,
    pub high_resolution_alarm_month: f64,
    pub metric_month: f64,
    pub dashboard_month: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ebs {
    pub gp3_gb_month: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub public_ipv4_hour: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    pub share_of_on_demand: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstancePrice {
    pub vcpus: u32,
    /// `x86_64` or `arm64`.
    pub cpu: String,
    /// An hour on demand.
    pub hour: f64,
    /// An hour of Spot, where it is known better than by the common share.
    pub spot_hour: Option<f64>,
    /// Burstable types: the share of each vCPU that may be used for ever.
    pub baseline: Option<f64>,
    /// Burstable types: what an hour of a vCPU above the baseline costs in the long run.
    pub surplus_vcpu_hour: Option<f64>,
}

/// Machines of one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machines<'a> {
    pub instance: &'a InstancePrice,
    pub count: u32,
    /// Share of them that are Spot, 0 to 1.
    pub spot_share: f64,
    /// Of each, gp3.
    pub volume_gb: f64,
    pub has_public_ipv4: bool,
}

/// What is paid for by the month, whether an image comes or not, beside machines.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Standing {
    /// Metrics that alarms read: each is paid for.
    pub alarms: u32,
    pub high_resolution_alarms: u32,
    pub custom_metrics: u32,
    pub dashboards: u32,
    /// In S3.
    pub stored_gb: f64,
    /// Long polls and looks at depths while nothing happens.
    pub sqs_requests_per_hour: f64,
}

/// Calls that one image causes, in the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallsPerImage {
    pub sqs_requests: f64,
    pub s3_puts: f64,
    pub s3_gets: f64,
}

impl CallsPerImage {
    /// Web tier: put the image, send the request; worker: receive, get the image, put the result, send the reply,
    /// delete the request; web tier: receive the reply, delete it. The highest figure: at load ten calls of SQS are one.
    pub const ALONE: CallsPerImage = CallsPerImage { sqs_requests: 6.0, s3_puts: 2.0, s3_gets: 1.0 };
    /// The same where ten messages share each call of SQS.
    pub const BATCHED: CallsPerImage = CallsPerImage { sqs_requests: 0.6, ..CallsPerImage::ALONE };
}

/// What a plan is told to cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// A month with the fewest workers and no image.
    pub at_rest_month: f64,
    /// What a million images add, whatever machines they need: calls of SQS and S3.
    pub per_million_images: f64,
    /// A day with the most workers, all of them busy, without the calls of the images.
    pub at_max_day: f64,
    /// The most that an hour of machines costs.
    pub at_max_hour: f64,
}

impl Prices {
    /// Those carried in the binary.
    pub fn built_in() -> Prices {
        Prices::parse(BUILT_IN).expect("held by a test; this is a bug")
    }

    /// # Errors
    /// One line: where in the text, and what is wrong there.
    pub fn parse(text: &str) -> Result<Prices, String> {
        let prices: Prices = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            format!("line {line}: {}", error.message().lines().next().unwrap_or("not TOML"))
        })?;
        prices.check()?;
        Ok(prices)
    }

    /// Neither a typing error nor a sign turns into a bill that looks good.
    fn check(&self) -> Result<(), String> {
        if self.instances.is_empty() {
            return Err("[instances] holds no type".to_owned());
        }
        let instances = self.instances.iter().flat_map(|(name, price)| {
            [price.hour, price.spot_hour.unwrap_or(0.0), price.surplus_vcpu_hour.unwrap_or(0.0)]
                .map(|figure| (format!("an instance hour of {name}"), figure, f64::MAX))
                .into_iter()
                .chain([(format!("the baseline of {name}"), price.baseline.unwrap_or(0.0), 1.0)])
        });
        let CloudWatch { alarm_month, high_resolution_alarm_month, metric_month, dashboard_month } = self.cloudwatch;
        let others = [
            ("sqs.per_million_requests", self.sqs.per_million_requests),
            ("s3.put_per_thousand", self.s3.put_per_thousand),
            ("s3.get_per_thousand", self.s3.get_per_thousand),
            ("s3.storage_gb_month", self.s3.storage_gb_month),
            ("cloudwatch.alarm_month", alarm_month),
            ("cloudwatch.high_resolution_alarm_month", high_resolution_alarm_month),
            ("cloudwatch.metric_month", metric_month),
            ("cloudwatch.dashboard_month", dashboard_month),
            ("ebs.gp3_gb_month", self.ebs.gp3_gb_month),
            ("network.public_ipv4_hour", self.network.public_ipv4_hour),
        ]
        .map(|(name, figure)| (name.to_owned(), figure, f64::MAX));
        let share = [("spot.share_of_on_demand".to_owned(), self.spot.share_of_on_demand, 1.0)];
        for (name, figure, most) in instances.chain(others).chain(share) {
            if !(0.0..=most).contains(&figure) {
                return Err(format!("{name} is {figure}, which is no price or share"));
            }
        }
        match self.instances.iter().find(|(_, price)| price.vcpus == 0) {
            Some((name, _)) => Err(format!("{name} has no vCPU")),
            None => Ok(()),
        }
    }

    /// # Errors
    /// One line with the types there are.
    pub fn instance(&self, name: &str) -> Result<&InstancePrice, String> {
        self.instances.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.instances.keys().map(String::as_str).collect();
            format!("no price of instance type {name:?}; there are {}; --prices FILE brings others", known.join(", "))
        })
    }

    /// An hour of one instance, on demand and Spot mixed, at a mean load of its vCPUs from 0 to 1.
    pub fn instance_hour(&self, instance: &InstancePrice, spot_share: f64, utilization: f64) -> f64 {
        let spot_hour = instance.spot_hour.unwrap_or(instance.hour * self.spot.share_of_on_demand);
        let above_baseline = (utilization - instance.baseline.unwrap_or(1.0)).max(0.0);
        let surplus = above_baseline * f64::from(instance.vcpus) * instance.surplus_vcpu_hour.unwrap_or(0.0);
        instance.hour * (1.0 - spot_share) + spot_hour * spot_share + surplus
    }

    /// An hour of machines with their volumes and addresses, at a mean load of their vCPUs from 0 to 1.
    pub fn machines_hour(&self, machines: &Machines<'_>, utilization: f64) -> f64 {
        let Machines { instance, count, spot_share, volume_gb, has_public_ipv4 } = *machines;
        let volume = volume_gb * self.ebs.gp3_gb_month / HOURS_PER_MONTH;
        let address = if has_public_ipv4 { self.network.public_ipv4_hour } else { 0.0 };
        f64::from(count) * (self.instance_hour(instance, spot_share, utilization) + volume + address)
    }

    pub fn standing_month(&self, standing: &Standing) -> f64 {
        let cloudwatch = self.cloudwatch;
        f64::from(standing.alarms) * cloudwatch.alarm_month
            + f64::from(standing.high_resolution_alarms) * cloudwatch.high_resolution_alarm_month
            + f64::from(standing.custom_metrics) * cloudwatch.metric_month
            + f64::from(standing.dashboards) * cloudwatch.dashboard_month
            + standing.stored_gb * self.s3.storage_gb_month
            + standing.sqs_requests_per_hour * HOURS_PER_MONTH * self.sqs.per_million_requests / 1e6
    }

    /// The calls that so many images cause.
    pub fn images(&self, calls: &CallsPerImage, count: u64) -> f64 {
        let each = calls.sqs_requests * self.sqs.per_million_requests / 1e6
            + calls.s3_puts * self.s3.put_per_thousand / 1e3
            + calls.s3_gets * self.s3.get_per_thousand / 1e3;
        each * count as f64
    }

    /// What a stack will cost. `web` and `fewest` run always, at rest without load; `most` are the workers at full
    /// load, the fewest among them.
    pub fn estimate(
        &self,
        web: &Machines<'_>,
        (fewest, most): (&Machines<'_>, &Machines<'_>),
        standing: &Standing,
        calls: &CallsPerImage,
    ) -> Estimate {
        let at_rest_hour = self.machines_hour(web, 0.0) + self.machines_hour(fewest, 0.0);
        let at_max_hour = self.machines_hour(web, 1.0) + self.machines_hour(most, 1.0);
        let standing_month = self.standing_month(standing);
        Estimate {
            at_rest_month: at_rest_hour * HOURS_PER_MONTH + standing_month,
            per_million_images: self.images(calls, 1_000_000),
            at_max_day: at_max_hour * 24.0 + standing_month / HOURS_PER_MONTH * 24.0,
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
    fn a_million_images_cost_what_is_known() {
        let prices = Prices::built_in();
        close(prices.images(&CallsPerImage::ALONE, 1_000_000), 10.40 + 2.40);
        close(prices.images(&CallsPerImage::BATCHED, 1_000_000), 10.40 + 0.24);
        close(prices.images(&CallsPerImage::ALONE, 0), 0.0);
    }

    #[test]
    fn machines_are_paid_by_type_share_and_load() {
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
    fn an_estimate_adds_up() {
        let prices = Prices::built_in();
        let instance = prices.instance("c6i.large").expect("a type of the file");
        let web = Machines { instance, count: 1, spot_share: 0.0, volume_gb: 0.0, has_public_ipv4: false };
        let (none, most) = (Machines { count: 0, ..web }, Machines { count: 4, ..web });
        let standing = Standing {
            alarms: 3,
            custom_metrics: 1,
            dashboards: 1,
            stored_gb: 10.0,
            sqs_requests_per_hour: 1000.0,
            ..Standing::default()
        };
        let estimate = prices.estimate(&web, (&none, &most), &standing, &CallsPerImage::ALONE);
        let standing = 0.3 + 0.3 + 3.0 + 0.23 + 0.292;
        close(estimate.at_rest_month, 0.085 * 730.0 + standing);
        close(estimate.at_max_hour, 5.0 * 0.085);
        close(estimate.at_max_day, 5.0 * 0.085 * 24.0 + standing / 730.0 * 24.0);
        close(estimate.per_million_images, 12.8);
    }

    #[test]
    fn a_broken_file_is_one_line_that_says_where() {
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
