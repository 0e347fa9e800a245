//! Batches over HTTP: many images in one request, whose jobs are of the bulk class.
//!
//! - `store`: what is stored of a batch, from which any process answers; `rows`: the results as CSV or JSON Lines

mod rows;
mod store;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

pub(crate) use self::rows::RowFormat;
pub(crate) use self::store::{BatchState, Batches, item_request};
use super::answer::json_of;
use super::callbacks;
use super::error::Problem;
use super::jobs::{JobOptions, read_problem};
use super::query::{Query, TOP_K, wrong_top_k};
use super::site::Site;
use super::upload::{self, Received, Upload, WholeBody, is_json_request};
use crate::clock;
use crate::protocol::{
    Batch, BatchItem, BatchSource, Callback, CallbackKind, ClassifyRequest, ImageRef, MAX_BATCH_ITEMS, WIRE_VERSION,
    cut_filename,
};
use crate::transport::TransportError;

/// A list of keys has at most this many bytes.
const MAX_LIST_BYTES: u64 = 16 << 20;
/// S3's limit on a key, in bytes.
const MAX_KEY_BYTES: usize = 1_024;
/// Requests of one batch that are sent at the same time.
const CONCURRENT_SENDS: usize = 64;
/// The number of predictions that a batch asks for without `top_k`: as in the tables of `imgcls classify`.
const DEFAULT_TOP_K: u32 = 1;

/// The id of a batch in an address. Text that is not an id is answered like an unknown batch.
pub(super) struct BatchId(Uuid);

impl<S: Sync + Send> FromRequestParts<S> for BatchId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(Problem::no_such_batch(parts.uri.path()));
        };
        text.parse().map(BatchId).map_err(|_| Problem::no_such_batch(&text))
    }
}

/// The list of keys of a batch. A member that is unknown is an error, so that no option is lost by a typo.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedImages {
    images: Vec<ListedImage>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    top_k: Option<u32>,
    #[serde(default)]
    callback_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedImage {
    bucket: String,
    key: String,
    #[serde(default)]
    name: Option<String>,
}

/// `POST /v1/batches`: the images of a form, or a list of keys in JSON.
pub(super) async fn create(
    Shared(site): Shared<Arc<Site>>,
    mut query: Query,
    request: Request,
) -> Result<Response, Problem> {
    let named_callback = query.take_callback_url();
    let named_top_k = query.top_k()?;
    let mut options = site.job_options(query, &request)?;
    if site.jobs.is_legacy() {
        return Err(Problem::malformed("with --wire seed there are no batches; send the images one by one"));
    }
    let contents = if is_json_request(request.headers()) {
        let body = WholeBody::receive(request, &site.uploads, MAX_LIST_BYTES).await?;
        let ListedImages { images, model, top_k, callback_url } = parse_list(&body.bytes)?;
        options.model = site.models.choose(options.model.as_deref(), model.as_deref())?;
        Contents { top_k, callback_url, images: Images::Listed(listed(images, &site.read_buckets)?) }
    } else {
        let Received { files, top_k, model, callback_url, .. } = upload::receive_all(request, &site.uploads).await?;
        options.model = site.models.choose(options.model.as_deref(), model.as_deref())?;
        // A batch is taken as a whole or not at all.
        Contents { top_k, callback_url, images: Images::Uploads(files.into_iter().collect::<Result<Vec<_>, _>>()?) }
    };
    let callback = callbacks::wanted(&site, named_callback, contents.callback_url)?;
    let top_k = contents.top_k.or(named_top_k).unwrap_or(DEFAULT_TOP_K);
    options.top_k = Some(top_k).filter(|top_k| TOP_K.contains(top_k)).ok_or_else(|| wrong_top_k(&top_k.to_string()))?;
    let state = submit(&site, contents.images, options, callback).await?;
    let mut response = json_of(StatusCode::ACCEPTED, &state);
    if let Ok(location) = HeaderValue::try_from(format!("/v1/batches/{}", state.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /v1/batches/{id}`: how many images are in each state.
pub(super) async fn show(Shared(site): Shared<Arc<Site>>, BatchId(id): BatchId) -> Result<Response, Problem> {
    let batch = read(&site, id).await?;
    let state = site.batches.state(&batch).await.map_err(|error| read_problem(&error))?;
    Ok(json_of(StatusCode::OK, &state))
}

/// `GET /v1/batches/{id}/results`: a row for each image, also while the batch runs.
pub(super) async fn results(
    Shared(site): Shared<Arc<Site>>,
    BatchId(id): BatchId,
    query: Query,
) -> Result<Response, Problem> {
    let format: RowFormat = query.format().unwrap_or("csv").parse().map_err(Problem::malformed)?;
    let batch = read(&site, id).await?;
    if batch.source == BatchSource::Sender {
        return Err(Problem::malformed(
            "the sender of this batch has the list of its images and gathers their results",
        ));
    }
    let ranks = batch.top_k;
    let header = stream::iter([Ok(Bytes::from(format.header(ranks)))]);
    let rows = site.batches.items(batch).map_ok(move |state| Bytes::from(format.row(&state, ranks)));
    let rows = rows.inspect_err(move |error| tracing::warn!(%error, %id, "cannot send all results of a batch"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(format.media_type())),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::from_stream(header.chain(rows))).into_response())
}

/// `DELETE /v1/batches/{id}`: cancels the jobs that have no result yet.
pub(super) async fn cancel(Shared(site): Shared<Arc<Site>>, BatchId(id): BatchId) -> Result<Response, Problem> {
    let batch = read(&site, id).await?;
    let cancelled = site.batches.cancel(batch).await.map_err(|error| read_problem(&error))?;
    tracing::info!(%id, cancelled, "a batch is cancelled by its client");
    Ok(json_of(StatusCode::OK, &json!({"id": id, "cancelled": cancelled})))
}

async fn read(site: &Site, id: Uuid) -> Result<Batch, Problem> {
    let found = site.batches.read(id).await.map_err(|error| read_problem(&error))?;
    found.ok_or_else(|| Problem::no_such_batch(&id.to_string()))
}

/// The images of a request that creates a batch.
struct Contents {
    top_k: Option<u32>,
    callback_url: Option<String>,
    images: Images,
}

enum Images {
    Uploads(Vec<Upload>),
    Listed(Vec<(String, ImageRef)>),
}

fn parse_list(body: &[u8]) -> Result<ListedImages, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let error = error.to_string();
        let advice = "send {\"images\": [{\"bucket\": \"…\", \"key\": \"…\"}, …]}, with model and top_k as you like";
        Problem::malformed(format!("the body is not the expected JSON: {}; {advice}", cut_filename(&error)))
    })
}

/// Checks a list of keys, and names each image.
fn listed(images: Vec<ListedImage>, read_buckets: &[String]) -> Result<Vec<(String, ImageRef)>, Problem> {
    if images.is_empty() || images.len() > MAX_BATCH_ITEMS {
        let detail = format!("a batch has 1 to {MAX_BATCH_ITEMS} images, not {}", images.len());
        return Err(Problem::malformed(detail));
    }
    let check = |ListedImage { bucket, key, name }: ListedImage| {
        if !read_buckets.contains(&bucket) {
            let bucket = cut_filename(&bucket);
            return Err(Problem::malformed(format!("the bucket {bucket:?} may not be read (--read-bucket)")));
        }
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Problem::malformed(format!("a key has 1 to {MAX_KEY_BYTES} bytes")));
        }
        let name = name.unwrap_or_else(|| key.clone());
        Ok((cut_filename(&name).to_owned(), ImageRef { bucket, key }))
    };
    images.into_iter().map(check).collect()
}

/// Makes the document durable, then the jobs. The client gets the id once all of them are.
async fn submit(
    site: &Site,
    images: Images,
    options: JobOptions,
    callback: Option<String>,
) -> Result<BatchState, Problem> {
    let id = options.new_id();
    let item = |name: String, image| BatchItem { id: options.new_id(), name, image };
    let (items, uploads) = match images {
        Images::Uploads(uploads) => {
            (uploads.iter().map(|upload| item(upload.filename.clone(), None)).collect::<Vec<_>>(), uploads)
        }
        Images::Listed(listed) => {
            (listed.into_iter().map(|(name, image)| item(name, Some(image))).collect(), Vec::new())
        }
    };
    let (created_at, top_k, model) = (clock::now(), options.top_k, options.model.clone());
    let batch = Batch { v: WIRE_VERSION, id, created_at, source: BatchSource::Request, top_k, model, items };
    if let Some(url) = callback {
        let callback = Callback::new(CallbackKind::Batch, id, url, options.principal.key_hex());
        let sent = site.jobs.transport.send_callback(callback.to_json(), Duration::ZERO).await;
        sent.map_err(super::jobs::submit_problem)?;
    }
    site.batches.create(&batch).await.map_err(|error| read_problem(&error))?;
    if uploads.is_empty() {
        send_references(site, &batch).await.map_err(super::jobs::submit_problem)?;
    } else {
        for (item, upload) in batch.items.iter().zip(uploads) {
            let options = JobOptions { id: Some(item.id), batch: Some(id), ..options.clone() };
            site.jobs.submit_to_batch(upload, options).await?;
        }
    }
    let counts = store::Counts { queued: batch.items.len(), ..store::Counts::default() };
    Ok(BatchState::new(&batch, Some(counts)))
}

async fn send_references(site: &Site, batch: &Batch) -> Result<(), TransportError> {
    let request = |item| item_request(batch.id, item, batch.top_k, batch.model.clone(), site.jobs.bulk_ttl);
    let requests: Vec<ClassifyRequest> = batch.items.iter().map(request).collect();
    let send = |request: ClassifyRequest| {
        let transport = Arc::clone(&site.jobs.transport);
        async move { transport.send_request(&request).await }
    };
    stream::iter(requests).map(send).buffer_unordered(CONCURRENT_SENDS).try_collect::<()>().await
}
