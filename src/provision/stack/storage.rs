//! Log group, queues and buckets of a stack, and the bundle and the models in the input bucket.

use std::time::Duration;

use serde_json::{Value, json};

use super::builder::Builder;
use crate::config::Names;
use crate::protocol::{DEAD_LETTER_RETENTION, REDRIVE_MARGIN};
use crate::provision::permissions;
use crate::provision::resource::Kind;

const RETENTION: Duration = Duration::from_secs(4 * 24 * 3600);
const LOG_RETENTION_DAYS: u32 = 30;

impl Builder<'_> {
    pub(super) fn log_group(&mut self) {
        let members = json!({"RetentionInDays": LOG_RETENTION_DAYS, "Tags": self.tags()});
        self.add("LogGroup", Kind::LogGroup, self.names.log_group.clone(), members);
    }

    pub(super) fn queues(&mut self) {
        let names = &self.settings.names;
        let queue = |retention: Duration, redrive: Value| {
            json!({
                "VisibilityTimeout": self.settings.visibility_timeout.as_secs(),
                "MessageRetentionPeriod": retention.as_secs(),
                "MaximumMessageSize": 1 << 20,
                "SqsManagedSseEnabled": true,
                "RedrivePolicy": redrive,
                "Tags": self.tags(),
            })
        };
        let dead_letters = names.dead_letter_queue();
        let redrive = json!({
            "deadLetterTargetArn": self.arns.queue(&dead_letters),
            "maxReceiveCount": self.settings.max_receive_count.saturating_add(REDRIVE_MARGIN),
        });
        let (request, bulk, result) = (names.request_queue.clone(), names.bulk_queue(), names.result_queue.clone());
        let callback_queue = names.callback_queue();
        let dead = queue(DEAD_LETTER_RETENTION, Value::Null);
        let (requests, results) = (queue(RETENTION, redrive), queue(RETENTION, Value::Null));
        self.add("DeadLetterQueue", Kind::Queue, dead_letters, dead.clone());
        self.add("RequestQueue", Kind::Queue, request, requests.clone());
        self.add("BulkQueue", Kind::Queue, bulk, requests);
        self.add("CallbackQueue", Kind::Queue, callback_queue, dead);
        self.add("ResultQueue", Kind::Queue, result, results);
    }

    pub(super) fn buckets(&mut self) {
        let Names { input_bucket, output_bucket, .. } = self.settings.names.clone();
        self.bucket("InputBucket", &input_bucket, &["images"], self.settings.keep_images_days);
        self.bucket("OutputBucket", &output_bucket, &["batches", "results"], self.settings.keep_results_days);
    }

    /// Only objects under `folders` expire. Bundles, models and the keys of the legacy wire format are kept.
    fn bucket(&mut self, id: &str, name: &str, folders: &[&str], keep_days: u32) {
        let rule = |folder: &&str| {
            json!({
                "Id": format!("imgcls-{folder}"), "Prefix": format!("{folder}/"),
                "Status": "Enabled", "ExpirationInDays": keep_days,
            })
        };
        let rules: Vec<Value> = folders.iter().map(rule).collect();
        let members = json!({
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": true, "BlockPublicPolicy": true,
                "IgnorePublicAcls": true, "RestrictPublicBuckets": true,
            },
            "BucketEncryption": {"ServerSideEncryptionConfiguration": [
                {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}},
            ]},
            "LifecycleConfiguration": {"Rules": rules},
            "Tags": self.tags(),
        });
        self.add(id, Kind::Bucket, name, members);
    }

    /// Policies that refuse requests without TLS. A stack at a plain HTTP endpoint has none, since they would refuse
    /// all requests there.
    pub(super) fn bucket_policies(&mut self) {
        if self.site.endpoint_url.as_ref().is_some_and(|url| url.starts_with("http://")) {
            return;
        }
        let Names { input_bucket, output_bucket, .. } = self.settings.names.clone();
        for (id, name) in [("InputBucketPolicy", input_bucket), ("OutputBucketPolicy", output_bucket)] {
            let policy = permissions::tls_only(&self.arns.bucket(&name));
            self.add(id, Kind::BucketPolicy, name, json!({"PolicyDocument": policy}));
        }
    }

    pub(super) fn bundle(&mut self) {
        let members = json!({"Digest": self.bundle.digest});
        self.add("Bundle", Kind::Bundle, self.bundle.key(), members);
    }

    /// Each model's package, and then the pointer that makes machines run it.
    pub(super) fn models(&mut self) {
        for package in self.packages {
            let digest = json!({"Digest": package.digest});
            self.add(&format!("Model {}", package.name), Kind::ModelPackage, package.key(), digest);
        }
        for package in self.packages {
            let members = json!({"Version": package.version, "Digest": package.digest, "Bytes": package.bytes});
            self.add(&format!("Current {}", package.name), Kind::ModelPointer, package.pointer_key(), members);
        }
    }
}
