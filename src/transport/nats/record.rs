//! A stream remembers the attributes and tags of its queue, as JSON in the description of the stream, which every
//! version of JetStream keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::transport::queued::queue::{QueueAttributes, Redrive};

/// The description of a queue's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRecord {
    visibility_timeout_ms: u64,
    retention_ms: u64,
    max_message_bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_letter_queue: Option<String>,
    #[serde(default)]
    max_receive_count: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl QueueRecord {
    pub(super) fn of(attributes: &QueueAttributes) -> QueueRecord {
        let QueueAttributes { visibility_timeout, retention, max_message_bytes, redrive } = attributes;
        let milliseconds = |duration: &Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        QueueRecord {
            visibility_timeout_ms: milliseconds(visibility_timeout),
            retention_ms: milliseconds(retention),
            max_message_bytes: *max_message_bytes,
            dead_letter_queue: redrive.as_ref().map(|redrive| redrive.dead_letter_queue.clone()),
            max_receive_count: redrive.as_ref().map_or(0, |redrive| redrive.max_receive_count),
            tags: BTreeMap::new(),
        }
    }

    /// Reads the description in the configuration of a stream. A queue whose description somebody changed has the
    /// attributes of a queue that is created without any.
    pub(super) fn of_stream(config: &Value) -> QueueRecord {
        let description = config["description"].as_str().unwrap_or_default();
        serde_json::from_str(description).unwrap_or_else(|_| QueueRecord::of(&QueueAttributes::default()))
    }

    pub(super) fn attributes(&self) -> QueueAttributes {
        let redrive = self
            .dead_letter_queue
            .as_ref()
            .map(|queue| Redrive { dead_letter_queue: queue.clone(), max_receive_count: self.max_receive_count });
        QueueAttributes {
            visibility_timeout: Duration::from_millis(self.visibility_timeout_ms),
            retention: Duration::from_millis(self.retention_ms),
            max_message_bytes: self.max_message_bytes,
            redrive,
        }
    }

    pub(super) fn set_redrive(&mut self, redrive: &Redrive) {
        self.dead_letter_queue = Some(redrive.dead_letter_queue.clone());
        self.max_receive_count = redrive.max_receive_count;
    }

    pub(super) fn to_description(&self) -> String {
        // Maps with text as keys can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
