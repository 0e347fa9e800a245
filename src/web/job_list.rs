//! `GET /v1/jobs`: the jobs of the key that asks, the newest first, in pages.
//!
//! The id of a job shows its owner and its time (decision 39), so the list needs no index: the ids of stored images and results
//! are read in windows of time, from the present backwards, and those of other keys are left out. A window grows while it has few
//! jobs, and shrinks when it has many. Each request reads a bounded number of them; its answer says where the next one goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::answer::{json_of, parse};
use super::auth::Principal;
use super::error::Problem;
use super::jobs::{State, read_problem};
use super::query::{self, JobPage};
use super::site::Site;
use crate::clock;
use crate::model::Prediction;
use crate::protocol::{self, ClassifyResult, ErrorCode, ErrorInfo, WITHDRAWN_IMAGE};
use crate::transport::{JobPart, Transport, TransportError};

/// The time that the first window covers.
const FIRST_WINDOW_MS: u64 = 10 * 60 * 1_000;
/// A window grows or shrinks by this factor.
const WINDOW_FACTOR: u64 = 4;
/// A window with more jobs is made smaller, unless it is the smallest.
const MAX_IN_WINDOW: usize = 2_000;
/// Windows of one request. From ten minutes on, a few of them cover years.
const MAX_WINDOWS: usize = 32;
/// Results that one request reads.
const MAX_READS: usize = 400;
/// Results that one request reads at the same time.
const CONCURRENT_READS: usize = 16;
/// Lists that this process makes at the same time.
const MAX_LISTS: usize = 8;
/// The clock of another process may be ahead by this much.
const CLOCK_MARGIN_MS: u64 = 5 * 60 * 1_000;

static LISTS: Semaphore = Semaphore::const_new(MAX_LISTS);

/// A page of the list.
#[derive(Debug, Serialize)]
struct Page {
    jobs: Vec<Summary>,
    /// The `after` of the next page; `null` at the end of the list.
    next: Option<Uuid>,
}

/// A job, without what only its own address tells.
#[derive(Debug, Serialize)]
struct Summary {
    id: Uuid,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    submitted_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The best class.
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction: Option<Prediction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorInfo>,
}

/// Lists the jobs of the key of a request, or of everybody where no key is needed.
pub(super) async fn list(Shared(site): Shared<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let wanted = query::job_page(request.uri().query().unwrap_or_default())?;
    let principal = request.extensions().get::<Principal>().cloned().unwrap_or_default();
    let Ok(_permit) = LISTS.try_acquire() else {
        return Err(Problem::full("too many lists of jobs are made; try again in a moment"));
    };
    Ok(json_of(StatusCode::OK, &page(&site, &principal, wanted).await?))
}

async fn page(site: &Site, principal: &Principal, wanted: JobPage) -> Result<Page, Problem> {
    let transport = &*site.jobs.transport;
    let read_failed = |error: TransportError| read_problem(&error);
    let mut page = Page { jobs: Vec::new(), next: None };
    let Some(oldest) = oldest(transport).await.map_err(read_failed)? else { return Ok(page) };
    let mut before = wanted.after.unwrap_or(Uuid::max());
    let (mut window_ms, mut reads) = (FIRST_WINDOW_MS, 0);
    let latest_ms = u64::try_from(clock::now().as_millisecond()).unwrap_or_default() + CLOCK_MARGIN_MS;
    for _ in 0..MAX_WINDOWS {
        if before <= oldest {
            return Ok(page);
        }
        let start = window_start(before, latest_ms, window_ms);
        let max = if window_ms == 0 { usize::MAX } else { MAX_IN_WINDOW };
        let Some(ids) = window(transport, &wanted, start, before, max).await.map_err(read_failed)? else {
            window_ms /= WINDOW_FACTOR;
            continue;
        };
        if ids.len() < MAX_IN_WINDOW / WINDOW_FACTOR as usize {
            window_ms = window_ms.max(1).saturating_mul(WINDOW_FACTOR);
        }
        let own = ids.into_iter().rev().filter(|id| principal.owns(*id));
        let mut summaries =
            stream::iter(own).map(|id| async move { (id, summary(site, id).await) }).buffered(CONCURRENT_READS).boxed();
        while let Some((id, summary)) = summaries.next().await {
            reads += 1;
            page.jobs.extend(summary?.filter(|job| wanted.status.is_none_or(|status| status == job.status)));
            if page.jobs.len() == wanted.limit || reads == MAX_READS {
                page.next = Some(id);
                return Ok(page);
            }
        }
        before = start;
    }
    page.next = Some(before);
    Ok(page)
}

/// Returns the lowest id of a window that ends before `before` and covers `window_ms`. The ids of the future are in the first one.
fn window_start(before: Uuid, latest_ms: u64, window_ms: u64) -> Uuid {
    let last = before.as_u128().saturating_sub(1);
    let end_ms = u64::try_from(last >> 80).unwrap_or(u64::MAX).min(latest_ms);
    Uuid::from_u128(u128::from(end_ms.saturating_sub(window_ms)) << 80)
}

/// Returns the first id of all that are stored.
async fn oldest(transport: &dyn Transport) -> Result<Option<Uuid>, TransportError> {
    let (nil, max) = (Uuid::nil(), Uuid::max());
    let parts = [JobPart::Image, JobPart::Result];
    let [images, results] = parts.map(|part| transport.job_ids(part, nil, max));
    let (images, results) = tokio::try_join!(images, results)?;
    Ok([images.first(), results.first()].into_iter().flatten().min().copied())
}

/// Returns the jobs from `start` on and before `before` that may have the wanted status, in the order of their ids, or `None` if
/// there are more than `max` in one of the stores.
async fn window(
    transport: &dyn Transport,
    wanted: &JobPage,
    start: Uuid,
    before: Uuid,
    max: usize,
) -> Result<Option<BTreeSet<Uuid>>, TransportError> {
    let after = Uuid::from_u128(start.as_u128().saturating_sub(1));
    let all = |part| ids_of(transport, part, after, before, max);
    let (images, results) = tokio::try_join!(all(JobPart::Image), all(JobPart::Result))?;
    let (Some(images), Some(results)) = (images, results) else { return Ok(None) };
    Ok(Some(match wanted.status {
        Some("queued") => &images - &results,
        Some("succeeded" | "failed") => results,
        // A job whose time is over has no result until somebody asks.
        _ => &images | &results,
    }))
}

async fn ids_of(
    transport: &dyn Transport,
    part: JobPart,
    mut after: Uuid,
    before: Uuid,
    max: usize,
) -> Result<Option<BTreeSet<Uuid>>, TransportError> {
    let mut ids = BTreeSet::new();
    loop {
        let listed = transport.job_ids(part, after, before).await?;
        let Some(last) = listed.last() else { return Ok(Some(ids)) };
        after = *last;
        ids.extend(listed);
        if ids.len() > max {
            return Ok(None);
        }
    }
}

/// Returns what the list says of a job. `None` if a client has deleted it, or has left before it got the id.
async fn summary(site: &Site, id: Uuid) -> Result<Option<Summary>, Problem> {
    let empty = |status| Summary {
        id,
        status,
        submitted_at: protocol::submitted_at(id),
        filename: None,
        model: None,
        prediction: None,
        error: None,
    };
    let unreadable =
        |message: String| Summary { error: Some(ErrorInfo { code: ErrorCode::Internal, message }), ..empty("failed") };
    match site.jobs.state(id, Duration::ZERO).await {
        Ok(State::Unknown | State::Removed) => Ok(None),
        Ok(State::Queued) => {
            let image = site.jobs.transport.image_info(id).await.map_err(|error| read_problem(&error))?;
            let is_withdrawn = image.is_none_or(|image| image.size_bytes == WITHDRAWN_IMAGE.len() as u64);
            Ok((!is_withdrawn).then(|| empty("queued")))
        }
        Ok(State::Final(text)) => Ok(Some(match parse(&text) {
            Ok(ClassifyResult { status, filename, model, predictions, error, .. }) => Summary {
                filename: Some(filename),
                model: model.map(|model| model.name),
                prediction: predictions.into_iter().next(),
                error,
                ..empty(status.as_str())
            },
            Err(problem) => unreadable(problem.detail),
        })),
        // The others are listed all the same.
        Err(problem) if problem.kind == "damaged" => Ok(Some(unreadable(problem.detail))),
        Err(problem) => Err(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_without_gap_and_always_advance() {
        let id = |ms: u64, rest: u128| Uuid::from_u128((u128::from(ms) << 80) | rest);
        let latest = 10_000_000;
        // The first window begins before the present and reaches beyond it.
        assert_eq!(window_start(Uuid::max(), latest, 1_000), id(latest - 1_000, 0));
        for window_ms in [0, 1, 7, 1_000] {
            let mut before = id(5_000, 77);
            for _ in 0..20 {
                // The first of all ids is the end.
                if before.is_nil() {
                    break;
                }
                let start = window_start(before, latest, window_ms);
                assert!(start < before, "{start} {before}");
                before = start;
            }
        }
        assert_eq!(window_start(id(5_000, 0), latest, 0), id(4_999, 0), "an empty window would never advance");
        assert_eq!(window_start(id(5, 0), latest, 1_000), Uuid::nil());
    }
}
