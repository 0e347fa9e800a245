//! How long a client wants to wait: `?wait=`, and the header `Prefer` (RFC 7240).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use super::error::Problem;
use super::query::{MAX_WAIT, Query};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The wait of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    /// How long the answer may wait for the result.
    pub(super) time: Duration,
    preferred: Preferences,
}

/// The preferences of a request that this service knows. Others are ignored, as are values that cannot be read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Preferences {
    respond_async: bool,
    /// In whole seconds, and at most what a request may wait.
    wait: Option<Duration>,
}

impl Waiting {
    /// Reads the wait of a request. `respond-async` alone means not to wait; together with a wait it changes nothing, since
    /// a request whose time is up is always answered with the address of its job.
    ///
    /// # Errors
    /// 400 for a wait that is out of range, and when query and header ask for different ones.
    pub(super) fn of(query: &Query, headers: &HeaderMap, default: Duration) -> Result<Waiting, Problem> {
        let preferred = Preferences::read(headers);
        let wait = match (query.wait()?, preferred.wait) {
            (Some(query), Some(header)) if query != header => {
                return Err(Problem::malformed(format!(
                    "the address says wait={} and the header says Prefer: wait={}; give one",
                    query.as_secs_f64(),
                    header.as_secs()
                )));
            }
            (query, header) => query.or(header),
        };
        let time = wait.unwrap_or(if preferred.respond_async { Duration::ZERO } else { default });
        Ok(Waiting { time, preferred })
    }

    /// Adds the preferences that were honoured to the answer. `is_pending` says that it has no result.
    pub(super) fn applied(&self, mut response: Response, is_pending: bool) -> Response {
        let respond_async = (self.preferred.respond_async && is_pending).then(|| "respond-async".to_owned());
        let wait = self.preferred.wait.map(|wait| format!("wait={}", wait.as_secs()));
        let applied: Vec<String> = respond_async.into_iter().chain(wait).collect();
        if let Ok(value) = HeaderValue::try_from(applied.join(", "))
            && !applied.is_empty()
        {
            response.headers_mut().insert(PREFERENCE_APPLIED, value);
        }
        response
    }
}

impl Preferences {
    /// The first of several values of a preference counts, as the RFC says.
    fn read(headers: &HeaderMap) -> Preferences {
        let mut found = Preferences::default();
        let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split(',')) {
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => found.respond_async = true,
                "wait" if found.wait.is_none() => {
                    let seconds = value.parse::<u64>().ok();
                    found.wait = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT));
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;

    use super::*;

    fn waiting(query: &str, prefer: &[&'static str]) -> Result<Waiting, Problem> {
        let headers = prefer.iter().map(|value| (PREFER, HeaderValue::from_static(value))).collect();
        Waiting::of(&Query::read(query).unwrap(), &headers, Duration::from_secs(30))
    }

    #[test]
    fn wait_comes_from_the_query_or_the_header_and_has_a_default() {
        for (query, prefer, seconds, applied) in [
            ("", &[][..], 30, None),
            ("wait=5", &[], 5, None),
            ("", &["wait=7"], 7, Some("wait=7")),
            ("", &["wait = \"7\"; x=y, wait=9"], 7, Some("wait=7")),
            ("wait=7", &["wait=7"], 7, Some("wait=7")),
            ("", &["wait=100000"], 600, Some("wait=600")),
            ("", &["respond-async"], 0, Some("respond-async")),
            ("", &["Respond-Async", "wait=3"], 3, Some("respond-async, wait=3")),
            ("wait=4", &["respond-async, handling=lenient"], 4, Some("respond-async")),
            ("", &["wait=soon", "return=minimal"], 30, None),
        ] {
            let waiting = waiting(query, prefer).unwrap();
            assert_eq!(waiting.time.as_secs(), seconds, "{query} {prefer:?}");
            let response = waiting.applied(StatusCode::ACCEPTED.into_response(), true);
            let value = response.headers().get(PREFERENCE_APPLIED).map(|value| value.to_str().unwrap());
            assert_eq!(value, applied, "{query} {prefer:?}");
        }
        let answered = waiting("", &["respond-async"]).unwrap().applied(StatusCode::OK.into_response(), false);
        assert_eq!(answered.headers().get(PREFERENCE_APPLIED), None);
    }

    #[test]
    fn different_waits_in_query_and_header_are_refused() {
        let refused = waiting("wait=5", &["wait=6"]).unwrap_err();
        assert!(refused.detail.contains("wait=5") && refused.detail.contains("wait=6"), "{refused}");
    }
}
