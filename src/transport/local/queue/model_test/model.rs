//! The model: what the rows of the file have to be after each call, and how each accepted message ended.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::Connection;

use crate::sqlite::millis;
use crate::transport::message::{Delivery, Receipt};
use crate::transport::queued::queue::{QueueAttributes, Redrive};

pub(super) const MAIN: &str = "jobs";
pub(super) const DEAD: &str = "jobs-dead";
const RETENTION: Duration = Duration::from_hours(1);
const DEAD_RETENTION: Duration = Duration::from_hours(4);
const MAX_RECEIVE_COUNT: u32 = 3;
pub(super) const MAX_MESSAGE_BYTES: usize = 64;

/// A delivery that a process knows.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub queue: &'static str,
    pub receipt: Receipt,
    pub body: u64,
    pub receive_count: u32,
}

/// A message in the model or in the file. Bodies are numbers, and each is sent once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub queue: &'static str,
    pub visible_at_ms: i64,
    pub receive_count: u32,
    pub sent_at_ms: i64,
}

pub(super) type Rows = BTreeMap<u64, Row>;

/// How an accepted message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Acknowledged,
    Expired,
    Purged,
}

/// Counts of the operations that the runs reached. The test fails if one of them is zero.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub sent: u64,
    pub redelivered: u64,
    pub acknowledged: u64,
    pub expired: u64,
    pub moved_to_dead_letters: u64,
    pub released: u64,
    pub extended: u64,
    pub stale_receipts: u64,
    pub purged: u64,
    pub rolled_back: u64,
    pub lost_answers: u64,
    pub clock_steps: u64,
}

impl Seen {
    fn fields(&mut self) -> [&mut u64; 12] {
        [
            &mut self.sent,
            &mut self.redelivered,
            &mut self.acknowledged,
            &mut self.expired,
            &mut self.moved_to_dead_letters,
            &mut self.released,
            &mut self.extended,
            &mut self.stale_receipts,
            &mut self.purged,
            &mut self.rolled_back,
            &mut self.lost_answers,
            &mut self.clock_steps,
        ]
    }

    pub(super) fn add(&mut self, other: &Seen) {
        let Seen { sent, redelivered, acknowledged, expired, moved_to_dead_letters, released, .. } = *other;
        let Seen { extended, stale_receipts, purged, rolled_back, lost_answers, clock_steps, .. } = *other;
        let first = [sent, redelivered, acknowledged, expired, moved_to_dead_letters, released];
        let last = [extended, stale_receipts, purged, rolled_back, lost_answers, clock_steps];
        self.fields().into_iter().zip(first.into_iter().chain(last)).for_each(|(sum, more)| *sum += more);
    }

    pub(super) fn are_all(&mut self) -> bool {
        self.fields().into_iter().all(|count| *count > 0)
    }
}

/// The effects of an open transaction, which are discarded if it is rolled back.
#[derive(Default)]
pub(super) struct Pending {
    pub rows: Rows,
    pub outcomes: BTreeMap<u64, Outcome>,
    /// Deliveries that the caller gets once the transaction is committed.
    pub received: Vec<Held>,
    pub spent: Vec<Receipt>,
    pub seen: Seen,
}

/// Checks one delivery and applies its effect to the model.
pub(super) fn deliver(
    delivery: &Delivery,
    now_ms: i64,
    queue: &'static str,
    visibility_timeout: Duration,
    pending: &mut Pending,
) -> Held {
    let body: u64 = delivery.body.parse().expect("bodies are numbers");
    let row = pending.rows.get_mut(&body).unwrap_or_else(|| panic!("message {body} ended and is delivered"));
    assert_eq!(row.queue, queue, "message {body} is in another queue");
    assert!(row.visible_at_ms <= now_ms, "message {body} is invisible until {}", row.visible_at_ms);
    assert!(!is_expired(row, now_ms), "message {body} is too old");
    assert!(!is_dead_letter(row), "message {body} was received {} times", row.receive_count);
    row.visible_at_ms = now_ms + millis(visibility_timeout);
    row.receive_count += 1;
    assert_eq!((delivery.receive_count, delivery.sent_at_ms), (row.receive_count, row.sent_at_ms), "message {body}");
    pending.seen.redelivered += u64::from(row.receive_count > 1);
    Held { queue, receipt: delivery.receipt.clone(), body, receive_count: row.receive_count }
}

/// Checks the dead letters that a receive moved and applies the moves to the model.
pub(super) fn move_dead_letters(now_ms: i64, queue: &str, left: &Rows, pending: &mut Pending) {
    for body in bodies_in(queue, &pending.rows) {
        let row = pending.rows.get_mut(&body).expect("just listed");
        let is_moved = left.get(&body).is_some_and(|left| left.queue == DEAD && row.queue == MAIN);
        if is_moved {
            let may_move = row.visible_at_ms <= now_ms && is_dead_letter(row) && !is_expired(row, now_ms);
            assert!(may_move, "message {body} is no dead letter: {row:?}");
            (row.queue, row.visible_at_ms) = (DEAD, now_ms);
            pending.seen.moved_to_dead_letters += 1;
        }
    }
}

pub(super) fn end(body: u64, outcome: Outcome, pending: &mut Pending) {
    match outcome {
        Outcome::Acknowledged => pending.seen.acknowledged += 1,
        Outcome::Expired => pending.seen.expired += 1,
        Outcome::Purged => pending.seen.purged += 1,
    }
    assert_eq!(pending.outcomes.insert(body, outcome), None, "message {body} ended twice");
}

/// Returns true if the receipt is valid: its message was not delivered again, moved or removed.
pub(super) fn is_current(held: &Held, pending: &Pending) -> bool {
    let row = pending.rows.get(&held.body);
    row.is_some_and(|row| row.queue == held.queue && row.receive_count == held.receive_count)
}

pub(super) fn is_expired(row: &Row, now_ms: i64) -> bool {
    let retention = if row.queue == MAIN { RETENTION } else { DEAD_RETENTION };
    row.sent_at_ms < now_ms - millis(retention)
}

pub(super) fn is_dead_letter(row: &Row) -> bool {
    row.queue == MAIN && row.receive_count >= MAX_RECEIVE_COUNT
}

pub(super) fn bodies_in(queue: &str, rows: &Rows) -> Vec<u64> {
    rows.iter().filter(|(_, row)| row.queue == queue).map(|(body, _)| *body).collect()
}

pub(super) fn attributes(queue: &str) -> QueueAttributes {
    let redrive = Redrive { dead_letter_queue: DEAD.to_owned(), max_receive_count: MAX_RECEIVE_COUNT };
    QueueAttributes {
        visibility_timeout: Duration::from_secs(30),
        retention: if queue == MAIN { RETENTION } else { DEAD_RETENTION },
        max_message_bytes: MAX_MESSAGE_BYTES,
        redrive: (queue == MAIN).then_some(redrive),
    }
}

/// Returns every message of the file. Fails if a body is there twice.
pub(super) fn rows(connection: &Connection) -> Rows {
    let sql = "SELECT CAST(m.body AS INTEGER), q.name, m.visible_at_ms, m.receive_count, m.sent_at_ms
               FROM messages m LEFT JOIN queues q ON q.id = m.queue_id";
    let mut select = connection.prepare_cached(sql).expect("a statement");
    let mut found = Rows::new();
    let mut cursor = select.query([]).expect("rows");
    while let Some(row) = cursor.next().expect("a row") {
        let body: u64 = row.get(0).expect("a number");
        let queue: Option<String> = row.get(1).expect("a name");
        let queue = match queue.as_deref() {
            Some(MAIN) => MAIN,
            Some(DEAD) => DEAD,
            other => panic!("message {body} is in queue {other:?}"),
        };
        let row = Row {
            queue,
            visible_at_ms: row.get(2).expect("a time"),
            receive_count: row.get(3).expect("a count"),
            sent_at_ms: row.get(4).expect("a time"),
        };
        assert_eq!(found.insert(body, row), None, "message {body} is there twice");
    }
    found
}
