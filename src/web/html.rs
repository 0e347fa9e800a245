//! Answers for people whose browser runs no script: the result of the form on the page, and every refusal of a page. They are
//! whole pages without a script.
//!
//! A browser that shows an answer as a page asks for `text/html` by name. Programs do not, and get problem documents.

use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::accept::asks_for_html;
use super::assets::{CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use super::dialects;
use super::error::{Problem, Refusal};
use crate::model::Prediction;
use crate::protocol::ClassifyResult;

const SHOWN_PREDICTIONS: usize = 5;

/// The middleware that writes problems in the format of the client: the page of a browser, or the dialect that was called.
/// Every layer and handler further in can refuse a request without knowing about formats. What they added to the answer, such
/// as the headers of limits, stays.
pub(super) async fn refuse_in_format(request: Request, next: Next) -> Response {
    let format = format(&request);
    let mut response = next.run(request).await;
    let problem = response.extensions_mut().remove::<Problem>();
    let (Some(write), Some(problem)) = (format, problem) else { return response };
    let mut written = write(problem);
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            written.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
    }
    written
}

fn format(request: &Request) -> Option<Refusal> {
    let path = request.uri().path();
    if (path == "/" || path.starts_with("/results/")) && asks_for_html(request.headers()) {
        return Some(refusal);
    }
    dialects::refusal_of(request)
}

/// The page of a result.
pub(super) fn result(result: &ClassifyResult) -> Response {
    let best = result.predictions.first().map_or("no label", |best| best.label.as_str());
    let name = if result.filename.is_empty() { "The image" } else { &result.filename };
    let id = result.id;
    let mut main = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{}</p>\n<p><img class=\"whole\" src=\"/v1/jobs/{id}/image\" alt=\"\"></p>\n",
        escaped(best),
        escaped(name)
    );
    let labels: Vec<&str> = result.labels.iter().map(|label| label.label.as_str()).collect();
    if !labels.is_empty() {
        let _ = writeln!(main, "<p>Labels: {}</p>", escaped(&labels.join(", ")));
    }
    main.push_str("<table class=\"plain-table\">\n<thead><tr><th scope=\"col\">Label</th><th scope=\"col\">Score</th></tr></thead>\n<tbody>\n");
    for Prediction { label, score, .. } in result.predictions.iter().take(SHOWN_PREDICTIONS) {
        let score = score.map(|score| format!("{:.1}%", score * 100.0)).unwrap_or_default();
        let _ = writeln!(main, "<tr><td>{}</td><td>{score}</td></tr>", escaped(label));
    }
    let _ = write!(
        main,
        "</tbody>\n</table>\n<p><a href=\"/results/{id}\">Page of this result</a> · <a href=\"/v1/jobs/{id}\">JSON</a> · \
         <a href=\"/\">Classify another image</a></p>\n"
    );
    page(best, &main, Response::new(Body::empty()))
}

/// The page of a problem.
fn refusal(problem: Problem) -> Response {
    let (title, mut detail) = (problem.title, problem.for_people());
    if let Some(seconds) = problem.retry_after_seconds {
        let _ = write!(detail, " Try again in {seconds} s.");
    }
    let again = match problem.id {
        Some(id) => format!("<a href=\"/results/{id}\">Page of this image</a> · "),
        None => String::new(),
    };
    let main = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{}</p>\n<p>{again}<a href=\"/\">Back to the form</a></p>\n",
        escaped(title),
        escaped(&detail)
    );
    page(title, &main, axum::response::IntoResponse::into_response(problem))
}

/// Replaces the body of an answer by a page.
fn page(title: &str, main: &str, answer: Response) -> Response {
    let text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{} · imgcls</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\">\n\
         <link rel=\"stylesheet\" href=\"/assets/app.css\">\n</head>\n<body>\n<div class=\"page\">\n<main>\n{main}</main>\n\
         </div>\n</body>\n</html>\n",
        escaped(title)
    );
    let (mut parts, _) = answer.into_parts();
    parts.extensions.remove::<Problem>();
    page_headers(&mut parts.headers);
    Response::from_parts(parts, Body::from(text))
}

/// Sets the headers of a page.
pub(super) fn page_headers(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static(REFERRER_POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Writes a text as text into a page.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_text() {
        assert_eq!(escaped("<b a=\"1\" c='2'>&"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
    }
}
