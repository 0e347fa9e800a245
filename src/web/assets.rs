//! The pages and their assets, which are part of the binary.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::accept::takes_gzip;
use super::answer::{etag, with_etag};
use super::error::{Problem, size_for_people};

/// Only resources of this server are loaded, and no other page may frame this one.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// With `no-referrer`, browsers would send the page's own form with `Origin: null`, which counts as another site.
pub(super) const REFERRER_POLICY: &str = "same-origin";

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const JPEG: &str = "image/jpeg";

/// A file that never changes while the process runs, compressed once.
pub(super) struct Asset {
    content_type: &'static str,
    content: Bytes,
    etag: String,
    gzip: Bytes,
    gzip_etag: String,
}

/// The files under `/assets/`, by their names.
static FILES: LazyLock<Vec<(&'static str, Asset)>> = LazyLock::new(|| {
    let files: [(&str, &str, &[u8]); 15] = [
        ("app.css", CSS, include_bytes!("assets/app.css")),
        ("docs.css", CSS, include_bytes!("assets/docs.css")),
        ("app.js", JAVASCRIPT, include_bytes!("assets/app.js")),
        ("call.js", JAVASCRIPT, include_bytes!("assets/call.js")),
        ("cards.js", JAVASCRIPT, include_bytes!("assets/cards.js")),
        ("draw.js", JAVASCRIPT, include_bytes!("assets/draw.js")),
        ("follow.js", JAVASCRIPT, include_bytes!("assets/follow.js")),
        ("history.js", JAVASCRIPT, include_bytes!("assets/history.js")),
        ("http.js", JAVASCRIPT, include_bytes!("assets/http.js")),
        ("kept.js", JAVASCRIPT, include_bytes!("assets/kept.js")),
        ("panel.js", JAVASCRIPT, include_bytes!("assets/panel.js")),
        ("result.js", JAVASCRIPT, include_bytes!("assets/result.js")),
        ("example-cat.jpg", JPEG, include_bytes!("assets/example-cat.jpg")),
        ("example-cup.jpg", JPEG, include_bytes!("assets/example-cup.jpg")),
        ("example-rocket.jpg", JPEG, include_bytes!("assets/example-rocket.jpg")),
    ];
    files.map(|(name, content_type, content)| (name, Asset::new(content_type, content))).into()
});
static ICON: LazyLock<Asset> = LazyLock::new(|| Asset::new("image/svg+xml", include_bytes!("assets/favicon.svg")));

/// The form for an address, for browsers without a script.
const PLAIN_BY_URL: &str = r#"<form class="plain" method="post" action="/" enctype="multipart/form-data">
          <label for="myurl">Or the address of an image</label>
          <input id="myurl" type="url" name="url" maxlength="2048" required>
          <button type="submit">Classify</button>
        </form>"#;

/// The page for images. It names the limit of this service, and takes addresses of images if the service fetches them.
pub(super) struct IndexPage(Asset);

impl IndexPage {
    pub(super) fn new(max_upload_bytes: u64, fetches_images: bool) -> IndexPage {
        let page = include_str!("assets/index.html")
            .replace("{{by-url}}", if fetches_images { "true" } else { "false" })
            .replace("{{plain-by-url}}", if fetches_images { PLAIN_BY_URL } else { "" })
            .replace("{{max-bytes}}", &max_upload_bytes.to_string())
            .replace("{{max-size}}", &size_for_people(max_upload_bytes));
        IndexPage(Asset::new("text/html; charset=utf-8", page))
    }

    /// The answer to a request with these headers.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        self.0.answer(request)
    }
}

/// `GET /assets/{name}`
pub(super) async fn file(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::no_such_page("/assets/"))?;
    let found = FILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, asset)| asset.answer(&headers)).ok_or_else(|| Problem::no_such_page(&format!("/assets/{name}")))
}

pub(super) async fn icon(headers: HeaderMap) -> Response {
    ICON.answer(&headers)
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
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static(REFERRER_POLICY));
        // The content changes with the binary, and its address contains no version.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}
