//! Addresses and their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Path, Query, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::assets;
use super::error::Problem;
use super::jobs::{Classified, Jobs, State, Wishes};
use super::metrics::METRICS;
use super::readiness::Readiness;
use super::upload::{self, UploadRules};
use crate::protocol::{self, ClassifyResult, Status};
use crate::telemetry::trace::{Side, Span, TRACEPARENT};
use crate::{config, model, telemetry};

const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const DEFAULT_TOP_K: u32 = 5;
const LARGEST_TOP_K: u32 = 1000;

pub struct Site {
    pub jobs: Jobs,
    pub uploads: UploadRules,
    pub sync_timeout: Duration,
    pub readiness: Readiness,
}

pub fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(assets::index).post(classify_original))
        .route("/assets/app.css", get(assets::stylesheet))
        .route("/assets/app.js", get(assets::script))
        .route("/favicon.svg", get(assets::icon))
        .route("/favicon.ico", get(assets::icon))
        .route("/v1/classify", post(classify))
        .route("/v1/jobs", post(create_job))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/image", get(job_image))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|request: Request| async move { Problem::no_such_page(request.uri().path()) })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::from_fn(measure))
        .with_state(site)
}

/// `?wait=` and `?top_k=`, still text: what is wrong with them is said in our words.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    wait: Option<String>,
    top_k: Option<String>,
}

impl Asked {
    fn wait(&self, default: Duration) -> Result<Duration, Problem> {
        let Some(text) = &self.wait else { return Ok(default) };
        config::duration(text).ok().filter(|wait| *wait <= LONGEST_WAIT).ok_or_else(|| {
            Problem::malformed(format!("wait={text:?} is not between 0 and {} seconds", LONGEST_WAIT.as_secs()))
        })
    }

    fn wishes(&self, headers: &HeaderMap) -> Result<Wishes, Problem> {
        let top_k = match &self.top_k {
            None => DEFAULT_TOP_K,
            Some(text) => text
                .parse()
                .ok()
                .filter(|top_k| (1..=LARGEST_TOP_K).contains(top_k))
                .ok_or_else(|| Problem::malformed(format!("top_k={text:?} is not between 1 and {LARGEST_TOP_K}")))?,
        };
        let traceparent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Wishes { top_k, traceparent })
    }
}

/// `POST /`: the original's form. Waits; plain text unless JSON is asked for.
async fn classify_original(Shared(site): Shared<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let wants_json = accepts_json(request.headers());
    let wishes = Asked::default().wishes(request.headers())?;
    let request = site.jobs.gate.let_in(request, site.sync_timeout).await?;
    let upload = upload::receive(request, &site.uploads).await?;
    let Classified { id, result } = site.jobs.classify(upload, wishes, site.sync_timeout).await?;
    let Some(text) = result else { return Err(Problem::not_in_time(id)) };
    let result = parse(&text)?;
    if result.status != Status::Succeeded {
        return Err(Problem::of_result(&result));
    }
    if wants_json {
        return Ok(json_text(StatusCode::OK, text));
    }
    let label = result.predictions.into_iter().next().map(|best| best.label).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], label).into_response())
}

/// `POST /v1/classify`: waits for the result, or says where to ask for it.
async fn classify(
    Shared(site): Shared<Arc<Site>>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = asked.wait(DEFAULT_WAIT)?;
    let wishes = asked.wishes(request.headers())?;
    let request = site.jobs.gate.let_in(request, wait).await?;
    let upload = upload::receive(request, &site.uploads).await?;
    let Classified { id, result } = site.jobs.classify(upload, wishes, wait).await?;
    let Some(text) = result else { return Ok(accepted(id)) };
    // A success is passed on as it is; only failures are read.
    let head: Ended = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    if head.status == Status::Succeeded {
        return Ok(json_text(StatusCode::OK, text));
    }
    Err(Problem::of_result(&parse(&text)?))
}

#[derive(Deserialize)]
struct Ended {
    status: Status,
}

/// `POST /v1/jobs`: accepts and does not wait.
async fn create_job(
    Shared(site): Shared<Arc<Site>>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Result<Response, Problem> {
    let wishes = asked.wishes(request.headers())?;
    let request = site.jobs.gate.let_in(request, Duration::ZERO).await?;
    let upload = upload::receive(request, &site.uploads).await?;
    Ok(accepted(site.jobs.submit(upload, wishes).await?))
}

/// `GET /v1/jobs/{id}`: the state of any id; `?wait=` holds the answer until the job has ended or the time is over.
async fn job(
    Shared(site): Shared<Arc<Site>>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let wait = asked.wait(Duration::ZERO)?;
    let id = parse_id(&id)?;
    match site.jobs.state(id, wait).await? {
        State::Unknown => Err(Problem::no_such_job(&id.to_string())),
        State::Queued => Ok(json_value(StatusCode::OK, &json!({"id": id, "status": "queued"}))),
        State::Final(text) => {
            let mut result: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
            result.insert("timeline".to_owned(), timeline(id, &parse(&text)?));
            Ok(json_value(StatusCode::OK, &Value::Object(result)))
        }
    }
}

/// When each stage of a job began: the id's own time, and what the worker measured from there.
fn timeline(id: Uuid, result: &ClassifyResult) -> Value {
    let Some(submitted_at) = protocol::submitted_at(id) else { return json!([]) };
    let after = |millis: f64| {
        let micros = (millis.max(0.0) * 1e3) as i64;
        Timestamp::from_microsecond(submitted_at.as_microsecond().saturating_add(micros)).unwrap_or(submitted_at)
    };
    let mut events = vec![json!({"event": "submitted", "at": submitted_at})];
    if result.status != Status::Expired && result.attempt > 0 {
        events.push(json!({"event": "received", "at": after(result.timings_ms.queued)}));
    }
    if result.timings_ms.total > 0.0 {
        events.push(json!({"event": result.status.as_str(), "at": after(result.timings_ms.total)}));
    }
    Value::Array(events)
}

/// `GET /v1/jobs/{id}/image`: the upload as it came. It is a stranger's file: shown as an image and as nothing else.
async fn job_image(Shared(site): Shared<Arc<Site>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let image = site.jobs.image(id, site.uploads.max_upload_bytes).await?;
    let Some(image) = image else { return Err(Problem::no_such_job(&id.to_string())) };
    let content_type = model::sniff(&image).unwrap_or("application/octet-stream");
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (header::CACHE_CONTROL, "private, max-age=3600, immutable"),
    ];
    Ok((headers, image).into_response())
}

async fn readyz(Shared(site): Shared<Arc<Site>>) -> Response {
    match site.readiness.check().await {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => Problem::unavailable(reason).into_response(),
    }
}

async fn metrics(Shared(site): Shared<Arc<Site>>) -> impl IntoResponse {
    site.jobs.gate.observe();
    ([(header::CONTENT_TYPE, telemetry::METRICS_CONTENT_TYPE)], telemetry::metrics_text())
}

/// Counts a request, and puts it into its trace: what it hands on in [`TRACEPARENT`] is its own span.
async fn measure(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut span = begin_span(&request, &route);
    match span.traceparent().and_then(|own| HeaderValue::try_from(own).ok()) {
        Some(own) => request.headers_mut().insert(TRACEPARENT, own),
        None => request.headers_mut().remove(TRACEPARENT),
    };
    let response = next.run(request).await;
    span.set("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail("");
    }
    METRICS.requests.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    METRICS.request_seconds.with_label_values(&[route.as_str()]).observe(started.elapsed().as_secs_f64());
    response
}

/// Of what carries images; who looks whether this process lives would only fill the traces.
fn begin_span(request: &Request, route: &str) -> Span {
    if request.method() != Method::POST && !route.starts_with("/v1/") {
        return Span::default();
    }
    let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let mut span = Span::begin(Side::Server, traceparent, || format!("{} {route}", request.method()).into());
    span.set("http.request.method", request.method().to_string());
    span.set("http.route", route.to_owned());
    span
}

fn accepted(id: Uuid) -> Response {
    let mut response = json_value(StatusCode::ACCEPTED, &json!({"id": id, "status": "queued"}));
    if let Ok(location) = HeaderValue::try_from(format!("/v1/jobs/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn json_value(status: StatusCode, value: &Value) -> Response {
    json_text(status, Bytes::from(value.to_string()))
}

fn json_text(status: StatusCode, text: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn parse(text: &Bytes) -> Result<ClassifyResult, Problem> {
    serde_json::from_slice(text).map_err(|error| damaged(&error))
}

fn damaged(error: &serde_json::Error) -> Problem {
    tracing::error!(%error, "a stored result is no result");
    Problem::unavailable("the stored result cannot be read; the log of the web tier says why")
}

fn parse_id(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| Problem::no_such_job(text))
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
}
