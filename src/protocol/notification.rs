//! Event notifications of S3 (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>),
//! as they come through a request queue.

use jiff::Timestamp;
use serde_json::{Value, json};

/// A message that S3 sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Notification {
    /// S3 sends this once when notifications are configured.
    Test,
    /// An object was written.
    Created(ObjectEvent),
    /// Several events came in one message.
    Several {
        /// A message for each of them.
        messages: Vec<String>,
    },
    /// Something else happened to an object.
    Other {
        /// The name of the event.
        event_name: String,
    },
}

/// An object that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEvent {
    /// The bucket of the object.
    pub bucket: String,
    /// The key of the object, decoded.
    pub key: String,
    /// The tag of the content that was written.
    pub etag: Option<String>,
    /// Orders the events of one key. Empty if S3 sent none.
    pub sequencer: String,
    /// When the object was written.
    pub at: Option<Timestamp>,
}

/// Reads a message of S3. `None` if it is a message of somebody else.
///
/// # Errors
/// The fault of the message, for its dead letter.
pub(super) fn read(message: &Value) -> Option<Result<Notification, String>> {
    if message.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") {
        return Some(Ok(Notification::Test));
    }
    let records = message.get("Records")?.as_array()?;
    Some(match &records[..] {
        [record] => read_record(record),
        [] => Err("a notification of S3 without records".to_owned()),
        // S3 sends one record in each message, though its format allows more.
        _ => Ok(Notification::Several {
            messages: records.iter().map(|record| json!({ "Records": [record] }).to_string()).collect(),
        }),
    })
}

fn read_record(record: &Value) -> Result<Notification, String> {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let required = |pointer: &str| text(pointer).ok_or_else(|| format!("a notification of S3 without {pointer}"));
    if text("/eventSource").is_some_and(|source| source != "aws:s3") {
        return Err("a notification of another service than S3".to_owned());
    }
    let event_name = required("/eventName")?;
    let name = event_name.strip_prefix("s3:").unwrap_or(event_name);
    if !name.starts_with("ObjectCreated:") {
        return Ok(Notification::Other { event_name: event_name.to_owned() });
    }
    Ok(Notification::Created(ObjectEvent {
        bucket: required("/s3/bucket/name")?.to_owned(),
        key: decoded(required("/s3/object/key")?)?,
        etag: text("/s3/object/eTag").map(str::to_owned),
        sequencer: text("/s3/object/sequencer").unwrap_or_default().to_owned(),
        at: text("/eventTime").and_then(|time| time.parse().ok()),
    }))
}

/// The key in an event is encoded as in a form of HTML.
fn decoded(key: &str) -> Result<String, String> {
    let key = key.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&key).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| "a notification of S3 whose key is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, key: &str) -> Value {
        serde_json::json!({ "Records": [{
            "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-east-1",
            "eventTime": "2026-01-01T00:00:00.000Z", "eventName": name,
            "s3": {
                "bucket": { "name": "photos", "arn": "arn:aws:s3:::photos" },
                "object": { "key": key, "size": 1024, "eTag": "0123", "sequencer": "0055AED6DCD90281E5" },
            },
        }] })
    }

    #[test]
    fn key_of_an_event_is_decoded() {
        let Some(Ok(Notification::Created(created))) = read(&event("ObjectCreated:Put", "a+b/%C3%A4%2B.jpg")) else {
            panic!("no event")
        };
        assert_eq!((created.bucket.as_str(), created.key.as_str()), ("photos", "a b/ä+.jpg"));
        assert_eq!((created.etag.as_deref(), created.sequencer.as_str()), (Some("0123"), "0055AED6DCD90281E5"));
        assert!(matches!(read(&event("ObjectCreated:Put", "%FF")), Some(Err(_))));
    }

    #[test]
    fn several_events_are_a_message_each() {
        let one = |key: &str| event("ObjectCreated:Put", key)["Records"][0].clone();
        let message = serde_json::json!({ "Records": [one("a.jpg"), one("b.jpg")] });
        let Some(Ok(Notification::Several { messages })) = read(&message) else { panic!("not several") };
        let keys = messages.iter().map(|message| match read(&serde_json::from_str(message).unwrap()) {
            Some(Ok(Notification::Created(created))) => created.key,
            other => panic!("{other:?}"),
        });
        assert_eq!(keys.collect::<Vec<_>>(), ["a.jpg", "b.jpg"]);
    }

    #[test]
    fn messages_of_others_are_left_to_them() {
        assert_eq!(read(&serde_json::json!({ "filename": "a.jpg", "image_data": "" })), None);
        let test = serde_json::json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos" });
        assert_eq!(read(&test), Some(Ok(Notification::Test)));
        let other = Notification::Other { event_name: "ObjectRemoved:Delete".to_owned() };
        assert_eq!(read(&event("ObjectRemoved:Delete", "a.jpg")), Some(Ok(other)));
        assert!(matches!(read(&serde_json::json!({ "Records": [] })), Some(Err(_))));
    }
}
