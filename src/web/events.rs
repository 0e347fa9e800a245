//! Server-Sent Events about jobs: `GET /v1/jobs/{id}/events` for one, and `GET /v1/events?jobs=…` for several, so that a
//! client with many jobs needs one connection.
//!
//! A stream makes its next event only when the connection takes it, so a client that does not read costs no memory.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Shared};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use uuid::Uuid;

use super::answer::{JobState, answered_job};
use super::auth::Principal;
use super::error::Problem;
use super::jobs::State;
use super::query::{self, MAX_WAIT};
use super::site::{JobId, Site};
use crate::clock;

/// How often a stream without news sends a comment, so that proxies keep the connection and a client that has gone is
/// noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When a client whose stream ended connects again.
const RECONNECT_AFTER: Duration = Duration::from_secs(2);
/// How often the progress of waiting jobs is looked at. Only what has changed is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// When it is looked at first: most jobs have ended by then.
const FIRST_PROGRESS: Duration = Duration::from_millis(200);

/// The events of a job: `queued` at once while it waits, `progress` when its position or its expected end changes, `finished`
/// with the result, or `removed`. The stream ends after the outcome, and after the longest wait of a request; a client then
/// connects again by itself.
pub(super) async fn events(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let permit = admit(&site)?;
    let state = site.jobs.state(id, Duration::ZERO).await?;
    let mut stream = EventStream::new(site, permit);
    match state {
        State::Unknown | State::Removed => return Err(Problem::no_such_job(&id.to_string())),
        State::Queued => {
            stream.send_progress(id, "queued");
            stream.follow(id);
        }
        State::Final(_) => {
            stream.send_outcome(id, state);
        }
    }
    Ok(stream.into_response())
}

/// The events of the jobs that the query names, in the order in which they come. A job that does not exist, or that the key
/// may not read, has the event `unknown`. The stream ends when every job has ended.
pub(super) async fn events_of_jobs(Shared(site): Shared<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let jobs = query::jobs(request.uri().query().unwrap_or_default())?;
    let principal = request.extensions().get::<Principal>().cloned().unwrap_or_default();
    let permit = admit(&site)?;
    let mut stream = EventStream::new(site, permit);
    for id in jobs {
        if principal.may_read(id) {
            stream.follow(id);
        } else {
            stream.send_outcome(id, State::Unknown);
        }
    }
    Ok(stream.into_response())
}

fn admit(site: &Site) -> Result<OwnedSemaphorePermit, Problem> {
    let too_many = || Problem::full("too many clients wait for jobs; ask with GET /v1/jobs/{id} in a moment");
    site.listeners.admit().ok_or_else(too_many)
}

/// The events of some jobs, of which those that wait are followed.
struct EventStream {
    site: Arc<Site>,
    /// Ends with a job's outcome, or when the longest wait is over.
    following: FuturesUnordered<BoxFuture<'static, (Uuid, Result<State, Problem>)>>,
    /// The followed jobs, with what was last sent of each.
    waiting: HashMap<Uuid, Option<JobState>>,
    /// Events that were made and not taken yet: at most one for each job.
    made: VecDeque<Event>,
    ticks: Interval,
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    fn new(site: Arc<Site>, permit: OwnedSemaphorePermit) -> EventStream {
        let mut ticks = interval_at(Instant::now() + FIRST_PROGRESS, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (waiting, made) = (HashMap::new(), VecDeque::new());
        EventStream { site, following: FuturesUnordered::new(), waiting, made, ticks, _permit: permit }
    }

    fn into_response(self) -> Response {
        Sse::new(self.into_stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut events| async move {
            let event = events.next().await?;
            Some((Ok(event.retry(RECONNECT_AFTER)), events))
        })
    }

    fn follow(&mut self, id: Uuid) {
        let site = Arc::clone(&self.site);
        self.waiting.entry(id).or_default();
        self.following.push(async move { (id, site.jobs.state(id, MAX_WAIT).await) }.boxed());
    }

    /// Returns the next event, or `None` when every job has ended, and when a client has to connect again.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.made.pop_front() {
                return Some(event);
            }
            tokio::select! {
                biased;
                followed = self.following.next() => {
                    let (id, state) = followed?;
                    // The time is up, this process drains, or the job cannot be read: the client connects again.
                    let state = state.ok().filter(|state| *state != State::Queued)?;
                    self.waiting.remove(&id);
                    self.send_outcome(id, state);
                }
                _ = self.ticks.tick() => self.send_changes(),
            }
        }
    }

    /// Makes the events of the jobs whose progress has changed.
    fn send_changes(&mut self) {
        let ids: Vec<Uuid> = self.waiting.keys().copied().collect();
        for id in ids {
            self.send_progress(id, "progress");
        }
    }

    fn send_progress(&mut self, id: Uuid, event: &str) {
        let state = JobState::waiting(id, self.site.jobs.admission.progress(id));
        let sent = self.waiting.entry(id).or_default();
        if sent.as_ref().is_none_or(|sent| state.differs_from(sent)) {
            self.made.push_back(Event::default().event(event).data(text(&state)));
            *sent = Some(state);
        }
    }

    /// Makes the event with the outcome of a job. A result that cannot be read has none: the log says why.
    fn send_outcome(&mut self, id: Uuid, state: State) {
        let event = Event::default();
        let event = match state {
            State::Final(result) => match answered_job(id, &result, clock::now()) {
                Ok(job) => event.event("finished").data(job),
                Err(_) => return,
            },
            State::Removed => event.event("removed").data(text(&JobState::removed(id))),
            State::Unknown | State::Queued => event.event("unknown").data(text(&JobState::unknown(id))),
        };
        self.made.push_back(event);
    }
}

fn text(state: &JobState) -> String {
    serde_json::to_string(state).expect("an id, words and finite numbers; this is a bug")
}
