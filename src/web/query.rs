//! The query of a request. Its parameters are read as text, so that errors in them become problems of our own.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use uuid::Uuid;

use super::auth::Principal;
use super::error::Problem;
use super::jobs::JobOptions;
use crate::config;
use crate::protocol::cut_filename;
use crate::telemetry::trace::TRACEPARENT;

/// The longest wait of one request.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(600);
pub(super) const DEFAULT_TOP_K: u32 = 5;
pub(super) const MAX_TOP_K: u32 = 1000;
/// The numbers of predictions that a client may ask for.
pub(super) const TOP_K: RangeInclusive<u32> = 1..=MAX_TOP_K;

/// The parameters of the addresses under `/v1/`. Others are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    wait: Option<String>,
    top_k: Option<String>,
    model: Option<String>,
    labels: Option<String>,
    format: Option<String>,
    callback_url: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Query::read(parts.uri.query().unwrap_or_default())
    }
}

impl Query {
    /// Reads the query of an address under `/v1/`.
    ///
    /// # Errors
    /// 400 for a parameter that is given twice or is not UTF-8.
    pub(super) fn read(query: &str) -> Result<Query, Problem> {
        Ok(Query {
            wait: parameter(query, "wait")?,
            top_k: parameter(query, "top_k")?,
            model: parameter(query, "model")?,
            labels: parameter(query, "labels")?,
            format: parameter(query, "format")?,
            callback_url: parameter(query, "callback_url")?,
        })
    }

    /// Reads the query of `POST /`, which has only the model. The legacy clients of that address may send anything else.
    ///
    /// # Errors
    /// The errors of [`Query::read`] for the model.
    pub(super) fn of_form(query: Option<&str>) -> Result<Query, Problem> {
        Ok(Query { model: parameter(query.unwrap_or_default(), "model")?, ..Query::default() })
    }

    /// How long the client wants to wait, if the query says so.
    pub(super) fn wait(&self) -> Result<Option<Duration>, Problem> {
        let Some(text) = &self.wait else { return Ok(None) };
        let wait = config::duration(text).ok().filter(|wait| *wait <= MAX_WAIT);
        wait.map(Some).ok_or_else(|| {
            Problem::malformed(format!("wait={text:?} is not between 0 and {} seconds", MAX_WAIT.as_secs()))
        })
    }

    /// The number of predictions, if the query says so.
    pub(super) fn top_k(&self) -> Result<Option<u32>, Problem> {
        let Some(text) = &self.top_k else { return Ok(None) };
        let top_k = text.parse().ok().filter(|top_k| TOP_K.contains(top_k));
        top_k.map(Some).ok_or_else(|| wrong_top_k(text))
    }

    /// The options of the query. `model` is as the client wrote it.
    pub(super) fn job_options(self, headers: &HeaderMap) -> Result<JobOptions, Problem> {
        let top_k = self.top_k()?.unwrap_or(DEFAULT_TOP_K);
        let traceparent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(JobOptions {
            top_k,
            model: self.model,
            traceparent,
            principal: Principal::default(),
            id: None,
            batch: None,
            callback: None,
        })
    }

    /// The address that is called at the end, if the query names one.
    pub(super) fn take_callback_url(&mut self) -> Option<String> {
        self.callback_url.take()
    }

    /// The format of rows, if the query names one.
    pub(super) fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    /// Returns true if the labels of a model are to be listed.
    pub(super) fn wants_labels(&self) -> Result<bool, Problem> {
        match self.labels.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(text) => Err(Problem::malformed(format!("labels={text:?} is neither true nor false"))),
        }
    }
}

/// The most jobs of one event stream. Their ids fit in an address that every proxy takes.
pub(super) const MAX_JOBS: usize = 100;

/// Reads `jobs=ID,ID,…` from a query. An id that is named twice counts once.
///
/// # Errors
/// 400 without an id, for text that is no id, and for more than [`MAX_JOBS`].
pub(super) fn jobs(query: &str) -> Result<Vec<Uuid>, Problem> {
    let text = parameter(query, "jobs")?.unwrap_or_default();
    if text.is_empty() {
        return Err(Problem::malformed("name the jobs: jobs=ID,ID"));
    }
    let mut jobs: Vec<Uuid> = Vec::new();
    for part in text.split(',') {
        let id = part.parse().map_err(|_| {
            let part = cut_filename(part);
            Problem::malformed(format!("jobs has {part:?}, which is not the id of a job"))
        })?;
        if jobs.contains(&id) {
            continue;
        }
        if jobs.len() == MAX_JOBS {
            return Err(Problem::malformed(format!("jobs has more than {MAX_JOBS} ids; open several streams")));
        }
        jobs.push(id);
    }
    Ok(jobs)
}

/// Jobs of one page of their list, unless the client says another number.
const DEFAULT_PAGE: usize = 50;
/// The most jobs of one page.
pub(super) const MAX_PAGE: usize = 100;
/// The states that jobs are listed by.
pub(super) const LISTED_STATUSES: [&str; 4] = ["queued", "succeeded", "failed", "expired"];

/// A page of the list of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JobPage {
    /// Only jobs in this state.
    pub(super) status: Option<&'static str>,
    /// Only jobs that come after this one in the list, which begins with the newest.
    pub(super) after: Option<Uuid>,
    /// At most this many jobs.
    pub(super) limit: usize,
}

/// Reads `status=`, `after=` and `limit=` from a query.
///
/// # Errors
/// 400 for a state that does not exist, a cursor that is no id, and a number that is out of range.
pub(super) fn job_page(query: &str) -> Result<JobPage, Problem> {
    let status = match parameter(query, "status")? {
        None => None,
        Some(text) => Some(LISTED_STATUSES.into_iter().find(|status| *status == text).ok_or_else(|| {
            let text = cut_filename(&text);
            Problem::malformed(format!("status={text:?} is none of {}", LISTED_STATUSES.join(", ")))
        })?),
    };
    let after = match parameter(query, "after")? {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            let text = cut_filename(&text);
            Problem::malformed(format!("after={text:?} is not the member next of another page"))
        })?),
    };
    let limit = match parameter(query, "limit")? {
        None => DEFAULT_PAGE,
        Some(text) => text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
            let text = cut_filename(&text);
            Problem::malformed(format!("limit={text:?} is not between 1 and {MAX_PAGE}"))
        })?,
    };
    Ok(JobPage { status, after, limit })
}

/// The problem of a number of predictions that is out of range.
pub(super) fn wrong_top_k(text: &str) -> Problem {
    Problem::malformed(format!("top_k={text:?} is not between 1 and {MAX_TOP_K}"))
}

/// The value of one parameter.
fn parameter(query: &str, wanted: &str) -> Result<Option<String>, Problem> {
    let mut found = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if text(name).as_deref() != Some(wanted) {
            continue;
        }
        let Some(value) = text(value) else {
            return Err(Problem::malformed(format!("{name}={value} is not UTF-8")));
        };
        if found.replace(value.into_owned()).is_some() {
            return Err(Problem::malformed(format!("the query names {name} twice; give it once")));
        }
    }
    Ok(found)
}

/// Decodes a name or value of a query, in which `+` is a space. Returns `None` when it is not UTF-8.
fn text(encoded: &str) -> Option<Cow<'_, str>> {
    if !encoded.contains(['+', '%']) {
        return Some(Cow::Borrowed(encoded));
    }
    let spaced = encoded.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8().ok()?;
    Some(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_parsed_or_its_error_is_reported() {
        let parsed = |wait: Option<&str>, top_k: Option<&str>, model: Option<&str>| Query {
            wait: wait.map(str::to_owned),
            top_k: top_k.map(str::to_owned),
            model: model.map(str::to_owned),
            labels: None,
            format: None,
            callback_url: None,
        };
        for (query, expected) in [
            ("", parsed(None, None, None)),
            ("wait=5&top_k=2&model=birds", parsed(Some("5"), Some("2"), Some("birds"))),
            ("wait=1m+30s&other=1&other=2&%ff=%ff&&=&", parsed(Some("1m 30s"), None, None)),
            ("w%61it=%35&model=b%C3%A4r", parsed(Some("5"), None, Some("b\u{e4}r"))),
            ("wait", parsed(Some(""), None, None)),
        ] {
            assert_eq!(Query::read(query), Ok(expected), "{query}");
        }
        for query in
            ["wait=5&wait=6", "wait=5&wait=5", "top_k=1&wait=2&top_k=1", "wait=%ff", "wait&wait", "model=a&model=b"]
        {
            assert_eq!(Query::read(query).unwrap_err().kind, "malformed", "{query}");
        }
        for query in ["wait", "wait=%zz", "wait=-1", "wait=601"] {
            assert!(Query::read(query).unwrap().wait().is_err(), "{query}");
        }
    }

    #[test]
    fn form_of_the_legacy_page_takes_a_model_and_ignores_the_rest() {
        let query = Query::of_form(Some("wait=1&wait=2&top_k=none&model=birds")).unwrap();
        assert_eq!(query, Query { model: Some("birds".to_owned()), ..Query::default() });
        assert!(Query::of_form(Some("model=a&model=b")).is_err());
    }

    #[test]
    fn jobs_are_ids_within_a_limit() {
        let ids: Vec<String> = (1..=101).map(|number| Uuid::from_u128(number).to_string()).collect();
        assert_eq!(jobs(&format!("jobs={}", ids[..100].join(","))).unwrap().len(), 100);
        assert_eq!(jobs(&format!("x=1&jobs={0},{0}", ids[0])).unwrap(), [Uuid::from_u128(1)]);
        let several = format!("jobs={}", ids.join(","));
        let twice = format!("jobs={0}&jobs={0}", ids[0]);
        for query in ["", "jobs", "jobs=", "jobs=,", "jobs=nonsense", "jobs=%ff", several.as_str(), twice.as_str()] {
            assert_eq!(jobs(query).unwrap_err().kind, "malformed", "{query}");
        }
    }

    #[test]
    fn page_of_jobs_has_a_known_state_an_id_and_a_limit() {
        let id = Uuid::from_u128(7);
        let page = |status, after, limit| Ok(JobPage { status, after, limit });
        assert_eq!(job_page(""), page(None, None, DEFAULT_PAGE));
        assert_eq!(job_page("x=1&status=failed&limit=100"), page(Some("failed"), None, 100));
        assert_eq!(job_page(&format!("after={id}&limit=1")), page(None, Some(id), 1));
        for query in
            ["status=", "status=done", "status=queued&status=queued", "after=", "after=7", "limit=0", "limit=101"]
        {
            assert_eq!(job_page(query).unwrap_err().kind, "malformed", "{query}");
        }
    }

    #[test]
    fn labels_are_listed_on_request() {
        for (query, expected) in
            [("", Some(false)), ("labels", Some(true)), ("labels=true", Some(true)), ("labels=0", Some(false))]
        {
            assert_eq!(Query::read(query).unwrap().wants_labels().ok(), expected, "{query}");
        }
        assert!(Query::read("labels=some").unwrap().wants_labels().is_err());
    }
}
