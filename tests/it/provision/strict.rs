//! Deletions that AWS takes time for: `scripts/emulators/strict.py` lists deleted queues and buckets for a while, and
//! refuses their names.

use super::refusals::{ErrorProxy, Wire, refusal};
use super::{Stack, call_s3};

#[test]
fn destroyed_stack_is_made_again_at_once() {
    let stack = Stack::new("again");
    stack.succeeds(&["apply"]);
    stack.assert_plan_is_empty();
    stack.destroy();
    let applied = stack.succeeds(&["apply"]);
    assert!(applied.contains("31 to create, 0 to update, 0 to delete"), "{applied}");
    stack.assert_plan_is_empty();
    stack.destroy();
    stack.destroy();
}

#[test]
fn apply_after_an_interrupted_destroy_makes_queues_again_that_are_still_listed() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("interrupted") };
    stack.succeeds(&["apply"]);
    // The log group is deleted last, after the queues.
    proxy.intercept("DeleteLogGroup", refusal(Wire::Json, 400, "AccessDeniedException", "no"));
    assert!(stack.fails(&["destroy", "--yes"]).contains("no permission for logs:DeleteLogGroup"));
    proxy.forward_all();
    let status = stack.succeeds(&["status"]);
    assert!(status.contains("missing  queue              interrupted-web-app-image-transport\n"), "{status}");
    let applied = stack.succeeds(&["apply"]);
    for queue in [
        "web-app-image-transport",
        "web-app-image-transport-bulk",
        "web-app-image-transport-dead",
        "app-web-result-queue",
    ] {
        assert!(applied.contains(&format!("+ queue              interrupted-{queue} done\n")), "{applied}");
    }
    stack.assert_plan_is_empty();
    stack.destroy();
}

#[test]
fn bucket_with_old_versions_is_data_and_is_removed_with_all_of_them() {
    let stack = Stack::at_plain_http_endpoint("versions");
    stack.succeeds(&["apply", "--web-instances", "0"]);
    let bucket = stack.input_bucket();
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    call_s3("PUT", &format!("/{bucket}?versioning"), enabled);
    for image in 0..5 {
        for content in ["first", "second"] {
            call_s3("PUT", &format!("/{bucket}/images/{image}"), content);
        }
        call_s3("DELETE", &format!("/{bucket}/images/{image}"), "");
    }
    let refused = stack.fails(&["destroy", "--yes"]);
    assert!(refused.contains(&bucket) && refused.contains("--delete-data"), "{refused}");
    stack.destroy();
}

#[test]
fn change_of_a_bucket_is_repeated_while_another_is_in_progress() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("conflict") };
    let aborted = refusal(Wire::S3, 409, "OperationAborted", "A conflicting conditional operation is in progress.");
    proxy.intercept_times("PUT bucket", aborted, 3);
    stack.succeeds(&["apply", "--web-instances", "0"]);
    assert_eq!(proxy.left(), 0);
    stack.destroy();
}
