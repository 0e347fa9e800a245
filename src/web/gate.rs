//! What every request passes before its handler: is there a place for it, is it meant for this server, and may the page
//! that sent it do so.
//!
//! A server on a loopback address has no password; what protects it is that only this machine reaches it. A browser on
//! this machine is reached by every page that its user opens, so two things are refused there: a `Host` that is no name of
//! this machine (a page whose own name was made to point here, "DNS rebinding") and a request of another site that
//! changes something.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::connections::{AddressPlace, Admission, Place};
use super::error::Problem;
use super::upload::{self, UploadRules};

/// Whom a server answers for.
pub struct Gate {
    /// It listens where only this machine reaches it.
    pub is_loopback: bool,
    /// Names beside those of this machine, in lower case.
    pub allowed_hosts: Vec<String>,
    pub uploads: UploadRules,
}

/// Put into every request by the connection that it came on.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub admission: Arc<Admission>,
}

/// Where the answers to these are given even if nothing else is.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
const X_FORWARDED_FOR: &str = "x-forwarded-for";
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The middleware. Its answers, like all others, say that nobody keeps them or guesses their type, unless they say
/// otherwise themselves.
pub async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let is_health_check = HEALTH.contains(&request.uri().path());
    // Without a connection there is no limit to its number.
    let client = request.extensions().get::<Client>().filter(|_| !is_health_check).cloned();
    let place = match &client {
        Some(client) => client.admission.place_for_request().await,
        None => Place::Usual,
    };
    let mut response = match enter(&gate, &request, client.as_ref(), place) {
        // Held until the answer is made.
        Ok(_place) => next.run(request).await,
        Err(problem) => {
            upload::discard(request, &gate.uploads).await;
            problem.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    response
}

/// Returns the place of this request among those of its client, where those are counted.
fn enter(
    gate: &Gate,
    request: &Request,
    client: Option<&Client>,
    place: Place,
) -> Result<Option<AddressPlace>, Problem> {
    let counted = client.map_or(Ok(None), |client| count(client, place, request.headers()))?;
    let host = host_of(request)?;
    if let Some(host) = &host {
        gate.check_host(host)?;
    }
    gate.check_origin(request.method(), request.headers(), host.as_ref())?;
    Ok(counted)
}

fn count(client: &Client, place: Place, headers: &HeaderMap) -> Result<Option<AddressPlace>, Problem> {
    let connections = &client.admission.connections;
    match place {
        Place::Usual => {}
        Place::Extra => return Err(closing("all connections are taken (--max-connections)")),
        Place::Refused => return Err(too_many(client.address.ip(), connections.max_per_address(), "connections")),
    }
    if !connections.is_trusted_proxy(client.address.ip()) {
        return Ok(None);
    }
    let is_proxy = |address: IpAddr| connections.is_trusted_proxy(address);
    let Some(address) = forwarded_for(headers, is_proxy) else { return Ok(None) };
    // The connection is the proxy's and serves others too: it stays open.
    let refusal =
        |()| Problem { closes_connection: false, ..too_many(address, connections.max_per_address(), "requests") };
    connections.enter(address).map_err(refusal)
}

fn closing(detail: &str) -> Problem {
    Problem { closes_connection: true, ..Problem::full(format!("{detail}; send it again in a moment")) }
}

fn too_many(address: IpAddr, limit: usize, what: &str) -> Problem {
    closing(&format!("{address} has {limit} {what} already (--max-connections-per-address)"))
}

/// The client that a trusted proxy passes on: the last address that is no trusted proxy itself. What stands before it
/// may be made up.
fn forwarded_for(headers: &HeaderMap, is_trusted_proxy: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let values: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let addresses = values.iter().rev().flat_map(|value| value.rsplit(','));
    for text in addresses {
        let address = forwarded_address(text.trim())?;
        if !is_trusted_proxy(address) {
            return Some(address);
        }
    }
    None
}

/// With a port or without; IPv6 with brackets or without.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)
}

/// A host and a port, as a request names them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    /// In lower case, without the last dot and without brackets.
    name: String,
    port: Option<u16>,
}

impl Host {
    /// None where it is no host of RFC 3986.
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

/// The host that a request is for. None only before HTTP/1.1.
fn host_of(request: &Request) -> Result<Option<Host>, Problem> {
    let mut values = request.headers().get_all(header::HOST).iter();
    let value = match (values.next(), values.next()) {
        (Some(_), Some(_)) => return Err(Problem::malformed("the request has more than one Host header")),
        (Some(value), None) => value,
        (None, _) if request.version() < Version::HTTP_11 => return Ok(None),
        (None, _) => return Err(Problem::malformed("the request has no Host header, which HTTP/1.1 asks for")),
    };
    let host = value.to_str().ok().and_then(Host::parse);
    let Some(host) = host else {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        return Err(Problem::malformed(format!("the Host header {text:?} is no host")));
    };
    // A request of a proxy's form names its host in the first line, which then counts.
    match request.uri().authority() {
        None => Ok(Some(host)),
        Some(authority) => match Host::parse(authority.as_str()) {
            Some(host) => Ok(Some(host)),
            None => Err(Problem::malformed(format!("{:?} is no host", authority.as_str()))),
        },
    }
}

impl Gate {
    fn check_host(&self, host: &Host) -> Result<(), Problem> {
        let is_checked = self.is_loopback || !self.allowed_hosts.is_empty();
        let is_known =
            host.is_loopback() || self.is_allowed(&host.name) || (!self.is_loopback && host.address().is_some());
        if !is_checked || is_known {
            return Ok(());
        }
        Err(Problem::misdirected(format!(
            "the request is for host {:?}, which is no name of this server; behind a proxy with that name, start it with \
             --allowed-host {}",
            host.name, host.name
        )))
    }

    fn is_allowed(&self, name: &str) -> bool {
        self.allowed_hosts.iter().any(|allowed| allowed == name)
    }

    /// Programs send neither of the two headers; browsers send them with every request that changes something.
    fn check_origin(&self, method: &Method, headers: &HeaderMap, host: Option<&Host>) -> Result<(), Problem> {
        let is_checked = self.is_loopback || !self.allowed_hosts.is_empty();
        if !is_checked || method.is_safe() {
            return Ok(());
        }
        let refusal = |what: String| {
            Err(Problem::cross_site(format!(
                "{what}; only pages of this server and programs may send this, and pages of hosts that --allowed-host names"
            )))
        };
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        match (site, headers.get(header::ORIGIN)) {
            (Some(b"same-origin" | b"none"), _) => Ok(()),
            (_, Some(origin)) => {
                let origin = origin.to_str().unwrap_or("null");
                if self.is_own_origin(origin, host) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::budget::Budget;

    fn gate(is_loopback: bool, allowed: &[&str]) -> Gate {
        let body_timeout = std::time::Duration::from_secs(1);
        let uploads = UploadRules {
            max_upload_bytes: 1,
            body_timeout,
            budget: Budget::new(1, prometheus::IntGauge::new("test", "test").unwrap()),
        };
        Gate { is_loopback, allowed_hosts: allowed.iter().map(|name| (*name).to_owned()).collect(), uploads }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = axum::http::Request::builder().method(method).uri("/v1/jobs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).unwrap()
    }

    fn status(gate: &Gate, method: &str, headers: &[(&str, &str)]) -> u16 {
        let entered = enter(gate, &request(method, headers), None, Place::Usual);
        entered.map_or_else(|problem| problem.status.as_u16(), |_| 200)
    }

    #[test]
    fn loopback_answers_to_names_of_this_machine_alone() {
        let (own, named) = (gate(true, &[]), gate(true, &["images.example"]));
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
    fn elsewhere_names_are_checked_only_where_some_are_given() {
        let (any, named) = (gate(false, &[]), gate(false, &["images.example"]));
        for host in ["other.example", "images.example", "192.0.2.7:80", "localhost"] {
            assert_eq!(status(&any, "POST", &[("host", host), ("origin", "http://x.example")]), 200, "{host}");
            let expected = if host == "other.example" { 421 } else { 200 };
            assert_eq!(status(&named, "POST", &[("host", host)]), expected, "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let (own, named) = (gate(true, &[]), gate(true, &["images.example"]));
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

    #[test]
    fn the_client_behind_proxies_is_the_last_that_is_none() {
        let is_proxy = |address: IpAddr| address.to_string().starts_with("10.");
        for (values, expected) in [
            (&["192.0.2.1"][..], Some("192.0.2.1")),
            (&["203.0.113.9, 192.0.2.1, 10.0.0.1"], Some("192.0.2.1")),
            (&["203.0.113.9", "192.0.2.1:4711,10.0.0.1"], Some("192.0.2.1")),
            (&["[2001:db8::1]:99"], Some("2001:db8::1")),
            (&["2001:db8::1, 10.0.0.1"], Some("2001:db8::1")),
            (&["192.0.2.1, nonsense"], None),
            (&["10.0.0.2, 10.0.0.1"], None),
            (&[], None),
        ] {
            let headers: Vec<(&str, &str)> = values.iter().map(|value| (X_FORWARDED_FOR, *value)).collect();
            let found = forwarded_for(request("GET", &headers).headers(), is_proxy);
            assert_eq!(found.map(|address| address.to_string()).as_deref(), expected, "{values:?}");
        }
    }
}
