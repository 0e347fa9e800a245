//! Scales the workers' Auto Scaling group together with the group's own policies. This loop does what the policies
//! cannot: it starts the first worker within seconds, whereas metrics of CloudWatch may be minutes late, and it
//! publishes the backlog that target tracking follows. With `direct` it makes all decisions, and the group needs no
//! policy.
//!
//! Several of these loops may run at the same time: each reads the size of the group just before it sets it, all decide
//! the same, and the metric is an average.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use tokio::time::{Instant, sleep};

use super::depth::DepthReader;
use super::progress::Progress;
use crate::aws::{Aws, Fault};
use crate::config::{Backend, Names};
use crate::protocol::{BACKLOG_DIMENSION, BACKLOG_METRIC, BACKLOG_NAMESPACE};
use crate::scaling_policy::{self, Bounds, Observation, Policy, QueueDepth, State};
use crate::shutdown::CancellationToken;
use crate::transport::{self, Depth, Transport, TransportError};

/// The finest resolution that CloudWatch keeps. Target tracking may read it every 10 s.
const RESOLUTION_SECONDS: i32 = 1;
/// Error codes while a scaling activity is in progress.
const BUSY_CODES: [&str; 2] = ["ScalingActivityInProgress", "ScalingActivityInProgressFault"];

/// Configuration of the loop that scales an Auto Scaling group.
#[derive(Debug, Clone)]
pub struct Config {
    /// Region and endpoint.
    pub backend: Backend,
    /// Name of the request queue.
    pub request_queue: String,
    /// The stack whose backlog is published.
    pub stack: String,
    /// Name of the Auto Scaling group.
    pub group: String,
    /// The scaling policy.
    pub policy: Policy,
    /// The time that a worker needs for an image.
    pub service_time: Option<Duration>,
    /// Set the size of the group always, not only from zero.
    pub direct: bool,
    /// Interval between two readings of queue and group. It is halved while there is no worker.
    pub interval: Duration,
}

/// Controls the group until `shutdown`.
///
/// # Errors
/// The queue or the group does not exist, or the permission to read them is missing. Later failures are only logged.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let controller = Controller::open(&config).await?;
    let group = controller.group.describe().await?;
    tracing::info!(
        group = config.group,
        queue = config.request_queue,
        policy = config.policy.as_str(),
        direct = config.direct,
        min = group.min,
        max = group.max,
        desired = group.desired,
        "ready"
    );
    controller.run(&config, shutdown).await;
    Ok(())
}

struct Controller {
    transport: std::sync::Arc<dyn Transport>,
    group: Group,
    metric: Option<Metric>,
}

/// A client of the group.
struct Group {
    aws: Aws,
    client: aws_sdk_autoscaling::Client,
    name: String,
}

/// The current size of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    min: u32,
    max: u32,
    desired: u32,
    in_service: u32,
}

struct Metric {
    aws: Aws,
    client: aws_sdk_cloudwatch::Client,
    stack: String,
}

impl Controller {
    async fn open(config: &Config) -> anyhow::Result<Controller> {
        let Some(location) = config.backend.aws() else {
            return Err(anyhow!("only the AWS backend has a group; this is a bug"));
        };
        let aws = Box::pin(Aws::connect(location.region, location.endpoint_url)).await?;
        // Only the request queue is used here.
        let names = Names { request_queue: config.request_queue.clone(), ..Names::local(&config.stack) };
        let transport = transport::open(&config.backend, &names).await?;
        match transport.depth().await {
            Err(TransportError::Missing(name)) => {
                return Err(anyhow!(
                    "there is no queue {name:?}: `imgcls provision` makes the stack; or give --request-queue or --stack"
                ));
            }
            depth => drop(depth?),
        }
        // The metric is billed, and only target tracking reads it.
        let is_read = matches!(config.policy, Policy::Target(_)) && !config.direct;
        let metric = is_read.then(|| Metric {
            client: aws_sdk_cloudwatch::Client::new(aws.sdk()),
            aws: aws.clone(),
            stack: config.stack.clone(),
        });
        let client = aws_sdk_autoscaling::Client::new(aws.sdk());
        Ok(Controller { transport, group: Group { aws, client, name: config.group.clone() }, metric })
    }

    async fn run(&self, config: &Config, shutdown: CancellationToken) {
        let origin = Instant::now();
        let policy = config.policy.with_service_time(config.service_time.unwrap_or_default());
        let mut state = State::default();
        let mut depth_reader = DepthReader::default();
        let mut progress = Progress::default();
        loop {
            let pause = match self.group.describe().await {
                Ok(size) => {
                    let depth = depth_reader.read(&*self.transport).await;
                    if let Some(depth) = depth {
                        self.publish(depth, size).await;
                        if progress.is_lost(depth, size.in_service, Instant::now(), config.interval) {
                            tracing::warn!(
                                group = self.group.name,
                                waiting = depth.visible,
                                in_service = size.in_service,
                                "images wait, machines are in service, and nobody receives: see `imgcls provision doctor`"
                            );
                        }
                    }
                    let now = origin.elapsed();
                    let depth =
                        depth.map(|Depth { visible, in_flight, .. }| QueueDepth { at: now, visible, in_flight });
                    state = self.decide_and_resize(config, &policy, state, size, depth, now).await;
                    // Without a worker, the first image waits until the next reading.
                    if size.desired == 0 { config.interval / 2 } else { config.interval }
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "cannot read the group; its size is left as it is");
                    config.interval
                }
            };
            if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn decide_and_resize(
        &self,
        config: &Config,
        policy: &Policy,
        state: State,
        size: Size,
        depth: Option<QueueDepth>,
        now: Duration,
    ) -> State {
        let Ok(bounds) = Bounds::new(size.min, size.max) else { return state };
        let observation = Observation { workers: size.desired, depth };
        let (state, decision) = scaling_policy::decide(policy, bounds, state, &observation, now);
        if is_ours_to_set(config.direct, size.desired, decision.desired) {
            tracing::info!(group = self.group.name, from = size.desired, to = decision.desired,
                reason = %decision.reason, "scaling");
            if let Err(error) = self.group.resize(decision.desired).await {
                tracing::warn!(error = format!("{error:#}"), "cannot resize the group; trying again");
            }
        }
        state
    }

    async fn publish(&self, depth: Depth, size: Size) {
        let work = depth.visible.saturating_add(depth.in_flight);
        // The metric is billed, and not needed while there are neither images nor workers.
        if let Some(metric) = &self.metric
            && (work > 0 || size.desired > 0)
            && let Err(reason) = metric.put(backlog_per_worker(work, size.in_service)).await
        {
            tracing::warn!(%reason, "cannot publish the backlog; the policy does not scale in meanwhile");
        }
    }
}

/// Returns whether this loop sets the size. Otherwise the group's policies do, but they are too slow to start from
/// zero.
fn is_ours_to_set(direct: bool, desired: u32, decided: u32) -> bool {
    decided != desired && (direct || desired == 0)
}

/// The images for each worker. Without a worker, the images for the first one.
fn backlog_per_worker(work: u64, in_service: u32) -> f64 {
    work as f64 / f64::from(in_service.max(1))
}

impl Group {
    async fn describe(&self) -> anyhow::Result<Size> {
        let call = self.client.describe_auto_scaling_groups().auto_scaling_group_names(&self.name);
        let answer = call
            .send()
            .await
            .map_err(|error| self.aws.fault("autoscaling:DescribeAutoScalingGroups", &self.label(), &error))?;
        let group = answer.auto_scaling_groups.unwrap_or_default().into_iter().next().with_context(|| {
            format!(
                "there is no {}: make the stack with `imgcls provision`, or give --auto-scaling-group or --stack",
                self.label()
            )
        })?;
        let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
        let instances = group.instances.unwrap_or_default();
        let in_service = instances
            .iter()
            .filter(|instance| instance.lifecycle_state.as_ref().is_some_and(|state| state.as_str() == "InService"));
        Ok(Size {
            min: number(group.min_size),
            max: number(group.max_size),
            desired: number(group.desired_capacity),
            in_service: in_service.count() as u32,
        })
    }

    async fn resize(&self, desired: u32) -> anyhow::Result<()> {
        let call = self.client.set_desired_capacity().auto_scaling_group_name(&self.name);
        let call = call.desired_capacity(i32::try_from(desired)?).honor_cooldown(false);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code().is_some_and(|code| BUSY_CODES.contains(&code)) => {
                Err(anyhow!("a scaling activity of {} is in progress", self.label()))
            }
            Err(error) => Err(self.aws.fault("autoscaling:SetDesiredCapacity", &self.label(), &error).into()),
        }
    }

    fn label(&self) -> String {
        format!("Auto Scaling group {:?}", self.name)
    }
}

impl Metric {
    async fn put(&self, backlog_per_worker: f64) -> Result<(), Fault> {
        let datum = MetricDatum::builder()
            .metric_name(BACKLOG_METRIC)
            .dimensions(Dimension::builder().name(BACKLOG_DIMENSION).value(&self.stack).build())
            .value(backlog_per_worker)
            .unit(StandardUnit::Count)
            .storage_resolution(RESOLUTION_SECONDS)
            .build();
        let put = self.client.put_metric_data().namespace(BACKLOG_NAMESPACE).metric_data(datum).send().await;
        let metric = format!("metric {BACKLOG_NAMESPACE}/{BACKLOG_METRIC}");
        put.map(drop).map_err(|error| self.aws.fault("cloudwatch:PutMetricData", &metric, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_sets_the_size_only_from_zero_unless_direct() {
        assert!(is_ours_to_set(false, 0, 1));
        assert!(!is_ours_to_set(false, 0, 0) && !is_ours_to_set(false, 1, 2) && !is_ours_to_set(false, 2, 1));
        assert!(is_ours_to_set(true, 1, 2) && is_ours_to_set(true, 2, 1) && !is_ours_to_set(true, 2, 2));
    }

    #[test]
    fn backlog_of_an_empty_group_is_that_of_its_first_worker() {
        assert!((backlog_per_worker(30, 0) - 30.0).abs() < 1e-9 && (backlog_per_worker(30, 4) - 7.5).abs() < 1e-9);
    }
}
