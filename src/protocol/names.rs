//! Every literal that the outside sees: queue names, buckets, object keys, tags.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

/// The queue from web tier to workers, as the original calls it.
pub const DEFAULT_REQUEST_QUEUE: &str = "web-app-image-transport";
/// The queue from workers to the web tier in shared mode, and the prefix of every reply queue.
pub const DEFAULT_RESULT_QUEUE: &str = "app-web-result-queue";
/// Names of the two stores of the local backend. On AWS they carry account and region, since bucket names are global.
pub const LOCAL_INPUT_BUCKET: &str = "input";
pub const LOCAL_OUTPUT_BUCKET: &str = "output";
/// Tag on a reply queue: when its owner last said that it lives, RFC 3339.
pub const TAG_ALIVE_AT: &str = "imgcls:alive_at";
/// The lifecycle hook that makes the group of the workers wait until one has drained.
pub const DRAIN_HOOK: &str = "drain";
/// The metric that `autoscale` publishes and the target policy follows: images waiting or in work for each worker. Its
/// one dimension is the stack.
pub const BACKLOG_NAMESPACE: &str = "imgcls";
pub const BACKLOG_METRIC: &str = "BacklogPerWorker";
pub const BACKLOG_DIMENSION: &str = "Stack";

/// How many deliveries the request queue's own redrive policy allows beyond the workers' limit. It only catches messages of
/// workers that die: a worker that gives a message up says why, and the queue cannot.
pub const REDRIVE_MARGIN: u32 = 5;
/// How long dead letters are kept for an operator: the longest that SQS offers.
pub const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
/// The queue may remove a message somewhat before its retention is over, so no job lives that long.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);

/// Tag on everything that belongs to a stack on AWS: its name.
pub const TAG_STACK: &str = "imgcls:stack";

/// The dead-letter queue of a request queue.
pub fn dead_letter_queue(request_queue: &str) -> String {
    format!("{request_queue}-dead")
}

/// The reply queue of one web process. `random` is new at every start, so that a restart never reads old replies.
pub fn reply_queue(result_queue: &str, random: &str) -> String {
    format!("{result_queue}-{random}")
}

/// Whether a worker may send to the queue that a request names in `reply_to`: the result queue itself or a reply
/// queue under it. Anything else would let whoever can send a request make workers write to any queue they reach.
pub fn is_reply_queue_of(result_queue: &str, reply_to: &str) -> bool {
    reply_to.strip_prefix(result_queue).is_some_and(|rest| rest.is_empty() || (rest.starts_with('-') && rest.len() > 1))
}

/// A bucket's name on AWS, where bucket names are the world's: it carries account and region.
pub fn aws_bucket(stack: &str, account: &str, region: &str, purpose: &str) -> String {
    format!("{}imgcls-{account}-{region}-{purpose}", stack_prefix(stack))
}

/// What every resource name of a stack starts with; empty for the default stack, whose names are the original's.
pub fn stack_prefix(stack: &str) -> String {
    if stack == "imgcls" { String::new() } else { format!("{stack}-") }
}

/// The Auto Scaling group of a stack's workers: the original's name.
pub fn worker_group(stack: &str) -> String {
    format!("{}apptierAutoscaling", stack_prefix(stack))
}

/// Key of an image in the input store.
pub fn image_key(id: Uuid) -> String {
    format!("images/{id}")
}

/// The job whose image has that key. None for keys of the legacy form, which are file names.
pub fn job_of_image_key(key: &str) -> Option<Uuid> {
    key.strip_prefix("images/")?.parse().ok()
}

/// The job whose result, or whose answer in the legacy form, has that key. None for the answers to users of that form.
pub fn job_of_result_key(key: &str) -> Option<Uuid> {
    match key.strip_prefix("results/") {
        Some(rest) => rest.strip_suffix(".json")?.parse().ok(),
        None => super::legacy_job_id(key),
    }
}

/// Key of a result in the output store.
pub fn result_key(id: Uuid) -> String {
    format!("results/{id}.json")
}

/// When a job was submitted: its id carries the time.
pub fn submitted_at(id: Uuid) -> Option<Timestamp> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
}

/// Output key of the original's form: the file name up to its first dot. The name must be a [`legacy_safe_name`].
pub fn legacy_output_key(safe_name: &str) -> &str {
    safe_name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("unnamed")
}

/// A file name from outside, made safe to be a flat object key: the last path component without control
/// characters, never empty, never a dot name, at most 255 bytes.
///
/// Only the original's form uses file names as keys at all; there a user's scripts look the answer up by name.
pub fn legacy_safe_name(filename: &str) -> String {
    let last = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last.chars().filter(|c| !c.is_control()).collect();
    let cut = super::cut_filename(clean.trim());
    if cut.trim_matches('.').is_empty() { "unnamed".to_owned() } else { cut.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_result_queue_and_queues_under_it_may_be_named_as_reply_to() {
        assert!(is_reply_queue_of("results", "results"));
        assert!(is_reply_queue_of("results", "results-a1b2"));
        for foreign in ["results-", "resultsx", "other", "", "x-results", "resul"] {
            assert!(!is_reply_queue_of("results", foreign), "{foreign}");
        }
    }

    #[test]
    fn names_that_would_escape_are_made_safe() {
        assert_eq!(legacy_safe_name("../../etc/passwd"), "passwd");
        assert_eq!(legacy_safe_name("a\0b\nc.jpg"), "abc.jpg");
        assert_eq!(legacy_safe_name(".."), "unnamed");
        assert_eq!(legacy_safe_name("C:\\x\\cat.jpg"), "cat.jpg");
        assert_eq!(legacy_safe_name(""), "unnamed");
        assert_eq!(legacy_safe_name(&"ü".repeat(2000)).len(), 254);
        assert_eq!(legacy_output_key("test_0.tar.JPEG"), "test_0");
        assert_eq!(legacy_output_key(".hidden"), "unnamed");
    }
}
