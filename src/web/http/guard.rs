//! The checks that every request passes before its handler: the permit of its connection, its host, and its origin.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::connections::{AddressPermit, ConnectionPermit, RequestRefusal, Slot, counted_address};
use super::drain::drain_body;
use super::hosts::HostPolicy;
use crate::web::error::Problem;

/// Paths that are answered on spare connections, too.
const HEALTH_CHECKS: [&str; 2] = ["/healthz", "/readyz"];
/// The answers to programs are no pages: a browser that shows one loads and runs nothing.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const ALL_TAKEN: &str = "all connections are taken (--max-connections); try again in a moment";
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The settings of [`guard`].
pub(crate) struct RequestGuard {
    pub(crate) hosts: HostPolicy,
    /// Up to twice this size of a refused body is read, so that the client reads the answer.
    pub(crate) max_upload_bytes: u64,
}

/// The client of a request. The connection adds it to the extensions of every request.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) permit: Arc<ConnectionPermit>,
    /// Why this request of several on a connection has no permit.
    pub(super) refusal: Option<RequestRefusal>,
}

/// The middleware. It also adds headers that forbid caching, guessing of media types and active content, unless the answer
/// has its own.
pub(crate) async fn guard(State(guard): State<Arc<RequestGuard>>, request: Request, next: Next) -> Response {
    let is_health_check = HEALTH_CHECKS.contains(&request.uri().path());
    let client = request.extensions().get::<Client>().filter(|_| !is_health_check).cloned();
    let client = match client {
        Some(client) => {
            let slot = client.permit.slot_for_request().await;
            Some((client, slot))
        }
        None => None,
    };
    let mut response = match check(&guard, &request, client.as_ref()) {
        // The address permit is held until the answer is made.
        Ok(_address) => next.run(request).await,
        Err(problem) => {
            drain_body(&mut request.into_body(), 2 * guard.max_upload_bytes).await;
            problem.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    response
}

/// Returns the permit for the client that a trusted proxy names, if there is one. `client` is `None` for requests that
/// no limit applies to.
fn check(
    guard: &RequestGuard,
    request: &Request,
    client: Option<&(Client, Slot)>,
) -> Result<Option<AddressPermit>, Problem> {
    let address = match client {
        Some((client, slot)) => {
            check_slot(client, *slot)?;
            check_forwarded(client, request.headers())?
        }
        None => None,
    };
    guard.hosts.check(request)?;
    Ok(address)
}

fn check_slot(client: &Client, slot: Slot) -> Result<(), Problem> {
    // The other requests of the connection go on.
    match client.refusal {
        None => {}
        Some(RequestRefusal::Full) => return Err(Problem::full(ALL_TAKEN)),
        Some(RequestRefusal::Address) => {
            let problem = too_many(client.address.ip(), client.permit.connections.max_per_address(), "requests");
            return Err(Problem { closes_connection: false, ..problem });
        }
    }
    match slot {
        Slot::Regular => Ok(()),
        Slot::Spare => Err(closing(ALL_TAKEN)),
        Slot::Refused => {
            let limit = client.permit.connections.max_per_address();
            Err(too_many(client.address.ip(), limit, "connections"))
        }
    }
}

fn check_forwarded(client: &Client, headers: &HeaderMap) -> Result<Option<AddressPermit>, Problem> {
    let connections = &client.permit.connections;
    let is_proxy = |address: IpAddr| connections.is_trusted_proxy(address);
    if !is_proxy(client.address.ip()) {
        return Ok(None);
    }
    let Some(address) = forwarded_for(headers, is_proxy) else { return Ok(None) };
    connections.acquire_address(address).map_err(|_| {
        // The connection belongs to the proxy, which uses it for other clients, too: it stays open.
        Problem { closes_connection: false, ..too_many(address, connections.max_per_address(), "requests") }
    })
}

/// Returns the address that a request counts for: that of its connection, or the one that a trusted proxy names.
pub(crate) fn client_address(request: &Request) -> Option<IpAddr> {
    let client = request.extensions().get::<Client>()?;
    let is_proxy = |address: IpAddr| client.permit.connections.is_trusted_proxy(address);
    let own = client.address.ip();
    let named = if is_proxy(own) { forwarded_for(request.headers(), is_proxy) } else { None };
    Some(counted_address(named.unwrap_or(own).to_canonical()))
}

fn closing(detail: &str) -> Problem {
    Problem { closes_connection: true, ..Problem::full(detail) }
}

fn too_many(address: IpAddr, limit: usize, what: &str) -> Problem {
    closing(&format!("{address} has {limit} {what} already (--max-connections-per-address); try again in a moment"))
}

/// Returns the client that trusted proxies name: the last address that is not a trusted proxy itself. Addresses before
/// it may be forged.
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

/// Parses an address with or without a port; an IPv6 address with or without brackets.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    #[test]
    fn forwarded_client_is_the_last_address_that_is_not_a_proxy() {
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
            let values = values.iter().map(|value| HeaderValue::from_static(value));
            let headers: HeaderMap = values.map(|value| (HeaderName::from_static(X_FORWARDED_FOR), value)).collect();
            let found = forwarded_for(&headers, is_proxy);
            assert_eq!(found.map(|address| address.to_string()).as_deref(), expected, "{headers:?}");
        }
    }
}
