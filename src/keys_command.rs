//! `imgcls keys …`: creates, lists and revokes the keys of clients.
//!
//! Web processes read the keys every few seconds: they know a new key, and refuse a revoked one, within ten seconds.

use std::fmt::Write as _;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::clock;
use crate::config::{Backend, Names};
use crate::keys::{Key, KeyRecord, KeyTable, NewKey, WebhookSecrets, journal};
use crate::telemetry::output;
use crate::transport;

/// Settings of one `imgcls keys` command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend whose keys they are.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// Print JSON instead of text.
    pub json: bool,
    /// The command.
    pub action: Action,
}

/// The commands under `imgcls keys`.
#[derive(Debug, Clone)]
pub enum Action {
    /// Makes a key and prints it. It is never printed again.
    Create(NewKey),
    /// Lists all keys by what is stored of them.
    List,
    /// Prints the secret that signs the callbacks of a key, by its id or its name, or of clients without a key.
    WebhookSecret(Option<String>),
    /// Makes a key invalid, by its id or its name.
    Revoke(String),
}

/// Runs the command.
///
/// # Errors
/// If the keys cannot be read or changed, or standard output cannot be written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let documents = Box::pin(transport::open_key_documents(&config.backend, &config.names)).await?;
    let text = match &config.action {
        Action::Create(new) => {
            let key = Key::generate().context("the system gave no random numbers")?;
            let now = clock::now();
            let record = journal::change(&*documents, |table| table.add(&key, new, now)).await?;
            if config.json {
                let mut object = described(&record, now);
                object["key"] = json!(key.reveal());
                format!("{object}\n")
            } else {
                let id = record.hash.id();
                let (scopes, expires) = (record.scopes_text(), expires_text(&record));
                tracing::info!(id, name = record.name, scopes, expires, "key created; it is printed only now");
                format!("{}\n", key.reveal())
            }
        }
        Action::List => {
            let table = journal::read(&*documents, &KeyTable::default()).await?;
            if config.json { list_json(&table, clock::now()) } else { list_text(&table, clock::now()) }
        }
        Action::WebhookSecret(id_or_name) => {
            let secrets = WebhookSecrets::open(&*documents).await?;
            let key = match id_or_name {
                Some(id_or_name) => {
                    let table = journal::read(&*documents, &KeyTable::default()).await?;
                    Some(table.named(id_or_name)?.hash.to_hex())
                }
                None => None,
            };
            let secret = secrets.of(key.as_deref()).reveal();
            if config.json { format!("{}\n", json!({"secret": secret})) } else { format!("{secret}\n") }
        }
        Action::Revoke(id_or_name) => {
            let record = journal::change(&*documents, |table| table.revoke(id_or_name)).await?;
            if config.json {
                format!("{}\n", json!({"revoked": record.hash.id(), "name": record.name}))
            } else {
                format!("revoked {} ({}); web processes refuse it within 10 s\n", record.hash.id(), record.name)
            }
        }
    };
    output::print(&text).context("cannot print the result")
}

fn described(record: &KeyRecord, now: Timestamp) -> Value {
    json!({
        "id": record.hash.id(),
        "name": record.name,
        "scopes": record.scopes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "is_expired": record.is_expired(now),
    })
}

fn list_json(table: &KeyTable, now: Timestamp) -> String {
    let keys: Vec<Value> = table.keys.iter().map(|record| described(record, now)).collect();
    format!("{}\n", json!({"keys": keys}))
}

fn list_text(table: &KeyTable, now: Timestamp) -> String {
    if table.keys.is_empty() {
        return "there are no keys\n".to_owned();
    }
    let longest = table.keys.iter().map(|record| record.scopes_text().len()).max().unwrap_or_default().max(6);
    let mut text = format!("{:12}  {:longest$}  {:20}  {:20}  NAME\n", "ID", "SCOPES", "CREATED", "EXPIRES");
    for record in &table.keys {
        let expires = if record.is_expired(now) { "expired".to_owned() } else { expires_text(record) };
        let (id, scopes, created) = (record.hash.id(), record.scopes_text(), seconds(record.created_at));
        let _ = writeln!(text, "{id:12}  {scopes:longest$}  {created:20}  {expires:20}  {}", record.name);
    }
    text
}

fn expires_text(record: &KeyRecord) -> String {
    record.expires_at.map_or_else(|| "never".to_owned(), seconds)
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
