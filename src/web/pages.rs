//! The handlers of the pages, and of small copies of images.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use super::error::Problem;
use super::html;
use super::site::{JobId, Site};

/// `GET /`: the page for images.
pub(super) async fn index(Shared(site): Shared<Arc<Site>>, headers: HeaderMap) -> Response {
    site.index.answer(&headers)
}

/// `GET /results/{id}`: the page of one result. It has nothing but the id, which its script asks for like any client, so that
/// the rules of keys hold.
pub(super) async fn result(JobId(id): JobId) -> Response {
    let page = include_str!("assets/result.html").replace("{{id}}", &id.to_string());
    let mut response = Response::new(Body::from(page));
    html::page_headers(response.headers_mut());
    response
}

/// `GET /v1/jobs/{id}/thumbnail`
pub(super) async fn thumbnail(Shared(site): Shared<Arc<Site>>, JobId(id): JobId) -> Result<Response, Problem> {
    let _permit = site.thumbnails.admit().await?;
    let Some(image) = site.jobs.image(id, site.uploads.max_upload_bytes).await? else {
        return Err(site.jobs.no_image(id).await);
    };
    let small = site.thumbnails.make(id, image).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("image/jpeg")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600, immutable")),
    ];
    Ok((headers, small).into_response())
}
