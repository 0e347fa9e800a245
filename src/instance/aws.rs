//! The instance metadata service (IMDSv2), and calls to the Auto Scaling group of this instance.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_sdk_autoscaling::Client;

use super::notice::Notice;
use crate::aws::Aws;
use crate::protocol::DRAIN_HOOK;

/// A variable of the AWS SDKs. `true` means that the metadata service must not be queried.
const DISABLED_VARIABLE: &str = "AWS_EC2_METADATA_DISABLED";
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const READ_TIMEOUT: Duration = Duration::from_secs(1);
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
/// The state that the group wants this instance to have. Absent outside of a group.
const TARGET_STATE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
/// Absent unless a Spot interruption was announced.
const SPOT_NOTICE: &str = "/latest/meta-data/spot/instance-action";
const TERMINATED: &str = "Terminated";

pub(super) struct Ec2 {
    metadata: imds::Client,
    aws: Aws,
    autoscaling: Client,
    id: String,
    group: String,
    is_in_group: bool,
    /// True once the failure to read the metadata was logged.
    logged_failure: AtomicBool,
}

impl Ec2 {
    /// Returns `None` if no metadata service answers.
    pub(super) async fn find(region: Option<&str>, endpoint_url: Option<&str>, group: &str) -> Option<Ec2> {
        if std::env::var(DISABLED_VARIABLE).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let aws = Aws::connect(region, endpoint_url).await.ok()?;
        let metadata = aws.metadata(CONNECT_TIMEOUT, READ_TIMEOUT);
        let id = read(&metadata, INSTANCE_ID).await.ok()??;
        let is_in_group = read(&metadata, TARGET_STATE).await.ok()?.is_some();
        tracing::info!(instance = id, group = is_in_group.then_some(group), "on EC2");
        let autoscaling = Client::new(aws.sdk());
        let logged_failure = AtomicBool::new(false);
        Some(Ec2 { metadata, aws, autoscaling, id, group: group.to_owned(), is_in_group, logged_failure })
    }

    pub(super) async fn notice(&self) -> Option<Notice> {
        let metadata = tokio::try_join!(read(&self.metadata, SPOT_NOTICE), read(&self.metadata, TARGET_STATE));
        match metadata {
            Ok((spot, target)) => notice(spot.as_deref(), target.as_deref()),
            Err(reason) => {
                if !self.logged_failure.swap(true, Ordering::Relaxed) {
                    tracing::warn!(reason, "cannot read the instance metadata; trying again");
                }
                None
            }
        }
    }

    /// # Errors
    /// One line: the action, the instance and the reason.
    pub(super) async fn set_protected(&self, protected: bool) -> Result<(), String> {
        if !self.is_in_group {
            return Ok(());
        }
        let call = self.autoscaling.set_instance_protection().auto_scaling_group_name(&self.group);
        let call = call.instance_ids(&self.id).protected_from_scale_in(protected);
        let set = call.send().await.map(drop);
        set.map_err(|error| self.aws.fault("autoscaling:SetInstanceProtection", &self.label(), &error).to_string())
    }

    /// Completes the lifecycle hook if the group waits for this instance to drain.
    pub(super) async fn complete_lifecycle(&self) {
        if !matches!(read(&self.metadata, TARGET_STATE).await, Ok(Some(state)) if state == TERMINATED) {
            return;
        }
        let call = self.autoscaling.complete_lifecycle_action().auto_scaling_group_name(&self.group);
        let call = call.lifecycle_hook_name(DRAIN_HOOK).instance_id(&self.id).lifecycle_action_result("CONTINUE");
        match call.send().await {
            Ok(_) => tracing::info!(instance = self.id, "drained; the group may terminate this instance"),
            Err(error) => {
                let reason = self.aws.fault("autoscaling:CompleteLifecycleAction", &self.label(), &error);
                tracing::warn!(%reason, "cannot complete the lifecycle hook; the group terminates this instance when the hook times out");
            }
        }
    }

    fn label(&self) -> String {
        format!("instance {:?} of Auto Scaling group {:?}", self.id, self.group)
    }
}

fn notice(spot: Option<&str>, target: Option<&str>) -> Option<Notice> {
    match (spot, target) {
        (_, Some(TERMINATED)) => Some(Notice::ScaleIn),
        (Some(_), _) => Some(Notice::Spot),
        (None, _) => None,
    }
}

/// Returns `None` if the item does not exist.
async fn read(metadata: &imds::Client, path: &str) -> Result<Option<String>, String> {
    match metadata.get(path).await {
        Ok(text) => Ok(Some(text.as_ref().trim().to_owned())),
        Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => Ok(None),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_in_and_spot_interruption_give_notice() {
        assert_eq!(notice(None, None), None);
        assert_eq!(notice(None, Some("InService")), None);
        assert_eq!(notice(None, Some(TERMINATED)), Some(Notice::ScaleIn));
        assert_eq!(notice(Some(r#"{"action": "terminate"}"#), Some("InService")), Some(Notice::Spot));
    }
}
