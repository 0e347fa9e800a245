//! Reads the state of the job or the batch of a callback, and writes the body of the call.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use crate::clock;
use crate::protocol::{Callback, CallbackKind};
use crate::web::error::Problem;
use crate::web::jobs::{State, read_problem};
use crate::web::site::Site;

/// The state of what a callback is about.
pub(super) enum Event {
    /// It has ended, and this is the body of the call.
    Ended(Bytes),
    /// It has not ended yet.
    Waiting,
    /// Its client deleted it.
    Removed,
    /// There is no such thing.
    Unknown,
}

/// Reads the state, and waits up to `wait` for the result of a job.
pub(super) async fn of(site: &Site, callback: &Callback, wait: Duration) -> Result<Event, Problem> {
    match callback.callback {
        CallbackKind::Job => of_job(site, callback, wait).await,
        CallbackKind::Batch => of_batch(site, callback).await,
    }
}

async fn of_job(site: &Site, callback: &Callback, wait: Duration) -> Result<Event, Problem> {
    Ok(match site.jobs.state_for_callback(callback.id, wait).await? {
        State::Final(result) => Event::Ended(body(callback, &String::from_utf8_lossy(&result))),
        State::Queued => Event::Waiting,
        State::Removed => Event::Removed,
        State::Unknown => Event::Unknown,
    })
}

async fn of_batch(site: &Site, callback: &Callback) -> Result<Event, Problem> {
    let Some(batch) = site.batches.read(callback.id).await.map_err(|error| read_problem(&error))? else {
        return Ok(Event::Unknown);
    };
    // Images are classified about in their order, so that one read shows mostly that a batch has not ended.
    let last: Option<Uuid> = batch.items.last().map(|item| item.id);
    if let Some(last) = last
        && site.jobs.transport.result(last).await.map_err(|error| read_problem(&error))?.is_none()
    {
        return Ok(Event::Waiting);
    }
    let state = site.batches.state(&batch).await.map_err(|error| read_problem(&error))?;
    if state.counts.is_none_or(|counts| counts.queued > 0) {
        return Ok(Event::Waiting);
    }
    Ok(Event::Ended(body(callback, &json!(state).to_string())))
}

/// The body of a call. The stored result is passed on as it is.
fn body(callback: &Callback, data: &str) -> Bytes {
    let (kind, at) = (callback.callback.event_type(), callback.failing_since.unwrap_or_else(clock::now));
    Bytes::from(format!("{{\"type\":\"{kind}\",\"timestamp\":\"{at}\",\"data\":{data}}}"))
}
