//! `DetectLabels` of Amazon Rekognition, in the AWS JSON protocol 1.1: `POST /` with the header `X-Amz-Target`, an image
//! in `Image.Bytes`. The signature of the request is not checked.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{call, image, json};
use crate::protocol::{ClassifyResult, cut_filename};
use crate::web::error::Problem;
use crate::web::query::MAX_TOP_K;
use crate::web::site::Site;

const TARGET: &str = "x-amz-target";
const OPERATION: &str = "RekognitionService.DetectLabels";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Labels below this confidence are left out unless the request says another one, as AWS does.
const DEFAULT_MIN_CONFIDENCE: f64 = 55.0;

/// Returns whether a request is a call of an AWS service in this protocol.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    headers.contains_key(TARGET)
}

/// Answers such a call.
pub(super) async fn call(State(site): State<Arc<Site>>, request: Request) -> Response {
    answer(&site, request).await.unwrap_or_else(|Refusal { kind, problem }| refusal(kind, *problem))
}

/// A problem, and the name of the exception where the problem alone does not tell it.
struct Refusal {
    kind: Option<&'static str>,
    problem: Box<Problem>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal { kind: None, problem: Box::new(problem) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct DetectLabels<'a> {
    #[serde(borrow)]
    image: Image<'a>,
    max_labels: Option<i64>,
    min_confidence: Option<f64>,
    #[expect(dead_code, reason = "the only feature is what is done anyway")]
    features: Option<Vec<Feature>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Image<'a> {
    #[serde(borrow)]
    bytes: Option<Cow<'a, str>>,
    #[serde(rename = "S3Object")]
    s3_object: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum Feature {
    #[serde(rename = "GENERAL_LABELS")]
    GeneralLabels,
}

async fn answer(site: &Site, request: Request) -> Result<Response, Refusal> {
    check_target(request.headers())?;
    let mut options = call::options(site, &request, None)?;
    options.top_k = MAX_TOP_K;
    let body = call::receive(site, request).await?;
    let memory = json::reserve(&body.bytes, &site.uploads)?;
    let DetectLabels { image, max_labels, min_confidence, .. } = json::parse(&body.bytes)?;
    let min_confidence = min_confidence.unwrap_or(DEFAULT_MIN_CONFIDENCE);
    if !(0.0..=100.0).contains(&min_confidence) {
        return Err(Problem::malformed(format!("MinConfidence is {min_confidence}, and not between 0 and 100")).into());
    }
    let max_labels = match max_labels {
        None => usize::MAX,
        Some(count) => usize::try_from(count)
            .map_err(|_| Problem::malformed(format!("MaxLabels is {count}, and may not be negative")))?,
    };
    options.top_k = u32::try_from(max_labels).unwrap_or(MAX_TOP_K).clamp(1, MAX_TOP_K);
    if image.s3_object.is_some() {
        let problem = Problem::malformed("Image.S3Object is not supported here; send the image in Image.Bytes");
        return Err(Refusal { kind: Some("InvalidS3ObjectException"), problem: Box::new(problem) });
    }
    let Some(encoded) = &image.bytes else { return Err(Problem::malformed("Image.Bytes is missing").into()) };
    let upload = image::decode(encoded, &site.uploads)?;
    drop(image);
    drop((memory, body));
    let result = call::classify(site, upload, options).await?;
    Ok(labels(&result, min_confidence, max_labels))
}

fn check_target(headers: &HeaderMap) -> Result<(), Refusal> {
    let target = headers.get(TARGET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if target == OPERATION && headers.get_all(TARGET).iter().count() == 1 {
        return Ok(());
    }
    let problem = Problem::malformed(format!(
        "the operation {:?} is not supported; {OPERATION} is the only one",
        cut_filename(target)
    ));
    Err(Refusal { kind: Some("UnknownOperationException"), problem: Box::new(problem) })
}

fn labels(result: &ClassifyResult, min_confidence: f64, max_labels: usize) -> Response {
    let percent = result.predictions.iter().map(|class| (&class.label, 100.0 * call::score(class)));
    let confident = percent.filter(|(_, confidence)| *confidence >= min_confidence);
    let label = |(name, confidence): (&String, f64)| {
        json!({
            "Name": name, "Confidence": confidence,
            "Instances": [], "Parents": [], "Aliases": [], "Categories": [],
        })
    };
    let labels: Vec<Value> = confident.take(max_labels).map(label).collect();
    let version = result.model.as_ref().map(|model| format!("{}@{}", model.name, model.version)).unwrap_or_default();
    let body = json!({ "Labels": labels, "LabelModelVersion": version }).to_string();
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
    if let Ok(id) = HeaderValue::try_from(result.id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The answer to a request that was refused before its handler saw it.
pub(super) fn refused(problem: Problem) -> Response {
    refusal(None, problem)
}

/// AWS answers every fault of a client with 400 and tells them apart by the name of the exception.
fn refusal(kind: Option<&'static str>, problem: Problem) -> Response {
    let kind = kind.unwrap_or(match (problem.kind, problem.status) {
        ("too-large", _) => "ImageTooLargeException",
        (_, StatusCode::UNPROCESSABLE_ENTITY) | ("unsupported-type", _) => "InvalidImageFormatException",
        (_, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) => "ThrottlingException",
        ("unauthorized", _) => call::aws_key_exception(&problem),
        (_, StatusCode::FORBIDDEN) => "AccessDeniedException",
        (_, status) if status.is_client_error() => "InvalidParameterException",
        _ => "InternalServerError",
    });
    let body = json!({ "__type": kind, "message": problem.detail }).to_string();
    let status = if problem.status.is_client_error() { StatusCode::BAD_REQUEST } else { problem.status };
    let mut response = call::refusal(problem, CONTENT_TYPE, body);
    *response.status_mut() = status;
    response
}
