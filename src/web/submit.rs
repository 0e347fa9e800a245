//! The routes that accept images: how long the answer waits, what a repeated request gets, and the answers of several files.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::future::join_all;
use serde::Deserialize;
use uuid::Uuid;

use super::accept::{asks_for_html, asks_for_json};
use super::answer::{JobState, accepted, damaged, json_text, parse, with_timings};
use super::callbacks;
use super::dialects::sibling_prefix;
use super::error::Problem;
use super::html;
use super::idempotency::{Claim, IdempotencyKey};
use super::jobs::{Classified, JobOptions, State};
use super::prefer::Waiting;
use super::query::Query;
use super::site::Site;
use super::upload::{self, PathName, Received, Upload};
use crate::protocol::{Status, TimingsMs};

const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// Marks the answer to a repeated request.
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// `POST /`, the address of the legacy form: waits for the result and answers with the label as plain text, with the result
/// when the client asks for JSON, or with a page when a browser sent the form.
pub(super) async fn classify_form(Shared(site): Shared<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let (wants_json, wants_html) = (asks_for_json(request.headers()), asks_for_html(request.headers()));
    let mut options = site.job_options(Query::of_form(request.uri().query())?, &request)?;
    let request = site.jobs.admission.check_request(request, site.sync_timeout).await?;
    let upload = site.receive(request, &mut options).await?;
    let prefix = sibling_prefix(&upload);
    let Classified { id, result } = site.jobs.classify(upload, options, site.sync_timeout).await?;
    let Some(text) = result else { return Err(Problem::not_in_time(id)) };
    let result = parse(&text)?;
    if result.status != Status::Succeeded {
        return Err(Problem::of_result(&result));
    }
    if wants_json {
        return Ok(json_text(StatusCode::OK, text));
    }
    if wants_html {
        return Ok(html::result(&result));
    }
    let label = result.predictions.into_iter().next().map(|best| best.label).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], prefix + &label).into_response())
}

/// `POST /v1/classify`: waits for the result. When it does not come in time, answers with the address of the job.
pub(super) async fn classify(
    Shared(site): Shared<Arc<Site>>,
    query: Query,
    request: Request,
) -> Result<Response, Problem> {
    submit(&site, query, request, DEFAULT_WAIT).await
}

/// `PUT /v1/classify/{name}`: the same, with a file name in the address.
pub(super) async fn classify_named(
    site: Shared<Arc<Site>>,
    query: Query,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    classify(site, query, with_name(name, request)?).await
}

/// `POST /v1/jobs`: accepts an image and does not wait for the result, unless the client asks for that.
pub(super) async fn create_job(
    Shared(site): Shared<Arc<Site>>,
    query: Query,
    request: Request,
) -> Result<Response, Problem> {
    submit(&site, query, request, Duration::ZERO).await
}

/// `PUT /v1/jobs/{name}`: the same, with a file name in the address.
pub(super) async fn create_job_named(
    site: Shared<Arc<Site>>,
    query: Query,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    create_job(site, query, with_name(name, request)?).await
}

fn with_name(name: Result<Path<String>, PathRejection>, mut request: Request) -> Result<Request, Problem> {
    let Path(name) = name.map_err(|_| Problem::malformed("the file name in the address is not UTF-8"))?;
    request.extensions_mut().insert(PathName(name));
    Ok(request)
}

async fn submit(site: &Site, mut query: Query, request: Request, default_wait: Duration) -> Result<Response, Problem> {
    let waiting = Waiting::of(&query, request.headers(), default_wait)?;
    let named_top_k = query.top_k()?;
    let named_callback = query.take_callback_url();
    let mut options = site.job_options(query, &request)?;
    let key = IdempotencyKey::of(request.headers(), &options.principal)?;
    let request = site.jobs.admission.check_request(request, waiting.time).await?;
    let Received { files, is_list, top_k, model, callback_url } = upload::receive_all(request, &site.uploads).await?;
    options.callback = callbacks::wanted(site, named_callback, callback_url)?;
    options.model = site.models.choose(options.model.as_deref(), model.as_deref())?;
    options.top_k = match (named_top_k, top_k) {
        (Some(query), Some(body)) if query != body => {
            let detail = format!("the address says top_k={query} and the body says top_k={body}; give one");
            return Err(Problem::malformed(detail));
        }
        (_, Some(body)) => body,
        _ => options.top_k,
    };
    let retry_after = || site.jobs.admission.retry_after_seconds();
    if is_list {
        let answers = files.into_iter().enumerate().map(|(at, file)| {
            let (key, options) = (key.as_ref().map(|key| key.of_file(at)), options.clone());
            async move { Item::of(answer_one(site, file?, options, waiting.time, key.as_ref()).await?) }
        });
        let items: Vec<Item> = join_all(answers).await.into_iter().map(Item::from).collect();
        let is_pending = items.iter().any(|item| item.is_pending);
        return Ok(waiting.applied(list(&items, retry_after), is_pending));
    }
    let nothing = || Err(Problem::malformed("the request has no image"));
    let upload = files.into_iter().next().unwrap_or_else(nothing)?;
    let Answer { id, result, is_repeated } = answer_one(site, upload, options, waiting.time, key.as_ref()).await?;
    let is_pending = result.is_none();
    let mut response = match result {
        None => accepted(id, retry_after()),
        Some(text) => {
            let timings = timings_of_success(&text)?;
            with_timings(json_text(StatusCode::OK, text), &timings)
        }
    };
    if is_repeated {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(waiting.applied(response, is_pending))
}

/// The part of a result that decides on the answer.
#[derive(Deserialize)]
struct ResultHead {
    status: Status,
    timings_ms: TimingsMs,
}

/// A success is passed on as it is, and only a failure is parsed completely.
fn timings_of_success(text: &Bytes) -> Result<TimingsMs, Problem> {
    let head: ResultHead = serde_json::from_slice(text).map_err(|error| damaged(&error))?;
    match head.status {
        Status::Succeeded => Ok(head.timings_ms),
        _ => Err(Problem::of_result(&parse(text)?)),
    }
}

/// The outcome for one image.
struct Answer {
    id: Uuid,
    result: Option<Bytes>,
    /// True if an earlier request with the same idempotency key submitted the job.
    is_repeated: bool,
}

async fn answer_one(
    site: &Site,
    upload: Upload,
    mut options: JobOptions,
    wait: Duration,
    key: Option<&IdempotencyKey>,
) -> Result<Answer, Problem> {
    let mut is_repeated = false;
    if let Some(key) = key {
        let claim = key.claim(&*site.jobs.transport, &upload.bytes, &options).await?;
        let (Claim::First(id) | Claim::Repeated(id)) = claim;
        is_repeated = matches!(claim, Claim::Repeated(_));
        if is_repeated {
            match site.jobs.state(id, wait).await? {
                State::Final(result) => return Ok(Answer { id, result: Some(result), is_repeated }),
                State::Queued => return Ok(Answer { id, result: None, is_repeated }),
                State::Removed => return Err(Problem::cancelled(id)),
                // The first request has not stored the image yet, or never will.
                State::Unknown => {}
            }
        }
        options.id = Some(id);
    }
    let Classified { id, result } = if wait.is_zero() {
        Classified { id: site.jobs.submit(upload, options).await?, result: None }
    } else {
        site.jobs.classify(upload, options, wait).await?
    };
    Ok(Answer { id, result, is_repeated })
}

/// The answer to one file of several.
struct Item {
    json: String,
    is_pending: bool,
}

impl Item {
    fn of(Answer { id, result, .. }: Answer) -> Result<Item, Problem> {
        let Some(text) = result else {
            let json = serde_json::to_string(&JobState::queued(id)).expect("an id and a word; this is a bug");
            return Ok(Item { json, is_pending: true });
        };
        timings_of_success(&text)?;
        Ok(Item { json: String::from_utf8_lossy(&text).into_owned(), is_pending: false })
    }
}

impl From<Result<Item, Problem>> for Item {
    fn from(answer: Result<Item, Problem>) -> Self {
        answer.unwrap_or_else(|problem| Item { json: problem.to_json(), is_pending: false })
    }
}

/// The answers to all files, in their order.
fn list(items: &[Item], retry_after: impl Fn() -> u32) -> Response {
    let texts: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
    let is_pending = items.iter().any(|item| item.is_pending);
    let status = if is_pending { StatusCode::ACCEPTED } else { StatusCode::OK };
    let mut response = json_text(status, Bytes::from(format!("[{}]", texts.join(","))));
    if is_pending {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after()));
    }
    response
}
