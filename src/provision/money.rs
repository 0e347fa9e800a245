//! Estimates what a stack costs, from a file of prices.

use serde::Serialize;
use serde_json::Value;

use super::resource::Kind;
use super::settings::Settings;
use super::stack::Stack;
use crate::scaling_policy::Policy;
use crate::scaling_policy::cost::{CallsPerImage, FixedResources, InstancePrice, Machines, Prices};

/// A process that waits for messages polls each of its queues three times a minute.
const LONG_POLLS_PER_HOUR: f64 = 180.0;
/// A worker waits at the queues of both classes of service, and `autoscale` reads the depth of both.
const REQUEST_QUEUES: f64 = 2.0;
/// `autoscale`, beside each web process, reads the depth every 5 s while there is no worker, else every 10 s.
const READINGS_PER_HOUR_WITHOUT_WORKERS: f64 = 720.0;
const READINGS_PER_HOUR: f64 = 360.0;
/// A machine logs its start, faults and drains, which is far less.
const LOG_GB_PER_MACHINE_MONTH: f64 = 0.01;
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
    /// The price that a load balancer adds for a gigabyte of images. Absent without one.
    pub per_gigabyte_balanced: Option<f64>,
    pub at_max_day: Option<f64>,
    pub at_max_hour: Option<f64>,
    /// Instance types of the stack whose price is unknown.
    pub unknown_types: Vec<String>,
    /// Usage that is not counted, since the prices lack it.
    pub not_counted: Vec<&'static str>,
    /// The region of the stack, if the prices are not its own.
    pub region_without_prices: Option<String>,
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
    let has_balancer = stack.get("WebBalancer").is_some();
    let follows_metric = matches!(settings.policy, Policy::Target(_));
    let standing = |workers: u32| FixedResources {
        alarms: alarm_metrics(stack),
        // Target tracking creates two alarms: one to scale out and one to scale in.
        high_resolution_alarms: if follows_metric { 2 } else { 0 },
        custom_metrics: u32::from(follows_metric),
        dashboards: 1,
        stored_gb: STORED_GB,
        sqs_requests_per_hour: requests_per_hour(settings, workers),
        // Nothing is published while there is neither an image nor a worker.
        metric_requests_per_hour: if follows_metric && workers > 0 {
            READINGS_PER_HOUR * f64::from(settings.web_instances)
        } else {
            0.0
        },
        log_gb_per_month: LOG_GB_PER_MACHINE_MONTH * f64::from(workers + settings.web_instances),
        load_balancers: u32::from(has_balancer),
        public_addresses: balancer_addresses(stack),
    };
    let estimate = |fixed: &FixedResources| prices.estimate(&web, (&workers, &most), fixed, &CallsPerImage::UNBATCHED);
    let (at_rest, at_max) = (estimate(&standing(settings.bounds.min())), estimate(&standing(settings.bounds.max())));
    let mut not_counted = prices.missing();
    if has_balancer && prices.load_balancer.is_none() {
        not_counted.push("the load balancer");
    }
    let known = |figure: f64| unknown_types.is_empty().then_some(figure);
    Cost {
        currency: prices.currency.clone(),
        prices_of: prices.date.clone(),
        prices_region: prices.region.clone(),
        at_rest_month: known(at_rest.idle_month),
        per_million_images: at_rest.per_million_images,
        at_max_day: known(at_max.at_max_day),
        at_max_hour: known(at_max.at_max_hour),
        unknown_types,
        not_counted,
        per_gigabyte_balanced: prices.load_balancer.filter(|_| has_balancer).map(|price| price.capacity_unit_hour),
        region_without_prices: (prices.region != stack.region).then(|| stack.region.clone()),
        workers: preferred,
        most_workers: settings.bounds.max(),
    }
}

/// The polls of processes that wait, and the readings of `autoscale`.
fn requests_per_hour(settings: &Settings, workers: u32) -> f64 {
    let web = f64::from(settings.web_instances);
    let readings = if workers == 0 { READINGS_PER_HOUR_WITHOUT_WORKERS } else { READINGS_PER_HOUR };
    LONG_POLLS_PER_HOUR * (REQUEST_QUEUES * f64::from(workers) + web) + readings * REQUEST_QUEUES * web
}

/// The public addresses of the load balancer: one in each of its subnets.
fn balancer_addresses(stack: &Stack) -> u32 {
    let balancer = stack.get("WebBalancer").filter(|_| !stack.has_inner_balancer());
    let subnets = balancer.and_then(|balancer| balancer.properties.get("Subnets")?.as_array());
    subnets.map_or(0, |subnets| subnets.len() as u32)
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

    #[test]
    fn polls_readings_and_metrics_of_an_idle_stack_are_counted() {
        use crate::scaling_policy::{Bounds, TargetPolicy};
        let settings = Settings::for_tests("imgcls");
        // One web process: 3 polls a minute, and 12 readings of two queues.
        assert!((requests_per_hour(&settings, 0) - (180.0 + 1_440.0)).abs() < 1e-9);
        assert!((requests_per_hour(&settings, 2) - (180.0 + 720.0 + 720.0)).abs() < 1e-9);
        let month = |settings: &Settings| {
            cost(settings, &settings.stack_for_tests(), &Prices::built_in()).at_rest_month.expect("known prices")
        };
        let policy = Policy::Target(TargetPolicy::with_service_time(std::time::Duration::from_millis(20)));
        let target = |min| Settings { policy, bounds: Bounds::new(min, 4).expect("bounds"), ..settings.clone() };
        // A worker more: its machine with volume and address, its polls and its log, slower readings, and the metric.
        let machine = (0.08925 + 0.005) * 730.0 + 8.0 * 0.08;
        let requests = (360.0 - 720.0) * 730.0 * 0.4 / 1e6;
        let metric = 360.0 * 730.0 * 0.01 / 1e3;
        let more = month(&target(1)) - month(&target(0));
        assert!((more - (machine + requests + metric + 0.005)).abs() < 1e-6, "{more}");
    }

    #[test]
    fn load_balancer_is_counted_with_its_public_addresses() {
        let plain = Settings::for_tests("imgcls");
        let balanced = Settings { certificate: Some("arn".to_owned()), ..plain.clone() };
        let cost = |stack: &Stack, settings: &Settings| cost(settings, stack, &Prices::built_in());
        let without = cost(&plain.stack_for_tests(), &plain);
        let mut stack = balanced.stack_for_tests();
        let inner = cost(&stack, &balanced);
        let more = |cost: &Cost| cost.at_rest_month.expect("known") - without.at_rest_month.expect("known");
        assert!((more(&inner) - 0.0225 * 730.0).abs() < 1e-6, "{}", more(&inner));
        assert_eq!((without.per_gigabyte_balanced, inner.per_gigabyte_balanced), (None, Some(0.008)));
        let balancer = stack.resources.iter_mut().find(|resource| resource.id == "WebBalancer").expect("it");
        balancer.properties.insert("Scheme".to_owned(), "internet-facing".into());
        let public = cost(&stack, &balanced);
        assert!((more(&public) - (0.0225 + 2.0 * 0.005) * 730.0).abs() < 1e-6, "{}", more(&public));
    }

    #[test]
    fn prices_of_another_region_are_named() {
        let settings = Settings::for_tests("imgcls");
        let mut stack = settings.stack_for_tests();
        assert_eq!(cost(&settings, &stack, &Prices::built_in()).region_without_prices, None);
        stack.region = "eu-west-1".to_owned();
        assert_eq!(cost(&settings, &stack, &Prices::built_in()).region_without_prices.as_deref(), Some("eu-west-1"));
    }
}
