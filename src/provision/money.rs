//! Estimates what a stack costs, from a file of prices.

use serde::Serialize;
use serde_json::Value;

use super::resource::Kind;
use super::settings::Settings;
use super::stack::{Stack, VOLUME_GB};
use crate::scaling_policy::Policy;
use crate::scaling_policy::cost::{CallsPerImage, FixedResources, Machines, Prices};

/// A waiting worker or web process polls its queue three times a minute.
const LONG_POLLS_PER_HOUR: f64 = 180.0;
/// Size of the bundle.
const STORED_GB: f64 = 0.1;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cost {
    pub currency: String,
    /// Date of the prices.
    pub prices_of: String,
    pub prices_region: String,
    pub at_rest_month: f64,
    pub per_million_images: f64,
    pub at_max_day: f64,
    pub at_max_hour: f64,
    pub workers: String,
    pub most_workers: u32,
}

/// # Errors
/// A price is missing.
pub(super) fn cost(settings: &Settings, stack: &Stack, prices: &Prices) -> Result<Cost, String> {
    let cpu = stack.bundle.cpu;
    let preferred = settings.worker_types(cpu).remove(0);
    let spot_share = f64::from(settings.spot_percent) / 100.0;
    let workers = Machines {
        instance: prices.instance(&preferred)?,
        count: settings.bounds.min(),
        spot_share,
        volume_gb: f64::from(VOLUME_GB),
        has_public_ipv4: true,
    };
    let most = Machines { count: settings.bounds.max(), ..workers };
    let web = Machines {
        instance: prices.instance(settings.web_type(cpu))?,
        count: settings.web_instances,
        spot_share: 0.0,
        ..workers
    };
    let follows_metric = matches!(settings.policy, Policy::Target(_));
    let processes = f64::from(settings.bounds.min() + settings.web_instances);
    let standing = FixedResources {
        alarms: alarm_metrics(stack),
        // Target tracking creates two alarms: one to scale out and one to scale in.
        high_resolution_alarms: if follows_metric { 2 } else { 0 },
        custom_metrics: u32::from(follows_metric),
        dashboards: 1,
        stored_gb: STORED_GB,
        sqs_requests_per_hour: LONG_POLLS_PER_HOUR * processes,
    };
    let estimate = prices.estimate(&web, (&workers, &most), &standing, &CallsPerImage::UNBATCHED);
    Ok(Cost {
        currency: prices.currency.clone(),
        prices_of: prices.date.clone(),
        prices_region: prices.region.clone(),
        at_rest_month: estimate.idle_month,
        per_million_images: estimate.per_million_images,
        at_max_day: estimate.at_max_day,
        at_max_hour: estimate.at_max_hour,
        workers: preferred,
        most_workers: settings.bounds.max(),
    })
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
        assert_eq!(alarm_metrics(&Settings::for_tests("imgcls").stack_for_tests()), 6);
    }
}
