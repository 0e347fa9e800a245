//! Dialects: the addresses and formats of other servers, for clients that already speak those.
//!
//! Each dialect is one file. It reads the options and images of its request, has them classified like those of any other
//! address ([`call`]), and writes the answer, or the refusal, in its own format. What a dialect can say and this service
//! cannot do is refused by name; nothing is ignored that would change the answer.
//!
//! - [`hugging_face`]: image classification of Hugging Face's inference API
//! - [`open_inference`]: the Open Inference Protocol, which is KServe's second one and Triton's
//! - [`kserve`]: KServe's first protocol
//! - [`torchserve`]: predictions of TorchServe
//! - [`rekognition`]: `DetectLabels` of Amazon Rekognition
//! - [`sagemaker`]: `InvokeEndpoint` of Amazon SageMaker
//! - [`photoprism`]: labels of PhotoPrism's vision service
//! - [`replicate`]: predictions of Replicate
//! - [`sibling`]: the answer `name:label` of systems that are related to the legacy one
//!
//! [`json`] parses bodies within limits, [`image`] finds images in them, [`tensor`] makes images of pixels.

mod call;
mod hugging_face;
mod image;
mod json;
mod kserve;
mod open_inference;
mod photoprism;
mod rekognition;
mod replicate;
mod sagemaker;
mod sibling;
mod tensor;
mod torchserve;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};

pub(super) use self::sibling::prefix as sibling_prefix;
use super::error::{Problem, Refusal};
use super::site::Site;
use super::submit::classify_form;

/// The routes of all dialects.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .merge(hugging_face::routes())
        .merge(open_inference::routes())
        .merge(torchserve::routes())
        .merge(sagemaker::routes())
        .merge(photoprism::routes())
        .merge(replicate::routes())
}

/// A method that an address of the interface does not have. The address of KServe's first protocol is the name of a model
/// with `:predict` behind it, which the router cannot tell from the name alone.
pub(super) async fn other_method(
    site: State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let has_verb = name.as_ref().is_ok_and(|Path(name)| name.contains(':'));
    if request.method() == Method::POST && has_verb && request.uri().path().starts_with("/v1/models/") {
        return kserve::predict(site, name, request).await;
    }
    Problem::method_not_allowed().into_response()
}

/// Returns how the dialect of a request writes refusals, so that those of keys, limits and hosts, which come before its
/// handler, have the same form as its own. `None` for the addresses of the interface, and for Replicate's, whose refusals are
/// problem documents.
pub(super) fn refusal_of(request: &Request) -> Option<Refusal> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let is_post = request.method() == Method::POST;
    match route {
        "/" if is_post && rekognition::is_call(request.headers()) => Some(rekognition::refused),
        "/" if is_post && hugging_face::is_client(request.headers()) => Some(call::error_member),
        "/v1/models/{name}" if is_post && request.uri().path().contains(':') => Some(call::error_member),
        "/ping" => Some(torchserve::refusal),
        "/invocations" | "/endpoints/{name}/invocations" => Some(sagemaker::refusal),
        "/api/v1/vision/labels" => Some(|problem| photoprism::refusal("", problem)),
        _ if route.starts_with("/predictions/") => Some(torchserve::refusal),
        _ if route == "/v2" || route.starts_with("/v2/") || route.starts_with("/models/") => Some(call::error_member),
        _ => None,
    }
}

/// `POST /`: the legacy form, and the two dialects whose clients can only be told apart by a header.
pub(super) async fn root(site: State<Arc<Site>>, request: Request) -> Response {
    if rekognition::is_call(request.headers()) {
        return rekognition::call(site, request).await;
    }
    if hugging_face::is_client(request.headers()) {
        return hugging_face::classify(site, request).await;
    }
    classify_form(site, request).await.into_response()
}
