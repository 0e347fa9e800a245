//! Attributes of queues, as SQS writes them.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;

use super::whole_seconds;
use crate::transport::queued::queue::{DEFAULT_MAX_MESSAGE_BYTES, QueueAttributes, Redrive};

pub(super) fn to_sqs(
    attributes: &QueueAttributes,
    dead_letters_arn: Option<&str>,
) -> HashMap<QueueAttributeName, String> {
    let mut found = HashMap::from([
        (QueueAttributeName::VisibilityTimeout, whole_seconds(attributes.visibility_timeout).to_string()),
        (QueueAttributeName::MessageRetentionPeriod, whole_seconds(attributes.retention).to_string()),
        (QueueAttributeName::MaximumMessageSize, attributes.max_message_bytes.to_string()),
    ]);
    if let (Some(redrive), Some(arn)) = (&attributes.redrive, dead_letters_arn) {
        found.insert(QueueAttributeName::RedrivePolicy, redrive_policy(redrive, arn));
    }
    found
}

pub(super) fn redrive_policy(redrive: &Redrive, dead_letters_arn: &str) -> String {
    let policy = serde_json::json!({
        "deadLetterTargetArn": dead_letters_arn,
        "maxReceiveCount": redrive.max_receive_count,
    });
    policy.to_string()
}

/// # Errors
/// The name of the attribute that is missing or is no number.
pub(super) fn from_sqs(found: &HashMap<QueueAttributeName, String>) -> Result<QueueAttributes, &'static str> {
    let seconds = |name, what| found.get(&name).and_then(|text| text.parse().ok()).map(Duration::from_secs).ok_or(what);
    let max_message_bytes = found.get(&QueueAttributeName::MaximumMessageSize);
    Ok(QueueAttributes {
        visibility_timeout: seconds(QueueAttributeName::VisibilityTimeout, "visibility timeout")?,
        retention: seconds(QueueAttributeName::MessageRetentionPeriod, "retention")?,
        max_message_bytes: max_message_bytes.and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_MAX_MESSAGE_BYTES),
        redrive: found.get(&QueueAttributeName::RedrivePolicy).and_then(|policy| to_redrive(policy)),
    })
}

/// AWS writes the count as a number. A count that was set as a string comes back as a string.
fn to_redrive(policy: &str) -> Option<Redrive> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let count = &policy["maxReceiveCount"];
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    Some(Redrive {
        dead_letter_queue: policy["deadLetterTargetArn"].as_str()?.rsplit(':').next()?.to_owned(),
        max_receive_count: u32::try_from(count).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redrive_policy_is_read_in_both_spellings() {
        let expected = Some(Redrive { dead_letter_queue: "dead".to_owned(), max_receive_count: 7 });
        for count in ["7", "\"7\""] {
            let policy = format!("{{\"deadLetterTargetArn\":\"arn:aws:sqs:r:1:dead\",\"maxReceiveCount\":{count}}}");
            assert_eq!(to_redrive(&policy), expected, "{policy}");
        }
        assert_eq!(to_redrive("{}"), None);
    }
}
