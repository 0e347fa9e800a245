//! The classification behind all dialects.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::future::try_join_all;

use crate::model::Prediction;
use crate::protocol::{ClassifyResult, Status, cut_filename};
use crate::web::answer;
pub(super) use crate::web::answer::json_of as json;
use crate::web::error::Problem;
use crate::web::jobs::{Classified, JobOptions, Wire};
use crate::web::query::{MAX_TOP_K, Query};
use crate::web::site::Site;
use crate::web::upload::{Upload, WholeBody};

/// The largest number of images in one request.
pub(super) const MAX_IMAGES: usize = 32;
/// The limit for all of a JSON body besides its images.
const ENVELOPE_BYTES: u64 = 64 << 10;

/// Returns the options of a request that names a model, or none. `model` is as the client wrote it.
///
/// # Errors
/// 404 for a model that is not one of the service's, and 400 when workers return only labels, without scores.
pub(super) fn options(site: &Site, request: &Request, model: Option<&str>) -> Result<JobOptions, Problem> {
    if site.jobs.wire == Wire::Legacy {
        return Err(Problem::malformed(
            "the workers of this service return one label without a score (--wire); only POST / and the addresses \
             under /v1/classify and /v1/jobs can tell it",
        ));
    }
    let mut options = site.job_options(Query::default(), request)?;
    options.model = site.models.choose(model, None)?;
    Ok(options)
}

/// Sets the number of classes in the answer. `name` is the parameter's name in the dialect.
pub(super) fn set_top_k(options: &mut JobOptions, name: &str, value: Option<i64>) -> Result<(), Problem> {
    let Some(value) = value else { return Ok(()) };
    options.top_k = u32::try_from(value)
        .ok()
        .filter(|top_k| (1..=MAX_TOP_K).contains(top_k))
        .ok_or_else(|| Problem::malformed(format!("{name} is {value}, and not between 1 and {MAX_TOP_K}")))?;
    Ok(())
}

/// Reads the body of a request whose answer waits. It may be larger than one image, because base64 needs a third more.
///
/// # Errors
/// 503 if the answer would come too late, and the errors of [`WholeBody::receive`].
pub(super) async fn receive(site: &Site, request: Request) -> Result<WholeBody, Problem> {
    let request = site.jobs.admission.check_request(request, site.sync_timeout).await?;
    WholeBody::receive(request, &site.uploads, max_body_bytes(site)).await
}

/// The largest body that is read: one image of the largest size in base64 with line breaks, and the text around it.
pub(super) fn max_body_bytes(site: &Site) -> u64 {
    let image = site.uploads.max_upload_bytes;
    image + image / 3 + image / 24 + ENVELOPE_BYTES
}

/// Classifies one image and waits for its result.
pub(super) async fn classify(site: &Site, upload: Upload, options: JobOptions) -> Result<ClassifyResult, Problem> {
    let Classified { id, result } = site.jobs.classify(upload, options, site.sync_timeout).await?;
    let Some(text) = result else { return Err(Problem::not_in_time(id)) };
    let result = answer::parse(&text)?;
    if result.status == Status::Succeeded { Ok(result) } else { Err(Problem::of_result(&result)) }
}

/// Classifies several images and waits for all results, which are in the order of the images.
///
/// # Errors
/// The first error of any of them, which names the image by its number. The other images are withdrawn.
pub(super) async fn classify_all(
    site: &Site,
    uploads: Vec<Upload>,
    options: &JobOptions,
) -> Result<Vec<ClassifyResult>, Problem> {
    let count = uploads.len();
    let calls = uploads.into_iter().enumerate().map(|(at, upload)| async move {
        let named = |problem| if count == 1 { problem } else { of_image(problem, at, count) };
        classify(site, upload, options.clone()).await.map_err(named)
    });
    try_join_all(calls).await
}

/// Adds the number of the image to a problem with one of several.
pub(super) fn of_image(mut problem: Problem, at: usize, count: usize) -> Problem {
    problem.detail.insert_str(0, &format!("image {} of {count}: ", at + 1));
    problem
}

/// Returns the name in an address.
pub(super) fn path(path: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    path.map(|Path(text)| text).map_err(|_| Problem::malformed("the name in the address is not UTF-8"))
}

/// The score of a class. It has the digits of the service's own answers: the conversion of 32 bits to 64 would add some.
pub(super) fn score(class: &Prediction) -> f64 {
    class.score.and_then(|score| score.to_string().parse().ok()).unwrap_or_default()
}

/// The answer to a refused request in a dialect: the status and headers of the problem, with another body.
pub(super) fn refusal(problem: Problem, content_type: &'static str, body: String) -> Response {
    let (mut parts, _) = problem.into_response().into_parts();
    // It is written in the format of the client now.
    parts.extensions.remove::<Problem>();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(Bytes::from(body)))
}

/// The same in the format of several servers: `{"error": "…"}`.
pub(super) fn error_member(problem: Problem) -> Response {
    let body = serde_json::json!({ "error": problem.detail }).to_string();
    refusal(problem, "application/json", body)
}

/// The exception of AWS for a key that is missing or wrong.
pub(super) fn aws_key_exception(problem: &Problem) -> &'static str {
    match problem.key_refusal {
        Some("no_key") => "MissingAuthenticationTokenException",
        Some("expired_key") => "ExpiredTokenException",
        _ => "UnrecognizedClientException",
    }
}

/// Checks the version that an address names.
///
/// # Errors
/// 404 for another one than that of the service, and for a version when the package is not on this machine.
pub(super) async fn check_version(site: &Site, model: &str, version: &str) -> Result<(), Problem> {
    let described = site.models.show(model, false).await?;
    let current = described["version"].as_str();
    if current == Some(version) {
        return Ok(());
    }
    let mut problem = Problem::unknown_model(model, &[]);
    let version = cut_filename(version);
    problem.detail = match current {
        Some(current) => format!("the model {model:?} has no version {version:?}; the current one is {current:?}"),
        None => format!("the versions of the model {model:?} are not known on this machine; leave the version out"),
    };
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_has_the_digits_of_the_own_answers() {
        let class = Prediction { class_index: None, label: String::new(), score: Some(0.821_793_56) };
        let own = serde_json::to_string(&class).unwrap();
        assert!(own.contains(&format!("\"score\":{}", score(&class))), "{own}");
    }
}
