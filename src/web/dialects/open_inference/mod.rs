//! The Open Inference Protocol over HTTP: KServe's second protocol, and that of Triton, with its extensions for
//! classification and for binary tensors.
//!
//! A model has two inputs, of which a request sends one: `image`, the bytes of image files, and `pixels`, rows of red,
//! green and blue bytes. It has three outputs, all of the best classes in the same order: `labels`, `scores` and
//! `indices` ([`outputs`]). [`request`] parses requests, [`data`] the elements of tensors, [`response`] writes the answer.

mod data;
mod outputs;
mod request;
mod response;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{any, get, post};
use serde_json::{Value, json};

use self::request::Infer;
use super::{call, json};
use crate::web::error::Problem;
use crate::web::site::Site;

/// The length of the JSON part of a body with binary tensors.
const HEADER_LENGTH: &str = "inference-header-content-length";

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{name}", get(model))
        .route("/v2/models/{name}/ready", get(model_ready))
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}", get(version))
        .route("/v2/models/{name}/versions/{version}/ready", get(version_ready))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer_version))
        .route("/v2/{*rest}", any(unknown))
        .method_not_allowed_fallback(|| async { call::error_member(Problem::method_not_allowed()) })
}

type Name = Result<Path<String>, PathRejection>;
type NameAndVersion = Result<Path<(String, String)>, PathRejection>;

async fn server() -> Response {
    let extensions = ["binary_tensor_data", "classification"];
    let server = json!({ "name": "imgcls", "version": env!("CARGO_PKG_VERSION"), "extensions": extensions });
    call::json(StatusCode::OK, &server)
}

async fn live() -> Response {
    call::json(StatusCode::OK, &json!({ "live": true }))
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    match site.readiness.check().await {
        Ok(()) => call::json(StatusCode::OK, &json!({ "ready": true })),
        Err(reason) => call::error_member(Problem::unavailable(reason)),
    }
}

async fn unknown(request: Request) -> Response {
    call::error_member(Problem::no_such_page(request.uri().path()))
}

async fn model(State(site): State<Arc<Site>>, name: Name) -> Response {
    let described = async { describe(&site, &call::path(name)?).await };
    described.await.map_or_else(call::error_member, |model| call::json(StatusCode::OK, &model))
}

async fn version(State(site): State<Arc<Site>>, path: NameAndVersion) -> Response {
    let described = async {
        let (name, version) = names(path)?;
        call::check_version(&site, &name, &version).await?;
        describe(&site, &name).await
    };
    described.await.map_or_else(call::error_member, |model| call::json(StatusCode::OK, &model))
}

async fn model_ready(State(site): State<Arc<Site>>, name: Name) -> Response {
    let answer = async { check_ready(&site, &call::path(name)?).await };
    answer.await.unwrap_or_else(call::error_member)
}

async fn version_ready(State(site): State<Arc<Site>>, path: NameAndVersion) -> Response {
    let answer = async {
        let (name, version) = names(path)?;
        call::check_version(&site, &name, &version).await?;
        check_ready(&site, &name).await
    };
    answer.await.unwrap_or_else(call::error_member)
}

async fn infer(State(site): State<Arc<Site>>, name: Name, request: Request) -> Response {
    let answer = async { answer(&site, &call::path(name)?, request).await };
    answer.await.unwrap_or_else(call::error_member)
}

async fn infer_version(State(site): State<Arc<Site>>, path: NameAndVersion, request: Request) -> Response {
    let answer = async {
        let (name, version) = names(path)?;
        call::check_version(&site, &name, &version).await?;
        answer(&site, &name, request).await
    };
    answer.await.unwrap_or_else(call::error_member)
}

fn names(path: NameAndVersion) -> Result<(String, String), Problem> {
    path.map(|Path(names)| names).map_err(|_| Problem::malformed("a name in the address is not UTF-8"))
}

async fn check_ready(site: &Site, name: &str) -> Result<Response, Problem> {
    site.models.show(name, false).await?;
    match site.readiness.check().await {
        Ok(()) => Ok(call::json(StatusCode::OK, &json!({ "name": name, "ready": true }))),
        Err(reason) => Err(Problem::unavailable(reason)),
    }
}

async fn describe(site: &Site, name: &str) -> Result<Value, Problem> {
    let model = site.models.show(name, false).await?;
    let versions: Vec<&Value> = model.get("version").into_iter().collect();
    Ok(json!({
        "name": name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [
            { "name": request::IMAGE, "datatype": "BYTES", "shape": [-1] },
            { "name": request::PIXELS, "datatype": "UINT8", "shape": [-1, -1, 3] },
        ],
        "outputs": [
            { "name": outputs::LABELS, "datatype": "BYTES", "shape": [-1, -1] },
            { "name": outputs::SCORES, "datatype": "FP32", "shape": [-1, -1] },
            { "name": outputs::INDICES, "datatype": "INT64", "shape": [-1, -1] },
        ],
    }))
}

async fn answer(site: &Site, model: &str, request: Request) -> Result<Response, Problem> {
    let mut options = call::options(site, &request, Some(model))?;
    let json_bytes = json_bytes(request.headers())?;
    let body = call::receive(site, request).await?;
    let json_bytes = json_bytes.unwrap_or(body.bytes.len());
    if json_bytes > body.bytes.len() {
        return Err(Problem::malformed(format!(
            "{HEADER_LENGTH} is {json_bytes}, and the whole body has only {} bytes",
            body.bytes.len()
        )));
    }
    // The elements of a UINT8 tensor take less than their text.
    let memory = (json::reserve(&body.bytes[..json_bytes], &site.uploads)?, site.uploads.reserve(json_bytes)?);
    let infer: Infer<'_> = json::parse(&body.bytes[..json_bytes])?;
    let wanted = infer.wanted()?;
    options.top_k = wanted.top_k();
    let id = infer.id()?;
    let uploads = infer.images(&body.bytes.slice(json_bytes..), &site.uploads).await?;
    drop(infer);
    drop((memory, body));
    let results = call::classify_all(site, uploads, &options).await?;
    Ok(response::write(model, id.as_deref(), &results, &wanted))
}

fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let mut values = headers.get_all(HEADER_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    match (length, values.next()) {
        (Some(length), None) => Ok(Some(length)),
        (_, Some(_)) => Err(Problem::malformed(format!("{HEADER_LENGTH} is given twice"))),
        (None, None) => Err(Problem::malformed(format!("{HEADER_LENGTH} is not a number of bytes"))),
    }
}
