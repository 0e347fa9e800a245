//! `InvokeEndpoint` of Amazon SageMaker, with the formats of its Hugging Face containers: an image as the body, or
//! `{"inputs": "<base64>"}`. The endpoint's name is that of a model. The signature of the request is not checked.
//!
//! `POST /invocations` is what SageMaker asks a container itself, so that an image of this service can be one.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use serde_json::json;

use super::{call, hugging_face};
use crate::protocol::cut_filename;
use crate::web::error::Problem;
use crate::web::site::Site;

/// Headers that ask for something other than a prediction of the endpoint.
const UNSUPPORTED: [&str; 6] = [
    "x-amzn-sagemaker-target-model",
    "x-amzn-sagemaker-target-variant",
    "x-amzn-sagemaker-target-container-hostname",
    "x-amzn-sagemaker-enable-explanations",
    "x-amzn-sagemaker-inference-component",
    "x-amzn-sagemaker-session-id",
];
const VARIANT: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-amzn-invoked-production-variant"), HeaderValue::from_static("AllTraffic"));
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// Media types that an `Accept` of a client of this format may have.
const JSON_RANGES: [&str; 3] = ["*/*", "application/*", "application/json"];

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/endpoints/{name}/invocations", post(invoke_endpoint))
        .route("/invocations", post(invoke))
        .method_not_allowed_fallback(|| async { refusal(Problem::method_not_allowed()) })
}

async fn invoke_endpoint(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let answer = async { answer(&site, request, Some(&call::path(name)?)).await };
    answer.await.unwrap_or_else(refusal)
}

async fn invoke(State(site): State<Arc<Site>>, request: Request) -> Response {
    answer(&site, request, None).await.unwrap_or_else(refusal)
}

async fn answer(site: &Site, request: Request, model: Option<&str>) -> Result<Response, Problem> {
    check_headers(request.headers())?;
    let result = hugging_face::classify_body(site, request, model).await?;
    let mut response = call::json(StatusCode::OK, &hugging_face::scored(&result.predictions));
    let (name, value) = VARIANT;
    response.headers_mut().insert(name, value);
    Ok(response)
}

fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(name) = UNSUPPORTED.iter().find(|name| headers.contains_key(**name)) {
        return Err(Problem::malformed(format!("the header {name} is not supported")));
    }
    for value in headers.get_all(header::ACCEPT) {
        let accept = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let mut ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
        if !ranges.any(|range| range.is_empty() || JSON_RANGES.contains(&range)) {
            let accept = cut_filename(&accept);
            return Err(Problem::malformed(format!("Accept is {accept:?}, and the answer is application/json")));
        }
    }
    Ok(())
}

/// A refusal of the image itself is an error of the model (424), whose own status is in the body. All other faults of a
/// client are validation errors (400).
pub(super) fn refusal(problem: Problem) -> Response {
    let original = problem.status;
    let (status, kind) = match original {
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            (StatusCode::FAILED_DEPENDENCY, "ModelError")
        }
        StatusCode::SERVICE_UNAVAILABLE => (original, "ServiceUnavailable"),
        status if status.is_server_error() => (status, "InternalFailure"),
        StatusCode::METHOD_NOT_ALLOWED => (original, "ValidationError"),
        StatusCode::UNAUTHORIZED => (StatusCode::FORBIDDEN, call::aws_key_exception(&problem)),
        StatusCode::FORBIDDEN => (original, "AccessDeniedException"),
        StatusCode::TOO_MANY_REQUESTS => (original, "ThrottlingException"),
        _ => (StatusCode::BAD_REQUEST, "ValidationError"),
    };
    let mut body = json!({ "Message": problem.detail });
    if kind == "ModelError" {
        body["OriginalStatusCode"] = json!(original.as_u16());
        body["OriginalMessage"] = json!(problem.detail);
    }
    let mut response = call::refusal(problem, "application/json", body.to_string());
    *response.status_mut() = status;
    response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(kind));
    response
}
