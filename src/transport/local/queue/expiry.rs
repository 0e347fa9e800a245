//! Removes messages older than the retention of their queue in the background, some at a time, so that no call waits for a
//! transaction that removes hundreds of thousands. Until then no receive delivers them and no depth counts them.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

/// Limits of rows and bytes that one transaction removes, which keep it to a few milliseconds.
const MAX_ROWS: usize = 500;
const MAX_BYTES: u64 = 1 << 20;
/// How often a queue without expired messages is searched.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);

/// A row, and the size of its body.
type Expired = (i64, u64);

/// Removes some expired messages. Returns the delay until the next run.
pub(super) fn remove_some(connection: &mut Connection, now_ms: i64) -> rusqlite::Result<Duration> {
    // Searched outside of the transaction, since that takes longer the more messages there are, and blocks nobody.
    let found = expired(connection, now_ms)?;
    if found.is_empty() {
        return Ok(SEARCH_INTERVAL);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        // The row may be used again by now, by a message that is not expired.
        let mut delete = transaction.prepare_cached(
            "DELETE FROM messages WHERE id = ?1
             AND sent_at_ms < ?2 - (SELECT retention_ms FROM queues WHERE queues.id = queue_id)",
        )?;
        for (row, _) in &found {
            delete.execute(params![row, now_ms])?;
        }
    }
    transaction.commit()?;
    Ok(Duration::ZERO)
}

fn expired(connection: &Connection, now_ms: i64) -> rusqlite::Result<Vec<Expired>> {
    let mut queues = connection.prepare_cached("SELECT id, retention_ms FROM queues")?;
    let queues = queues.query_map([], |row| <(i64, i64)>::try_from(row))?;
    for queue in queues {
        let (id, retention_ms) = queue?;
        let found = expired_in(connection, id, now_ms.saturating_sub(retention_ms))?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Returns some expired messages of one queue, at least one if there is any.
fn expired_in(connection: &Connection, queue_id: i64, expiry_ms: i64) -> rusqlite::Result<Vec<Expired>> {
    let mut select = connection.prepare_cached(
        "SELECT id, octet_length(body) FROM messages WHERE queue_id = ?1 AND sent_at_ms < ?2 LIMIT ?3",
    )?;
    let mut rows = select.query(params![queue_id, expiry_ms, MAX_ROWS])?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while bytes < MAX_BYTES
        && let Some(row) = rows.next()?
    {
        let (id, size) = <Expired>::try_from(row)?;
        bytes += size;
        found.push((id, size));
    }
    Ok(found)
}
