//! Callbacks: calls to the receivers of clients when their jobs and batches have ended.
//!
//! A callback waits in a queue of the transport from before its job is submitted until its receiver has answered with success,
//! so that neither a crash nor a receiver that is down loses it. Every web process with `--allow-callbacks` receives from the
//! queue. It looks for the result, calls the receiver, and deletes the message. A message whose job has not ended, or whose
//! receiver failed, becomes visible again later. A receiver may get a call twice, and then with the same id.
//!
//! - [`event`] finds out what there is to tell; [`schedule`] says when it is tried again.

mod event;
mod hosts;
mod receivers;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::event::Event;
pub(super) use self::receivers::Callbacks;
use super::error::Problem;
use super::metrics::METRICS;
use super::site::Site;
use crate::clock;
use crate::protocol::Callback;
use crate::retry::Schedule;
use crate::transport::{DeadLetter, Delivery, Receipt, TransportError};

/// Callbacks that one process has in hand. Half of them may wait for results.
const MAX_AT_A_TIME: usize = 64;
/// How long a message waits in the hands of a process for its result, which is faster than to look for it again.
const WAIT_FOR_RESULT: Duration = Duration::from_secs(6);
/// How long a message is in hand at most before its receiver is called.
const READ_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a receiver may take for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than a message is ever in the hands of a process: [`READ_TIMEOUT`] and [`CALL_TIMEOUT`].
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a message waits whose host has enough calls in flight.
const BUSY_DELAY: Duration = Duration::from_secs(2);
/// Pauses while the queue does not answer.
const QUEUE_BACKOFF: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(30));
/// How long a drain waits for calls in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Returns the address that a request wants to be called, which the query or the body may name.
///
/// # Errors
/// 400 if callbacks are off, the address may not be called, or query and body name different ones.
pub(super) fn wanted(site: &Site, query: Option<String>, body: Option<String>) -> Result<Option<String>, Problem> {
    let url = match (query, body) {
        (Some(query), Some(body)) if query != body => {
            return Err(Problem::malformed("the address and the body name different values of callback_url; give one"));
        }
        (query, body) => match query.or(body) {
            Some(url) => url,
            None => return Ok(None),
        },
    };
    let Some(callbacks) = &site.callbacks else {
        return Err(Problem::malformed("this server calls nobody back: leave callback_url out (--allow-callbacks)"));
    };
    let refused = |refusal| Problem::malformed(format!("callback_url cannot be called: {refusal}"));
    callbacks.caller.check(&url).map_err(refused)?;
    Ok(Some(url))
}

/// Sends callbacks until `stop`. Does nothing where callbacks are off.
pub(super) async fn run(site: Arc<Site>, stop: CancellationToken) {
    if site.callbacks.is_none() {
        return stop.cancelled().await;
    }
    let permits = Arc::new(Semaphore::new(MAX_AT_A_TIME));
    let mut running = JoinSet::new();
    let receiving = async {
        let mut backoff = QUEUE_BACKOFF.start();
        while let Ok(first) = Arc::clone(&permits).acquire_owned().await {
            let max = 1 + permits.available_permits();
            match site.jobs.transport.receive_callbacks(max, VISIBILITY_TIMEOUT).await {
                Ok(deliveries) => {
                    backoff.reset();
                    hand_out(&site, &permits, first, deliveries, &mut running, &stop).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot receive callbacks; trying again");
                    tokio::time::sleep(backoff.next_delay_with_jitter()).await;
                }
            }
            while running.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = receiving => {}
        () = stop.cancelled() => {}
    }
    // The others come again after their visibility timeout.
    let ended = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, ended).await.is_err() {
        running.shutdown().await;
    }
}

/// Starts a task for each callback. Only this function takes permits, so that there are enough for all that were received.
async fn hand_out(
    site: &Arc<Site>,
    permits: &Arc<Semaphore>,
    first: OwnedSemaphorePermit,
    deliveries: Vec<Delivery>,
    running: &mut JoinSet<()>,
    stop: &CancellationToken,
) {
    let mut first = Some(first);
    for delivery in deliveries {
        let permit = match first.take() {
            Some(permit) => permit,
            None => match Arc::clone(permits).acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => return,
            },
        };
        let may_wait = permits.available_permits() > MAX_AT_A_TIME / 2;
        let (site, stop) = (Arc::clone(site), stop.clone());
        running.spawn(async move {
            let receipt = delivery.receipt.clone();
            let step = handle(&site, &delivery, may_wait, &stop).await;
            if let Err(error) = carry_out(&site, &receipt, step).await {
                tracing::warn!(%error, "cannot update a callback; it comes again after its visibility timeout");
            }
            drop(permit);
        });
    }
}

/// The next step of a message.
enum Step {
    /// It becomes visible again after this time.
    Later(Duration),
    /// It is deleted, and this message takes its place.
    Replace(Callback, Duration),
    /// It is deleted.
    End(Option<DeadLetter>),
}

async fn carry_out(site: &Site, receipt: &Receipt, step: Step) -> Result<(), TransportError> {
    let transport = &site.jobs.transport;
    match step {
        Step::Later(delay) => transport.delay_callback(receipt, delay).await,
        Step::Replace(callback, delay) => {
            transport.send_callback(callback.to_json(), delay).await?;
            transport.end_callback(receipt, None).await
        }
        Step::End(dead_letter) => transport.end_callback(receipt, dead_letter).await,
    }
}

async fn handle(site: &Site, delivery: &Delivery, may_wait: bool, stop: &CancellationToken) -> Step {
    let age = schedule::age_of(delivery.sent_at_ms, clock::now());
    let Some(callback) = Callback::parse(&delivery.body) else {
        // A newer release may know it.
        if age < schedule::LONGEST_FAILURE {
            return Step::Later(schedule::next_look(age));
        }
        return dead_letter(delivery, None, "it is no callback that this release knows".to_owned());
    };
    let wait = if may_wait { WAIT_FOR_RESULT } else { Duration::ZERO };
    let reading = tokio::time::timeout(READ_TIMEOUT, event::of(site, &callback, wait));
    let event = tokio::select! {
        event = reading => event.unwrap_or(Ok(Event::Waiting)),
        () = stop.cancelled() => return Step::Later(schedule::next_look(Duration::ZERO)),
    };
    let body = match event {
        Ok(Event::Ended(body)) => body,
        Ok(Event::Waiting) if age > schedule::LONGEST_WAIT => {
            let message = format!("no end was seen within {} days", schedule::LONGEST_WAIT.as_secs() / 86_400);
            return dead_letter(delivery, Some(callback.id), message);
        }
        Ok(Event::Waiting) => return Step::Later(schedule::next_look(age)),
        // The message comes before the job, so that the job may be about to be stored.
        Ok(Event::Unknown) if age < schedule::SUBMITTED_WITHIN => return Step::Later(schedule::next_look(age)),
        Ok(Event::Unknown | Event::Removed) => {
            tracing::debug!(id = %callback.id, "a callback ends: what it is about was deleted, or never accepted");
            return Step::End(None);
        }
        Err(problem) => {
            tracing::debug!(id = %callback.id, reason = problem.detail, "cannot read what a callback is about");
            return Step::Later(schedule::next_look(age));
        }
    };
    let called = call(site, &callback, body).await;
    after_call(delivery, callback, called)
}

fn dead_letter(delivery: &Delivery, id: Option<Uuid>, reason: String) -> Step {
    Step::End(Some(DeadLetter { id, body: delivery.body.clone(), reason, attempts: delivery.receive_count }))
}

fn after_call(delivery: &Delivery, callback: Callback, called: Called) -> Step {
    match called {
        Called::Delivered => {
            METRICS.callbacks.with_label_values(&["delivered"]).inc();
            tracing::info!(id = %callback.id, "callback delivered");
            Step::End(None)
        }
        Called::Busy => Step::Later(BUSY_DELAY),
        Called::Failed { reason, is_final } => {
            let failing_for = callback.failing_since.map(|since| schedule::between(since, clock::now()));
            if is_final || failing_for.is_some_and(|time| time >= schedule::LONGEST_FAILURE) {
                METRICS.callbacks.with_label_values(&["given_up"]).inc();
                tracing::warn!(id = %callback.id, reason, "callback given up; it is a dead letter now: imgcls queue dead");
                return dead_letter(delivery, Some(callback.id), format!("the receiver was not reached: {reason}"));
            }
            METRICS.callbacks.with_label_values(&["failed"]).inc();
            tracing::info!(id = %callback.id, reason, "a callback failed; it is tried again");
            match failing_for {
                Some(time) => Step::Later(schedule::next_try(time)),
                // From here on its age says how long it fails.
                None => {
                    let failing = Callback { failing_since: Some(clock::now()), ..callback };
                    Step::Replace(failing, schedule::next_try(Duration::ZERO))
                }
            }
        }
    }
}

/// The outcome of one call.
enum Called {
    Delivered,
    /// The host has enough calls in flight.
    Busy,
    Failed {
        reason: String,
        /// True if no later call can succeed.
        is_final: bool,
    },
}

async fn call(site: &Site, callback: &Callback, body: Bytes) -> Called {
    let failed = |reason: String| Called::Failed { reason, is_final: false };
    let Some(callbacks) = &site.callbacks else { return Called::Busy };
    let target = match callbacks.caller.check(&callback.url) {
        Ok(target) => target,
        // The operator may have shortened the list of hosts, and may take that back.
        Err(refusal) => return failed(format!("the address may not be called: {refusal}")),
    };
    let Some(_busy) = callbacks.hosts.begin(target.host()) else { return Called::Busy };
    let timestamp = clock::now().as_second();
    let id = callback.id.to_string();
    let signature = callbacks.secrets.of(callback.key.as_deref()).sign(&id, timestamp, &body);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [(WEBHOOK_ID, id), (WEBHOOK_TIMESTAMP, timestamp.to_string()), (WEBHOOK_SIGNATURE, signature)]
    {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    match callbacks.caller.post(&target, headers, body, CALL_TIMEOUT).await {
        Ok(status) if status.is_success() => Called::Delivered,
        // Standard Webhooks: the receiver wants no more calls.
        Ok(http::StatusCode::GONE) => {
            Called::Failed { reason: "it answered with status 410 Gone".to_owned(), is_final: true }
        }
        Ok(status) => failed(format!("it answered with status {status}")),
        Err(error) => failed(error.to_string()),
    }
}
