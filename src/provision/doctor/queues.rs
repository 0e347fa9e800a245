//! The queues.

use serde_json::Value;

use super::{Findings, Observed, Target, is_public};
use crate::provision::policy_evaluation::listed;

/// Longest time that an image may take. The visibility timeout has to cover it for workers that renew no lease.
const SLOWEST_JOB_SECONDS: u64 = 30;
/// Messages in the legacy wire format contain the image, and photographs need about this much. References always fit.
const LEAST_MESSAGE_BYTES: u64 = 256 << 10;
const SHORTEST_RETENTION_SECONDS: u64 = 3_600;

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    bulk(observed, target, findings);
    for name in [&target.names.request_queue, &target.names.result_queue] {
        let on = format!("queue {name:?}");
        let Some((_, queue)) = observed.queues.iter().find(|(queue, _)| queue == name) else {
            findings.broken(
                &on,
                "it does not exist",
                "`imgcls provision` makes it; the first tier that starts does too",
            );
            continue;
        };
        message(queue, &on, findings);
        if name == &target.names.request_queue {
            requests(observed, target, queue, &on, findings);
        }
    }
    if let Some(stalled) = observed.stalled {
        findings.broken(
            &format!("queue {:?}", target.names.request_queue),
            format!(
                "{} images wait, {} machines of group {:?} are InService, and nobody receives",
                stalled.visible, stalled.in_service, target.group
            ),
            format!(
                "read log group {:?} and the system log of a machine, then terminate it: its group replaces it",
                target.log_group
            ),
        );
    }
}

/// A service without a queue for batches classifies everything else.
fn bulk(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let name = target.names.bulk_queue();
    let on = format!("queue {name:?}");
    let Some((_, queue)) = observed.queues.iter().find(|(queue, _)| *queue == name) else {
        findings.risk(
            &on,
            "it does not exist, so batches cannot be classified",
            "`imgcls provision` makes it; the first tier that starts does too",
        );
        return;
    };
    message(queue, &on, findings);
    requests(observed, target, queue, &on, findings);
}

/// Checks that apply to every queue.
fn message(queue: &Value, on: &str, findings: &mut Findings) {
    let number = |property: &str| queue[property].as_u64();
    if let Some(limit) = number("MaximumMessageSize").filter(|limit| *limit < LEAST_MESSAGE_BYTES) {
        findings.risk(
            on,
            format!("it takes messages of {limit} bytes at most: photographs in the legacy wire format do not fit"),
            "set MaximumMessageSize to 1048576",
        );
    }
    if let Some(seconds) = number("DelaySeconds").filter(|seconds| *seconds > 0) {
        findings.risk(
            on,
            format!("its DelaySeconds is {seconds}: every message waits that long"),
            "set DelaySeconds to 0",
        );
    }
    if queue["SqsManagedSseEnabled"] == "false" && queue["KmsMasterKeyId"].is_null() {
        findings.risk(on, "its messages are not encrypted at rest", "set SqsManagedSseEnabled to true");
    }
    let policy: Value = queue["Policy"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if listed(&policy["Statement"]).into_iter().any(is_public) {
        findings.risk(on, "its queue policy allows everybody to use it", "remove the statement with Principal *");
    }
}

fn requests(observed: &Observed, target: &Target<'_>, queue: &Value, on: &str, findings: &mut Findings) {
    let number = |property: &str| queue[property].as_u64();
    if let Some(seconds) = number("VisibilityTimeout").filter(|seconds| *seconds < SLOWEST_JOB_SECONDS) {
        findings.risk(
            on,
            format!("a message is redelivered after {seconds} s, while its image may still be processed"),
            format!("set VisibilityTimeout to {SLOWEST_JOB_SECONDS} or more"),
        );
    }
    if let Some(seconds) = number("MessageRetentionPeriod").filter(|seconds| *seconds < SHORTEST_RETENTION_SECONDS) {
        findings.risk(
            on,
            format!("messages expire after {seconds} s, before a fleet may have started from zero"),
            "set MessageRetentionPeriod to 345600",
        );
    }
    let redrive: Value =
        queue["RedrivePolicy"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let Some(dead_letters) = redrive["deadLetterTargetArn"].as_str().and_then(|arn| arn.rsplit(':').next()) else {
        findings.risk(
            on,
            "it has no dead-letter queue: a message that kills its worker is redelivered until it expires",
            format!("make {:?} and name it in RedrivePolicy", target.names.dead_letter_queue()),
        );
        return;
    };
    if !observed.queues.iter().any(|(name, _)| name == dead_letters) {
        findings.broken(
            on,
            format!("the dead-letter queue {dead_letters:?} of its RedrivePolicy does not exist"),
            format!("make {dead_letters:?}; `imgcls provision` does for a stack of its own"),
        );
    }
}
