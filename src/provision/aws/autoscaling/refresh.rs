//! Instance refreshes: a group replaces its machines one after the other.

use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_autoscaling::types::{
    InstanceRefresh, InstanceRefreshStatus, RefreshPreferences, ScaleInProtectedInstances,
};

use crate::provision::aws::client::{Cloud, retry_while};
use crate::provision::machines::{Refresh, RefreshState};
use crate::provision::resource::{Kind, label};
use crate::provision::tier::Tier;

/// As many healthy machines as the group wants: a new machine has to be in service before an old one ends.
const LEAST_HEALTHY_PERCENT: i32 = 100;
/// How many machines there may be meanwhile: of workers a tenth more, and at least one; of web machines twice as many.
const MOST_WORKERS_PERCENT: i32 = 110;
const MOST_WEB_PERCENT: i32 = 200;

impl Cloud {
    /// Replaces the machines of a group that do not run its launch template's version. With `is_newer`, a refresh that
    /// runs was for an earlier version, and is cancelled.
    ///
    /// # Errors
    /// A call fails, or an earlier refresh is not cancelled in time.
    pub(in crate::provision) async fn start_refresh(
        &self,
        group: &str,
        tier: Tier,
        is_newer: bool,
    ) -> anyhow::Result<()> {
        let what = label(Kind::AutoScalingGroup, group);
        if self.last_refresh(group).await?.is_some_and(|last| last.state == RefreshState::Running) {
            if !is_newer {
                return Ok(());
            }
            let call = self.autoscaling.cancel_instance_refresh().auto_scaling_group_name(group);
            let answer = call.send().await;
            if !answer.as_ref().err().and_then(|error| error.code()).is_some_and(|code| code.contains("NotFound")) {
                self.done("autoscaling:CancelInstanceRefresh", &what, answer)?;
            }
        }
        let most = match tier {
            Tier::Worker => MOST_WORKERS_PERCENT,
            Tier::Web => MOST_WEB_PERCENT,
        };
        let preferences = RefreshPreferences::builder()
            .min_healthy_percentage(LEAST_HEALTHY_PERCENT)
            .max_healthy_percentage(most)
            .skip_matching(true)
            // A worker is protected while it works. It drains before it ends, so that it need not be waited for.
            .scale_in_protected_instances(ScaleInProtectedInstances::Refresh)
            .build();
        let is_transient = |error: &aws_sdk_autoscaling::error::SdkError<_, _>| {
            error.code().is_some_and(|code| code.contains("InstanceRefreshInProgress"))
        };
        let started = retry_while(is_transient, async || {
            let call = self.autoscaling.start_instance_refresh().auto_scaling_group_name(group);
            call.preferences(preferences.clone()).send().await
        });
        self.done("autoscaling:StartInstanceRefresh", &what, started.await).map(drop)
    }

    /// The newest refresh of a group.
    pub(in crate::provision) async fn last_refresh(&self, group: &str) -> anyhow::Result<Option<Refresh>> {
        let call = self.autoscaling.describe_instance_refreshes().auto_scaling_group_name(group).max_records(1);
        let what = label(Kind::AutoScalingGroup, group);
        let answer = self.done("autoscaling:DescribeInstanceRefreshes", &what, call.send().await)?;
        Ok(answer.instance_refreshes.unwrap_or_default().first().map(refresh))
    }
}

fn refresh(found: &InstanceRefresh) -> Refresh {
    let state = match found.status() {
        Some(InstanceRefreshStatus::Failed | InstanceRefreshStatus::RollbackFailed) => RefreshState::Failed,
        Some(InstanceRefreshStatus::Successful) => RefreshState::Ended,
        Some(InstanceRefreshStatus::Cancelled | InstanceRefreshStatus::RollbackSuccessful) => RefreshState::Cancelled,
        _ => RefreshState::Running,
    };
    Refresh { state, percent: found.percentage_complete(), reason: found.status_reason().map(str::to_owned) }
}
