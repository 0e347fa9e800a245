//! The routes: which handler answers which address, and what each handler answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, MatchedPath, Path, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::assets;
use super::auth::{self, Auth, Principal};
use super::budget::Budget;
use super::dialects;
use super::error::Problem;
use super::http::{self, RequestGuard};
use super::jobs::{self, Classified, JobOptions, Jobs, State};
use super::metrics::METRICS;
use super::models::Models;
use super::query::Query;
use super::readiness::Readiness;
use super::upload::{self, PathName, Upload, UploadRules};
use crate::protocol::{self, ClassifyResult, Status};
use crate::telemetry::trace::{Side, Span, TRACEPARENT};
use crate::transport::TransportError;
use crate::{model, telemetry};

const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// Memory of one image that is being sent: the piece that is read, and the bytes that the connection has buffered.
const IMAGE_READ_BYTES: u64 = 256 << 10;
/// A client has [`IMAGE_READ_GRACE`] plus the time that its image takes at this rate to read it.
const MIN_IMAGE_BYTES_PER_SECOND: u64 = 64 << 10;
const IMAGE_READ_GRACE: Duration = Duration::from_secs(30);

/// The state that the handlers share.
pub(super) struct Site {
    pub(super) jobs: Jobs,
    pub(super) models: Arc<Models>,
    pub(super) uploads: UploadRules,
    /// The memory of images that are being sent to clients.
    pub(super) image_reads: Budget,
    /// How long `POST /` waits for its answer.
    pub(super) sync_timeout: Duration,
    pub(super) readiness: Readiness,
}

/// Makes the router of the web tier.
pub(super) fn router(site: Arc<Site>, guard: Arc<RequestGuard>, auth: Arc<Auth>) -> Router {
    Router::new()
        .route("/", get(assets::index).post(dialects::root))
        .route("/assets/app.css", get(assets::stylesheet))
        .route("/assets/app.js", get(assets::script))
        .route("/favicon.svg", get(assets::icon))
        .route("/favicon.ico", get(assets::icon))
        // PUT is what `curl -T FILE` sends; it appends the file's name to an address that ends with a slash.
        .route("/v1/classify", post(classify).put(classify))
        .route("/v1/classify/{name}", put(classify_named))
        .route("/v1/jobs", post(create_job).put(create_job))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/image", get(job_image))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model_named))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(dialects::routes())
        .fallback(|request: Request| async move { Problem::no_such_page(request.uri().path()) })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::from_fn_with_state(auth, auth::authenticate))
        .layer(middleware::from_fn_with_state(guard, http::guard))
        .layer(middleware::from_fn(measure))
        .with_state(site)
}

/// Makes the router of the operators' address, which needs no key.
pub(super) fn operators_router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|request: Request| async move { Problem::no_such_page(request.uri().path()) })
        .with_state(site)
}

impl Site {
    /// The options of a request, with a model that exists. A wrong one is refused before the image is read.
    pub(super) fn job_options(&self, query: Query, request: &Request) -> Result<JobOptions, Problem> {
        let mut options = query.job_options(request.headers())?;
        options.principal = request.extensions().get::<Principal>().cloned().unwrap_or_default();
        options.model = self.models.choose(options.model.as_deref(), None)?;
        Ok(options)
    }

    /// Reads the image of a request. A form may name the model, too.
    pub(super) async fn receive(&self, request: Request, options: &mut JobOptions) -> Result<Upload, Problem> {
        let upload = upload::receive(request, &self.uploads).await?;
        options.model = self.models.choose(options.model.as_deref(), upload.model.as_deref())?;
        Ok(upload)
    }
}

/// `POST /`, the address of the legacy form: waits for the result and answers with the label as plain text, or with the
/// result when the client accepts JSON.
pub(super) async fn classify_form(Shared(site): Shared<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let wants_json = accepts_json(request.headers());
    let mut options = site.job_options(Query::of_form(request.uri().query())?, &request)?;
    let request = site.jobs.admission.check_request(request, site.sync_timeout).await?;
    let upload = site.receive(request, &mut options).await?;
    let prefix = dialects::sibling_prefix(&upload);
    let Classified { id, result } = site.jobs.classify(upload, options, site.sync_timeout).await?;
    let Some(text) = result else { return Err(Problem::not_in_time(id)) };
    let result = parse(&text)?;
    if result.status != Status::Succeeded {
        return Err(Problem::of_result(&result));
    }
    if wants_json {
        return Ok(json_text(StatusCode::OK, text));
    }
    let label = result.predictions.into_iter().next().map(|best| best.label).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], prefix + &label).into_response())
}

/// `POST /v1/classify`: waits for the result. When it does not come in time, answers with the address of the job.
async fn classify(Shared(site): Shared<Arc<Site>>, query: Query, request: Request) -> Result<Response, Problem> {
    let wait = query.wait(DEFAULT_WAIT)?;
    let mut options = site.job_options(query, &request)?;
    let request = site.jobs.admission.check_request(request, wait).await?;
    let upload = site.receive(request, &mut options).await?;
    let Classified { id, result } = site.jobs.classify(upload, options, wait).await?;
    let Some(text) = result else { return Ok(accepted(id)) };
    // A success is passed on as it is, and only a failure is parsed completely.
    let head: ResultHead = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    if head.status == Status::Succeeded {
        return Ok(json_text(StatusCode::OK, text));
    }
    Err(Problem::of_result(&parse(&text)?))
}

/// `PUT /v1/classify/{name}`: the same, with a file name in the address.
async fn classify_named(
    site: Shared<Arc<Site>>,
    query: Query,
    name: Result<Path<String>, PathRejection>,
    mut request: Request,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::malformed("the file name in the address is not UTF-8"))?;
    request.extensions_mut().insert(PathName(name));
    classify(site, query, request).await
}

/// The part of a result that decides on the status of the answer.
#[derive(Deserialize)]
struct ResultHead {
    status: Status,
}

/// `POST /v1/jobs`: accepts an image and does not wait for the result.
async fn create_job(Shared(site): Shared<Arc<Site>>, query: Query, request: Request) -> Result<Response, Problem> {
    let mut options = site.job_options(query, &request)?;
    let request = site.jobs.admission.check_request(request, Duration::ZERO).await?;
    let upload = site.receive(request, &mut options).await?;
    Ok(accepted(site.jobs.submit(upload, options).await?))
}

/// `GET /v1/jobs/{id}`: the state of any job. With `?wait=` the answer comes when the job has ended or the time is up.
async fn job(Shared(site): Shared<Arc<Site>>, JobId(id): JobId, query: Query) -> Result<Response, Problem> {
    let wait = query.wait(Duration::ZERO)?;
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

/// Returns when each stage of a job began: the time in its id, plus the durations that the worker measured.
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

/// `GET /v1/models`: the models that requests may choose. Labels only with `?labels=true`.
async fn models(Shared(site): Shared<Arc<Site>>, query: Query) -> Result<Response, Problem> {
    Ok(json_value(StatusCode::OK, &site.models.list(query.wants_labels()?).await?))
}

/// `GET /v1/models/{name}`: one of them.
async fn model_named(
    Shared(site): Shared<Arc<Site>>,
    query: Query,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::malformed("the name of the model in the address is not UTF-8"))?;
    let mut described = site.models.show(&name, query.wants_labels()?).await?;
    // KServe's first protocol asks here whether the model is ready.
    described["ready"] = json!(site.readiness.check().await.is_ok());
    Ok(json_value(StatusCode::OK, &described))
}

/// `GET /v1/jobs/{id}/image`: streams the upload unchanged. The file may be hostile, so its headers make sure that
/// browsers treat it as an image and as nothing else.
async fn job_image(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let no_memory = |_| Problem::full("too many images are being sent; try again in a moment");
    let reservation = site.image_reads.try_reserve(IMAGE_READ_BYTES).map_err(no_memory)?;
    let image = site.jobs.image(id, site.uploads.max_upload_bytes).await?;
    let Some(mut image) = image else { return Err(site.jobs.no_image(id).await) };
    let first = image.next().await.transpose().map_err(|error| jobs::read_problem(&error))?.unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(model::sniff(&first).unwrap_or("application/octet-stream"))),
        (header::CONTENT_LENGTH, HeaderValue::from(image.size_bytes)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600, immutable")),
    ];
    let deadline =
        Instant::now() + IMAGE_READ_GRACE + Duration::from_secs(image.size_bytes / MIN_IMAGE_BYTES_PER_SECOND);
    let pieces = stream::unfold((Some(first), image, reservation), move |(first, mut image, reservation)| async move {
        let piece = match first {
            Some(first) => Ok(first),
            None if Instant::now() > deadline => {
                Err(TransportError::Unavailable("its client reads too slowly".to_owned()))
            }
            None => image.next().await?,
        };
        if let Err(error) = &piece {
            tracing::warn!(%error, %id, "cannot send the whole image; closing the connection");
        }
        Some((piece, (None, image, reservation)))
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// The id in an address. Text that is not an id is answered like an unknown job.
struct JobId(Uuid);

impl<S: Sync + Send> FromRequestParts<S> for JobId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(Problem::no_such_job(parts.uri.path()));
        };
        text.parse().map(JobId).map_err(|_| Problem::no_such_job(&text))
    }
}

async fn readyz(Shared(site): Shared<Arc<Site>>) -> Response {
    match site.readiness.check().await {
        Ok(()) => match site.readiness.warning() {
            None => "ready\n".into_response(),
            Some(warning) => format!("ready\nwarning: {warning}\n").into_response(),
        },
        Err(reason) => Problem::unavailable(reason).into_response(),
    }
}

async fn metrics(Shared(site): Shared<Arc<Site>>) -> impl IntoResponse {
    site.jobs.admission.update_gauge();
    ([(header::CONTENT_TYPE, telemetry::METRICS_CONTENT_TYPE)], telemetry::metrics_text())
}

/// Counts a request and begins its span, which becomes the trace context that the handler sees in [`TRACEPARENT`].
async fn measure(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    let mut span = begin_span(&request, route);
    match span.traceparent().and_then(|own| HeaderValue::try_from(own).ok()) {
        Some(own) => request.headers_mut().insert(TRACEPARENT, own),
        None => request.headers_mut().remove(TRACEPARENT),
    };
    let response = next.run(request).await;
    span.set("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail("");
    }
    METRICS.requests.with_label_values(&[route, response.status().as_str()]).inc();
    METRICS.request_seconds.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    response
}

/// Begins a span for requests about images. Health checks and metrics would only fill the traces.
fn begin_span(request: &Request, route: &str) -> Span {
    if request.method() != Method::POST && !route.starts_with("/v1/") {
        return Span::default();
    }
    let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let mut span = Span::begin(Side::Server, traceparent, || format!("{} {route}", request.method()).into());
    if span.is_exported() {
        span.set("http.request.method", request.method().to_string());
        span.set("http.route", route.to_owned());
    }
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

pub(super) fn parse(text: &Bytes) -> Result<ClassifyResult, Problem> {
    serde_json::from_slice(text).map_err(|error| damaged(&error))
}

fn damaged(error: &serde_json::Error) -> Problem {
    tracing::error!(%error, "a stored result cannot be parsed");
    Problem::unavailable("the stored result cannot be read; the log of the web tier says why")
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
}
