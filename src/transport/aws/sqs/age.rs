//! The age of the oldest message of a queue. SQS reports it only to CloudWatch, every minute, and up to 15 minutes late for
//! a queue that was idle.

use std::time::{Duration, SystemTime};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::config::Builder;
use aws_sdk_cloudwatch::config::retry::RetryConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Datapoint, Dimension, Statistic};

use super::address::as_queue_error;
use crate::aws::Aws;
use crate::transport::queued::queue::QueueError;

const NAMESPACE: &str = "AWS/SQS";
const METRIC: &str = "ApproximateAgeOfOldestMessage";
const DIMENSION: &str = "QueueName";
/// The interval at which SQS reports.
const PERIOD: Duration = Duration::from_secs(60);
/// Older reports say nothing about now.
const LOOK_BACK: Duration = Duration::from_secs(15 * 60);
/// Somebody waits at a terminal, and this is the least important part of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The last report. `None` when there is none.
pub(super) async fn of_oldest(aws: &Aws, queue: &str) -> Result<Option<Duration>, QueueError> {
    let now = SystemTime::now();
    let call = client(aws)
        .get_metric_statistics()
        .namespace(NAMESPACE)
        .metric_name(METRIC)
        .dimensions(Dimension::builder().name(DIMENSION).value(queue).build())
        .start_time(DateTime::from(now - LOOK_BACK))
        .end_time(DateTime::from(now))
        .period(PERIOD.as_secs() as i32)
        .statistics(Statistic::Maximum);
    let what = format!("metric {NAMESPACE}/{METRIC} of queue {queue:?}");
    let answer = call.send().await.map_err(|error| {
        let fault = aws.fault("cloudwatch:GetMetricStatistics", &what, &error);
        as_queue_error(fault, queue)
    })?;
    Ok(latest(&answer.datapoints.unwrap_or_default()))
}

fn client(aws: &Aws) -> Client {
    let once = Builder::from(aws.sdk())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(TIMEOUT).build());
    Client::from_conf(once.build())
}

/// The points come in no order.
fn latest(datapoints: &[Datapoint]) -> Option<Duration> {
    let latest = datapoints.iter().max_by_key(|point| point.timestamp.map(|at| at.as_nanos()))?;
    Duration::try_from_secs_f64(latest.maximum?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(second: i64, age: f64) -> Datapoint {
        Datapoint::builder().timestamp(DateTime::from_secs(second)).maximum(age).build()
    }

    #[test]
    fn last_report_counts_wherever_it_is() {
        assert_eq!(latest(&[]), None);
        assert_eq!(latest(&[point(60, 9.0), point(180, 2.5), point(120, 90.0)]), Some(Duration::from_millis(2_500)));
        assert_eq!(latest(&[point(60, -1.0)]), None, "no number of seconds");
    }
}
