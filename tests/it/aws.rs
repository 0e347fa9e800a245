//! The AWS backend against three emulators: the conformance suites, the service from end to end, and the errors when AWS
//! cannot be used.
//!
//! The SDK reads its credentials from the environment of the process, so each suite runs in a process of its own: the
//! test starts itself again.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use imgcls::aws::Aws;
use imgcls::config::Backend;
use imgcls::transport::aws::S3Store;
use imgcls::transport::aws::SqsQueues;
use imgcls::transport::queued::object::{ObjectStore, Put, PutOptions, StoreError};
use imgcls::transport::queued::queue::{self, Outgoing, QueueAttributes, QueueError, Queues as _, ReceiveOptions};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::conformance::{self, Exception};
use crate::emulators::{self, Emulator, ministack, moto, seaweedfs};
use crate::harness::{DEADLINE, Service, free_port, imgcls, label_of, test_image};
use crate::{queue_conformance, store_conformance};

/// Set in the process that a test starts to run its suite in.
const INSIDE: &str = "IMGCLS_TEST_INSIDE";

#[test]
fn transport_on_moto_conforms() {
    let exceptions = [
        Exception::Fails {
            check: "stale_receipt_does_nothing",
            why: "moto deletes by any receipt that the message ever had",
        },
        Exception::NotRun {
            check: "receivers_share_without_doubles",
            why: "now and then two of moto's threads deliver one message",
        },
    ];
    within(moto, "aws::transport_on_moto_conforms", async || conformance::transport::all(&aws(), &exceptions).await);
}

#[test]
fn transport_on_ministack_conforms() {
    within(ministack, "aws::transport_on_ministack_conforms", async || conformance::transport::all(&aws(), &[]).await);
}

/// With the settings of the environment.
fn aws() -> Backend {
    Backend::Aws { region: None, endpoint_url: None }
}

#[test]
fn queues_of_moto_conform() {
    let exceptions = [
        Exception::Fails {
            check: "stale_receipt_does_nothing",
            why: "moto deletes by any receipt that the message ever had",
        },
        // It looks for visible messages and hides them without a lock.
        Exception::NotRun {
            check: "receivers_share_without_doubles",
            why: "now and then two of moto's threads deliver one message",
        },
    ];
    within(moto, "aws::queues_of_moto_conform", async || queues(&exceptions).await);
}

#[test]
fn queues_of_ministack_conform() {
    within(ministack, "aws::queues_of_ministack_conform", async || queues(&[]).await);
}

#[test]
fn store_of_moto_conforms() {
    within(moto, "aws::store_of_moto_conforms", async || drop(store(&[]).await));
}

#[test]
fn store_of_ministack_conforms() {
    within(ministack, "aws::store_of_ministack_conforms", async || drop(store(&[]).await));
}

#[test]
fn store_of_seaweedfs_conforms() {
    within(seaweedfs, "aws::store_of_seaweedfs_conforms", async || drop(store(&[]).await));
}

/// Against AWS itself, with the credentials and the region of the environment. About 600 calls of SQS: nothing within
/// the free million a month, else less than a cent.
#[test]
#[ignore = "needs an AWS account: IMGCLS_E2E_AWS=1 scripts/test"]
fn queues_of_aws_conform() {
    let exceptions = [
        Exception::NotRun {
            check: "queues_are_created_opened_listed_and_deleted",
            why: "a deletion shows within 60 s",
        },
        Exception::NotRun { check: "missing_queue_is_not_found", why: "a deletion shows within 60 s" },
        Exception::NotRun { check: "purge_deletes_all_messages", why: "a purge takes up to 60 s" },
        Exception::NotRun { check: "depth_counts_visible_and_in_flight", why: "counts settle within minutes" },
    ];
    runtime().block_on(queues(&exceptions));
}

/// About 150 calls of S3: a tenth of a cent. The bucket is removed again.
#[test]
#[ignore = "needs an AWS account: IMGCLS_E2E_AWS=1 scripts/test"]
fn store_of_aws_conforms() {
    runtime().block_on(async {
        let bucket = store(&[]).await;
        let aws = Aws::connect(None, None).await.expect("a region");
        let removed = aws_sdk_s3::Client::new(aws.sdk()).delete_bucket().bucket(&bucket).send().await;
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
fn web_tier_and_worker_on_moto_answer() {
    answers(moto());
}

#[test]
fn web_tier_and_worker_on_ministack_answer() {
    answers(ministack());
}

/// Names of their own, so that nothing meets what another test left; the buckets by default, so that they are made.
fn answers(emulator: &Emulator) {
    let stack = format!("t{}", &Uuid::now_v7().simple().to_string()[20..]);
    let flags = ["--endpoint-url", &emulator.url(), "--stack", &stack, "--region", "us-east-1"];
    let service = Service::start_on(&flags, emulators::credentials(), 1, &[], &[]);
    assert!(service.web.log().contains("said_by=\"--region\""), "{}", service.web.log());
    for name in ["cat.jpg", "rocket.jpg"] {
        let response = service.request("POST", "/v1/classify", &[], &test_image(name));
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json()["predictions"][0]["label"], label_of(name));
    }
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg"));
    assert_eq!(service.request("GET", "/readyz", &[], b"").status, 200);
    service.web.signal("TERM");
    let mut service = service;
    assert_eq!(service.web.wait(), Some(0), "{}", service.web.log());
}

#[test]
fn sends_and_acks_of_many_callers_share_calls() {
    within(ministack, "aws::sends_and_acks_of_many_callers_share_calls", async || {
        let queues = SqsQueues::connect(None, None).await.expect("a region");
        let queue = queues.create(&format!("shared-{}", Uuid::now_v7().simple()), &QueueAttributes::default()).await;
        let queue = queue.expect("a queue");
        let sends = (0..200).map(|index| queue::send_one(&*queue, Outgoing::new(format!("message {index}"))));
        join_all(sends).await.into_iter().collect::<Result<(), _>>().expect("sent");
        let mut receipts = Vec::new();
        while receipts.len() < 200 {
            let options = ReceiveOptions { max: 10, wait: Duration::from_secs(5), visibility_timeout: DEADLINE };
            receipts.extend(queue.receive(options).await.expect("received").into_iter().map(|got| got.receipt));
        }
        let acks = receipts.iter().map(|receipt| queue.ack(std::slice::from_ref(receipt)));
        join_all(acks).await.into_iter().collect::<Result<(), _>>().expect("acked");
        assert_eq!(queue.depth().await.expect("a depth").in_flight, 0);
        for operation in ["SendMessageBatch", "DeleteMessageBatch"] {
            // The first goes alone, the rest in tens.
            assert!(calls(operation) <= 22, "{operation}: {} calls", calls(operation));
        }
        queues.delete(queue.name()).await.expect("removed");
    });
}

#[test]
fn changed_limit_of_moto_is_learned() {
    within(moto, "aws::changed_limit_of_moto_is_learned", changed_limit_is_learned);
}

#[test]
fn changed_limit_of_ministack_is_learned() {
    within(ministack, "aws::changed_limit_of_ministack_is_learned", changed_limit_is_learned);
}

/// moto refuses a whole call for the sake of one message, ministack that message, as SQS does.
async fn changed_limit_is_learned() {
    let queues = SqsQueues::connect(None, None).await.expect("a region");
    let name = format!("limited-{}", Uuid::now_v7().simple());
    let queue = queues.create(&name, &QueueAttributes::default()).await.expect("a queue");
    let large = || Outgoing::new("x".repeat(5_000));
    queue::send_one(&*queue, large()).await.expect("within the limit");
    set_max_message_bytes(&name, 1_024).await;
    let small = (0..9).map(|index| Outgoing::new(format!("small {index}")));
    let answers = queue.send(&small.chain([large()]).collect::<Vec<_>>()).await.expect("answers");
    let (last, others) = answers.split_last().expect("ten");
    assert!(others.iter().all(Result::is_ok), "{answers:?}");
    assert!(matches!(last, Err(QueueError::TooLarge { size: 5_000, limit: 1_024, .. })), "{last:?}");
    assert_eq!(queue.depth().await.expect("a depth").visible, 10);
    // Known by now: no call is made that would be refused.
    let sends = calls("SendMessageBatch");
    let answer = queue::send_one(&*queue, large()).await;
    assert!(matches!(answer, Err(QueueError::TooLarge { .. })), "{answer:?}");
    assert_eq!(calls("SendMessageBatch"), sends);
    set_max_message_bytes(&name, 1 << 20).await;
    let end = Instant::now() + DEADLINE;
    while let Err(error) = queue::send_one(&*queue, large()).await {
        assert!(matches!(error, QueueError::TooLarge { .. }) && Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    queues.delete(&name).await.expect("removed");
}

/// Changes the message size of a queue directly in SQS, as an operator would.
async fn set_max_message_bytes(name: &str, bytes: usize) {
    let aws = Aws::connect(None, None).await.expect("a region");
    let client = aws_sdk_sqs::Client::new(aws.sdk());
    let url = client.get_queue_url().queue_name(name).send().await.expect("found").queue_url.expect("a URL");
    let limit = aws_sdk_sqs::types::QueueAttributeName::MaximumMessageSize;
    let call = client.set_queue_attributes().queue_url(url).attributes(limit, bytes.to_string());
    call.send().await.expect("set");
}

/// Tries of that operation in this process, by its own metrics.
fn calls(operation: &str) -> u64 {
    let wanted = format!("operation=\"{operation}\"");
    let counts = imgcls::telemetry::metrics::report();
    let counts =
        counts.lines().filter(|line| line.starts_with("imgcls_aws_call_seconds_count") && line.contains(&wanted));
    counts.map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a count")).sum()
}

/// Thirty tasks read the depth of a queue that cannot be reached for a while.
#[test]
fn outage_costs_few_calls_and_ends_soon() {
    within(moto, "aws::outage_costs_few_calls_and_ends_soon", async || {
        let name = format!("outage-{}", Uuid::now_v7().simple());
        let direct = SqsQueues::connect(None, None).await.expect("a region");
        direct.create(&name, &QueueAttributes::default()).await.expect("a queue");
        let emulator = std::env::var("AWS_ENDPOINT_URL").expect("set for this process");
        let door = Door::before(emulator.trim_start_matches("http://").to_owned()).await;
        let queues = SqsQueues::connect(None, Some(&door.url)).await.expect("a region");
        let queue = queues.open(&name).await.expect("the door is open");
        door.is_open.store(false, Ordering::SeqCst);
        let patient = |_| async {
            while queue.depth().await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Instant::now()
        };
        let outage = async {
            // Requests that start together are sent before the first of them fails, so they do not count.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let before = door.turned_away.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(6)).await;
            let tries = door.turned_away.load(Ordering::SeqCst) - before;
            assert!((1..=12).contains(&tries), "{tries} tries in six seconds");
            door.is_open.store(true, Ordering::SeqCst);
            Instant::now()
        };
        let (served, opened) = tokio::join!(join_all((0..30).map(patient)), outage);
        let last = served.into_iter().max().expect("thirty");
        assert!(last < opened + Duration::from_secs(5), "served {:?} after the end of the outage", last - opened);
    });
}

/// A proxy between a client and an emulator, which can be shut.
struct Door {
    url: String,
    is_open: Arc<AtomicBool>,
    turned_away: Arc<AtomicUsize>,
}

impl Door {
    /// Lives as long as the runtime.
    async fn before(address: String) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let door = Door { url, is_open: Arc::new(AtomicBool::new(true)), turned_away: Arc::default() };
        let (is_open, turned_away) = (Arc::clone(&door.is_open), Arc::clone(&door.turned_away));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if !is_open.load(Ordering::SeqCst) {
                    turned_away.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let (address, is_open) = (address.clone(), Arc::clone(&is_open));
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(address).await.expect("the emulator");
                    let shut = async {
                        while is_open.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    };
                    // Open connections are cut when the door is shut.
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = shut => {}
                    }
                });
            }
        });
        door
    }
}

#[test]
fn denied_permission_is_named() {
    within(seaweedfs, "aws::denied_permission_is_named", async || {
        let bucket = format!("imgcls-test-{}", Uuid::now_v7());
        let store = S3Store::open(None, None, &bucket).await.expect("a bucket");
        let put = store.put("images/1", Bytes::from_static(b"image"), PutOptions::default()).await.expect("put");
        assert_eq!(put, Put::Created);
        deny(&bucket, &["s3:GetObject", "s3:ListBucket"]).await;
        let said = store.get("images/1", 100).await.expect_err("denied").to_string();
        assert!(said.contains("no permission for s3:GetObject") && said.contains("s3:ListBucket"), "{said}");
        assert!(matches!(store.head("images/1").await, Err(StoreError::Fatal { .. })));
        let said = S3Store::open(None, None, &bucket).await.err().expect("denied").to_string();
        assert!(said.contains(&bucket) && said.contains("no permission for s3:ListBucket"), "{said}");
        assert_eq!(said.lines().count(), 1);
    });
}

async fn deny(bucket: &str, actions: &[&str]) {
    let aws = Aws::connect(None, None).await.expect("a region");
    let config = aws_sdk_s3::config::Builder::from(aws.sdk()).force_path_style(true).build();
    let everything = [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")];
    let denied = serde_json::json!({"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": everything});
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [denied]}).to_string();
    let put = aws_sdk_s3::Client::from_conf(config).put_bucket_policy().bucket(bucket).policy(policy).send().await;
    put.expect("a policy");
}

/// The queues are moto's, which takes any credentials; the store is SeaweedFS, which does not.
#[test]
fn unknown_credentials_are_distinguished_from_a_missing_permission() {
    let mut environment = emulators::credentials();
    let strange = [
        ("AWS_ACCESS_KEY_ID", "stranger"),
        ("AWS_ENDPOINT_URL_SQS", &moto().url()),
        ("AWS_ENDPOINT_URL_S3", &seaweedfs().url()),
    ];
    environment.extend(strange.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let flags = ["--region", "us-east-1", "--input-bucket", "some-input", "--output-bucket", "some-output"];
    let said = refusal(&flags, environment);
    assert!(said.contains("some-input") && said.contains("does not know these AWS credentials"), "{said}");
}

#[test]
fn web_tier_without_credentials_says_where_to_put_them() {
    let said = refusal(&["--endpoint-url", &moto().url()], emulators::nothing_else());
    assert!(said.contains("no AWS credentials") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}

#[test]
fn endpoint_without_a_listener_is_named() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let buckets = ["--input-bucket", "some-input", "--output-bucket", "some-output"];
    let said = refusal(&[&["--endpoint-url", url.as_str()][..], &buckets].concat(), emulators::credentials());
    assert!(said.contains(&url) && said.contains("sqs:GetQueueUrl"), "{said}");
}

#[test]
fn invalid_region_is_named() {
    let said = refusal(&["--region", "mars-north-1"], emulators::credentials());
    assert!(said.contains("AWS region mars-north-1") && said.contains("check"), "{said}");
}

#[test]
fn web_tier_without_a_region_asks_for_one() {
    let said = refusal(&["--backend", "aws"], emulators::credentials());
    assert!(said.contains("--region"), "{said}");
}

#[test]
fn worker_says_the_same() {
    let mut command = imgcls();
    command.args(["worker", "--endpoint-url", &moto().url()]).envs(emulators::nothing_else());
    let said = last_line(command);
    assert!(said.contains("no AWS credentials"), "{said}");
}

/// Returns the error of a web tier that must exit with 1.
fn refusal(flags: &[&str], environment: Vec<(String, String)>) -> String {
    let mut command = imgcls();
    command.args(["serve-web", "--listen", "127.0.0.1:0"]).args(flags).envs(environment);
    last_line(command)
}

/// Runs a process that must exit with 1, and returns its only line on stderr that is not a log line.
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
