//! The events of watched buckets: who may send to the queue of bulk requests, and what each bucket sends.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::builder::Builder;
use crate::provision::permissions;
use crate::provision::resource::Kind;

/// Begins the ids of this program's notifications.
pub(in crate::provision) const OUR_IDS: &str = "imgcls-";
/// Every way in which an object is written.
const EVENT: &str = "s3:ObjectCreated:*";

impl Builder<'_> {
    /// Events are bulk requests: nobody waits for their results.
    pub(super) fn bucket_events(&mut self) {
        let mut prefixes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for watched in &self.settings.watched {
            prefixes.entry(&watched.bucket).or_default().push(&watched.prefix);
        }
        if prefixes.is_empty() {
            return;
        }
        let queue = self.settings.names.bulk_queue();
        let queue_arn = self.arns.queue(&queue);
        let buckets: Vec<String> = prefixes.keys().map(|bucket| self.arns.bucket(bucket)).collect();
        let policy = permissions::bucket_events(&queue_arn, &buckets, &self.site.account);
        let notifications: Vec<(String, Value)> = prefixes
            .into_iter()
            .map(|(bucket, mut prefixes)| {
                prefixes.sort_unstable();
                let each = prefixes.into_iter().map(|prefix| notification(&self.settings.stack, prefix, &queue_arn));
                (bucket.to_owned(), json!({"QueueConfigurations": each.collect::<Vec<_>>()}))
            })
            .collect();
        self.add("BulkQueuePolicy", Kind::QueuePolicy, queue, json!({"PolicyDocument": policy}));
        for (bucket, members) in notifications {
            self.add(&format!("Events of {bucket}"), Kind::BucketNotification, bucket, members);
        }
    }
}

/// A notification as this program compares it: its id, its events, the rules of its filter by name, and its queue.
fn notification(stack: &str, prefix: &str, queue_arn: &str) -> Value {
    // Ids are unique within a bucket, which several stacks may watch.
    let digest = format!("{:x}", Sha256::digest(format!("{stack}/{prefix}")));
    let filter = if prefix.is_empty() { json!({}) } else { json!({"prefix": prefix}) };
    json!({"Id": format!("{OUR_IDS}{stack}-{}", &digest[..8]), "Events": [EVENT], "Filter": filter, "Queue": queue_arn})
}
