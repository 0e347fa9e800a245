//! Image classification of Hugging Face's inference API, as `huggingface_hub.InferenceClient` and inference endpoints
//! speak it: an image as the body, or `{"inputs": "<base64>", "parameters": {…}}`; the answer is
//! `[{"label": …, "score": …}]`, the best first.
//!
//! The model is named in the address `/models/{name}`. A client that was given the address of the server alone posts to
//! `/`, where its User-Agent tells it from the clients of the legacy system.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{call, image, json};
use crate::model::Prediction;
use crate::protocol::{ClassifyResult, cut_filename};
use crate::web::error::Problem;
use crate::web::jobs::JobOptions;
use crate::web::site::Site;
use crate::web::upload::{Upload, WholeBody};

/// The User-Agents of the clients in Python and JavaScript contain one of these.
const CLIENTS: [&str; 2] = ["hf_hub/", "@huggingface/"];

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/models/{*name}", post(classify_by))
        .method_not_allowed_fallback(|| async { call::error_member(Problem::method_not_allowed()) })
}

/// Returns whether a request comes from a client of Hugging Face.
pub(super) fn is_client(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    CLIENTS.iter().any(|client| agent.contains(client))
}

/// `POST /` of such a client: the first model of the service.
pub(super) async fn classify(State(site): State<Arc<Site>>, request: Request) -> Response {
    answer(&site, request, None).await.unwrap_or_else(call::error_member)
}

async fn classify_by(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let answer = async { answer(&site, request, Some(&call::path(name)?)).await };
    answer.await.unwrap_or_else(call::error_member)
}

async fn answer(site: &Site, request: Request, model: Option<&str>) -> Result<Response, Problem> {
    let result = classify_body(site, request, model).await?;
    Ok(call::json(StatusCode::OK, &scored(&result.predictions)))
}

/// Classifies the image of a request in this format.
pub(super) async fn classify_body(
    site: &Site,
    request: Request,
    model: Option<&str>,
) -> Result<ClassifyResult, Problem> {
    let mut options = call::options(site, &request, model)?;
    let body = call::receive(site, request).await?;
    let upload = read(site, body, &mut options).await?;
    call::classify(site, upload, options).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    #[serde(borrow)]
    inputs: Cow<'a, str>,
    parameters: Option<Parameters>,
    #[expect(dead_code, reason = "they change nothing in an answer")]
    options: Option<ServerOptions>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    top_k: Option<i64>,
    function_to_apply: Option<String>,
}

/// Options of Hugging Face's own server, which change nothing in an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerOptions {
    #[expect(dead_code, reason = "there is no cache to skip")]
    use_cache: Option<bool>,
    #[expect(dead_code, reason = "requests always wait for the model")]
    wait_for_model: Option<bool>,
}

async fn read(site: &Site, body: WholeBody, options: &mut JobOptions) -> Result<Upload, Problem> {
    if body.bytes.trim_ascii_start().first() != Some(&b'{') {
        let reservation = site.uploads.reserve(body.bytes.len())?;
        return Upload::of_image(Bytes::clone(&body.bytes), reservation, &site.uploads);
    }
    let _memory = json::reserve(&body.bytes, &site.uploads)?;
    let Call { inputs, parameters, .. } = json::parse(&body.bytes)?;
    if let Some(Parameters { top_k, function_to_apply }) = parameters {
        call::set_top_k(options, "top_k", top_k)?;
        if let Some(function) = function_to_apply {
            check_function(site, options, &function).await?;
        }
    }
    image::decode(&inputs, &site.uploads)
}

/// The service always applies the function of the model. Another one would give other scores.
async fn check_function(site: &Site, options: &JobOptions, function: &str) -> Result<(), Problem> {
    let refused = |reason: &str| {
        let function = cut_filename(function);
        Problem::malformed(format!("function_to_apply is {function:?}, but {reason}; leave it out"))
    };
    match site.models.activation(options.model.as_deref()).await {
        Ok(applied) if function == applied => Ok(()),
        Ok(applied) => Err(refused(&format!("the scores of this model are made with {applied:?}"))),
        Err(problem) => Err(refused(&problem.detail)),
    }
}

/// One class of the answer.
#[derive(Serialize)]
pub(super) struct Scored<'a> {
    label: &'a str,
    score: f64,
}

/// The classes in this format.
pub(super) fn scored(predictions: &[Prediction]) -> Vec<Scored<'_>> {
    predictions.iter().map(|class| Scored { label: &class.label, score: call::score(class) }).collect()
}
