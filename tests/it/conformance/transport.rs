//! The contract of a transport. A new backend calls [`all`] with its configuration, once from a test of its own.
//!
//! Every check has a service of its own, with names that no other has. Times are whole seconds, since some backends know
//! no others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::join_all;
use imgcls::config::Backend;
use imgcls::protocol::{
    ClassifyRequest, ImageRef, Incoming, REDRIVE_MARGIN, ServiceClass, WITHDRAWN_IMAGE, reply_queue,
};
use imgcls::transport::{
    self, Acknowledge, Completed, Completion, DeadLetter, Depth, Idle, InboxMode, JobForm, JobPart, MAX_BATCH, NewJob,
    NewResult, QueueRole, Removal, ReplyOutcome, Resubmission, ResultWrite, TransportError, Wanted, Withdrawal,
};
use uuid::Uuid;

use super::service::{
    Busy, LONG, MANY, MAX_RECEIVE_COUNT, SECOND, Service, TIMEOUT, completion, names, now_ms, options, receive_replies,
    request_of, result_text, until_some,
};
use super::{Exception, checks};
use crate::harness::classify_request;

/// More deliveries than a server can make to receivers that have left.
const MANY_DELIVERIES: u32 = 900;

/// Runs the suite on a backend that the registry knows.
pub async fn all(backend: &Backend, exceptions: &[Exception]) {
    let checks = checks![
        backend:
        submitted_job_is_received_with_its_image,
        image_travels_in_the_message_when_it_may,
        job_of_a_waiting_caller_is_received,
        legacy_message_that_is_too_large_stores_nothing,
        images_of_all_sizes_are_read_as_they_were_written,
        what_does_not_exist_is_none,
        held_message_is_invisible_and_comes_again,
        extended_message_stays_invisible,
        released_message_comes_at_once_or_later,
        stale_receipt_does_nothing,
        dropped_receive_loses_nothing,
        receivers_share_without_doubles,
        busy_worker_receives_too,
        completion_writes_replies_and_deletes,
        first_result_of_a_job_is_kept,
        racing_completions_agree_on_one_result,
        batch_is_answered_one_by_one,
        replies_go_only_to_inboxes_of_the_service,
        completion_twice_is_harmless,
        late_writer_of_a_result_gets_the_first,
        withdrawn_image_is_replaced_by_a_marker,
        job_with_a_result_is_not_withdrawn,
        removed_job_gets_no_result_but_the_tombstone,
        removal_of_a_complete_job_leaves_only_the_tombstone,
        callback_is_received_until_it_is_ended,
        callback_that_is_given_up_is_a_dead_letter,
        record_is_written_once,
        records_are_listed_in_order,
        jobs_are_listed_by_what_is_stored_of_them,
        request_without_an_image_is_received,
        dead_letter_keeps_message_and_reason,
        message_delivered_too_often_becomes_a_dead_letter,
        resubmitted_job_loses_its_failed_result,
        reply_on_a_shared_inbox_reaches_its_process,
        depth_counts_visible_and_in_flight,
        bulk_requests_have_a_queue_of_their_own,
        bulk_requests_wait_for_interactive_ones,
        resubmitted_job_of_a_batch_stays_bulk,
        image_is_discarded_only_after_its_job_has_a_result,
        purged_queue_is_empty,
        preparing_twice_changes_nothing,
        nothing_exists_before_it_is_prepared,
    ];
    super::run(checks, exceptions).await;
}

async fn submitted_job_is_received_with_its_image(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"image bytes", 0).await;
    let delivery = service.receive_one(LONG).await;
    let request = request_of(&delivery);
    assert_eq!((request.id, request.image_data.is_none(), delivery.receive_count), (id, true, 1));
    assert_eq!(request.filename, "it's \"a\" ünïcode 🦀.jpg");
    assert!(request.payload(&service.names.input_bucket, &[]).is_ok(), "the worker finds the image: {request:?}");
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), "image bytes");
    let info = service.transport.image_info(id).await.unwrap().unwrap();
    let age = SystemTime::now().duration_since(info.modified).unwrap_or_default();
    assert!(info.size_bytes == 11 && age < Duration::from_secs(60), "{info:?}");
    let age_ms = now_ms() - delivery.sent_at_ms;
    assert!((-5_000..60_000).contains(&age_ms), "sent {age_ms} ms ago");
}

async fn image_travels_in_the_message_when_it_may(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"small", 100).await;
    let request = request_of(&service.receive_one(LONG).await);
    assert_eq!(request.image_data.as_deref(), Some("c21hbGw="));
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), "small", "it is stored too");
}

async fn job_of_a_waiting_caller_is_received(backend: &Backend) {
    let service = Service::start(backend).await;
    let acknowledge = Acknowledge::WithResult(SECOND);
    let (id, image) = (Uuid::now_v7(), Bytes::from_static(b"waiting"));
    let form = Service::form(id, 0);
    let job = NewJob { id, image: &image, content_type: "image/png", form, acknowledge };
    let (submitted, delivery) = tokio::join!(service.transport.submit(job), service.receive_one(LONG));
    submitted.unwrap();
    assert_eq!(request_of(&delivery).id, id);
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), "waiting");
}

async fn legacy_message_that_is_too_large_stores_nothing(backend: &Backend) {
    let service = Service::start(backend).await;
    let (id, image) = (Uuid::now_v7(), Bytes::from(vec![7; 1 << 20]));
    let job = |image| NewJob {
        id,
        image,
        content_type: "image/jpeg",
        form: JobForm::Legacy,
        acknowledge: Acknowledge::WhenDurable,
    };
    match service.transport.submit(job(&image)).await {
        Err(TransportError::MessageTooLarge { size, limit, .. }) => assert!(size > limit, "{size} {limit}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(service.transport.image(id, MANY).await.unwrap(), None);
    let small = Bytes::from_static(b"hi");
    service.transport.submit(job(&small)).await.unwrap();
    let delivery = service.receive_one(LONG).await;
    let Incoming::Legacy(request) = Incoming::parse(&delivery.body) else { panic!("{}", delivery.body) };
    assert_eq!(request.image_bytes().unwrap(), b"hi");
}

async fn images_of_all_sizes_are_read_as_they_were_written(backend: &Backend) {
    let service = Service::start(backend).await;
    for size in [1, 600, 92_000, 131_072, 131_073, 3 << 20] {
        let body: Vec<u8> = (0..size).map(|index: u32| (index % 251) as u8).collect();
        let id = service.submit(&body, 0).await;
        assert!(service.transport.image(id, MANY).await.unwrap().unwrap() == body, "{size} bytes");
        let mut reader = service.transport.open_image(id, MANY).await.unwrap().unwrap();
        assert_eq!(reader.size_bytes, u64::from(size));
        let mut read = Vec::new();
        while let Some(piece) = reader.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert!(read == body, "{size} bytes in pieces");
        let limit = u64::from(size) - 1;
        for refused in [
            service.transport.image(id, limit).await.map(drop),
            service.transport.open_image(id, limit).await.map(drop),
        ] {
            match refused {
                Err(TransportError::ObjectTooLarge { size: found, .. }) => assert_eq!(found, u64::from(size)),
                other => panic!("{size} bytes: {other:?}"),
            }
        }
    }
}

async fn what_does_not_exist_is_none(backend: &Backend) {
    let service = Service::start(backend).await;
    let (id, transport) = (Uuid::now_v7(), &service.transport);
    assert_eq!(transport.result(id).await.unwrap(), None);
    assert_eq!(transport.image(id, MANY).await.unwrap(), None);
    assert_eq!(transport.image_info(id).await.unwrap(), None);
    assert_eq!(transport.legacy_output(id).await.unwrap(), None);
    assert!(transport.open_image(id, MANY).await.unwrap().is_none());
    assert_eq!(transport.withdraw(id).await.unwrap(), Withdrawal::NotStored);
}

async fn held_message_is_invisible_and_comes_again(backend: &Backend) {
    let service = Service::start(backend).await;
    service.submit(b"again", 0).await;
    let first = service.receive_one(SECOND * 2).await;
    let second = service.one_after(service.receive_one(LONG), std::future::ready(())).await;
    assert_eq!((second.receive_count, &second.message_id), (2, &first.message_id));
    assert_eq!(second.sent_at_ms, first.sent_at_ms);
    assert_ne!(second.receipt, first.receipt);
}

async fn extended_message_stays_invisible(backend: &Backend) {
    let service = Service::start(backend).await;
    service.submit(b"kept", 0).await;
    let delivery = service.receive_one(SECOND * 2).await;
    let receipt = [delivery.receipt];
    service.transport.extend(&receipt, LONG).await.unwrap();
    tokio::time::sleep(SECOND * 2).await;
    let release = service.transport.release(&receipt, Duration::ZERO);
    assert_eq!(service.one_after(service.receive_one(LONG), release).await.receive_count, 2);
    service.transport.extend(&[], LONG).await.unwrap();
}

async fn released_message_comes_at_once_or_later(backend: &Backend) {
    let service = Service::start(backend).await;
    service.submit(b"back", 0).await;
    let first = service.receive_one(LONG).await;
    service.transport.release(&[first.receipt], Duration::ZERO).await.unwrap();
    let second = service.receive_one(LONG).await;
    assert_eq!(second.receive_count, 2);
    let released = Instant::now();
    service.transport.release(&[second.receipt], SECOND * 2).await.unwrap();
    assert_eq!(service.receive_one(LONG).await.receive_count, 3);
    assert!(released.elapsed() >= SECOND, "it came after {:?}", released.elapsed());
    service.transport.release(&[], Duration::ZERO).await.unwrap();
}

async fn stale_receipt_does_nothing(backend: &Backend) {
    let service = Service::start(backend).await;
    service.submit(b"mine", 0).await;
    let stale = service.receive_one(SECOND).await.receipt;
    let fresh = service.receive_one(LONG).await.receipt;
    service.complete(vec![Completion::new(stale.clone())]).await;
    service.transport.release(std::slice::from_ref(&stale), Duration::ZERO).await.unwrap();
    let release = service.transport.release(std::slice::from_ref(&fresh), Duration::ZERO);
    let last = service.one_after(service.receive_one(LONG), release).await;
    assert_eq!(last.receive_count, 3, "neither deleted nor released by the stale receipt: {last:?}");
    service.complete(vec![Completion::new(last.receipt.clone())]).await;
    service.complete(vec![Completion::new(last.receipt.clone())]).await;
    service.transport.extend(&[last.receipt, stale], LONG).await.unwrap();
    service.expect_depth((0, 0)).await;
}

async fn dropped_receive_loses_nothing(backend: &Backend) {
    // A long poll whose client has left may count as a delivery, and none of these messages may become a dead letter.
    let service = Service::start_with(backend, MANY_DELIVERIES).await;
    let (mut ids, mut received) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..20 {
        ids.insert(service.submit(b"x", 0).await);
        // Two receives race, and the loser is dropped wherever it is.
        let deliveries = tokio::select! {
            deliveries = service.receive(MAX_BATCH, SECOND * 3, &Idle) => deliveries,
            deliveries = service.receive(MAX_BATCH, SECOND * 3, &Idle) => deliveries,
        };
        received.extend(service.delete(deliveries).await);
    }
    // A server may go on with a long poll whose client has left, and hide a message for the visibility timeout. No receive
    // is dropped here, so these polls end, and within two of them every message is visible again.
    let start = Instant::now();
    while received.len() < ids.len() && start.elapsed() < TIMEOUT * 3 {
        received.extend(service.delete(service.receive(MAX_BATCH, SECOND * 3, &Idle).await).await);
    }
    assert_eq!(received, ids);
}

async fn receivers_share_without_doubles(backend: &Backend) {
    let service = Service::start(backend).await;
    let mut ids = BTreeSet::new();
    for _ in 0..30 {
        ids.insert(service.submit(b"x", 0).await);
    }
    let receiver = || async {
        let mut received = Vec::new();
        while let Ok(deliveries) = tokio::time::timeout(SECOND * 2, service.receive(3, LONG, &Idle)).await {
            received.extend(service.delete(deliveries).await);
        }
        received
    };
    let (a, b, c) = tokio::join!(receiver(), receiver(), receiver());
    let all = [a, b, c].concat();
    assert_eq!((all.len(), all.iter().copied().collect::<BTreeSet<_>>()), (ids.len(), ids));
}

async fn busy_worker_receives_too(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"x", 0).await;
    let mut deliveries = Vec::new();
    let start = Instant::now();
    while deliveries.is_empty() && start.elapsed() < TIMEOUT {
        deliveries = service.receive(MAX_BATCH, LONG, &Busy).await;
    }
    assert_eq!(service.delete(deliveries).await, [id]);
}

async fn completion_writes_replies_and_deletes(backend: &Backend) {
    let service = Service::start(backend).await;
    let inbox = service.inbox(InboxMode::Own).await;
    let id = service.submit(b"x", 0).await;
    let delivery = service.receive_one(LONG).await;
    let text = result_text(id, "first");
    let completed = service.complete_one(completion(&delivery, id, &text, &inbox.address())).await;
    let expected = Completed { result: ResultWrite::Created, reply: Some(ReplyOutcome::Sent) };
    assert_eq!(completed, expected);
    assert_eq!(service.transport.result(id).await.unwrap().unwrap(), text);
    let replies = receive_replies(&*inbox, 1).await;
    assert_eq!(replies, [text]);
    service.expect_depth((0, 0)).await;
    inbox.close().await;
}

async fn first_result_of_a_job_is_kept(backend: &Backend) {
    let service = Service::start(backend).await;
    let inbox = service.inbox(InboxMode::Own).await;
    let id = service.submit(b"x", 0).await;
    let first = service.receive_one(SECOND).await;
    let second = service.receive_one(LONG).await;
    // The first worker is late: its receipt is stale, and its result counts all the same.
    let text = result_text(id, "first");
    service.complete_one(completion(&first, id, &text, &inbox.address())).await;
    let other = result_text(id, "second, longer than the first");
    let completed = service.complete_one(completion(&second, id, &other, &inbox.address())).await;
    assert_eq!(completed.result, ResultWrite::AlreadyCompleted(Some(Bytes::from(text.clone()))));
    assert_eq!(service.transport.result(id).await.unwrap().unwrap(), text);
    assert_eq!(receive_replies(&*inbox, 2).await, [text.clone(), text], "both replies are the result");
    service.expect_depth((0, 0)).await;
    inbox.close().await;
}

async fn racing_completions_agree_on_one_result(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = Uuid::now_v7();
    let mut deliveries = Vec::new();
    for _ in 0..8 {
        service.submit(b"x", 0).await;
        deliveries.push(service.receive_one(LONG).await);
    }
    // Small ones and large ones, which a backend may keep apart.
    let text_of = |racer: usize| {
        result_text(id, &format!("racer {racer} ").repeat(if racer.is_multiple_of(2) { 1 } else { 20_000 }))
    };
    let racers = deliveries.iter().enumerate().map(|(racer, delivery)| {
        let mut completion = Completion::new(delivery.receipt.clone());
        completion.result = Some(NewResult { id, text: text_of(racer).into() });
        service.complete_one(completion)
    });
    let answers = join_all(racers).await;
    let created: Vec<usize> = (0..8).filter(|&racer| answers[racer].result == ResultWrite::Created).collect();
    assert_eq!(created.len(), 1, "{created:?}");
    let winner = Bytes::from(text_of(created[0]));
    for (racer, answer) in answers.into_iter().enumerate().filter(|(racer, _)| *racer != created[0]) {
        assert!(answer.result == ResultWrite::AlreadyCompleted(Some(winner.clone())), "racer {racer}");
    }
    assert!(service.transport.result(id).await.unwrap() == Some(winner), "the losers left it as it is");
}

async fn batch_is_answered_one_by_one(backend: &Backend) {
    let service = Service::start(backend).await;
    let (mut batch, mut expected) = (Vec::new(), Vec::new());
    for size in [1, 2, 30_000, 300_000] {
        let id = service.submit(b"x", 0).await;
        let delivery = service.receive_one(LONG).await;
        let text = Bytes::from(result_text(id, &"y".repeat(size)));
        if size == 2 {
            service.transport.write_result(id, Bytes::from_static(b"earlier")).await.unwrap();
        }
        let mut completion = Completion::new(delivery.receipt);
        completion.result = Some(NewResult { id, text: text.clone() });
        batch.push(completion);
        expected.push((id, if size == 2 { Bytes::from_static(b"earlier") } else { text }));
    }
    let answers = service.complete(batch).await;
    let already = ResultWrite::AlreadyCompleted(Some(Bytes::from_static(b"earlier")));
    let results: Vec<_> = answers.into_iter().map(|completed| completed.result).collect();
    assert_eq!(results, [ResultWrite::Created, already, ResultWrite::Created, ResultWrite::Created]);
    for (id, text) in expected {
        assert!(service.transport.result(id).await.unwrap() == Some(text));
    }
    assert!(service.transport.complete(&mut []).await.is_empty());
    service.expect_depth((0, 0)).await;
}

async fn replies_go_only_to_inboxes_of_the_service(backend: &Backend) {
    let service = Service::start(backend).await;
    let gone = reply_queue(&service.names.result_queue, "0123456789abcdef");
    for (address, expected) in [("somebody-elses", ReplyOutcome::Foreign), (gone.as_str(), ReplyOutcome::Gone)] {
        let id = service.submit(b"x", 0).await;
        let delivery = service.receive_one(LONG).await;
        let completed = service.complete_one(completion(&delivery, id, &result_text(id, "a"), address)).await;
        assert_eq!((completed.result, completed.reply), (ResultWrite::Created, Some(expected)), "{address}");
    }
    service.expect_depth((0, 0)).await;
}

/// A caller that has lost the first answer completes its message a second time.
async fn completion_twice_is_harmless(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"x", 0).await;
    let delivery = service.receive_one(LONG).await;
    let text = result_text(id, "once");
    let once = || {
        let mut completion = Completion::new(delivery.receipt.clone());
        completion.result = Some(NewResult { id, text: text.clone().into() });
        completion
    };
    assert_eq!(service.complete_one(once()).await.result, ResultWrite::Created);
    let again = service.complete_one(once()).await;
    assert_eq!(again.result, ResultWrite::AlreadyCompleted(Some(text.clone().into())));
    assert_eq!(service.transport.result(id).await.unwrap().unwrap(), text);
}

async fn late_writer_of_a_result_gets_the_first(backend: &Backend) {
    let service = Service::start(backend).await;
    let (id, transport) = (Uuid::now_v7(), &service.transport);
    assert_eq!(transport.write_result(id, Bytes::from_static(b"first")).await.unwrap(), "first");
    assert_eq!(transport.write_result(id, Bytes::from_static(b"second")).await.unwrap(), "first");
    assert_eq!(transport.result(id).await.unwrap().unwrap(), "first");
}

async fn withdrawn_image_is_replaced_by_a_marker(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"nobody waits", 0).await;
    assert_eq!(service.transport.withdraw(id).await.unwrap(), Withdrawal::Withdrawn);
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), WITHDRAWN_IMAGE);
    let delivery = service.receive_one(LONG).await;
    let mut completion = Completion::new(delivery.receipt);
    completion.withdrawn = Some(id);
    service.complete_one(completion).await;
    assert_eq!(service.transport.image(id, MANY).await.unwrap(), None, "the marker is gone");
    service.expect_depth((0, 0)).await;
}

async fn job_with_a_result_is_not_withdrawn(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"done", 0).await;
    service.transport.write_result(id, Bytes::from_static(b"result")).await.unwrap();
    assert_eq!(service.transport.withdraw(id).await.unwrap(), Withdrawal::AlreadyCompleted);
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), "done");
}

async fn removed_job_gets_no_result_but_the_tombstone(backend: &Backend) {
    let service = Service::start(backend).await;
    let (id, tombstone) = (service.submit(b"cancelled", 0).await, Bytes::from_static(b"tombstone"));
    let delivery = service.receive_one(LONG).await;
    assert_eq!(service.transport.remove(id, tombstone.clone()).await.unwrap(), Removal::Cancelled);
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), WITHDRAWN_IMAGE);
    // The worker had read the image before.
    let mut completion = Completion::new(delivery.receipt);
    completion.result = Some(NewResult { id, text: result_text(id, "succeeded").into() });
    let completed = service.complete_one(completion).await;
    assert_eq!(completed.result, ResultWrite::AlreadyCompleted(Some(tombstone.clone())));
    assert_eq!(service.transport.result(id).await.unwrap(), Some(tombstone.clone()));
    let unknown = service.transport.remove(Uuid::now_v7(), tombstone).await.unwrap();
    assert_eq!(unknown, Removal::Unknown);
}

async fn removal_of_a_complete_job_leaves_only_the_tombstone(backend: &Backend) {
    let service = Service::start(backend).await;
    let (id, tombstone) = (service.submit(b"done", 0).await, Bytes::from_static(b"tombstone"));
    service.transport.write_result(id, Bytes::from_static(b"result")).await.unwrap();
    assert_eq!(service.transport.remove(id, tombstone.clone()).await.unwrap(), Removal::Removed);
    assert_eq!(service.transport.result(id).await.unwrap(), Some(tombstone));
    assert_eq!(service.transport.image(id, MANY).await.unwrap(), None);
}

async fn record_is_written_once(backend: &Backend) {
    let service = Service::start(backend).await;
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let key = "results/.idempotency/00.json";
    assert_eq!(service.transport.record_once(key, first.clone()).await.unwrap(), first);
    assert_eq!(service.transport.record_once(key, second.clone()).await.unwrap(), first);
    let other = "results/.idempotency/01.json";
    assert_eq!(service.transport.record_once(other, second.clone()).await.unwrap(), second);
}

async fn records_are_listed_in_order(backend: &Backend) {
    let service = Service::start(backend).await;
    let keys = ["batches/a.json", "batches/b.json", "batches0", "batch"];
    for key in keys {
        service.transport.record_once(key, Bytes::from(key)).await.unwrap();
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = service.transport.record_keys("batches/", after.as_deref()).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        found.extend(page);
    }
    assert_eq!(found, keys[..2]);
    assert_eq!(service.transport.record("batches/b.json", MANY).await.unwrap().unwrap(), "batches/b.json");
    assert_eq!(service.transport.record("batches/c.json", MANY).await.unwrap(), None);
}

async fn jobs_are_listed_by_what_is_stored_of_them(backend: &Backend) {
    let service = Service::start(backend).await;
    let transport = &service.transport;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(service.submit(b"image", 0).await);
    }
    ids.sort_unstable();
    for id in &ids[1..] {
        transport.write_result(*id, result_text(*id, "succeeded").into()).await.unwrap();
    }
    // Neither of them is the result of a job.
    for key in ["results/.idempotency/00.json", "results/0-bucket/key.json"] {
        transport.record_once(key, Bytes::from_static(b"{}")).await.unwrap();
    }
    let (first, last) = (Uuid::nil(), Uuid::max());
    for (part, after, before, expected) in [
        (JobPart::Image, first, last, &ids[..]),
        (JobPart::Result, first, last, &ids[1..]),
        (JobPart::Image, ids[0], last, &ids[1..]),
        (JobPart::Image, first, ids[2], &ids[..2]),
        (JobPart::Image, ids[0], ids[2], &ids[1..2]),
        (JobPart::Result, ids[1], ids[2], &[]),
        (JobPart::Result, ids[2], last, &[]),
    ] {
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let page = transport.job_ids(part, after, before).await.unwrap();
            let Some(last) = page.last() else { break };
            after = *last;
            found.extend(page);
        }
        assert_eq!(found, expected, "{part:?}");
    }
}

async fn request_without_an_image_is_received(backend: &Backend) {
    let service = Service::start(backend).await;
    let image = Some(ImageRef { bucket: "somebody".to_owned(), key: "a/b.jpg".to_owned() });
    let request = ClassifyRequest { image, batch: Some(Uuid::now_v7()), ..classify_request(Uuid::now_v7()) };
    service.transport.send_request(&request).await.unwrap();
    let delivery = service.receive_bulk(LONG).await;
    assert_eq!(request_of(&delivery), request);
    // Sent again, as after a failure.
    service.complete_one(completion(&delivery, request.id, "failed", "")).await;
    service.transport.resubmit(Resubmission { job: None, message: delivery.body.clone() }).await.unwrap();
    assert_eq!(service.transport.result(request.id).await.unwrap(), None);
    assert_eq!(request_of(&service.receive_bulk(LONG).await), request);
}

async fn dead_letter_keeps_message_and_reason(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"x", 0).await;
    let delivery = service.receive_one(LONG).await;
    let mut completion = Completion::new(delivery.receipt);
    completion.result = Some(NewResult { id, text: result_text(id, "failed").into() });
    let reason = "it's \"bad\" — ünïcode".to_owned();
    completion.dead_letter =
        Some(DeadLetter { id: Some(id), body: delivery.body.clone(), reason: reason.clone(), attempts: 3 });
    service.complete_one(completion).await;
    service.expect_depth((0, 0)).await;
    let dead_letter = service.dead_letter().await;
    assert_eq!(dead_letter.body, delivery.body);
    let attribute = |name: &str| dead_letter.attributes.get(name).cloned();
    assert_eq!(attribute("reason"), Some(reason));
    assert_eq!((attribute("attempts"), attribute("id")), (Some("3".to_owned()), Some(id.to_string())));
    // The scan kept the dead letter, so the next scan receives it again and deletes it.
    let mut scan = service.transport.dead_letters().await.unwrap();
    let dead_letters = until_some(async || scan.next(MAX_BATCH).await.unwrap()).await;
    assert_eq!(dead_letters[0].message_id, dead_letter.message_id);
    scan.delete(&[dead_letters[0].receipt.clone()]).await.unwrap();
    assert!(scan.next(MAX_BATCH).await.unwrap().is_empty(), "each comes once");
    scan.close().await.unwrap();
    let depth = service.transport.queue_depth(&service.names.dead_letter_queue()).await.unwrap().unwrap();
    assert_eq!(depth.visible + depth.in_flight, 0);
}

async fn message_delivered_too_often_becomes_a_dead_letter(backend: &Backend) {
    let service = Service::start(backend).await;
    service.submit(b"poison", 0).await;
    let mut poison = None;
    for count in 1..=MAX_RECEIVE_COUNT + REDRIVE_MARGIN {
        let delivery = service.receive_one(LONG).await;
        assert_eq!(delivery.receive_count, count);
        service.transport.release(std::slice::from_ref(&delivery.receipt), Duration::ZERO).await.unwrap();
        poison = Some(delivery);
    }
    let healthy = service.submit(b"healthy", 0).await;
    assert_eq!(request_of(&service.receive_one(LONG).await).id, healthy, "a dead letter does not block other messages");
    // A message that became visible in the same millisecond may be taken first, and only a receive moves dead letters.
    let dead_letter = tokio::select! {
        dead_letter = service.dead_letter() => dead_letter,
        other = service.receive_one(LONG) => panic!("delivered again: {other:?}"),
    };
    let poison = poison.unwrap();
    assert_eq!((dead_letter.body, dead_letter.sent_at_ms), (poison.body, poison.sent_at_ms));
}

async fn resubmitted_job_loses_its_failed_result(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"image", 0).await;
    let delivery = service.receive_one(LONG).await;
    let mut completion = Completion::new(delivery.receipt);
    completion.result = Some(NewResult { id, text: result_text(id, "failed").into() });
    service.complete_one(completion).await;
    let job = Some((id, Bytes::from_static(b"image"), Some("image/jpeg")));
    service.transport.resubmit(Resubmission { job, message: delivery.body.clone() }).await.unwrap();
    assert_eq!(service.transport.result(id).await.unwrap(), None);
    assert_eq!(service.transport.image(id, MANY).await.unwrap().unwrap(), "image");
    let again = service.receive_one(LONG).await;
    assert_eq!((again.body, again.receive_count), (delivery.body, 1));
}

async fn reply_on_a_shared_inbox_reaches_its_process(backend: &Backend) {
    let service = Service::start(backend).await;
    let (here, there) = (service.inbox(InboxMode::Shared).await, service.inbox(InboxMode::Shared).await);
    assert!(here.is_shared() && here.address() == there.address());
    let id = service.submit(b"x", 0).await;
    let delivery = service.receive_one(LONG).await;
    let text = result_text(id, "shared");
    service.complete_one(completion(&delivery, id, &text, &here.address())).await;
    let replies = until_some(async || here.receive().await.unwrap()).await;
    // No caller waits for this reply here, so it is released.
    here.acknowledge(&[], &[replies[0].receipt.clone()]).await;
    assert_eq!(receive_replies(&*there, 1).await, [text]);
}

async fn depth_counts_visible_and_in_flight(backend: &Backend) {
    let service = Service::start(backend).await;
    service.expect_depth((0, 0)).await;
    for _ in 0..3 {
        service.submit(b"x", 0).await;
    }
    service.expect_depth((3, 0)).await;
    let delivery = service.receive_one(LONG).await;
    service.expect_depth((2, 1)).await;
    service.complete(vec![Completion::new(delivery.receipt)]).await;
    service.expect_depth((2, 0)).await;
    let depth = service.transport.queue_depth(service.transport.name()).await.unwrap().unwrap();
    assert_eq!((depth.visible, depth.in_flight), (2, 0));
    assert!(!service.transport.depth_interval().is_zero() && service.transport.retention().await.unwrap() > LONG);
}

async fn bulk_requests_have_a_queue_of_their_own(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit_bulk(b"bulk").await;
    service.expect_depth((1, 0)).await;
    assert_eq!(service.transport.interactive_depth().await.unwrap().visible, 0);
    let first = service.receive_bulk(LONG).await;
    assert_eq!((request_of(&first).id, first.receive_count), (id, 1));
    service.transport.release(std::slice::from_ref(&first.receipt), Duration::ZERO).await.unwrap();
    let again = service.receive_bulk(2 * SECOND).await;
    assert_eq!((request_of(&again).id, again.receive_count), (id, 2));
    service.transport.extend(std::slice::from_ref(&again.receipt), LONG).await.unwrap();
    service.expect_depth((0, 1)).await;
    // A batch of both classes is completed in one call.
    let other = service.submit(b"interactive", 0).await;
    let interactive = service.receive_one(LONG).await;
    assert_eq!(request_of(&interactive).id, other);
    let completed =
        service.complete(vec![completion(&again, id, "a", ""), completion(&interactive, other, "b", "")]).await;
    assert!(completed.iter().all(|completed| completed.result == ResultWrite::Created), "{completed:?}");
    until_some(async || {
        let depth = service.transport.depth().await.unwrap();
        (depth.visible + depth.in_flight == 0).then_some(()).into_iter().collect::<Vec<_>>()
    })
    .await;
}

async fn bulk_requests_wait_for_interactive_ones(backend: &Backend) {
    let service = Service::start(backend).await;
    let bulk = service.submit_bulk(b"bulk").await;
    let interactive = service.submit(b"interactive", 0).await;
    let wanted = |class| Wanted { class, max: 1, visibility_timeout: LONG };
    let receiving = service.transport.receive(wanted(ServiceClass::Bulk), &Idle);
    let early = tokio::time::timeout(SECOND, receiving).await;
    assert!(early.as_ref().map_or(true, |received| received.as_ref().unwrap().is_empty()), "{early:?}");
    let first = service.receive_one(LONG).await;
    assert_eq!(request_of(&first).id, interactive);
    assert_eq!(request_of(&service.receive_bulk(LONG).await).id, bulk);
}

async fn resubmitted_job_of_a_batch_stays_bulk(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit_bulk(b"bulk").await;
    let delivery = service.receive_bulk(LONG).await;
    service.complete_one(completion(&delivery, id, "failed", "")).await;
    let job = Some((id, Bytes::from_static(b"bulk"), Some("image/jpeg")));
    service.transport.resubmit(Resubmission { job, message: delivery.body.clone() }).await.unwrap();
    assert_eq!(request_of(&service.receive_bulk(LONG).await).id, id);
}

async fn image_is_discarded_only_after_its_job_has_a_result(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"image", 0).await;
    service.transport.discard_image(id).await.unwrap();
    assert!(service.transport.image(id, MANY).await.unwrap().is_some());
    let delivery = service.receive_one(LONG).await;
    service.complete_one(completion(&delivery, id, "a", "")).await;
    service.transport.discard_image(id).await.unwrap();
    assert_eq!(service.transport.image(id, MANY).await.unwrap(), None);
    assert!(service.transport.result(id).await.unwrap().is_some());
    service.transport.discard_image(id).await.unwrap();
}

async fn callback_is_received_until_it_is_ended(backend: &Backend) {
    let service = Service::start(backend).await;
    let transport = &service.transport;
    for _ in 0..2 {
        transport.prepare_callbacks().await.unwrap();
    }
    let listed = (service.names.callback_queue(), QueueRole::Callbacks);
    assert!(transport.queues().await.unwrap().contains(&listed));
    transport.send_callback("first".to_owned(), Duration::ZERO).await.unwrap();
    let receive = async || transport.receive_callbacks(MAX_BATCH, LONG).await.unwrap();
    let first = until_some(receive).await.remove(0);
    assert_eq!((first.body.as_str(), first.receive_count), ("first", 1));
    transport.send_callback("second".to_owned(), SECOND).await.unwrap();
    let second = until_some(receive).await.remove(0);
    assert_eq!(second.body, "second", "the first one is invisible");
    transport.end_callback(&second.receipt, None).await.unwrap();
    transport.delay_callback(&first.receipt, SECOND).await.unwrap();
    let again = until_some(receive).await.remove(0);
    assert_eq!((again.body.as_str(), again.receive_count), ("first", 2));
    assert_eq!(service.transport.depth().await.unwrap().visible, 0, "workers do not see callbacks");
    transport.end_callback(&again.receipt, None).await.unwrap();
    assert_eq!(transport.queue_depth(&service.names.callback_queue()).await.unwrap(), Some(Depth::default()));
}

async fn callback_that_is_given_up_is_a_dead_letter(backend: &Backend) {
    let service = Service::start(backend).await;
    let transport = &service.transport;
    transport.prepare_callbacks().await.unwrap();
    transport.send_callback("unwanted".to_owned(), Duration::ZERO).await.unwrap();
    let delivery = until_some(async || transport.receive_callbacks(1, LONG).await.unwrap()).await.remove(0);
    let id = Some(Uuid::now_v7());
    let dead_letter = DeadLetter { id, body: delivery.body, reason: "nobody answers".to_owned(), attempts: 3 };
    transport.end_callback(&delivery.receipt, Some(dead_letter)).await.unwrap();
    let kept = service.dead_letter().await;
    assert_eq!((kept.body.as_str(), &*kept.attributes["reason"]), ("unwanted", "nobody answers"));
    assert_eq!(transport.queue_depth(&service.names.callback_queue()).await.unwrap(), Some(Depth::default()));
}

async fn purged_queue_is_empty(backend: &Backend) {
    let service = Service::start(backend).await;
    for _ in 0..2 {
        service.submit(b"x", 0).await;
    }
    let delivery = service.receive_one(LONG).await;
    service.transport.purge(service.transport.name()).await.unwrap();
    service.expect_depth((0, 0)).await;
    service.complete(vec![Completion::new(delivery.receipt)]).await;
    let after = service.submit(b"after", 0).await;
    assert_eq!(request_of(&service.receive_one(LONG).await).id, after);
}

async fn preparing_twice_changes_nothing(backend: &Backend) {
    let service = Service::start(backend).await;
    let id = service.submit(b"x", 0).await;
    let again = transport::open(backend, &service.names).await.unwrap();
    again.prepare(options()).await.unwrap();
    again.check().await.unwrap();
    let roles: BTreeSet<String> =
        again.queues().await.unwrap().into_iter().map(|(_, role)| format!("{role:?}")).collect();
    let expected = [QueueRole::Requests, QueueRole::BulkRequests, QueueRole::DeadLetters, QueueRole::Results];
    assert!(expected.iter().all(|role| roles.contains(&format!("{role:?}"))), "{roles:?}");
    let delivery = service.receive_one(LONG).await;
    assert_eq!(request_of(&delivery).id, id);
    // A transport that is already open sees the image too.
    assert_eq!(again.image(id, MANY).await.unwrap().unwrap(), "x");
}

async fn nothing_exists_before_it_is_prepared(backend: &Backend) {
    let names = names();
    let transport = transport::open(backend, &names).await.unwrap();
    assert!(matches!(transport.depth().await, Err(TransportError::Missing(_))));
    assert!(matches!(transport.dead_letters().await.map(drop), Err(TransportError::Missing(_))));
    assert_eq!(transport.queue_depth(&names.request_queue).await.unwrap(), None);
    assert!(transport.check().await.is_err());
    transport.prepare(options()).await.unwrap();
    assert!(transport.queue_depth(&names.request_queue).await.unwrap().is_some());
    transport.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn local_transport_conforms() {
    let directory = tempfile::tempdir().unwrap();
    all(&Backend::Local { data_dir: directory.path().to_owned() }, &[]).await;
}
