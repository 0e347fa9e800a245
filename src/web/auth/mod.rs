//! The layer of keys and of limits per client, before every handler: it decides who may do what.
//!
//! A request passes in this order: [`need`] says what its route needs, [`credentials`] finds the key that it has, and
//! [`limits`] counts it for its key or address. [`decide`] then lets it pass, with a [`Principal`] in its extensions, or
//! refuses it. Everything but this file is pure, except for [`known_keys`], which reads the keys in the background.
//!
//! The owner of a job is part of its id ([`crate::keys::KeyHash::mark`]), so that every web process knows it without a
//! request to the store.

mod credentials;
mod decide;
mod known_keys;
mod limits;
mod need;
mod principal;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use axum::RequestExt as _;
use axum::body::Body;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::decide::{Policy, Presented, Refusal};
use self::known_keys::KnownKeys;
pub use self::limits::RateLimit;
use self::limits::{Client, ClientLimits, Exceeded, Passed, Quota};
use self::need::Need;
pub(crate) use self::principal::Principal;
use super::error::Problem;
use super::http::{self, HeldBody, TlsFiles};
use super::metrics::METRICS;
use crate::clock;
use crate::config::{Backend, Names};
use crate::transport;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Settings of who may use a web tier, and how.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// True if clients need a key. `None` means that they do, unless the web tier listens on a loopback address.
    pub requires_key: Option<bool>,
    /// A second address for operators, without keys.
    pub admin_listen: Option<SocketAddr>,
    /// The limit on the requests of one client in a time.
    pub rate_limit: Option<RateLimit>,
    /// The limit on the open requests of one client.
    pub max_requests_per_client: Option<u32>,
    /// The certificate with which the port speaks TLS.
    pub tls: Option<TlsFiles>,
}

/// The layer's state.
pub(super) struct Auth {
    policy: Policy,
    /// `None` if no route needs a key.
    keys: Option<KnownKeys>,
    limits: Option<Arc<ClientLimits>>,
    max_upload_bytes: u64,
}

impl Auth {
    /// Reads the keys, if a route needs one.
    ///
    /// # Errors
    /// If the keys cannot be read, or clients need one and there is none.
    pub(super) async fn open(
        access: &Access,
        address: SocketAddr,
        backend: &Backend,
        names: &Names,
        max_upload_bytes: u64,
    ) -> anyhow::Result<Auth> {
        let is_loopback = address.ip().to_canonical().is_loopback();
        let requires_key = access.requires_key.unwrap_or(!is_loopback);
        let policy = Policy { requires_key, is_open_to_operators: is_loopback && !requires_key };
        let keys = if policy.is_open_to_operators { None } else { open_keys(backend, names, requires_key).await? };
        if requires_key {
            check_first_key(keys.as_ref(), address, backend)?;
        }
        let limits = ClientLimits::new(access.rate_limit, access.max_requests_per_client);
        Ok(Auth { policy, keys, limits, max_upload_bytes })
    }

    /// Reads the keys again and again, until `stop`.
    pub(super) async fn follow_keys(&self, stop: &CancellationToken) {
        match &self.keys {
            Some(keys) => keys.follow(stop).await,
            None => stop.cancelled().await,
        }
    }

    fn presented(&self, headers: &HeaderMap) -> Presented {
        self.keys.as_ref().map_or(Presented::Nothing, |keys| keys.find(credentials::presented(headers)))
    }

    fn check(&self, need: Need, request: &Request) -> Result<(Principal, Option<Passed>), Denied> {
        let presented = self.presented(request.headers());
        let now = clock::now();
        let passed = match &self.limits {
            Some(limits) if need::is_limited(need) => {
                let client = client_of(&presented, http::client_address(request));
                Some(limits.pass(client, Instant::now()).map_err(Denied::Exceeded)?)
            }
            _ => None,
        };
        match decide::decide(self.policy, need, &presented, now) {
            Ok(principal) => Ok((principal, passed)),
            Err(refusal) => Err(Denied::Refused(refusal, passed)),
        }
    }
}

/// A backend without keys is no error if only the routes of operators need one.
async fn open_keys(backend: &Backend, names: &Names, requires_key: bool) -> anyhow::Result<Option<KnownKeys>> {
    let opened = async {
        let documents = Box::pin(transport::open_key_documents(backend, names)).await?;
        KnownKeys::open(documents).await
    };
    match opened.await {
        Ok(keys) => Ok(Some(keys)),
        Err(error) if requires_key => Err(error).context("cannot read the keys of clients (--auth required)"),
        Err(error) => {
            tracing::warn!(%error, "cannot read the keys of clients; /metrics is only at --admin-listen");
            Ok(None)
        }
    }
}

fn check_first_key(keys: Option<&KnownKeys>, address: SocketAddr, backend: &Backend) -> anyhow::Result<()> {
    if keys.is_some_and(|keys| keys.table().has_valid_key(clock::now())) {
        return Ok(());
    }
    let place = match backend.data_dir() {
        Some(folder) => format!("`imgcls keys create --name NAME --data-dir {}`", folder.display()),
        None => "`imgcls keys create --name NAME` and the settings of the backend of this command".to_owned(),
    };
    bail!(
        "clients at {address} need a key, and there is no valid one: create one with {place}, or let everybody in with \
         --auth none"
    )
}

/// Why a request does not pass.
enum Denied {
    Exceeded(Exceeded),
    Refused(Refusal, Option<Passed>),
}

/// The middleware.
pub(super) async fn authenticate(State(auth): State<Arc<Auth>>, mut request: Request, next: Next) -> Response {
    let id = job_id(&mut request).await;
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let need = need::need(request.method(), route, id);
    let is_of_batch = route.is_some_and(|route| route.starts_with("/v1/batches/"));
    match auth.check(need, &request) {
        Ok((principal, passed)) => {
            request.extensions_mut().insert(principal);
            let mut response = next.run(request).await;
            let Some(passed) = passed else { return response };
            if let Some(quota) = passed.quota {
                add_quota(response.headers_mut(), quota);
            }
            // A long answer counts as an open request until it is sent.
            response.map(|body| Body::new(HeldBody::new(body, passed)))
        }
        Err(denied) => {
            // A client that asked before sending (`Expect: 100-continue`) sends nothing after a refusal.
            if !request.headers().contains_key(header::EXPECT) {
                http::drain_body(&mut request.into_body(), 2 * auth.max_upload_bytes).await;
            }
            deny(need, id, is_of_batch, &denied)
        }
    }
}

/// The parameter `id` of the route, decoded as handlers decode it.
async fn job_id(request: &mut Request) -> Option<Uuid> {
    let parameters = request.extract_parts::<RawPathParams>().await.ok()?;
    parameters.iter().find_map(|(name, value)| (name == "id").then(|| value.parse().ok())?)
}

/// A request with a valid key counts for the key, and any other for its address.
fn client_of(presented: &Presented, address: Option<IpAddr>) -> Client {
    match (presented, address) {
        (Presented::Known(key), _) => Client::Key(key.hash),
        (_, Some(address)) => Client::Address(address),
        (_, None) => Client::Others,
    }
}

fn deny(need: Need, id: Option<Uuid>, is_of_batch: bool, denied: &Denied) -> Response {
    let (problem, quota, reason) = match denied {
        Denied::Exceeded(Exceeded::Rate { quota, retry_after_seconds }) => {
            let detail = format!("this client may send {} requests in {} s", quota.burst, quota.window_seconds);
            (Problem::too_many_requests(detail, *retry_after_seconds), Some(*quota), "rate")
        }
        Denied::Exceeded(Exceeded::Open { limit }) => {
            let detail = format!("this client has {limit} open requests already; wait for an answer");
            (Problem::too_many_requests(detail, 1), None, "open_requests")
        }
        Denied::Refused(refusal, passed) => {
            let quota = passed.as_ref().and_then(|passed| passed.quota);
            (problem_of(*refusal, need, id, is_of_batch), quota, refusal.as_str())
        }
    };
    tracing::debug!(reason, need = need.as_str(), "a request was refused");
    METRICS.denied.with_label_values(&[reason]).inc();
    let mut response = problem.into_response();
    if let Some(quota) = quota {
        add_quota(response.headers_mut(), quota);
    }
    response
}

fn problem_of(refusal: Refusal, need: Need, id: Option<Uuid>, is_of_batch: bool) -> Problem {
    let unauthorized = |detail: String| Problem::unauthorized(refusal.as_str(), detail);
    match refusal {
        Refusal::NoKey if need == Need::Operate => unauthorized(
            "this address needs a key with the scope admin (`imgcls keys create --scope admin`); --admin-listen serves it \
             without one"
                .to_owned(),
        ),
        Refusal::NoKey => unauthorized(
            "send a key, for example as `Authorization: Bearer KEY`; the operator makes one with `imgcls keys create`"
                .to_owned(),
        ),
        Refusal::WrongKey => unauthorized("there is no such key; it may have been revoked".to_owned()),
        Refusal::ExpiredKey(at) => unauthorized(format!("the key expired at {at}; ask for a new one")),
        Refusal::MissingScope(scope) => Problem::forbidden(scope.as_str()),
        Refusal::NotOwner if is_of_batch => Problem::no_such_batch(&id.unwrap_or_default().to_string()),
        Refusal::NotOwner => Problem::no_such_job(&id.unwrap_or_default().to_string()),
    }
}

/// The headers of the IETF draft `draft-ietf-httpapi-ratelimit-headers`.
fn add_quota(headers: &mut HeaderMap, quota: Quota) {
    let Quota { burst, window_seconds, remaining, full_after_seconds } = quota;
    let policy = format!("\"client\";q={burst};w={window_seconds}");
    let left = format!("\"client\";r={remaining};t={full_after_seconds}");
    for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}
