//! Promises of the local transport alone: a submission and a completion are one transaction each, and the death of a worker
//! of this machine releases its messages.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use imgcls::config::{Backend, Names};
use imgcls::protocol::{Incoming, ServiceClass};
use imgcls::transport::{
    self, Acknowledge, Completion, Idle, JobForm, MAX_BATCH, NewJob, NewResult, ReceivingProcess, ServiceOptions,
    Transport, Wanted,
};
use rand::Rng as _;
use rusqlite::Connection;
use uuid::Uuid;

use crate::children::{self, Worker, say};
use crate::harness::classify_request;

const LONG: Duration = Duration::from_secs(300);
/// Rows, segments below and above what is written outside of the transaction.
const IMAGE_BYTES: [usize; 3] = [600, 90_000, 200_000];

/// A process that submits and completes is killed anywhere, again and again. There is never a message without its image, an
/// image without message and result, or a result whose message is still there.
#[test]
fn killed_process_leaves_no_half_of_a_submission_or_completion() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let mut worker = Worker::start("local_transport::worker_submits_and_completes_until_killed", directory.path());
        for _ in 0..rand::rng().random_range(20..120) {
            worker.line().expect("it goes on until killed");
        }
        worker.kill();
        worker.rest();
        let file = Connection::open(directory.path().join("imgcls.sqlite3")).unwrap();
        let id = "(CAST(messages.body AS TEXT) ->> '$.id')";
        let image = format!("SELECT 1 FROM objects WHERE bucket = 'input' AND key = 'images/' || {id}");
        let result = format!("SELECT 1 FROM objects WHERE bucket = 'output' AND key = 'results/' || {id} || '.json'");
        let job = "substr(objects.key, 8)";
        let message = format!("SELECT 1 FROM messages WHERE {id} = {job}");
        let done = format!("SELECT 1 FROM objects AS done WHERE done.key = 'results/' || {job} || '.json'");
        for (what, from) in [
            ("messages without an image", format!("messages WHERE NOT EXISTS ({image})")),
            ("messages of jobs that have a result", format!("messages WHERE EXISTS ({result})")),
            (
                "images without message and result",
                format!("objects WHERE bucket = 'input' AND NOT EXISTS ({message}) AND NOT EXISTS ({done})"),
            ),
        ] {
            let count: u32 = file.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0)).unwrap();
            assert_eq!(count, 0, "{what}");
        }
        let results: u32 =
            file.query_row("SELECT count(*) FROM objects WHERE bucket = 'output'", [], |row| row.get(0)).unwrap();
        assert!(results > 0, "nothing was completed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_submits_and_completes_until_killed() {
    let Some(data_dir) = children::data_dir() else { return };
    let transport = open(&data_dir).await;
    let submitting = async {
        for size in IMAGE_BYTES.into_iter().cycle() {
            submit(&*transport, size).await;
            say("submitted");
        }
    };
    let completing = async {
        loop {
            let wanted = Wanted { class: ServiceClass::Interactive, max: MAX_BATCH, visibility_timeout: LONG };
            let deliveries = transport.receive(wanted, &Idle).await.unwrap();
            let completion = |delivery: transport::Delivery| {
                let Incoming::Job(request) = Incoming::parse(&delivery.body) else { panic!("{}", delivery.body) };
                let mut completion = Completion::new(delivery.receipt);
                completion.result = Some(NewResult { id: request.id, text: Bytes::from_static(b"{}") });
                completion
            };
            let mut batch: Vec<Completion> = deliveries.into_iter().map(completion).collect();
            for completed in transport.complete(&mut batch).await {
                completed.unwrap();
                say("completed");
            }
        }
    };
    futures::future::join(submitting, completing).await;
}

#[tokio::test]
async fn death_of_a_worker_releases_what_it_held_and_keeps_the_delay_of_what_it_had_released() {
    let directory = tempfile::tempdir().unwrap();
    let transport = open(directory.path()).await;
    let mut deliveries = Vec::new();
    for _ in 0..2 {
        submit(&*transport, IMAGE_BYTES[0]).await;
        deliveries.extend(
            transport
                .receive(Wanted { class: ServiceClass::Interactive, max: 1, visibility_timeout: LONG }, &Idle)
                .await
                .unwrap(),
        );
    }
    let [released, held] = &deliveries[..] else { panic!("{deliveries:?}") };
    transport.release(std::slice::from_ref(&released.receipt), LONG).await.unwrap();
    // As the supervisor of this process would do after its death.
    transport.release_held_by(ReceivingProcess::current()).await.unwrap();
    let again = transport
        .receive(Wanted { class: ServiceClass::Interactive, max: MAX_BATCH, visibility_timeout: LONG }, &Idle)
        .await
        .unwrap();
    let again: Vec<&str> = again.iter().map(|delivery| delivery.message_id.as_str()).collect();
    assert_eq!(again, [held.message_id.as_str()]);
    let depth = transport.depth().await.unwrap();
    assert_eq!((depth.visible, depth.in_flight), (0, 2));
}

async fn open(data_dir: &Path) -> std::sync::Arc<dyn Transport> {
    let backend = Backend::Local { data_dir: data_dir.to_owned() };
    let transport = transport::open(&backend, &Names::local("imgcls")).await.unwrap();
    transport.prepare(ServiceOptions { visibility_timeout: LONG, max_receive_count: 5 }).await.unwrap();
    transport
}

async fn submit(transport: &dyn Transport, image_bytes: usize) {
    let (id, image) = (Uuid::now_v7(), Bytes::from(vec![7; image_bytes]));
    let form = JobForm::Request { request: Box::new(classify_request(id)), inline_bytes: 0 };
    let acknowledge = Acknowledge::WhenDurable;
    let job = NewJob { id, image: &image, content_type: "image/jpeg", form, acknowledge };
    transport.submit(job).await.unwrap();
}
