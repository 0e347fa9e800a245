//! The connection to NATS, and the calls of JetStream, whose API is requests with JSON.
//!
//! The client connects again by itself. A call that finds no connection waits for one for a moment and then fails, so that
//! no call that was given up is carried out later. A call whose connection was lost is made again: each of them may be repeated.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{shape, version};
use crate::config::{NatsLocation, NatsLogin};

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for a connection. A server that is restarted is back by then.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of a call whose connection was lost before the answer came.
const TRIES_AT_LOSS: u32 = 3;
/// A connection whose other end is gone without a word is found out within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Headers of a message take at most this much besides a body that only just fits.
const HEADER_BYTES: usize = 4 << 10;
/// The smallest `max_payload` of a server. Requests and pieces of images fit.
const MIN_PAYLOAD_BYTES: usize = 16 << 10;

/// Error codes of JetStream (`server/errors.json` of nats-server).
pub(super) mod codes {
    pub(crate) const ACCOUNT_RESOURCES: u64 = 10_002;
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10_014;
    pub(crate) const SERVER_RESOURCES: u64 = 10_023;
    pub(crate) const TOO_MANY_STREAMS: u64 = 10_027;
    pub(crate) const MESSAGE_NOT_FOUND: u64 = 10_037;
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
    pub(crate) const STORAGE_RESOURCES: u64 = 10_047;
    pub(crate) const MESSAGE_TOO_LARGE: u64 = 10_054;
    pub(crate) const STREAM_EXISTS: u64 = 10_058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10_059;
    pub(crate) const SUBJECTS_OVERLAP: u64 = 10_065;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10_071;
    pub(crate) const NO_CLUSTER: u64 = 10_074;
    pub(crate) const NOT_ENABLED: u64 = 10_076;
    /// The stream is full, by whichever of its limits.
    pub(crate) const NOT_STORED: u64 = 10_077;
    pub(crate) const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10_164;
}

/// A connection. All handles of a transport share it.
pub(super) struct Connection {
    pub client: Client,
    /// False while there is no connection.
    connected: watch::Receiver<bool>,
    /// The addresses without passwords, for messages.
    servers: String,
    /// How many servers keep each stream that is created.
    pub replicas: u8,
}

/// The reason why a call failed.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// JetStream refused it.
    Refused { code: u64, status: u64, text: String },
    /// A stream that exists cannot be used.
    Unfit(String),
    /// Nothing listens for the call: the stream or consumer does not exist, or JetStream is not ready yet.
    NoResponders,
    /// There was no answer, or no connection.
    Unavailable(String),
}

impl Fault {
    /// Returns true if JetStream refused the call with this code.
    pub(super) fn is(&self, wanted: u64) -> bool {
        matches!(self, Fault::Refused { code, .. } if *code == wanted)
    }

    /// Returns true if a later call may succeed: the server starts, elects a leader, or is overloaded.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Fault::Refused { status, .. } => *status >= 500,
            Fault::Unfit(_) => false,
            Fault::NoResponders | Fault::Unavailable(_) => true,
        }
    }

    /// The same, with the name of the stream in the message.
    pub(super) fn of_stream(self, name: &str) -> Fault {
        match self {
            Fault::Refused { code, status, text } => {
                Fault::Refused { code, status, text: format!("the stream {name}: {text}") }
            }
            other => other,
        }
    }
}

/// Says what an operator can do about a refusal of JetStream.
fn remedy(code: u64) -> &'static str {
    match code {
        codes::NOT_STORED => ": raise the size of the stream with `nats stream edit`, or wait until messages expire",
        codes::MESSAGE_TOO_LARGE => ": set the message size of the stream to -1 with `nats stream edit`",
        codes::SUBJECTS_OVERLAP => {
            ": another stream has these subjects; find it with `nats stream report`, and change it"
        }
        codes::SERVER_RESOURCES | codes::STORAGE_RESOURCES => ": raise max_file_store in the settings of the server",
        codes::ACCOUNT_RESOURCES | codes::TOO_MANY_STREAMS => ": raise the JetStream limits of the account",
        codes::NO_CLUSTER => ": give as --nats-replicas at most as many as the cluster has servers",
        _ => "",
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Refused { code, text, .. } => write!(f, "JetStream: {text} (error {code}){}", remedy(*code)),
            Fault::NoResponders => write!(f, "JetStream does not answer"),
            Fault::Unfit(reason) | Fault::Unavailable(reason) => f.write_str(reason),
        }
    }
}

/// Connects, and checks that the server is new enough and has JetStream.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub(super) async fn connect(location: &NatsLocation) -> Result<Arc<Connection>, String> {
    let servers = location.servers();
    let (state, connected) = watch::channel(true);
    let addresses = location.addresses()?;
    let follower = Arc::new(Follower { connected: state, last_reason: Mutex::default() });
    let options = options(location).await?.event_callback(move |event| {
        let follower = Arc::clone(&follower);
        async move { follower.follow(&event) }
    });
    let client = match options.connect(addresses.as_slice()).await {
        Ok(client) => client,
        Err(error) => return Err(refusal(&servers, location, &error)),
    };
    if let Some(refusal) = version::refusal(&servers, &client.server_info().version) {
        return Err(refusal);
    }
    let max_payload = client.max_payload();
    if max_payload < MIN_PAYLOAD_BYTES {
        return Err(format!(
            "NATS at {servers} takes messages of at most {max_payload} bytes, and {MIN_PAYLOAD_BYTES} are needed: raise \
             max_payload in its settings"
        ));
    }
    let connection = Connection { client, connected, servers, replicas: location.replicas };
    connection.check_jetstream().await?;
    Ok(Arc::new(connection))
}

async fn options(location: &NatsLocation) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .name("imgcls")
        .connection_timeout(CONNECTION_TIMEOUT)
        .request_timeout(Some(CALL_TIMEOUT))
        .ping_interval(PING_INTERVAL);
    match location.login()? {
        NatsLogin::None => {}
        NatsLogin::User { name, password } => options = options.user_and_password(name, password),
        NatsLogin::Token(token) => options = options.token(token),
    }
    if let Some(file) = &location.credentials {
        // The error of the client may hold a part of the file.
        let unreadable =
            |_| format!("cannot read credentials of NATS from {}; `nsc` writes such files", file.display());
        options = options.credentials_file(file).await.map_err(unreadable)?;
    }
    if let Some(file) = &location.ca {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    Ok(options)
}

/// Follows the state of the connection, with one line for an operator whenever it changes.
struct Follower {
    connected: watch::Sender<bool>,
    /// Why the last attempt to connect failed. The client makes one every few seconds.
    last_reason: Mutex<Option<String>>,
}

impl Follower {
    fn follow(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.is_new_reason(None);
                if !self.connected.send_replace(true) {
                    tracing::info!("connected to NATS again");
                }
            }
            // This process has no use for the connection any more.
            Event::Closed => {
                self.connected.send_replace(false);
            }
            Event::Disconnected => {
                if self.connected.send_replace(false) {
                    tracing::warn!("the connection to NATS is lost; trying to connect again");
                }
            }
            Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
                if *self.connected.borrow() || self.is_new_reason(Some(event.to_string())) {
                    tracing::warn!(%event, "NATS reports a problem of the connection");
                }
            }
            event => tracing::debug!(%event, "the connection to NATS changed"),
        }
    }

    /// Remembers a reason, and returns true if the last one was another.
    fn is_new_reason(&self, reason: Option<String>) -> bool {
        let mut last = self.last_reason.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *last != reason;
        *last = reason;
        is_new
    }
}

fn refusal(servers: &str, location: &NatsLocation, error: &async_nats::ConnectError) -> String {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => match &location.credentials {
            Some(file) => format!(
                "NATS at {servers} refuses the credentials in {}: they may have expired, or be of another account; \
                 `nsc generate creds` writes new ones",
                file.display()
            ),
            None => format!(
                "NATS at {servers} refuses the login: give user and password or a token in IMGCLS_NATS_URL \
                 (nats://USER:PASSWORD@HOST), or a file as --nats-credentials"
            ),
        },
        ConnectErrorKind::Tls => format!(
            "cannot connect to NATS at {servers} by TLS: {error}; give the certificates of its authority as --nats-ca"
        ),
        _ => format!(
            "cannot reach NATS at {servers}: {error}; start it with `nats-server -js`, or give its address as --nats-url"
        ),
    }
}

impl Connection {
    async fn check_jetstream(&self) -> Result<(), String> {
        match self.api("INFO", &json!({})).await {
            Ok(_) => Ok(()),
            Err(Fault::NoResponders) => Err(self.without_jetstream()),
            Err(fault) if fault.is(codes::NOT_ENABLED) || fault.is(codes::NOT_ENABLED_FOR_ACCOUNT) => {
                Err(self.without_jetstream())
            }
            Err(Fault::Unavailable(reason)) => {
                Err(format!("cannot use JetStream: {reason}; the user needs the permissions that docs/nats.md lists"))
            }
            Err(fault) => Err(format!("cannot use NATS at {}: {fault}", self.servers)),
        }
    }

    fn without_jetstream(&self) -> String {
        format!(
            "NATS at {} runs without JetStream: start it with `nats-server -js -sd DIRECTORY`, or enable JetStream for the \
             account",
            self.servers
        )
    }

    /// The largest body of a message that the server takes beside headers.
    pub(super) fn max_body_bytes(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADER_BYTES)
    }

    /// A call of the API of JetStream.
    pub(super) async fn api(&self, call: &str, body: &Value) -> Result<Value, Fault> {
        let answer = self.call(&format!("$JS.API.{call}"), None, body.to_string().into()).await?;
        parsed(&answer.payload)
    }

    /// Publishes a message to a stream, and waits until the stream has it. Returns its sequence number.
    pub(super) async fn publish(&self, subject: String, headers: HeaderMap, body: Bytes) -> Result<u64, Fault> {
        let answer = self.call(&subject, Some(headers), body).await?;
        let answer = parsed(&answer.payload)?;
        answer["seq"].as_u64().ok_or_else(|| Fault::Unavailable(format!("no confirmation, but {answer}")))
    }

    /// A request, and the answer to it. It may be made again if the connection was lost.
    pub(super) async fn call(&self, subject: &str, headers: Option<HeaderMap>, body: Bytes) -> Result<Message, Fault> {
        for _ in 0..TRIES_AT_LOSS {
            self.wait_until_connected().await?;
            let mut request = Request::new().payload(body.clone());
            request.headers.clone_from(&headers);
            // The client waits without a limit while it has too many calls to send.
            let call = tokio::time::timeout(CALL_TIMEOUT * 2, self.client.send_request(subject.to_owned(), request));
            let answer = tokio::select! {
                answer = call => answer,
                () = self.lost() => continue,
            };
            return match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(Fault::NoResponders),
                Ok(Err(error)) => Err(Fault::Unavailable(format!("NATS at {}: {error}", self.servers))),
                Err(_) => Err(Fault::Unavailable(format!("NATS at {} does not answer", self.servers))),
            };
        }
        Err(Fault::Unavailable(format!("the connection to NATS at {} was lost again and again", self.servers)))
    }

    /// # Errors
    /// [`Fault::Unavailable`] if there is no connection in time.
    pub(super) async fn wait_until_connected(&self) -> Result<(), Fault> {
        let mut connected = self.connected.clone();
        let waiting = connected.wait_for(|connected| *connected);
        match tokio::time::timeout(CONNECTION_TIMEOUT, waiting).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Fault::Unavailable(format!("no connection to NATS at {}", self.servers))),
        }
    }

    /// Resolves when the connection is lost.
    pub(super) async fn lost(&self) {
        let mut connected = self.connected.clone();
        // The sender lives as long as the client.
        let _ = connected.wait_for(|connected| !connected).await;
    }

    /// Finds out what it means that nothing listened for a call on a stream. Returns true if the stream does not exist.
    pub(super) async fn is_missing(&self, stream: &str) -> bool {
        let found = self.api(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        found.is_err_and(|fault| fault.is(codes::STREAM_NOT_FOUND))
    }

    /// Creates a stream. One that exists stays as it is, if it can be used.
    pub(super) async fn create_stream(&self, name: &str, config: &Value) -> Result<(), Fault> {
        match self.api(&format!("STREAM.CREATE.{name}"), config).await {
            Err(fault) if fault.is(codes::STREAM_EXISTS) => {
                let found = self.api(&format!("STREAM.INFO.{name}"), &json!({})).await?;
                shape::misfit(&found["config"], config).map_or(Ok(()), |reason| Err(Fault::Unfit(reason)))
            }
            created => created.map(drop).map_err(|fault| fault.of_stream(name)),
        }
    }
}

fn parsed(payload: &[u8]) -> Result<Value, Fault> {
    let answer: Value = serde_json::from_slice(payload)
        .map_err(|error| Fault::Unavailable(format!("the answer of JetStream is not JSON: {error}")))?;
    match answer.get("error") {
        Some(error) => Err(Fault::Refused {
            code: error["err_code"].as_u64().unwrap_or_default(),
            status: error["code"].as_u64().unwrap_or_default(),
            text: error["description"].as_str().unwrap_or("no reason given").to_owned(),
        }),
        None => Ok(answer),
    }
}
