//! The AWS backend, against emulators from three hands: the suites of both ports, the service from end to end, and
//! what it says where AWS cannot be used.
//!
//! The SDK reads its credentials from the environment of the process, so each suite runs in a process of its own: the
//! test starts itself again.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use imgcls::queue::SqsQueues;
use imgcls::store::{ObjectStore, S3Store};
use uuid::Uuid;

use crate::conformance::Exception;
use crate::emulators::{self, Emulator, ministack, moto, seaweedfs};
use crate::harness::{Service, free_port, imgcls, label_of, picture};
use crate::{queue_conformance, store_conformance};

/// Set in the process that a test starts to run its suite in.
const INSIDE: &str = "IMGCLS_TEST_INSIDE";

#[test]
fn the_queues_of_moto_conform() {
    let exceptions = [Exception::Fails {
        check: "a_stale_receipt_does_nothing",
        why: "moto deletes by any receipt that the message ever had",
    }];
    within(moto, "aws::the_queues_of_moto_conform", async || queues(&exceptions).await);
}

#[test]
fn the_queues_of_ministack_conform() {
    within(ministack, "aws::the_queues_of_ministack_conform", async || queues(&[]).await);
}

#[test]
fn the_store_of_moto_conforms() {
    within(moto, "aws::the_store_of_moto_conforms", async || drop(store(&[]).await));
}

#[test]
fn the_store_of_ministack_conforms() {
    within(ministack, "aws::the_store_of_ministack_conforms", async || drop(store(&[]).await));
}

#[test]
fn the_store_of_seaweedfs_conforms() {
    within(seaweedfs, "aws::the_store_of_seaweedfs_conforms", async || drop(store(&[]).await));
}

/// Against AWS itself, with the credentials and the region of the environment. About 600 calls of SQS: nothing within
/// the free million a month, else less than a cent.
#[test]
#[ignore = "needs an AWS account: IMGCLS_E2E_AWS=1 scripts/test"]
fn the_queues_of_aws_conform() {
    let exceptions = [
        Exception::NotRun { check: "queues_are_made_found_listed_and_removed", why: "a deletion shows within 60 s" },
        Exception::NotRun { check: "a_missing_queue_is_not_found", why: "a deletion shows within 60 s" },
        Exception::NotRun { check: "purge_empties", why: "a purge takes up to 60 s" },
        Exception::NotRun { check: "depth_tells_visible_from_in_flight", why: "counts settle within minutes" },
    ];
    runtime().block_on(queues(&exceptions));
}

/// About 150 calls of S3: a tenth of a cent. The bucket is removed again.
#[test]
#[ignore = "needs an AWS account: IMGCLS_E2E_AWS=1 scripts/test"]
fn the_store_of_aws_conforms() {
    runtime().block_on(async {
        let bucket = store(&[]).await;
        let sdk = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
        let removed = aws_sdk_s3::Client::new(&sdk).delete_bucket().bucket(&bucket).send().await;
        removed.unwrap_or_else(|error| panic!("bucket {bucket} is empty and still there: {error}"));
    });
}

async fn queues(exceptions: &[Exception]) {
    let queues = SqsQueues::connect(None, None).await.expect("a region");
    queue_conformance::all(Arc::new(queues), exceptions).await;
}

/// In a bucket of its own, whose name is returned. Two handles on it, as two processes would have.
async fn store(exceptions: &[Exception]) -> String {
    let bucket = format!("imgcls-test-{}", Uuid::now_v7());
    let open = || async { Arc::new(S3Store::open(None, None, &bucket).await.expect("a bucket")) };
    let handles: [Arc<dyn ObjectStore>; 2] = [open().await, open().await];
    let next = AtomicUsize::new(0);
    let handle = || Arc::clone(&handles[next.fetch_add(1, Ordering::Relaxed) % handles.len()]);
    store_conformance::all(handle, exceptions).await;
    bucket
}

/// Runs `suite` in a process whose environment is that of a client of the emulator. `test` is the full name of the
/// test that calls this.
fn within(emulator: fn() -> &'static Emulator, test: &str, suite: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return runtime().block_on(suite());
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").envs(emulator().environment());
    let output = command.output().expect("this program starts");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn a_web_tier_and_a_worker_on_moto_answer() {
    answers(moto());
}

#[test]
fn a_web_tier_and_a_worker_on_ministack_answer() {
    answers(ministack());
}

/// Names of their own, so that nothing meets what another test left; the buckets by default, so that they are made.
fn answers(emulator: &Emulator) {
    let stack = format!("t{}", &Uuid::now_v7().simple().to_string()[20..]);
    let flags = ["--endpoint-url", &emulator.url(), "--stack", &stack, "--region", "us-east-1"];
    let service = Service::start_on(&flags, emulators::credentials(), 1, &[], &[]);
    assert!(service.web.log().contains("said_by=\"--region\""), "{}", service.web.log());
    for name in ["cat.jpg", "rocket.jpg"] {
        let response = service.request("POST", "/v1/classify", &[], &picture(name));
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json()["predictions"][0]["label"], label_of(name));
    }
    let id = service.submit("cat.jpg", &picture("cat.jpg"));
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg"));
    assert_eq!(service.request("GET", "/readyz", &[], b"").status, 200);
    service.web.signal("TERM");
    let mut service = service;
    assert_eq!(service.web.wait(), Some(0), "{}", service.web.log());
}

#[test]
fn without_credentials_the_web_tier_says_where_to_put_them() {
    let said = refusal(&["--endpoint-url", &moto().url()], emulators::nothing_else());
    assert!(said.contains("no AWS credentials") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}

#[test]
fn an_endpoint_where_nobody_listens_is_named() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let buckets = ["--input-bucket", "some-input", "--output-bucket", "some-output"];
    let said = refusal(&[&["--endpoint-url", url.as_str()][..], &buckets].concat(), emulators::credentials());
    assert!(said.contains(&url) && said.contains("sqs:GetQueueUrl"), "{said}");
}

#[test]
fn a_region_that_is_none_is_named() {
    let said = refusal(&["--region", "mars-north-1"], emulators::credentials());
    assert!(said.contains("AWS region mars-north-1") && said.contains("check"), "{said}");
}

#[test]
fn without_a_region_the_web_tier_asks_for_one() {
    let said = refusal(&["--backend", "aws"], emulators::credentials());
    assert!(said.contains("--region"), "{said}");
}

#[test]
fn a_worker_says_it_too() {
    let mut command = imgcls();
    command.args(["worker", "--endpoint-url", &moto().url()]).envs(emulators::nothing_else());
    let said = last_line(command);
    assert!(said.contains("no AWS credentials"), "{said}");
}

/// What the web tier says before it exits with 1.
fn refusal(flags: &[&str], environment: Vec<(String, String)>) -> String {
    let mut command = imgcls();
    command.args(["serve-web", "--listen", "127.0.0.1:0"]).args(flags).envs(environment);
    last_line(command)
}

/// The one line that is no log, of a process that has to exit with 1.
fn last_line(mut command: Command) -> String {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let (lines, logs): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("imgcls: "));
    assert_eq!(lines.len(), 1, "{said}");
    assert!(said.ends_with(&format!("{}\n", lines[0])), "{said}");
    assert!(logs.iter().all(|line| line.contains("INFO") || line.contains("WARN")), "{said}");
    lines[0].to_owned()
}
