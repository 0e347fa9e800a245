//! Checks the host of a request, and refuses requests of other sites that change something.
//!
//! A server on a loopback address has no password. Only programs on this machine reach it, but every page that a user
//! opens reaches it too, through the browser. Two kinds of requests are therefore refused there: those whose `Host` is
//! not a name of this machine (DNS rebinding: a page has its own name resolve to this machine), and those of another
//! site that change something.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};

use crate::web::cors::CorsOrigin;
use crate::web::error::Problem;

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The hosts that a server answers for.
pub(crate) struct HostPolicy {
    /// True if the server listens on a loopback address.
    pub(crate) is_loopback: bool,
    /// Names beside those of this machine, in lower case.
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins whose pages may send requests.
    pub(crate) cors_origins: Vec<CorsOrigin>,
}

impl HostPolicy {
    /// Checks host and origin of a request.
    ///
    /// # Errors
    /// 400 for a missing or malformed host, 421 for a host of another server, 403 for a request of another site.
    pub(super) fn check(&self, request: &Request) -> Result<(), Problem> {
        let host = host_of(request)?;
        if let Some(host) = &host {
            self.check_host(host)?;
        }
        self.check_origin(request.method(), request.headers(), host.as_ref())
    }

    fn check_host(&self, host: &Host) -> Result<(), Problem> {
        let is_checked = self.is_loopback || !self.allowed_hosts.is_empty();
        let is_known =
            host.is_loopback() || self.is_allowed(&host.name) || (!self.is_loopback && host.address().is_some());
        if !is_checked || is_known {
            return Ok(());
        }
        Err(Problem::misdirected(format!(
            "the request is for host {:?}, which is not a name of this server; behind a proxy with that name, start \
             the server with --allowed-host {}",
            host.name, host.name
        )))
    }

    fn is_allowed(&self, name: &str) -> bool {
        self.allowed_hosts.iter().any(|allowed| allowed == name)
    }

    /// Browsers send at least one of the two headers with every request that changes something; other programs send
    /// neither.
    fn check_origin(&self, method: &Method, headers: &HeaderMap, host: Option<&Host>) -> Result<(), Problem> {
        let is_checked = self.is_loopback || !self.allowed_hosts.is_empty();
        if !is_checked || method.is_safe() {
            return Ok(());
        }
        let refusal = |what: String| {
            Err(Problem::cross_site(format!(
                "{what}; only programs, pages of this server and pages that --allowed-host or --cors-origin names may send it"
            )))
        };
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        match (site, headers.get(header::ORIGIN)) {
            (Some(b"same-origin" | b"none"), _) => Ok(()),
            (_, Some(origin)) => {
                let origin = origin.to_str().unwrap_or("null");
                if self.is_own_origin(origin, host) || self.cors_origins.iter().any(|own| own.matches(origin)) {
                    return Ok(());
                }
                refusal(format!("the request comes from a page of {origin:?}"))
            }
            (Some(b"cross-site"), None) => refusal("the request comes from another site".to_owned()),
            (_, None) => Ok(()),
        }
    }

    fn is_own_origin(&self, origin: &str, host: Option<&Host>) -> bool {
        let (default_port, authority) = match origin.split_once("://") {
            Some(("http", authority)) => (80, authority),
            Some(("https", authority)) => (443, authority),
            _ => return false,
        };
        let Some(origin) = Host::parse(authority) else { return false };
        let port = |host: &Host| host.port.unwrap_or(default_port);
        let is_same = host.is_some_and(|host| host.name == origin.name && port(host) == port(&origin));
        is_same || self.is_allowed(&origin.name)
    }
}

/// The host and the port that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    /// In lower case, without brackets and without a trailing dot.
    name: String,
    port: Option<u16>,
}

impl Host {
    /// Returns `None` when `text` is not a host by RFC 3986.
    fn parse(text: &str) -> Option<Host> {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (address, after.strip_prefix(':').or((after.is_empty()).then_some(""))?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:".contains(c);
        if name.is_empty() || !name.chars().all(allowed) || (name.contains(':') && !text.starts_with('[')) {
            return None;
        }
        let port = if port.is_empty() { None } else { Some(port) };
        let port = match port {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        Some(Host { name, port })
    }

    fn address(&self) -> Option<IpAddr> {
        self.name.parse().ok()
    }

    fn is_loopback(&self) -> bool {
        self.name == "localhost"
            || self.name.ends_with(".localhost")
            || self.address().is_some_and(|address| address.to_canonical().is_loopback())
    }
}

/// Returns the host that a request is for, or `None` for a request of HTTP/1.0 without one.
fn host_of(request: &Request) -> Result<Option<Host>, Problem> {
    let mut values = request.headers().get_all(header::HOST).iter();
    let value = match (values.next(), values.next()) {
        (Some(_), Some(_)) => return Err(Problem::malformed("the request has more than one Host header")),
        (Some(value), None) => value,
        (None, _) if request.version() < Version::HTTP_11 => return Ok(None),
        (None, _) => return Err(Problem::malformed("the request has no Host header, which HTTP/1.1 requires")),
    };
    let host = value.to_str().ok().and_then(Host::parse);
    let Some(host) = host else {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        return Err(Problem::malformed(format!("the Host header {text:?} is not a valid host")));
    };
    // In a request in the form for proxies the host in the request line takes precedence.
    match request.uri().authority() {
        None => Ok(Some(host)),
        Some(authority) => match Host::parse(authority.as_str()) {
            Some(host) => Ok(Some(host)),
            None => Err(Problem::malformed(format!("{:?} is not a valid host", authority.as_str()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(is_loopback: bool, allowed: &[&str]) -> HostPolicy {
        let allowed_hosts = allowed.iter().map(|name| (*name).to_owned()).collect();
        HostPolicy { is_loopback, allowed_hosts, cors_origins: vec!["https://app.example".parse().unwrap()] }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = axum::http::Request::builder().method(method).uri("/v1/jobs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).unwrap()
    }

    fn status(policy: &HostPolicy, method: &str, headers: &[(&str, &str)]) -> u16 {
        policy.check(&request(method, headers)).map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn loopback_server_answers_only_to_names_of_this_machine() {
        let (own, named) = (policy(true, &[]), policy(true, &["images.example"]));
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "app.localhost:1",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(status(&own, "GET", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "notlocalhost", "192.0.2.7", "0.0.0.0", "[::2]:80"]
        {
            assert_eq!(status(&own, "GET", &[("host", host)]), 421, "{host}");
            assert_eq!(status(&named, "GET", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(&named, "GET", &[("host", "Images.Example:443")]), 200);
        for host in
            ["", "a b", "a/b", "user@localhost", "localhost:", "localhost:x", "::1", "[::1", "[x]:80", "a:99999"]
        {
            let expected = if host == "localhost:" { 200 } else { 400 };
            assert_eq!(status(&own, "GET", &[("host", host)]), expected, "{host}");
        }
        assert_eq!(status(&own, "GET", &[]), 400);
        assert_eq!(status(&own, "GET", &[("host", "localhost"), ("host", "localhost")]), 400);
    }

    #[test]
    fn other_server_checks_hosts_only_with_allowed_hosts() {
        let (any, named) = (policy(false, &[]), policy(false, &["images.example"]));
        for host in ["other.example", "images.example", "192.0.2.7:80", "localhost"] {
            assert_eq!(status(&any, "POST", &[("host", host), ("origin", "http://x.example")]), 200, "{host}");
            let expected = if host == "other.example" { 421 } else { 200 };
            assert_eq!(status(&named, "POST", &[("host", host)]), expected, "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_cannot_change_anything() {
        let (own, named) = (policy(true, &[]), policy(true, &["images.example"]));
        let host = ("host", "localhost:8080");
        for (headers, expected) in [
            (&[][..], 200),
            (&[("origin", "http://localhost:8080")], 200),
            (&[("origin", "http://localhost:3000")], 403),
            (&[("origin", "http://evil.example")], 403),
            (&[("origin", "null")], 403),
            (&[("sec-fetch-site", "cross-site")], 403),
            (&[("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")], 403),
            (&[("sec-fetch-site", "same-site"), ("origin", "http://localhost:3000")], 403),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://localhost:8080")], 200),
            (&[("sec-fetch-site", "none")], 200),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://app.example")], 200),
            (&[("sec-fetch-site", "cross-site"), ("origin", "http://app.example")], 403),
        ] {
            let all = [&[host], headers].concat();
            assert_eq!(status(&own, "POST", &all), expected, "{headers:?}");
            assert_eq!(status(&own, "PUT", &all), expected, "{headers:?}");
            assert_eq!(status(&own, "GET", &all), 200, "{headers:?}");
        }
        for origin in ["https://images.example", "http://images.example:8443"] {
            assert_eq!(status(&named, "POST", &[host, ("origin", origin)]), 200, "{origin}");
        }
        let default_port = [("host", "images.example"), ("origin", "https://images.example:443")];
        assert_eq!(status(&named, "POST", &default_port), 200);
    }
}
