//! The HTTP client of calls to addresses that clients name.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::guard::{Allowed, Refusal, Target};
use crate::http_client::{self, Io, Stream};

/// How many addresses of one name are tried.
const MAX_ADDRESSES: usize = 4;
/// How long a connection to one address may take, so that an address that does not answer leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest chain of redirects of a download.
const MAX_REDIRECTS: usize = 3;

/// Calls addresses that clients name, as far as they are allowed.
pub struct Caller {
    allowed: Allowed,
    /// The certificates that are trusted, or why there are none.
    tls: Result<Arc<ClientConfig>, String>,
}

/// The limits of a download.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest body that is read.
    pub max_bytes: u64,
    /// From the first look-up to the end of the body.
    pub timeout: Duration,
}

/// Why a call failed. The texts contain nothing of the answer but its status.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The address may not be called.
    #[error("the address may not be called: {0}")]
    Refused(#[from] Refusal),
    /// The name of the host has no address.
    #[error("its host is unknown")]
    UnknownHost,
    /// There is no connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// There is no TLS.
    #[error("no TLS: {0}")]
    Tls(String),
    /// The exchange broke off.
    #[error("the connection broke off: {0}")]
    Broken(hyper::Error),
    /// The time was up.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer was not the wanted one.
    #[error("it answered with status {0}")]
    Status(StatusCode),
    /// The answer has more bytes than the limit.
    #[error("its answer is larger than {0} bytes")]
    TooLarge(u64),
    /// There were too many redirects.
    #[error("it redirects more than {MAX_REDIRECTS} times")]
    Redirects,
}

/// Takes the pieces of a download.
#[async_trait::async_trait]
pub trait Download: Send {
    /// The error that ends a download from this side.
    type Error: From<CallError> + Send;

    /// Takes the next piece.
    async fn take(&mut self, piece: Bytes) -> Result<(), Self::Error>;
}

impl Caller {
    /// Makes a client, which trusts the certificates that the system trusts.
    pub fn new(allowed: Allowed) -> Caller {
        let tls = http_client::tls();
        if let Err(error) = &tls {
            tracing::warn!(%error, "no certificates are trusted, so that no https address that clients name can be called");
        }
        Caller { allowed, tls: tls.map(Arc::new).map_err(|error| error.to_string()) }
    }

    /// Checks an address that a client wrote.
    ///
    /// # Errors
    /// The reason why it may not be called.
    pub fn check(&self, url: &str) -> Result<Target, Refusal> {
        self.allowed.check_url(url)
    }

    /// Sends a body by POST, and returns the status of the answer, whatever it is. A redirect is not followed.
    ///
    /// # Errors
    /// If there is no answer within `timeout`.
    pub async fn post(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<StatusCode, CallError> {
        let exchange = async {
            let mut connection = self.connect(target).await?;
            let request = request(Method::POST, target, headers, body);
            Ok::<_, CallError>(connection.send(request).await?.status())
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(CallError::TimedOut(timeout)))
    }

    /// Downloads an object. The target of a redirect is checked like the first address.
    ///
    /// # Errors
    /// If the status is not 200, or a limit is exceeded; also the error of `download`.
    pub async fn download<D: Download>(
        &self,
        target: &Target,
        limits: Limits,
        download: &mut D,
    ) -> Result<(), D::Error> {
        let transfer = async {
            let mut target = target.clone();
            for _ in 0..=MAX_REDIRECTS {
                match self.download_once(&target, limits.max_bytes, download).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(next)) => target = next,
                    Err(error) => return Err(error),
                }
            }
            Err(D::Error::from(CallError::Redirects))
        };
        let ended = tokio::time::timeout(limits.timeout, transfer).await;
        ended.unwrap_or_else(|_| Err(CallError::TimedOut(limits.timeout).into()))
    }

    /// Returns the target of a redirect, or `None` when the object was downloaded.
    async fn download_once<D: Download>(
        &self,
        target: &Target,
        max_bytes: u64,
        download: &mut D,
    ) -> Result<Option<Target>, D::Error> {
        let mut connection = self.connect(target).await?;
        let response = connection.send(request(Method::GET, target, HeaderMap::new(), Bytes::new())).await?;
        if let Some(next) = self.redirect(target, &response)? {
            return Ok(Some(next));
        }
        if response.status() != StatusCode::OK {
            return Err(CallError::Status(response.status()).into());
        }
        let announced = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut left = max_bytes;
        if announced.is_some_and(|length: u64| length > max_bytes) {
            return Err(CallError::TooLarge(max_bytes).into());
        }
        let mut body = response.into_body();
        while let Some(piece) = connection.next(&mut body).await? {
            left = left.checked_sub(piece.len() as u64).ok_or(CallError::TooLarge(max_bytes))?;
            download.take(piece).await?;
        }
        Ok(None)
    }

    fn redirect(&self, target: &Target, response: &Response<Incoming>) -> Result<Option<Target>, CallError> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let Some(location) = location else { return Err(CallError::Status(response.status())) };
        // An absolute address is checked as it is written, not as the parser understands it.
        if location.contains("://") {
            return Ok(Some(self.check(location)?));
        }
        let joined = target.url().join(location).map_err(|_| Refusal::Form("it redirects to no URL"))?;
        Ok(Some(self.check(joined.as_str())?))
    }

    /// Connects to the target. Its name is looked up once, and the connection goes to an address that was checked.
    async fn connect(&self, target: &Target) -> Result<Connection, CallError> {
        let addresses = self.addresses(target).await?;
        let mut failure = CallError::UnknownHost;
        for address in addresses {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.handshake(target, stream).await,
                Ok(Err(error)) => failure = CallError::Connect(error),
                Err(_) => failure = CallError::TimedOut(CONNECT_TIMEOUT),
            }
        }
        Err(failure)
    }

    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, CallError> {
        let addresses: Vec<SocketAddr> = match target.address() {
            Some(address) => vec![address],
            None => lookup_host((target.host(), target.port())).await.map_err(|_| CallError::UnknownHost)?.collect(),
        };
        // One address that must not be called is enough, because an answer with such an address is a mistake or an attack.
        for address in &addresses {
            self.allowed.check_connection(target, address.ip())?;
        }
        Ok(addresses.into_iter().take(MAX_ADDRESSES).collect())
    }

    async fn handshake(&self, target: &Target, stream: TcpStream) -> Result<Connection, CallError> {
        stream.set_nodelay(true).map_err(CallError::Connect)?;
        let stream: Box<dyn Stream> = if target.is_https() {
            let tls = self.tls.as_ref().map_err(|error| CallError::Tls(error.clone()))?;
            let name = ServerName::try_from(target.host().to_owned());
            let name = name.map_err(|error| CallError::Tls(error.to_string()))?;
            let secured = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
            Box::new(secured.map_err(|error| CallError::Tls(error.to_string()))?)
        } else {
            Box::new(stream)
        };
        let (sender, io) = http_client::handshake(stream).await.map_err(CallError::Broken)?;
        Ok(Connection { sender, io })
    }
}

fn request(method: Method, target: &Target, mut headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    let url = target.url();
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    // The guard takes only visible ASCII.
    headers.insert(HOST, HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("")));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("imgcls/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    *request.headers_mut() = headers;
    request
}

/// Both halves of a hyper connection, polled by one task.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    io: Io,
}

impl Connection {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        let Connection { sender, io } = self;
        io.drive(sender.send_request(request)).await.map_err(CallError::Broken)
    }

    /// Returns the next piece of a body, or `None` at its end.
    async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, CallError> {
        loop {
            let Some(frame) = self.io.drive(body.frame()).await else { return Ok(None) };
            if let Ok(data) = frame.map_err(CallError::Broken)?.into_data() {
                return Ok(Some(data));
            }
        }
    }
}
