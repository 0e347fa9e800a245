//! `Idempotency-Key`: a client that does not know if its request arrived sends it again with the same key, and gets the job
//! of the first one.
//!
//! The record of a key is an object, so that every web process finds it. It is written once, before the job is submitted,
//! and holds the id of the job and a digest of the image and the options. A process that dies between the two leaves a
//! record without a job; the next request with the key then submits the job under the recorded id.

use axum::http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::auth::Principal;
use super::error::Problem;
use super::jobs::{self, JobOptions};
use crate::protocol;
use crate::transport::Transport;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_BYTES: usize = 255;

/// The idempotency key of a request, of one caller: the same text is another key for another principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

/// The record of a key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    id: Uuid,
    /// The digest of image and options, in hexadecimal.
    digest: String,
}

/// The job of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// This request is the first with the key.
    First(Uuid),
    /// An earlier request has this job.
    Repeated(Uuid),
}

impl IdempotencyKey {
    /// Reads the key of a request of `caller`, if it has one.
    ///
    /// # Errors
    /// 400 for several keys, and for one that is empty, too long or not visible ASCII.
    pub(super) fn of(headers: &HeaderMap, caller: &Principal) -> Result<Option<IdempotencyKey>, Problem> {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Problem::malformed("the request has more than one Idempotency-Key"));
        }
        let is_visible = |key: &&[u8]| key.iter().all(|byte| (b' '..=b'~').contains(byte));
        let key = value.as_bytes().trim_ascii();
        let key = Some(key).filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len())).filter(is_visible);
        let Some(key) = key else {
            let detail =
                format!("an Idempotency-Key has 1 to {MAX_KEY_BYTES} visible ASCII characters, such as a UUID");
            return Err(Problem::malformed(detail));
        };
        Ok(Some(IdempotencyKey(digest(&[caller.key_hash().unwrap_or_default(), key]))))
    }

    /// The key of one file of several in a request.
    pub(super) fn of_file(&self, at: usize) -> IdempotencyKey {
        IdempotencyKey(digest(&[self.0.as_bytes(), at.to_string().as_bytes()]))
    }

    /// Claims the key for a new job, or finds the job that has it.
    ///
    /// # Errors
    /// 422 if the key belongs to another image or other options, 503 if the store cannot be reached.
    pub(super) async fn claim(
        &self,
        transport: &dyn Transport,
        image: &[u8],
        options: &JobOptions,
    ) -> Result<Claim, Problem> {
        let model = options.model.as_deref().unwrap_or_default();
        let top_k = options.top_k.to_string();
        let mut parts = vec![image, top_k.as_bytes(), model.as_bytes()];
        // A record of an earlier release has none.
        parts.extend(options.callback.as_ref().map(String::as_bytes));
        let own = Record { id: options.new_id(), digest: digest(&parts) };
        let text = serde_json::to_string(&own).expect("an id and a digest; this is a bug");
        let key = protocol::idempotency_record_key(&self.0);
        let stored = transport.record_once(&key, text.into()).await.map_err(|error| jobs::read_problem(&error))?;
        let Ok(record) = serde_json::from_slice::<Record>(&stored) else {
            tracing::error!(key, "the record of an idempotency key cannot be parsed");
            return Err(Problem::damaged(&key));
        };
        if record.digest != own.digest {
            return Err(Problem::idempotency_key_reused(record.id));
        }
        Ok(if record.id == own.id { Claim::First(record.id) } else { Claim::Repeated(record.id) })
    }
}

/// A digest of several parts, in hexadecimal. The length of each part is part of it.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::keys::Scope;

    fn key(values: &[&[u8]], caller: &Principal) -> Result<Option<IdempotencyKey>, Problem> {
        let values = values.iter().map(|value| (HEADER, HeaderValue::from_bytes(value).unwrap()));
        IdempotencyKey::of(&values.collect(), caller)
    }

    #[test]
    fn keys_are_distinct_for_each_caller_and_file() {
        let everybody = Principal::default();
        let [one, other] = ["one", "other"].map(|text| Principal::of_key(text, &[Scope::Classify]));
        assert_eq!(key(&[], &everybody), Ok(None));
        let first = key(&[b"a"], &everybody).unwrap().unwrap();
        assert_eq!(key(&[b" a "], &everybody).unwrap().unwrap(), first);
        assert_ne!(key(&[b"b"], &everybody).unwrap().unwrap(), first);
        let of_one = key(&[b"a"], &one).unwrap().unwrap();
        assert_eq!(key(&[b"a"], &one.clone()).unwrap().unwrap(), of_one);
        assert_ne!(of_one, first);
        assert_ne!(key(&[b"a"], &other).unwrap().unwrap(), of_one);
        assert_ne!(first.of_file(0), first.of_file(1));
    }

    #[test]
    fn unusable_keys_are_refused() {
        for values in [&[&b""[..]][..], &[b"a", b"a"], &[&[b'x'; 256]], &[b"\xfc"]] {
            assert_eq!(key(values, &Principal::default()).unwrap_err().kind, "malformed", "{values:?}");
        }
    }
}
