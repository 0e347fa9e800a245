//! The right that a request needs, by its method and route.

use axum::http::Method;
use uuid::Uuid;

/// The right that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No key: health checks, the page and its assets.
    Nothing,
    /// Any key: what is the same for all clients, such as the list of models.
    AnyKey,
    /// A key that may submit images.
    Submit,
    /// A key that may read this job.
    ReadJob(Uuid),
    /// A key that may cancel or delete this job.
    ChangeJob(Uuid),
    /// A key for operators.
    Operate,
}

impl Need {
    /// The name in log lines.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Need::Nothing => "nothing",
            Need::AnyKey => "any key",
            Need::Submit => "submit",
            Need::ReadJob(_) => "read a job",
            Need::ChangeJob(_) => "change a job",
            Need::Operate => "operate",
        }
    }
}

/// Routes that are open for reading, exactly or, with a `*` at the end, by their beginning.
const OPEN: [&str; 12] = [
    "/",
    "/results/{id}",
    "/assets/*",
    "/favicon.ico",
    "/favicon.svg",
    "/healthz",
    "/readyz",
    "/ping",
    "/v2/health/*",
    "/openapi.json",
    "/docs",
    "/docs/*",
];
const OPERATORS: [&str; 3] = ["/metrics", "/v1/fleet", "/v1/fleet/*"];

/// Returns what a request needs. `route` is the pattern that matched its path, and `id` its parameter `id`, which every
/// route about a job has. A new route needs a key until it is named here.
pub(super) fn need(method: &Method, route: Option<&str>, id: Option<Uuid>) -> Need {
    let route = route.unwrap_or_default();
    // A preflight request of a browser has no key.
    if method == Method::OPTIONS || (method.is_safe() && is_one_of(&OPEN, route)) {
        return Need::Nothing;
    }
    if is_one_of(&OPERATORS, route) {
        return Need::Operate;
    }
    // PUT submits an image. Its address ends with the name of a file, which may look like the id of a job.
    let id = id.filter(|_| method != Method::PUT);
    match (id, method.is_safe()) {
        (Some(id), true) => Need::ReadJob(id),
        (Some(id), false) => Need::ChangeJob(id),
        (None, true) => Need::AnyKey,
        (None, false) => Need::Submit,
    }
}

/// Returns true if limits per client apply. They never refuse a health check or an asset.
pub(super) fn is_limited(need: Need) -> bool {
    need != Need::Nothing
}

fn is_one_of(patterns: &[&str], route: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => route.starts_with(beginning),
        None => *pattern == route,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_that_is_not_named_needs_a_key() {
        let id = Uuid::from_u128(7);
        for (method, route, its_id, expected) in [
            (Method::GET, "/", None, Need::Nothing),
            (Method::POST, "/", None, Need::Submit),
            (Method::GET, "/assets/app.js", None, Need::Nothing),
            (Method::HEAD, "/healthz", None, Need::Nothing),
            (Method::POST, "/healthz", None, Need::Submit),
            (Method::GET, "/v2/health/ready", None, Need::Nothing),
            (Method::GET, "/metrics", None, Need::Operate),
            (Method::POST, "/metrics", None, Need::Operate),
            (Method::POST, "/v1/jobs", None, Need::Submit),
            (Method::PUT, "/v1/classify/{name}", None, Need::Submit),
            (Method::GET, "/v1/jobs", None, Need::AnyKey),
            (Method::GET, "/v1/models", None, Need::AnyKey),
            // The handler leaves out the jobs of other keys.
            (Method::GET, "/v1/events", None, Need::AnyKey),
            (Method::GET, "/v1/fleet", None, Need::Operate),
            // The page has nothing of the job: it asks for it as any client does.
            (Method::GET, "/results/{id}", Some(id), Need::Nothing),
            (Method::GET, "/v1/jobs/{id}/image", Some(id), Need::ReadJob(id)),
            (Method::DELETE, "/v1/jobs/{id}", Some(id), Need::ChangeJob(id)),
            (Method::GET, "/v1/jobs/{id}/events", Some(id), Need::ReadJob(id)),
            (Method::PUT, "/v1/jobs/{id}", Some(id), Need::Submit),
            (Method::POST, "/v1/predictions/{id}/cancel", Some(id), Need::ChangeJob(id)),
            (Method::GET, "/openapi.json", None, Need::Nothing),
            (Method::GET, "/docs", None, Need::Nothing),
            (Method::OPTIONS, "/v1/jobs", None, Need::Nothing),
            (Method::GET, "/newly/added", None, Need::AnyKey),
            (Method::POST, "/newly/added", None, Need::Submit),
            (Method::GET, "", None, Need::AnyKey),
        ] {
            assert_eq!(need(&method, Some(route), its_id), expected, "{method} {route}");
        }
    }
}
