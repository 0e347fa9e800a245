//! All keys of a service.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hash::KeyHash;
use super::key::Key;
use super::record::{KeyRecord, Scope};

/// The version of the format. A reader refuses a higher one.
const FORMAT: u32 = 1;
/// Most keys of a service, so that the table is a small document.
const MAX_KEYS: usize = 2_000;
const MAX_NAME_BYTES: usize = 100;

/// Why keys cannot be read or changed: one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(pub String);

/// The keys of a service, as one document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyTable {
    /// The number of the document; 0 if there is none yet.
    pub number: u64,
    /// The keys, in the order in which they were made.
    pub keys: Vec<KeyRecord>,
}

/// The description of a key that is to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The name of the key in lists.
    pub name: String,
    /// The scopes of the key; at least one.
    pub scopes: Vec<Scope>,
    /// How long it is valid. `None` means for ever.
    pub valid_for: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    v: u32,
    keys: Vec<KeyRecord>,
}

/// The part of a document that every version of the format has.
#[derive(Deserialize)]
struct Head {
    v: u32,
}

impl KeyTable {
    /// Parses the document with this number.
    ///
    /// # Errors
    /// If it is damaged, or a newer release wrote it.
    pub fn parse(number: u64, text: &[u8]) -> Result<KeyTable, KeysError> {
        let damaged = |error: serde_json::Error| {
            KeysError(format!("the keys cannot be read (document {number} is damaged: {error}); restore it"))
        };
        let Head { v } = serde_json::from_slice(text).map_err(damaged)?;
        if v > FORMAT {
            let message = format!("the keys were written by a newer release (format {v}): use that release");
            return Err(KeysError(message));
        }
        let Document { keys, .. } = serde_json::from_slice(text).map_err(damaged)?;
        Ok(KeyTable { number, keys })
    }

    /// The document.
    pub fn to_json(&self) -> String {
        let document = Document { v: FORMAT, keys: self.keys.clone() };
        serde_json::to_string(&document).expect("strings and times; this is a bug")
    }

    /// Adds a key.
    ///
    /// # Errors
    /// If the description is wrong, or there are too many keys.
    pub fn add(&mut self, key: &Key, new: &NewKey, now: Timestamp) -> Result<KeyRecord, KeysError> {
        if new.name.is_empty() || new.name.len() > MAX_NAME_BYTES || new.name.chars().any(char::is_control) {
            return Err(KeysError(format!(
                "a name of a key has 1 to {MAX_NAME_BYTES} bytes on one line; give another"
            )));
        }
        if self.keys.len() >= MAX_KEYS {
            let message = format!("there are {MAX_KEYS} keys already; revoke those that are no longer needed");
            return Err(KeysError(message));
        }
        let mut scopes = new.scopes.clone();
        scopes.sort_unstable();
        scopes.dedup();
        let expires_at = new.valid_for.map(|time| now.saturating_add(time).unwrap_or(Timestamp::MAX));
        let record = KeyRecord { hash: key.hash(), name: new.name.clone(), scopes, created_at: now, expires_at };
        self.keys.push(record.clone());
        Ok(record)
    }

    /// Removes the key with this id, or the only one with this name.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn revoke(&mut self, id_or_name: &str) -> Result<KeyRecord, KeysError> {
        let at = self.place(id_or_name)?;
        Ok(self.keys.remove(at))
    }

    /// Finds the key with this id, or the only one with this name.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn named(&self, id_or_name: &str) -> Result<&KeyRecord, KeysError> {
        Ok(&self.keys[self.place(id_or_name)?])
    }

    fn place(&self, id_or_name: &str) -> Result<usize, KeysError> {
        let by_id = self.keys.iter().position(|key| key.hash.id() == id_or_name);
        let mut by_name = self.keys.iter().enumerate().filter(|(_, key)| key.name == id_or_name).map(|(at, _)| at);
        let at = match (by_id, by_name.next(), by_name.next()) {
            (Some(at), _, _) | (None, Some(at), None) => at,
            (None, Some(_), Some(_)) => {
                let message = format!("several keys have the name {id_or_name:?}: give the id, see `imgcls keys list`");
                return Err(KeysError(message));
            }
            (None, None, _) => {
                let message = format!("no key has the id or the name {id_or_name:?}; see `imgcls keys list`");
                return Err(KeysError(message));
            }
        };
        Ok(at)
    }

    /// Returns true if a key can be used at `now`.
    pub fn has_valid_key(&self, now: Timestamp) -> bool {
        self.keys.iter().any(|key| !key.is_expired(now))
    }

    /// Finds a key by its hash.
    pub fn find(&self, hash: KeyHash) -> Option<&KeyRecord> {
        self.keys.iter().find(|key| key.hash == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str) -> NewKey {
        NewKey { name: name.to_owned(), scopes: vec![Scope::Read, Scope::Classify, Scope::Read], valid_for: None }
    }

    #[test]
    fn a_table_is_read_as_it_was_written_and_a_newer_one_is_refused() {
        let mut table = KeyTable { number: 3, ..KeyTable::default() };
        let key = Key::generate().unwrap();
        let made = NewKey { valid_for: Some(Duration::from_secs(60)), ..new("one") };
        let record = table.add(&key, &made, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(record.scopes, [Scope::Classify, Scope::Read]);
        let text = table.to_json();
        assert!(!text.contains(key.reveal()), "the key itself is stored: {text}");
        assert_eq!(KeyTable::parse(3, text.as_bytes()).unwrap(), table);
        assert!(KeyTable::parse(3, text.replace("\"v\":1", "\"v\":2").as_bytes()).unwrap_err().0.contains("newer"));
        assert!(KeyTable::parse(3, b"{}").unwrap_err().0.contains("damaged"));
        let second = |at: i64| Timestamp::from_second(at).unwrap();
        assert!(table.has_valid_key(second(59)) && !table.has_valid_key(second(60)));
        assert_eq!(table.find(key.hash()).map(|found| found.name.as_str()), Some("one"));
    }

    #[test]
    fn a_key_is_revoked_by_its_id_or_by_a_name_that_only_it_has() {
        let mut table = KeyTable::default();
        let mut add =
            |name: &str| table.add(&Key::generate().unwrap(), &new(name), Timestamp::UNIX_EPOCH).unwrap().hash.id();
        let (first, second) = (add("twice"), add("twice"));
        add("once");
        assert!(table.revoke("twice").unwrap_err().0.contains("several"));
        assert_eq!(table.revoke(&second).unwrap().hash.id(), second);
        assert_eq!(table.revoke("twice").unwrap().hash.id(), first);
        assert_eq!(table.revoke("once").unwrap().name, "once");
        assert!(table.revoke("once").is_err() && table.keys.is_empty());
        for name in ["", "two\nlines", &"x".repeat(101)] {
            assert!(table.add(&Key::generate().unwrap(), &new(name), Timestamp::UNIX_EPOCH).is_err(), "{name:?}");
        }
    }
}
