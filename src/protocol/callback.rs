//! Callbacks: the messages in the queue `<request-queue>-callbacks`, each of which says whom to tell that a job or a batch has
//! ended.
//!
//! A web process sends the message before it submits the job, and any web process delivers it. The message holds no result:
//! the stored result is the truth here, too.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::message::WIRE_VERSION;

/// A call that a client wants when its job or batch has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// [`WIRE_VERSION`].
    pub v: u32,
    /// The kind of `id`.
    pub callback: CallbackKind,
    /// The job or the batch.
    pub id: Uuid,
    /// The address that is called.
    pub url: String,
    /// The hash of the client's key in hexadecimal. The call is signed with the secret of the key, or with that of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When the first call failed. `None` before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
}

/// The kind of the thing whose end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackKind {
    /// One image.
    Job,
    /// A batch of images.
    Batch,
}

impl Callback {
    /// A callback that was not tried yet.
    pub fn new(callback: CallbackKind, id: Uuid, url: String, key: Option<String>) -> Callback {
        Callback { v: WIRE_VERSION, callback, id, url, key, failing_since: None }
    }

    /// Reads a message. `None` if it is no callback, or one of another version.
    pub fn parse(text: &str) -> Option<Callback> {
        serde_json::from_str(text).ok().filter(|callback: &Callback| callback.v == WIRE_VERSION)
    }

    /// The message.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and times; this is a bug")
    }
}

impl CallbackKind {
    /// The type of the event, as receivers read it.
    pub fn event_type(self) -> &'static str {
        match self {
            CallbackKind::Job => "job.finished",
            CallbackKind::Batch => "batch.finished",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_read_as_it_was_written_and_requests_are_no_callbacks() {
        let id: Uuid = "01936d5c-7e00-7abc-8def-0123456789ab".parse().unwrap();
        let callback = Callback::new(CallbackKind::Job, id, "https://receiver.example/".to_owned(), None);
        let text = format!(r#"{{"v":1,"callback":"job","id":"{id}","url":"https://receiver.example/"}}"#);
        assert_eq!(callback.to_json(), text);
        assert_eq!(Callback::parse(&text), Some(callback));
        assert_eq!(Callback::parse(&text.replace("\"v\":1", "\"v\":2")), None);
        assert_eq!(Callback::parse(&format!(r#"{{"v":1,"id":"{id}","url":"x"}}"#)), None);
        assert_eq!(Callback::parse("{{name: x}"), None);
    }
}
