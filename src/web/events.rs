//! `GET /v1/jobs/{id}/events`: the states of a job as Server-Sent Events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::answer::{JobState, final_job};
use super::error::Problem;
use super::jobs::State;
use super::query::MAX_WAIT;
use super::site::{JobId, Site};

/// How often a stream without news sends a comment, so that proxies keep the connection and a client that has gone is
/// noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When a client whose stream ended connects again.
const RECONNECT_AFTER: Duration = Duration::from_secs(2);

/// The events of a job: `queued` at once while it waits, `finished` with the result, or `removed`. The stream ends after the
/// outcome, and after the longest wait of a request; a client then connects again by itself.
pub(super) async fn events(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let too_many = || Problem::full("too many clients wait for jobs; ask with GET /v1/jobs/{id} in a moment");
    let permit = site.listeners.admit().ok_or_else(too_many)?;
    let state = site.jobs.state(id, Duration::ZERO).await?;
    if matches!(state, State::Unknown | State::Removed) {
        return Err(Problem::no_such_job(&id.to_string()));
    }
    let events = Sse::new(stream_of(site, id, state, permit));
    Ok(events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// The next step of a stream.
enum Step {
    Send(State),
    Wait,
    End,
}

fn stream_of(
    site: Arc<Site>,
    id: Uuid,
    state: State,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((Step::Send(state), site, permit), move |(step, site, permit)| async move {
        let (state, is_first) = match step {
            Step::Send(state) => (state, true),
            Step::Wait => (site.jobs.state(id, MAX_WAIT).await.ok()?, false),
            Step::End => return None,
        };
        let (event, next) = match state {
            State::Queued if is_first => {
                (Event::default().event("queued").data(state_text(&JobState::queued(id))), Step::Wait)
            }
            // The time is up, or this process drains: the client connects again.
            State::Queued => return None,
            State::Final(result) => {
                let job = final_job(id, &result).ok()?;
                (Event::default().event("finished").data(job), Step::End)
            }
            State::Removed | State::Unknown => {
                (Event::default().event("removed").data(state_text(&JobState::removed(id))), Step::End)
            }
        };
        Some((Ok(event.retry(RECONNECT_AFTER)), (next, site, permit)))
    })
}

fn state_text(state: &JobState) -> String {
    serde_json::to_string(state).expect("an id and a word; this is a bug")
}
