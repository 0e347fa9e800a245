//! KServe's first protocol: `POST /v1/models/{name}:predict` with `{"instances": [{"b64": "…"}]}`, which is also that of
//! TensorFlow Serving. The answer is `{"predictions": [[{"label": …, "score": …}]]}`, one list per instance.
//!
//! `GET /v1/models/{name}` is an address of the service itself, whose answer also has the members `name` and `ready` of
//! this protocol.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;

use super::call::MAX_IMAGES;
use super::json::{Base64Image, Limited};
use super::{call, hugging_face, image, json};
use crate::protocol::cut_filename;
use crate::web::error::Problem;
use crate::web::site::Site;

/// The only signature that a model has.
const SIGNATURE: &str = "serving_default";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    #[serde(borrow)]
    instances: Limited<Base64Image<'a>, MAX_IMAGES>,
    signature_name: Option<String>,
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    top_k: Option<i64>,
}

/// `POST /v1/models/{name}:predict`
pub(super) async fn predict(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let answer = async { answer(&site, &call::path(name)?, request).await };
    answer.await.unwrap_or_else(call::error_member)
}

async fn answer(site: &Site, name: &str, request: Request) -> Result<Response, Problem> {
    let model = match name.rsplit_once(':') {
        Some((model, "predict")) => model,
        Some((_, verb)) => {
            let verb = cut_filename(verb);
            return Err(Problem::malformed(format!("{verb:?} is not supported; a model has only \":predict\"")));
        }
        None => {
            // An address of the service itself.
            let mut response = Problem::method_not_allowed().into_response();
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
            return Ok(response);
        }
    };
    let mut options = call::options(site, &request, Some(model))?;
    let body = call::receive(site, request).await?;
    let memory = json::reserve(&body.bytes, &site.uploads)?;
    let Call { instances, signature_name, parameters } = json::parse(&body.bytes)?;
    if let Some(name) = signature_name.filter(|name| name != SIGNATURE) {
        let name = cut_filename(&name);
        return Err(Problem::malformed(format!("signature_name is {name:?}, and a model has only {SIGNATURE:?}")));
    }
    call::set_top_k(&mut options, "top_k", parameters.and_then(|parameters| parameters.top_k))?;
    let uploads = image::decode_all(instances.0.iter().map(|image| &*image.0), &site.uploads)?;
    drop(instances);
    drop((memory, body));
    let results = call::classify_all(site, uploads, &options).await?;
    let predictions: Vec<_> = results.iter().map(|result| hugging_face::scored(&result.predictions)).collect();
    Ok(call::json(StatusCode::OK, &json!({ "predictions": predictions })))
}
