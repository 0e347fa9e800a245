//! The page and its assets, which are part of the binary.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::accept::takes_gzip;
use super::answer::{etag, with_etag};

/// Only resources of this server are loaded, and no other page may frame this one.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A file that never changes while the process runs, compressed once.
pub(super) struct Asset {
    content_type: &'static str,
    content: Bytes,
    etag: String,
    gzip: Bytes,
    gzip_etag: String,
}

static INDEX: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/html; charset=utf-8", include_bytes!("assets/index.html")));
static STYLESHEET: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/css; charset=utf-8", include_bytes!("assets/app.css")));
static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/app.js")));
static ICON: LazyLock<Asset> = LazyLock::new(|| Asset::new("image/svg+xml", include_bytes!("assets/favicon.svg")));
static DOCS_STYLESHEET: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/css; charset=utf-8", include_bytes!("assets/docs.css")));

pub(super) async fn index(headers: HeaderMap) -> Response {
    INDEX.answer(&headers)
}

pub(super) async fn stylesheet(headers: HeaderMap) -> Response {
    STYLESHEET.answer(&headers)
}

pub(super) async fn script(headers: HeaderMap) -> Response {
    SCRIPT.answer(&headers)
}

pub(super) async fn icon(headers: HeaderMap) -> Response {
    ICON.answer(&headers)
}

pub(super) async fn docs_stylesheet(headers: HeaderMap) -> Response {
    DOCS_STYLESHEET.answer(&headers)
}

impl Asset {
    pub(super) fn new(content_type: &'static str, content: impl Into<Vec<u8>>) -> Asset {
        let content = Bytes::from(content.into());
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let packed = encoder.write_all(&content).and_then(|()| encoder.finish());
        let gzip = Bytes::from(packed.expect("writing into memory does not fail"));
        Asset { content_type, etag: etag(&content), gzip_etag: etag(&gzip), content, gzip }
    }

    /// The answer to a request with these headers: compressed if the client takes that, and 304 if it has the content.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let is_packed = takes_gzip(request);
        let (content, tag) = if is_packed { (&self.gzip, &self.gzip_etag) } else { (&self.content, &self.etag) };
        let mut response = Body::from(content.clone()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if is_packed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let mut response = with_etag(response, tag, request);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
        // With `no-referrer`, browsers would send the page's own form with `Origin: null`, which counts as another
        // site.
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        // The content changes with the binary, and its address contains no version.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}
