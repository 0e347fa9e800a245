//! Pages of other origins that may use this server (Cross-Origin Resource Sharing).

use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may keep the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3_600);
/// Headers that a page may send, beside those that every page may.
const REQUEST_HEADERS: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-request-id"),
];
/// Headers of answers that a page may read, beside those that every page may.
const ANSWER_HEADERS: [HeaderName; 11] = [
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("idempotency-replayed"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("server-timing"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-request-id"),
];

/// An origin of pages, or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigin {
    /// Every page of the web.
    Any,
    /// `scheme://host` or `scheme://host:port`, as browsers write it.
    Origin(String),
}

impl FromStr for CorsOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Ok(CorsOrigin::Any);
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        match authority {
            Some(authority) if !authority.is_empty() && authority.chars().all(is_part) => Ok(CorsOrigin::Origin(text)),
            _ => Err("an origin is https://HOST or https://HOST:PORT without a path, or *".to_owned()),
        }
    }
}

impl CorsOrigin {
    /// Returns true if the `Origin` of a request is this one.
    pub(super) fn matches(&self, origin: &str) -> bool {
        match self {
            CorsOrigin::Any => true,
            CorsOrigin::Origin(own) => own == origin,
        }
    }
}

/// The layer that answers preflights and marks answers, or `None` if no page of another origin may use this server.
pub(super) fn layer(origins: &[CorsOrigin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let named = origins.iter().filter_map(|origin| match origin {
        CorsOrigin::Any => None,
        CorsOrigin::Origin(origin) => HeaderValue::try_from(origin).ok(),
    });
    let allowed = if origins.contains(&CorsOrigin::Any) { AllowOrigin::any() } else { AllowOrigin::list(named) };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(REQUEST_HEADERS)
        .expose_headers(ANSWER_HEADERS)
        .max_age(PREFLIGHT_MAX_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_has_a_scheme_and_a_host_and_nothing_else() {
        for (text, matches) in [
            ("https://app.example", "https://app.example"),
            ("HTTP://LocalHost:3000", "http://localhost:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("*", "https://anything.example"),
        ] {
            assert!(text.parse::<CorsOrigin>().unwrap().matches(matches), "{text}");
        }
        assert!(!"https://app.example".parse::<CorsOrigin>().unwrap().matches("https://app.example:8443"));
        for text in
            ["", "app.example", "https://", "https://a/b", "https://a b", "null", "ftp://a", "https://*.example"]
        {
            assert!(text.parse::<CorsOrigin>().is_err(), "{text}");
        }
    }
}
