//! The page and its assets, which are part of the binary.

use axum::http::header;
use axum::response::IntoResponse;

/// Only resources of this server are loaded, and no other page may frame this one.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) async fn index() -> impl IntoResponse {
    asset("text/html; charset=utf-8", include_str!("assets/index.html"))
}

pub(super) async fn stylesheet() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("assets/app.css"))
}

pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", include_str!("assets/app.js"))
}

pub(super) async fn icon() -> impl IntoResponse {
    asset("image/svg+xml", include_str!("assets/favicon.svg"))
}

fn asset(content_type: &'static str, body: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With `no-referrer`, browsers would send the page's own form with `Origin: null`, which counts as another
        // site.
        (header::REFERRER_POLICY, "same-origin"),
        // The page changes with the binary, and its addresses contain no version.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, body)
}
