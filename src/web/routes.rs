//! The routes: which handler answers which address, and the handlers that read what is stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use bytes::Bytes;
use futures::stream;
use tower_http::cors::CorsLayer;

use super::answer::{JobState, etag, final_job, json_of, json_text, with_etag};
use super::auth::{self, Auth};
use super::error::Problem;
use super::http::{self, RequestGuard};
use super::jobs::{self, State};
use super::observe::{AccessLog, observe};
use super::openapi::{Call, OPERATIONS, Operation};
use super::prefer::Waiting;
use super::query::Query;
use super::site::{JobId, Site};
use super::{assets, batches, dialects, events, fleet, html, job_list, openapi, pages, submit};
use crate::transport::{Removal, TransportError};
use crate::{model, protocol, telemetry};

/// Memory of one image that is being sent: the piece that is read, and the bytes that the connection has buffered.
const IMAGE_READ_BYTES: u64 = 256 << 10;
/// A client has [`IMAGE_READ_GRACE`] plus the time that its image takes at this rate to read it.
const MIN_IMAGE_BYTES_PER_SECOND: u64 = 64 << 10;
const IMAGE_READ_GRACE: Duration = Duration::from_secs(30);

/// Makes the router of the web tier from the table of operations and the routes of the dialects. `cors` answers the
/// preflights of pages of other sites, which have no key, and marks every other answer, also a refusal.
pub(super) fn router(
    site: Arc<Site>,
    guard: Arc<RequestGuard>,
    auth: Arc<Auth>,
    cors: Option<CorsLayer>,
    access_log: AccessLog,
) -> Router {
    let router = routes_of(OPERATIONS.iter())
        .merge(dialects::routes())
        .fallback(|request: Request| async move { Problem::no_such_page(request.uri().path()) })
        .method_not_allowed_fallback(dialects::other_method)
        .layer(middleware::from_fn_with_state(auth, auth::authenticate))
        .layer(middleware::from_fn_with_state(guard, http::guard))
        .layer(middleware::from_fn(html::refuse_in_format));
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(access_log, observe)).with_state(site)
}

/// Makes the router of the operators' address, which needs no key.
pub(super) fn operators_router(site: Arc<Site>) -> Router {
    routes_of(OPERATIONS.iter().filter(|operation| operation.is_for_operators()))
        .fallback(|request: Request| async move { Problem::no_such_page(request.uri().path()) })
        .with_state(site)
}

fn routes_of(operations: impl Iterator<Item = &'static Operation>) -> Router<Arc<Site>> {
    operations.fold(Router::new(), |router, operation| router.route(operation.path, handler(operation.call)))
}

/// The handler of each operation. PUT is what `curl -T FILE` sends; it appends the file's name to an address that ends with a
/// slash.
fn handler(call: Call) -> MethodRouter<Arc<Site>> {
    match call {
        Call::Index => get(pages::index),
        Call::ClassifyForm => post(dialects::root),
        Call::ResultPage => get(pages::result),
        Call::Asset => get(assets::file),
        Call::Icon => get(assets::icon),
        Call::Classify => post(submit::classify),
        Call::ClassifyPut => put(submit::classify),
        Call::ClassifyNamed => put(submit::classify_named),
        Call::CreateJob => post(submit::create_job),
        Call::CreateJobPut => put(submit::create_job),
        Call::CreateJobNamed => put(submit::create_job_named),
        Call::Jobs => get(job_list::list),
        Call::Job => get(job),
        Call::RemoveJob => delete(remove_job),
        Call::JobEvents => get(events::events),
        Call::JobImage => get(job_image),
        Call::JobThumbnail => get(pages::thumbnail),
        Call::JobsEvents => get(events::events_of_jobs),
        Call::CreateBatch => post(batches::create),
        Call::Batch => get(batches::show),
        Call::BatchResults => get(batches::results),
        Call::CancelBatch => delete(batches::cancel),
        Call::Models => get(models),
        Call::ModelNamed => get(model_named),
        Call::OpenApi => get(openapi::document),
        Call::Docs => get(openapi::docs),
        Call::Healthz => get(|| async { "ok\n" }),
        Call::Readyz => get(readyz),
        Call::Metrics => get(metrics),
        Call::Fleet => get(fleet::fleet),
    }
}

/// `GET /v1/jobs/{id}`: the state of any job. With `?wait=` the answer comes when the job has ended or the time is up.
async fn job(
    Shared(site): Shared<Arc<Site>>,
    JobId(id): JobId,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let waiting = Waiting::of(&query, &headers, Duration::ZERO)?;
    // When too many clients wait already, this one gets the present state at once.
    let permit = if waiting.time.is_zero() { None } else { site.listeners.admit() };
    let wait = if permit.is_some() { waiting.time } else { Duration::ZERO };
    match site.jobs.state(id, wait).await? {
        State::Unknown | State::Removed => Err(Problem::no_such_job(&id.to_string())),
        State::Queued => {
            let retry_after = site.jobs.admission.retry_after_seconds();
            let progress = site.jobs.admission.progress(id);
            let mut response = json_of(StatusCode::OK, &JobState::waiting(id, progress));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
            Ok(waiting.applied(response, true))
        }
        State::Final(text) => Ok(waiting.applied(tagged(&headers, final_job(id, &text)?), false)),
    }
}

/// The answer with a JSON that does not change, unless the client has it.
fn tagged(request: &HeaderMap, json: String) -> Response {
    let tag = etag(json.as_bytes());
    with_etag(json_text(StatusCode::OK, Bytes::from(json)), &tag, request)
}

/// `DELETE /v1/jobs/{id}`: cancels a job that waits, or removes the image and the result of one that has ended.
async fn remove_job(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let state = match site.jobs.remove(id).await? {
        Removal::Cancelled => JobState::cancelled(id),
        Removal::Removed | Removal::Unknown => JobState::removed(id),
    };
    tracing::info!(%id, "a job is {} by its client", state.status);
    Ok(json_of(StatusCode::OK, &state))
}

/// `GET /v1/models`: the models that requests may choose. Labels only with `?labels=true`.
async fn models(Shared(site): Shared<Arc<Site>>, query: Query, headers: HeaderMap) -> Result<Response, Problem> {
    Ok(tagged(&headers, site.models.list(query.wants_labels()?).await?.to_string()))
}

/// `GET /v1/models/{name}`: one of them.
async fn model_named(
    Shared(site): Shared<Arc<Site>>,
    query: Query,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::malformed("the name of the model in the address is not UTF-8"))?;
    let mut described = site.models.show(&name, query.wants_labels()?).await?;
    // KServe's first protocol asks here whether the model is ready.
    described["ready"] = site.readiness.check().await.is_ok().into();
    Ok(tagged(&headers, described.to_string()))
}

/// `GET /v1/jobs/{id}/image`: streams the upload unchanged. The file may be hostile, so its headers make sure that
/// browsers treat it as an image and as nothing else.
async fn job_image(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let no_memory = |_| Problem::full("too many images are being sent; try again in a moment");
    let reservation = site.image_reads.try_reserve(IMAGE_READ_BYTES).map_err(no_memory)?;
    let image = site.jobs.image(id, site.uploads.max_upload_bytes).await?;
    let Some(mut image) = image else { return Err(site.jobs.no_image(id).await) };
    let first = image.next().await.transpose().map_err(|error| jobs::read_problem(&error))?.unwrap_or_default();
    if first == protocol::WITHDRAWN_IMAGE {
        return Err(Problem::no_such_job(&id.to_string()));
    }
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

async fn readyz(Shared(site): Shared<Arc<Site>>) -> Response {
    match site.readiness.check().await {
        Ok(()) => {
            let warnings = site.readiness.warnings().await;
            let lines = warnings.into_iter().map(|warning| format!("warning: {warning}\n"));
            format!("ready\n{}", lines.collect::<String>()).into_response()
        }
        Err(reason) => Problem::unavailable(reason).into_response(),
    }
}

async fn metrics(Shared(site): Shared<Arc<Site>>, headers: HeaderMap) -> impl IntoResponse {
    site.jobs.admission.update_gauge();
    site.readiness.queues.update(&*site.readiness.transport).await;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let (kind, text) = telemetry::metrics::answer(accept);
    ([(header::CONTENT_TYPE, kind)], text)
}
