//! The clock of the data directory: which service time corresponds to which time since boot ([`crate::clock`]). It is stored
//! in the database, so that all processes agree, even if the wall clock was stepped between their starts.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::clock::{Anchor, ServiceClock, Source};

/// Opens the clock of the database. The first process that does so after a boot sets the anchor.
pub(super) fn open(connection: &mut Connection, source: Arc<dyn Source>) -> rusqlite::Result<ServiceClock> {
    let anchor = match read(connection)? {
        Some(anchor) if anchor.is_of(&source.boot_id(), source.read()) => anchor,
        _ => adjust(connection, &*source)?,
    };
    Ok(ServiceClock::new(source, &anchor))
}

/// Adopts the anchor that another process adjusted, or adjusts it if no process has done so for a minute.
pub(super) fn keep(connection: &mut Connection, clock: &ServiceClock) -> rusqlite::Result<()> {
    let source = clock.source();
    let anchor = match read(connection)? {
        Some(anchor) if !anchor.is_due(source.read()) => anchor,
        _ => adjust(connection, source)?,
    };
    clock.follow(&anchor);
    Ok(())
}

/// Adjusts the anchor in a transaction, so that only one of the processes that try at the same time does it.
fn adjust(connection: &mut Connection, source: &dyn Source) -> rusqlite::Result<Anchor> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (boot_id, reading) = (source.boot_id(), source.read());
    let anchor = match read(&transaction)? {
        Some(anchor) if anchor.is_of(&boot_id, reading) && !anchor.is_due(reading) => return Ok(anchor),
        // No message could expire, so the machine may have been off for as long as the wall clock says.
        Some(anchor) if !anchor.is_of(&boot_id, reading) && !has_messages(&transaction)? => {
            anchor.after_reboot(&boot_id, reading, Duration::MAX)
        }
        Some(anchor) => anchor.adjusted(&boot_id, reading),
        None => Anchor::first(boot_id, reading),
    };
    let sql = "INSERT OR REPLACE INTO clock (id, boot_id, offset_us, seen_us) VALUES (1, ?1, ?2, ?3)";
    transaction.execute(sql, params![anchor.boot_id, anchor.offset_us, anchor.seen_us])?;
    transaction.commit()?;
    Ok(anchor)
}

fn has_messages(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM messages)", [], |row| row.get(0))
}

fn read(connection: &Connection) -> rusqlite::Result<Option<Anchor>> {
    let mut select = connection.prepare_cached("SELECT boot_id, offset_us, seen_us FROM clock WHERE id = 1")?;
    let anchor =
        |row: &rusqlite::Row| Ok(Anchor { boot_id: row.get(0)?, offset_us: row.get(1)?, seen_us: row.get(2)? });
    select.query_row([], anchor).optional()
}
