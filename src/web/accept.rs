//! Reads what a client accepts: media types and codings with their quality (RFC 9110, 12.5).

use axum::http::header::{ACCEPT, ACCEPT_ENCODING};
use axum::http::{HeaderMap, HeaderName};

/// Returns true if the client asks for JSON by its name, and does not prefer plain text to it. A client that accepts
/// anything does not ask for JSON.
pub(super) fn asks_for_json(headers: &HeaderMap) -> bool {
    let json = quality(headers, &ACCEPT, "application/json").unwrap_or(0);
    json > 0 && json >= quality(headers, &ACCEPT, "text/plain").unwrap_or(0)
}

/// Returns true if the client shows the answer as a page: it names HTML, as browsers do when they follow a link or send a
/// form, and prefers neither JSON nor plain text to it.
pub(super) fn asks_for_html(headers: &HeaderMap) -> bool {
    let html = quality(headers, &ACCEPT, "text/html").unwrap_or(0);
    let others = ["application/json", "text/plain"].map(|other| quality(headers, &ACCEPT, other).unwrap_or(0));
    html > 0 && others.iter().all(|other| html > *other)
}

/// Returns true if the client takes answers that are compressed with gzip.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let gzip = quality(headers, &ACCEPT_ENCODING, "gzip").or_else(|| quality(headers, &ACCEPT_ENCODING, "x-gzip"));
    gzip.or_else(|| quality(headers, &ACCEPT_ENCODING, "*")).is_some_and(|quality| quality > 0)
}

/// Returns the quality of a value in thousandths, or `None` if the header does not name the value. A quality that cannot be
/// read counts as 1.
fn quality(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> Option<u16> {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    let named = values.flat_map(|value| value.split(',')).filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_wanted = parts.next().is_some_and(|value| value.eq_ignore_ascii_case(wanted));
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().unwrap_or(1.0))
        });
        is_wanted.then(|| (weight.unwrap_or(1.0).clamp(0.0, 1.0) * 1_000.0) as u16)
    });
    named.max()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn json_is_asked_for_by_name_and_with_a_quality() {
        for (accept, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json, text/plain, */*", true),
            ("text/html, application/json;q=0.5", true),
            ("application/json;q=0", false),
            ("application/json; q=0.000, */*", false),
            ("text/plain, application/json;q=0.9", false),
            ("text/plain;q=0.1, application/json;q=nonsense", true),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(asks_for_json(&headers(ACCEPT, accept)), expected, "{accept}");
        }
        assert!(!asks_for_json(&HeaderMap::new()));
    }

    #[test]
    fn html_is_for_browsers_that_show_a_page() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", true),
            ("text/html, application/json;q=0.5", true),
            ("text/html, application/json", false),
            ("text/plain, text/html", false),
            ("text/html;q=0", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(asks_for_html(&headers(ACCEPT, accept)), expected, "{accept}");
        }
    }

    #[test]
    fn gzip_is_used_unless_it_is_refused() {
        for (coding, expected) in [
            ("gzip, deflate, br", true),
            ("br, x-gzip", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("br;q=1.0", false),
            ("identity", false),
            ("gzip;q=0.001", true),
        ] {
            assert_eq!(takes_gzip(&headers(ACCEPT_ENCODING, coding)), expected, "{coding}");
        }
    }
}
