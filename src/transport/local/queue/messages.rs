//! The operations of a queue in SQL. Each function is the part of one call in a transaction.
//!
//! Two columns hold the state of a message: *visible* (`visible_at_ms` has passed), *in flight* (it has
//! not, and the message was received), *delayed* (it has not, and it was never received). A message older
//! than the retention of its queue is in none of these states: it is skipped until `expiry` removes it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{OptionalExtension as _, Row, named_params, params};
use uuid::Uuid;

use super::duration;
use crate::sqlite::{self, RECHECK, ReadPhase, Session, millis};
use crate::transport::message::{Delivery, Depth, Receipt, ReceivingProcess};
use crate::transport::queued::queue::{Outgoing, QueueAttributes, QueueError, ReceiveOptions, Redrive};

type Failure = sqlite::Failure<QueueError>;

/// A row of `queues`.
struct QueueRow {
    id: i64,
    attributes: QueueAttributes,
}

/// Identifies one delivery of one message. A row may be used again once its message is deleted, a message id never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeliveryKey {
    row: i64,
    receive_count: u32,
    message_id: Uuid,
}

/// How many of the visible messages a receive takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taking {
    UpToMax,
    /// At most a [`fair_share`]: other receivers may process the rest sooner.
    Share,
}

/// Returns how many of `visible` messages one of several receivers takes: a quarter of many, and two of few if that leaves at
/// least three. The share is at least one and at most `max`.
pub(super) fn fair_share(visible: usize, max: usize) -> usize {
    let of_few = if visible >= 5 { 2 } else { 1 };
    of_few.max(visible / 4).clamp(1, max)
}

/// The result of a receive.
pub(super) struct Taken {
    pub deliveries: Vec<Delivery>,
    /// Time at which the next message is visible, if there is any.
    pub next_due_ms: Option<i64>,
}

pub(super) fn create(session: &Session, name: &str, attributes: &QueueAttributes) -> Result<(), Failure> {
    let redrive = attributes.redrive.as_ref();
    let mut insert = session.connection.prepare_cached(
        "INSERT INTO queues (name, visibility_timeout_ms, retention_ms, max_message_bytes, dead_letter_queue, max_receive_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO NOTHING",
    )?;
    insert.execute(params![
        name,
        millis(attributes.visibility_timeout),
        millis(attributes.retention),
        i64::try_from(attributes.max_message_bytes).unwrap_or(i64::MAX),
        redrive.map(|redrive| &redrive.dead_letter_queue),
        redrive.map(|redrive| redrive.max_receive_count),
    ])?;
    Ok(())
}

pub(super) fn delete(session: &mut Session, name: &str) -> Result<(), Failure> {
    let Some(queue) = find_optional(session, name)? else { return Ok(()) };
    for sql in [
        "DELETE FROM messages WHERE queue_id = ?1",
        "DELETE FROM tags WHERE queue_id = ?1",
        "DELETE FROM queues WHERE id = ?1",
    ] {
        session.connection.prepare_cached(sql)?.execute([queue.id])?;
    }
    session.removed.insert(name.to_owned());
    Ok(())
}

pub(super) fn exists(session: &Session, name: &str) -> Result<bool, Failure> {
    Ok(find_optional(session, name)?.is_some())
}

pub(super) fn attributes(session: &Session, name: &str) -> Result<QueueAttributes, Failure> {
    Ok(find(session, name)?.attributes)
}

pub(super) fn list(session: &Session, prefix: &str) -> Result<Vec<String>, Failure> {
    let mut select = session
        .connection
        .prepare_cached("SELECT name FROM queues WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name")?;
    let names = select.query_map([prefix], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn tags(session: &Session, name: &str) -> Result<BTreeMap<String, String>, Failure> {
    let queue = find(session, name)?;
    let mut select = session.connection.prepare_cached("SELECT key, value FROM tags WHERE queue_id = ?1")?;
    let tags = select.query_map([queue.id], |row| <(String, String)>::try_from(row))?;
    Ok(tags.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn set_tag(session: &Session, name: &str, key: &str, value: &str) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let sql = "INSERT INTO tags (queue_id, key, value) VALUES (?1, ?2, ?3)
               ON CONFLICT (queue_id, key) DO UPDATE SET value = excluded.value";
    session.connection.prepare_cached(sql)?.execute(params![queue.id, key, value])?;
    Ok(())
}

pub(in crate::transport::local) fn send(
    session: &mut Session,
    name: &str,
    messages: &[Outgoing],
) -> Result<Vec<Result<(), QueueError>>, Failure> {
    let queue = find(session, name)?;
    let mut insert = session.connection.prepare_cached(
        "INSERT INTO messages (queue_id, visible_at_ms, receive_count, sent_at_ms, message_id, attributes, body)
         VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6)",
    )?;
    let limit = queue.attributes.max_message_bytes;
    let mut answers = Vec::with_capacity(messages.len());
    for message in messages {
        let size = message.size_bytes();
        if size > limit {
            answers.push(Err(QueueError::TooLarge { queue: name.to_owned(), size, limit }));
            continue;
        }
        insert.execute(params![
            queue.id,
            session.now_ms.saturating_add(millis(message.delay)),
            session.now_ms,
            Uuid::now_v7(),
            attributes_json(&message.attributes),
            message.body,
        ])?;
        if message.delay < RECHECK {
            session.notify.insert(name.to_owned());
        }
        answers.push(Ok(()));
    }
    Ok(answers)
}

/// The read phase of a receive: whether there is anything to receive.
pub(super) fn look_for_due(session: &Session, name: &str) -> Result<ReadPhase<Taken>, Failure> {
    let queue = find(session, name)?;
    Ok(match next_due_ms(session, &queue)? {
        Some(due_ms) if due_ms <= session.now_ms => ReadPhase::Write,
        next_due_ms => ReadPhase::Answer(Taken { deliveries: Vec::new(), next_due_ms }),
    })
}

/// Returns true if a message can be received now.
pub(super) fn has_visible(session: &Session, name: &str) -> Result<bool, Failure> {
    let queue = find(session, name)?;
    Ok(next_due_ms(session, &queue)?.is_some_and(|due_ms| due_ms <= session.now_ms))
}

pub(super) fn receive(
    session: &mut Session,
    name: &str,
    options: ReceiveOptions,
    taking: Taking,
) -> Result<Taken, Failure> {
    let queue = find(session, name)?;
    let dead_letters = dead_letter_target(session, &queue)?;
    let visible_at_ms = session.now_ms.saturating_add(millis(options.visibility_timeout));
    let max = match taking {
        Taking::UpToMax => options.max,
        Taking::Share => share_of_visible(session, &queue, options.max)?,
    };
    let mut deliveries = Vec::new();
    // Dead letters leave capacity for further messages, hence the loop. Each round takes some of the visible messages.
    loop {
        let candidates = visible(session, &queue, max - deliveries.len())?;
        let is_last_round = candidates.len() < max - deliveries.len();
        for (row, message_id, mut delivery) in candidates {
            match &dead_letters {
                Some(target) if delivery.receive_count >= target.max_receive_count => {
                    move_to(session, row, target)?;
                }
                _ => {
                    delivery.receive_count += 1;
                    delivery.receipt = DeliveryKey { row, receive_count: delivery.receive_count, message_id }.into();
                    hide(session, row, visible_at_ms)?;
                    deliveries.push(delivery);
                }
            }
        }
        // With a visibility timeout of zero a taken message is still visible and would be found again.
        if is_last_round || deliveries.len() == max || options.visibility_timeout.is_zero() {
            break;
        }
    }
    Ok(Taken { deliveries, next_due_ms: next_due_ms(session, &queue)? })
}

fn share_of_visible(session: &Session, queue: &QueueRow, max: usize) -> Result<usize, Failure> {
    let mut count = session.connection.prepare_cached(
        "SELECT count(*) FROM (SELECT 1 FROM messages WHERE queue_id = ?1 AND visible_at_ms <= ?2 AND sent_at_ms >= ?4 LIMIT ?3)",
    )?;
    // The share of more messages than these is `max` too, so they need not be counted.
    let parameters = params![queue.id, session.now_ms, 4 * max, expiry_ms(session, queue)];
    let visible: usize = count.query_row(parameters, |row| row.get(0))?;
    Ok(fair_share(visible, max))
}

/// Undoes a receive whose messages were not passed to a caller.
pub(super) fn undo_receive(session: &mut Session, name: &str, receipts: &[Receipt]) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let mut update = session.connection.prepare_cached(
        "UPDATE messages SET visible_at_ms = ?1, receive_count = receive_count - 1
         WHERE id = ?2 AND queue_id = ?3 AND receive_count = ?4 AND message_id = ?5",
    )?;
    for key in receipts.iter().filter_map(DeliveryKey::parse) {
        update.execute(params![session.now_ms, key.row, queue.id, key.receive_count, key.message_id])?;
    }
    session.notify.insert(name.to_owned());
    Ok(())
}

pub(in crate::transport::local) fn ack(session: &Session, name: &str, receipts: &[Receipt]) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let mut delete = session.connection.prepare_cached(
        "DELETE FROM messages WHERE id = ?1 AND queue_id = ?2 AND receive_count = ?3 AND message_id = ?4",
    )?;
    for key in receipts.iter().filter_map(DeliveryKey::parse) {
        delete.execute(params![key.row, queue.id, key.receive_count, key.message_id])?;
    }
    Ok(())
}

pub(super) fn set_visibility(
    session: &mut Session,
    name: &str,
    changes: &[(Receipt, Duration)],
) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let mut update = session.connection.prepare_cached(
        "UPDATE messages SET visible_at_ms = ?1
         WHERE id = ?2 AND queue_id = ?3 AND receive_count = ?4 AND message_id = ?5",
    )?;
    for (receipt, timeout) in changes {
        let Some(key) = DeliveryKey::parse(receipt) else { continue };
        let visible_at_ms = session.now_ms.saturating_add(millis(*timeout));
        let rows = update.execute(params![visible_at_ms, key.row, queue.id, key.receive_count, key.message_id])?;
        if rows > 0 && *timeout < RECHECK {
            session.notify.insert(name.to_owned());
        }
    }
    Ok(())
}

/// Makes deliveries visible again after `delay`, which no process holds any more from here on.
pub(super) fn release(session: &mut Session, name: &str, receipts: &[Receipt], delay: Duration) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let mut update = session.connection.prepare_cached(
        "UPDATE messages SET visible_at_ms = ?1, receiver_pid = NULL, receiver_started = NULL
         WHERE id = ?2 AND queue_id = ?3 AND receive_count = ?4 AND message_id = ?5",
    )?;
    let visible_at_ms = session.now_ms.saturating_add(millis(delay));
    let mut released = 0;
    for key in receipts.iter().filter_map(DeliveryKey::parse) {
        released += update.execute(params![visible_at_ms, key.row, queue.id, key.receive_count, key.message_id])?;
    }
    if released > 0 && delay < RECHECK {
        session.notify.insert(name.to_owned());
    }
    Ok(())
}

/// Rows that one transaction of a purge deletes.
const PURGED_AT_ONCE: usize = 500;

/// The last row of a queue. `None` when it is empty.
pub(super) fn last_row(session: &Session, name: &str) -> Result<Option<i64>, Failure> {
    let queue = find(session, name)?;
    let mut select = session.connection.prepare_cached("SELECT max(id) FROM messages WHERE queue_id = ?1")?;
    Ok(select.query_row([queue.id], |row| row.get(0))?)
}

/// Deletes some of the messages in rows up to `last`. Returns whether none is left there.
pub(super) fn purge_some(session: &Session, name: &str, last: i64) -> Result<bool, Failure> {
    let queue = find(session, name)?;
    let sql = "DELETE FROM messages WHERE id IN (SELECT id FROM messages WHERE queue_id = ?1 AND id <= ?2 LIMIT ?3)";
    let deleted = session.connection.prepare_cached(sql)?.execute(params![queue.id, last, PURGED_AT_ONCE])?;
    Ok(deleted < PURGED_AT_ONCE)
}

pub(super) fn set_redrive(session: &Session, name: &str, redrive: &Redrive) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let sql = "UPDATE queues SET dead_letter_queue = ?1, max_receive_count = ?2 WHERE id = ?3";
    let mut update = session.connection.prepare_cached(sql)?;
    update.execute(params![redrive.dead_letter_queue, redrive.max_receive_count, queue.id])?;
    Ok(())
}

/// Makes the messages visible that a dead process holds.
pub(super) fn release_held_by(session: &mut Session, name: &str, process: ReceivingProcess) -> Result<(), Failure> {
    let queue = find(session, name)?;
    let mut update = session.connection.prepare_cached(
        "UPDATE messages SET visible_at_ms = ?1
         WHERE queue_id = ?2 AND visible_at_ms > ?1 AND receiver_pid = ?3 AND receiver_started = ?4",
    )?;
    let released = update.execute(params![session.now_ms, queue.id, process.pid, started(process)])?;
    if released > 0 {
        tracing::info!(queue = name, count = released, pid = process.pid, "messages of a dead process released");
        session.notify.insert(name.to_owned());
    }
    Ok(())
}

/// The start time as the database has it.
fn started(process: ReceivingProcess) -> i64 {
    process.started.cast_signed()
}

pub(super) fn depth(session: &Session, name: &str) -> Result<Depth, Failure> {
    let queue = find(session, name)?;
    Ok(count(session, &queue)?.0)
}

/// The age of the oldest message that is not expired.
pub(super) fn oldest_age(session: &Session, name: &str) -> Result<Option<Duration>, Failure> {
    let queue = find(session, name)?;
    let (_, oldest_ms) = count(session, &queue)?;
    Ok(oldest_ms.map(|oldest_ms| duration(session.now_ms.saturating_sub(oldest_ms))))
}

/// The depth, and when the oldest message was sent.
fn count(session: &Session, queue: &QueueRow) -> rusqlite::Result<(Depth, Option<i64>)> {
    let mut select = session.connection.prepare_cached(
        "SELECT count(*) FILTER (WHERE visible_at_ms <= ?2),
                count(*) FILTER (WHERE visible_at_ms > ?2 AND receive_count > 0),
                count(*) FILTER (WHERE visible_at_ms > ?2 AND receive_count = 0),
                min(sent_at_ms)
         FROM messages WHERE queue_id = ?1 AND sent_at_ms >= ?3",
    )?;
    select.query_row([queue.id, session.now_ms, expiry_ms(session, queue)], |row| {
        Ok((Depth { visible: row.get(0)?, in_flight: row.get(1)?, delayed: row.get(2)? }, row.get(3)?))
    })
}

fn find(session: &Session, name: &str) -> Result<QueueRow, Failure> {
    find_optional(session, name)?.ok_or_else(|| Failure::Call(QueueError::NotFound(name.to_owned())))
}

fn find_optional(session: &Session, name: &str) -> rusqlite::Result<Option<QueueRow>> {
    let mut select = session.connection.prepare_cached(
        "SELECT id, visibility_timeout_ms, retention_ms, max_message_bytes, dead_letter_queue, max_receive_count
         FROM queues WHERE name = ?1",
    )?;
    select.query_row([name], queue_row).optional()
}

fn queue_row(row: &Row) -> rusqlite::Result<QueueRow> {
    let redrive = match (row.get(4)?, row.get(5)?) {
        (Some(dead_letter_queue), Some(max_receive_count)) => Some(Redrive { dead_letter_queue, max_receive_count }),
        _ => None,
    };
    let attributes = QueueAttributes {
        visibility_timeout: duration(row.get(1)?),
        retention: duration(row.get(2)?),
        max_message_bytes: row.get(3)?,
        redrive,
    };
    Ok(QueueRow { id: row.get(0)?, attributes })
}

fn next_due_ms(session: &Session, queue: &QueueRow) -> rusqlite::Result<Option<i64>> {
    let mut select = session.connection.prepare_cached(
        "SELECT visible_at_ms FROM messages WHERE queue_id = ?1 AND sent_at_ms >= ?2 ORDER BY visible_at_ms LIMIT 1",
    )?;
    select.query_row([queue.id, expiry_ms(session, queue)], |row| row.get(0)).optional()
}

/// Messages sent before this are expired.
fn expiry_ms(session: &Session, queue: &QueueRow) -> i64 {
    session.now_ms.saturating_sub(millis(queue.attributes.retention))
}

/// The queue for messages that were received too often.
struct DeadLetters {
    queue_id: i64,
    queue_name: String,
    max_receive_count: u32,
}

/// Returns the dead-letter queue of a queue. Returns `None` too when that queue is missing: delivering a message once more is
/// better than losing it.
fn dead_letter_target(session: &Session, queue: &QueueRow) -> rusqlite::Result<Option<DeadLetters>> {
    let Some(redrive) = &queue.attributes.redrive else { return Ok(None) };
    let target = find_optional(session, &redrive.dead_letter_queue)?;
    Ok(target.map(|target| DeadLetters {
        queue_id: target.id,
        queue_name: redrive.dead_letter_queue.clone(),
        max_receive_count: redrive.max_receive_count,
    }))
}

/// Returns visible messages, the longest visible first. They have no receipts yet.
fn visible(session: &Session, queue: &QueueRow, limit: usize) -> Result<Vec<(i64, Uuid, Delivery)>, Failure> {
    let mut select = session.connection.prepare_cached(
        "SELECT id, message_id, body, attributes, receive_count, sent_at_ms FROM messages
         WHERE queue_id = :queue AND visible_at_ms <= :now AND sent_at_ms >= :oldest
         ORDER BY visible_at_ms, receive_count, id LIMIT :limit",
    )?;
    let oldest = expiry_ms(session, queue);
    let parameters = named_params! { ":queue": queue.id, ":now": session.now_ms, ":oldest": oldest, ":limit": limit };
    let found = select.query_map(parameters, |row| Ok((row.get(0)?, row.get(1)?, delivery(row)?)))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn delivery(row: &Row) -> rusqlite::Result<Delivery> {
    let attributes: Option<String> = row.get(3)?;
    Ok(Delivery {
        message_id: row.get::<_, Uuid>(1)?.to_string(),
        receipt: Receipt(String::new()),
        body: row.get(2)?,
        // The column is written by `attributes_json`, so it is valid unless another program wrote it.
        attributes: attributes.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        receive_count: row.get(4)?,
        sent_at_ms: row.get(5)?,
    })
}

fn hide(session: &Session, row: i64, visible_at_ms: i64) -> rusqlite::Result<()> {
    let mut update = session.connection.prepare_cached(
        "UPDATE messages SET visible_at_ms = ?1, receive_count = receive_count + 1, receiver_pid = ?3, receiver_started = ?4
         WHERE id = ?2",
    )?;
    let receiver = this_process();
    update.execute(params![visible_at_ms, row, receiver.pid, started(receiver)])?;
    Ok(())
}

fn this_process() -> ReceivingProcess {
    static PROCESS: LazyLock<ReceivingProcess> = LazyLock::new(ReceivingProcess::current);
    *PROCESS
}

/// Moves a dead letter as SQS does: it keeps its id, its age and its receive count.
fn move_to(session: &mut Session, row: i64, target: &DeadLetters) -> rusqlite::Result<()> {
    let sql = "UPDATE messages SET queue_id = ?1, visible_at_ms = ?2 WHERE id = ?3";
    session.connection.prepare_cached(sql)?.execute([target.queue_id, session.now_ms, row])?;
    session.notify.insert(target.queue_name.clone());
    Ok(())
}

fn attributes_json(attributes: &BTreeMap<String, String>) -> Option<String> {
    let json = || serde_json::to_string(attributes).expect("a map of strings; this is a bug");
    (!attributes.is_empty()).then(json)
}

impl DeliveryKey {
    /// Returns `None` when the text is not a receipt of this queue. Such a receipt identifies no delivery and has no effect.
    fn parse(receipt: &Receipt) -> Option<DeliveryKey> {
        receipt.0.parse().ok()
    }
}

impl From<DeliveryKey> for Receipt {
    fn from(key: DeliveryKey) -> Self {
        Receipt(format!("{}-{}-{}", key.row, key.receive_count, key.message_id.simple()))
    }
}

impl FromStr for DeliveryKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (row, rest) = text.split_once('-').ok_or(())?;
        let (receive_count, message_id) = rest.split_once('-').ok_or(())?;
        Ok(DeliveryKey {
            row: row.parse().map_err(drop)?,
            receive_count: receive_count.parse().map_err(drop)?,
            message_id: message_id.parse().map_err(drop)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_share_leaves_three_of_few_and_three_quarters_of_many() {
        let shares = [0, 1, 2, 4, 5, 11, 12, 15, 16, 40].map(|visible| fair_share(visible, 10));
        assert_eq!(shares, [1, 1, 1, 1, 2, 2, 3, 3, 4, 10]);
        assert_eq!([fair_share(40, 3), fair_share(5, 1)], [3, 1]);
    }
}
