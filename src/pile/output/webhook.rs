//! Calls a receiver for each row of a table that grows, in their order, at least once.
//!
//! A thread reads the log as far as it is durable. The file `FILE.webhook` beside the table says how far the receiver has
//! answered with success, so that a process that is killed repeats at most the calls that were under way. A repeated call has
//! the id of the first one. While the receiver fails, rows wait in the log and not in memory.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::sync::watch;
use uuid::Uuid;

use super::config::{ClassName, WebhookConfig, appended};
use super::log::{Followed, LogFollower};
use super::row::Row;
use super::sidecar::{JsonClass, json_class};
use crate::clock;
use crate::keys::WebhookSecret;
use crate::model::Prediction;
use crate::outbound::{CallError, Caller, Target};
use crate::protocol::ErrorInfo;
use crate::retry::Schedule;

/// Calls that are under way at the same time. Their successes count in the order of the rows.
const MAX_CALLS: usize = 8;
/// Rows that are read from the log at a time.
const ROWS_AT_A_TIME: usize = 64;
/// How long the receiver may take for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Pauses between the calls for a row.
const RETRIES: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_mins(5));
/// How long the receiver is called for one row that it does not accept.
const LONGEST_FAILURE: Duration = Duration::from_hours(24);
/// How long the end of a run waits for calls. The next start makes those that are left.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The calls for a table. [`Webhook::finish`] ends them.
pub(super) struct Webhook {
    durable_bytes: watch::Sender<u64>,
    thread: JoinHandle<()>,
}

impl Webhook {
    /// Starts to call the receiver for every row of the log at `path` that it does not have. Without an earlier run, that is
    /// every row.
    ///
    /// # Errors
    /// If the secret or the state cannot be read or made.
    pub(super) fn start(
        config: &WebhookConfig,
        path: &Path,
        table: &Path,
        is_new: bool,
        classes: &[ClassName],
    ) -> anyhow::Result<Webhook> {
        let secret = secret(&config.secret)?;
        let state = StateFile::open(appended(table, ".webhook"), is_new)?;
        let log = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (durable_bytes, durable) = watch::channel(0);
        let (config, classes) = (config.clone(), classes.to_vec());
        let run = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "cannot call the receiver of --webhook"),
            };
            let caller = Caller::new(config.allowed.clone());
            let target = match caller.check(&config.url) {
                Ok(target) => target,
                Err(refusal) => return tracing::error!(%refusal, "the receiver of --webhook may not be called"),
            };
            let receiver = Receiver { caller, target, secret, classes, id: state.state.id };
            let rows = Rows { log: LogFollower::new(log), from: state.state.sent, read: VecDeque::new(), durable };
            runtime.block_on(deliver(&receiver, rows, state));
        };
        let thread = thread::Builder::new().name("webhook".to_owned()).spawn(run).context("cannot start a thread")?;
        Ok(Webhook { durable_bytes, thread })
    }

    /// Says how many bytes of the log are durable.
    pub(super) fn durable(&self, bytes: u64) {
        self.durable_bytes.send_replace(bytes);
    }

    /// Waits for a few seconds until the receiver has every row. What is left is sent after the next start.
    pub(super) fn finish(self) {
        drop(self.durable_bytes);
        // A panic was logged where it happened.
        let _ = self.thread.join();
    }
}

/// The secret of the calls, which is made if the file does not exist.
fn secret(path: &Path) -> anyhow::Result<WebhookSecret> {
    match fs::read_to_string(path) {
        Ok(text) => WebhookSecret::parse(text.trim()).with_context(|| {
            format!("{} contains no secret of the form whsec_… with 32 bytes: delete it for a new one", path.display())
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let secret = WebhookSecret::generate()?;
            create_private(path, &format!("{}\n", secret.reveal()))
                .with_context(|| format!("cannot create {}", path.display()))?;
            tracing::info!(file = %path.display(), "made the secret that signs the calls of --webhook");
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn create_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The state of the calls for one log.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct State {
    /// The first part of the id of each call.
    id: Uuid,
    /// The receiver has every row that ends before this byte of the log.
    sent: u64,
}

struct StateFile {
    path: PathBuf,
    state: State,
}

impl StateFile {
    /// Reads the state; begins again for a new log.
    fn open(path: PathBuf, is_new: bool) -> anyhow::Result<StateFile> {
        let cannot_read = || format!("cannot read {}", path.display());
        let state = match fs::read(&path) {
            Ok(stored) if !is_new => {
                let damaged = || format!("{} is damaged: delete it, and every row is sent again", path.display());
                return Ok(StateFile { state: serde_json::from_slice(&stored).with_context(damaged)?, path });
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(cannot_read),
            _ => State { id: clock::new_id(), sent: 0 },
        };
        let file = StateFile { path, state };
        file.save().with_context(|| format!("cannot write {}", file.path.display()))?;
        Ok(file)
    }

    /// Replaces the file. It is not synced: after power loss some calls are repeated with their ids.
    fn save(&self) -> std::io::Result<()> {
        let temporary = appended(&self.path, ".new");
        fs::write(&temporary, serde_json::to_vec(&self.state)?)?;
        fs::rename(temporary, &self.path)
    }

    fn sent(&mut self, bytes: u64) {
        self.state.sent = bytes;
        if let Err(error) = self.save() {
            tracing::warn!(%error, file = %self.path.display(), "cannot store which calls were made; they may be repeated");
        }
    }
}

/// The rows of the log, as they become durable.
struct Rows {
    log: LogFollower,
    /// Rows that end before this byte are left out.
    from: u64,
    read: VecDeque<Followed>,
    durable: watch::Receiver<u64>,
}

impl Rows {
    /// The next row. `None` once the log is read to its end and does not grow any more.
    async fn next(&mut self) -> Option<Followed> {
        loop {
            if let Some(row) = self.read.pop_front() {
                return Some(row);
            }
            let until = *self.durable.borrow_and_update();
            match self.log.read(until, self.from, ROWS_AT_A_TIME) {
                Ok(rows) => self.read = rows,
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "--webhook cannot read the log; calls end until the next start"
                    );
                    return None;
                }
            }
            if self.read.is_empty() && self.log.offset() >= until && self.durable.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// Calls the receiver for each row until there are no more, or it wants none.
async fn deliver(receiver: &Receiver, rows: Rows, mut state: StateFile) {
    let mut closed = rows.durable.clone();
    let rows = stream::unfold(rows, |mut rows| async move { rows.next().await.map(|row| (row, rows)) });
    let calls = rows.map(|row| async move { (row.end, receiver.deliver(&row).await) }).buffered(MAX_CALLS);
    let mut calls = std::pin::pin!(calls);
    let drained = async {
        while closed.changed().await.is_ok() {}
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    let mut drained = std::pin::pin!(drained);
    loop {
        tokio::select! {
            next = calls.next() => match next {
                Some((end, Delivery::Done)) => state.sent(end),
                Some((_, Delivery::Unwanted)) => {
                    return tracing::error!("the receiver of --webhook answered 410 Gone; it is not called until the next start");
                }
                None => return,
            },
            () = &mut drained => return,
        }
    }
}

/// The end of the calls for a row.
enum Delivery {
    /// The receiver has it, or did not take it for a day.
    Done,
    /// The receiver wants no more calls.
    Unwanted,
}

struct Receiver {
    caller: Caller,
    target: Target,
    secret: WebhookSecret,
    classes: Vec<ClassName>,
    id: Uuid,
}

impl Receiver {
    async fn deliver(&self, row: &Followed) -> Delivery {
        let body = Bytes::from(body(&row.row, &self.classes));
        let id = format!("{}-{}", self.id, row.begin);
        let begun = Instant::now();
        let mut backoff = RETRIES.start();
        loop {
            let reason = match self.call(&id, body.clone()).await {
                Ok(status) if status.is_success() => return Delivery::Done,
                Ok(StatusCode::GONE) => return Delivery::Unwanted,
                Ok(status) => format!("it answered with status {status}"),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > LONGEST_FAILURE {
                tracing::error!(image = %row.row.path, reason, "a call of --webhook was given up after a day");
                return Delivery::Done;
            }
            tracing::warn!(image = %row.row.path, reason, "a call of --webhook failed; it is tried again");
            tokio::time::sleep(backoff.next_delay_with_jitter()).await;
        }
    }

    async fn call(&self, id: &str, body: Bytes) -> Result<StatusCode, CallError> {
        let timestamp = clock::now().as_second();
        let signature = self.secret.sign(id, timestamp, &body);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature),
        ] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        self.caller.post(&self.target, headers, body, CALL_TIMEOUT).await
    }
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    path: &'a str,
    status: &'static str,
    predictions: Vec<JsonClass<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<JsonClass<'a>>,
    width: Option<u32>,
    height: Option<u32>,
    datetime_original: Option<&'a str>,
    model: Option<&'a str>,
    model_version: Option<&'a str>,
    error: Option<&'a ErrorInfo>,
}

/// The body of the call for a row.
fn body(row: &Row, classes: &[ClassName]) -> String {
    let classified = row.outcome.as_ref().ok();
    let data = Data {
        path: row.path.as_str(),
        status: if classified.is_some() { "succeeded" } else { "failed" },
        predictions: classified.map(|found| json_classes(&found.predictions, classes)).unwrap_or_default(),
        labels: classified.map(|found| json_classes(&found.labels, classes)).unwrap_or_default(),
        width: classified.map(|found| found.width),
        height: classified.map(|found| found.height),
        datetime_original: classified.and_then(|found| found.datetime_original.as_deref()),
        model: classified.map(|found| found.model.name.as_str()),
        model_version: classified.map(|found| found.model.version.as_str()),
        error: row.outcome.as_ref().err(),
    };
    serde_json::to_string(&Event { r#type: "image.finished", data }).expect("texts and numbers; this is a bug")
}

fn json_classes<'a>(found: &'a [Prediction], classes: &'a [ClassName]) -> Vec<JsonClass<'a>> {
    found.iter().map(|class| json_class(class, classes)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::row::PathText;
    use super::super::row::tests::classified;
    use super::*;
    use crate::protocol::ErrorCode;

    #[test]
    fn body_has_the_classes_or_the_error() {
        let path = PathText::from_bytes(b"a/1.jpg");
        let row = Row { path: path.clone(), file: None, outcome: Ok(classified(&["cat"])) };
        let event: serde_json::Value = serde_json::from_str(&body(&row, &[])).unwrap();
        assert_eq!(event["type"], "image.finished");
        assert_eq!(event["data"]["predictions"][0]["label"], "cat");
        assert_eq!((&event["data"]["path"], &event["data"]["width"]), (&"a/1.jpg".into(), &640.into()));
        let error = ErrorInfo { code: ErrorCode::Undecodable, message: "damaged".to_owned() };
        let event: serde_json::Value =
            serde_json::from_str(&body(&Row { path, file: None, outcome: Err(error) }, &[])).unwrap();
        assert_eq!(event["data"]["error"]["code"], "undecodable");
        assert!(event["data"]["width"].is_null() && event["data"]["status"] == "failed");
    }

    #[test]
    fn state_continues_and_begins_again_for_a_new_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut first = StateFile::open(path.clone(), true).unwrap();
        first.sent(77);
        let second = StateFile::open(path.clone(), false).unwrap();
        assert_eq!((second.state.id, second.state.sent), (first.state.id, 77));
        let third = StateFile::open(path.clone(), true).unwrap();
        assert!(third.state.sent == 0 && third.state.id != first.state.id);
        fs::write(&path, "no state").unwrap();
        assert!(StateFile::open(path, false).is_err());
    }

    #[test]
    fn secret_is_made_once_and_only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let made = secret(&path).unwrap().reveal();
        assert_eq!(secret(&path).unwrap().reveal(), made);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "whsec_c2hvcnQ=").unwrap();
        assert!(secret(&path).is_err());
    }
}
