//! The hash that is stored of a key, and the mark that it leaves in the ids of its jobs.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Digits of a hash that name its key in lists and logs. They say nothing about the key.
const ID_DIGITS: usize = 12;
/// Bytes of a job's id that show which key the job belongs to.
const MARK_BYTES: usize = 4;
const MARK_DOMAIN: &[u8] = b"imgcls owner of a job\0";

/// The SHA-256 hash of a key. A key has 256 random bits, so that a slow hash would protect it no better.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes the text that a client sent as its key, whatever it is.
    pub fn of(text: &[u8]) -> KeyHash {
        KeyHash(Sha256::digest(text).into())
    }

    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of the key in lists, logs and commands: the first digits of the hash.
    pub fn id(&self) -> String {
        hex(&self.0)[..ID_DIGITS].to_owned()
    }

    /// All digits of the hash in hexadecimal, as it is stored.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Marks the id of a new job as belonging to this key: the last four bytes become a hash of the others and of the
    /// key. The rest of a UUIDv7 still has its time and 42 random or counted bits, so that ids stay unique.
    #[must_use]
    pub fn mark(&self, id: Uuid) -> Uuid {
        let mut bytes = *id.as_bytes();
        let mark = self.mark_of(&bytes);
        bytes[16 - MARK_BYTES..].copy_from_slice(&mark);
        Uuid::from_bytes(bytes)
    }

    /// Returns true if the job with this id belongs to the key. The id of another job passes with a probability of
    /// 2⁻³².
    pub fn owns(&self, id: Uuid) -> bool {
        self.mark(id) == id
    }

    fn mark_of(&self, id: &[u8; 16]) -> [u8; MARK_BYTES] {
        let hash = Sha256::new().chain_update(MARK_DOMAIN).chain_update(self.0);
        let hash = hash.chain_update(&id[..16 - MARK_BYTES]).finalize();
        let mut mark = [0; MARK_BYTES];
        mark.copy_from_slice(&hash[..MARK_BYTES]);
        mark
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a hash of a key has 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(KeyHash(bytes))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_job_belongs_to_the_key_that_marked_its_id_and_to_no_other() {
        let (mine, other) = (KeyHash::of(b"mine"), KeyHash::of(b"other"));
        let ids: Vec<Uuid> = (0..1_000).map(|_| mine.mark(clock::new_id())).collect();
        assert!(ids.iter().all(|id| mine.owns(*id) && id.get_version_num() == 7));
        assert_eq!(ids.iter().filter(|id| other.owns(**id)).count(), 0);
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        assert_eq!((0..1_000).filter(|_| mine.owns(clock::new_id())).count(), 0);
    }

    #[test]
    fn a_hash_is_stored_as_text_and_read_again() {
        let hash = KeyHash::of(b"imgcls_00");
        let text = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<KeyHash>(&text).unwrap(), hash);
        for wrong in [text.replace('"', "").as_str(), "\"00\"", &text.replacen('"', "\"zz", 1), "7", "\"é\""] {
            assert!(serde_json::from_str::<KeyHash>(wrong).is_err(), "{wrong}");
        }
    }
}
