//! Every literal that is visible outside: names of queues, buckets, object keys and tags.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::legacy::legacy_job_id;

/// The queue from the web tier to the workers. The name is that of the legacy system.
pub const DEFAULT_REQUEST_QUEUE: &str = "web-app-image-transport";
/// The queue from the workers to the web tier in shared mode, and the prefix of every reply queue.
pub const DEFAULT_RESULT_QUEUE: &str = "app-web-result-queue";
/// The bucket of images of the local backend. On AWS, bucket names contain account and region, because they are global.
pub const LOCAL_INPUT_BUCKET: &str = "input";
/// The bucket of results of the local backend.
pub const LOCAL_OUTPUT_BUCKET: &str = "output";
/// Tag on a reply queue: when its owner last confirmed that it is alive, in RFC 3339.
pub const TAG_ALIVE_AT: &str = "imgcls:alive_at";
/// The lifecycle hook that delays the termination of a worker instance until it has drained.
pub const DRAIN_HOOK: &str = "drain";

/// The lifecycle hook that holds a new machine back until its service has started.
pub const START_HOOK: &str = "start";
/// The namespace of the metric that `autoscale` publishes and the target policy follows.
pub const BACKLOG_NAMESPACE: &str = "imgcls";
/// The metric: visible and in-flight messages for each worker.
pub const BACKLOG_METRIC: &str = "BacklogPerWorker";
/// The only dimension of the metric: the stack.
pub const BACKLOG_DIMENSION: &str = "Stack";

/// How many deliveries the request queue's own redrive policy allows beyond the workers' limit. It only catches messages of
/// workers that die: a worker that gives a message up says why, and the queue cannot.
pub const REDRIVE_MARGIN: u32 = 5;
/// How long dead letters are kept for an operator: the longest that SQS offers.
pub const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
/// The queue may remove a message somewhat before its retention is over, so no job lives that long.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);

/// The longest key of an object that S3 accepts, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Tag with the name of the stack, on every AWS resource that belongs to it.
pub const TAG_STACK: &str = "imgcls:stack";

/// The dead-letter queue of a request queue.
pub fn dead_letter_queue(request_queue: &str) -> String {
    format!("{request_queue}-dead")
}

/// The request queue of bulk jobs beside a request queue.
pub fn bulk_queue(request_queue: &str) -> String {
    format!("{request_queue}-bulk")
}

/// The queue of callbacks beside a request queue.
pub fn callback_queue(request_queue: &str) -> String {
    format!("{request_queue}-callbacks")
}

/// The reply queue of one web process. `random` is new at every start, so that a restarted process never reads old
/// replies.
pub fn reply_queue(result_queue: &str, random: &str) -> String {
    format!("{result_queue}-{random}")
}

/// Returns true if a worker may send to the queue that a request names in `reply_to`: the result queue or a reply queue
/// under it. Otherwise a sender of requests could make workers write to any queue within their reach.
pub fn is_reply_queue_of(result_queue: &str, reply_to: &str) -> bool {
    reply_to.strip_prefix(result_queue).is_some_and(|rest| rest.is_empty() || (rest.starts_with('-') && rest.len() > 1))
}

/// The name of a bucket on AWS. Bucket names are global, so it contains account and region.
pub fn aws_bucket(stack: &str, account: &str, region: &str, purpose: &str) -> String {
    format!("{}imgcls-{account}-{region}-{purpose}", stack_prefix(stack))
}

/// The prefix of every resource name of a stack. It is empty for the default stack, whose names are those of the legacy
/// system.
pub fn stack_prefix(stack: &str) -> String {
    if stack == "imgcls" { String::new() } else { format!("{stack}-") }
}

/// The Auto Scaling group of the workers of a stack. The name is that of the legacy system.
pub fn worker_group(stack: &str) -> String {
    format!("{}apptierAutoscaling", stack_prefix(stack))
}

/// The key of an image in the input store.
pub fn image_key(id: Uuid) -> String {
    format!("images/{id}")
}

/// The job whose image has this key. Returns `None` for legacy keys, which are file names.
pub fn job_of_image_key(key: &str) -> Option<Uuid> {
    key.strip_prefix("images/")?.parse().ok()
}

/// The job whose result, or whose legacy output, has this key. Returns `None` for outputs to users of the legacy
/// system.
pub fn job_of_result_key(key: &str) -> Option<Uuid> {
    match key.strip_prefix("results/") {
        Some(rest) => rest.strip_suffix(".json")?.parse().ok(),
        None => legacy_job_id(key),
    }
}

/// The key of a result in the output store.
pub fn result_key(id: Uuid) -> String {
    format!("results/{id}.json")
}

/// The key of the result for an object of another bucket, which an event of S3 named. No id is the name of a bucket, because
/// a slash follows here.
pub fn object_result_key(bucket: &str, key: &str) -> String {
    format!("results/{bucket}/{key}.json")
}

/// The key of the record that remembers which job an idempotency key named. `digest` is hexadecimal. It is below the results,
/// so that it expires with them, and no bucket has such a name.
pub fn idempotency_record_key(digest: &str) -> String {
    format!("results/.idempotency/{digest}.json")
}

/// The time of submission, which is part of the job's id.
pub fn submitted_at(id: Uuid) -> Option<Timestamp> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_to_must_be_the_result_queue_or_one_under_it() {
        assert!(is_reply_queue_of("results", "results"));
        assert!(is_reply_queue_of("results", "results-a1b2"));
        for foreign in ["results-", "resultsx", "other", "", "x-results", "resul"] {
            assert!(!is_reply_queue_of("results", foreign), "{foreign}");
        }
    }
}
