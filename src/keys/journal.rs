//! Stores the table of keys as numbered documents. Each change writes the whole table as the next number, and only if
//! that does not exist yet: of two changes at the same time the second one is made again, on top of the first. Readers
//! look for the next number. A store needs nothing but conditional writes for that, and a read that finds nothing new is
//! one small request.
//!
//! Documents are kept, so that a reader finds each next one, however long it was away. A further document has the
//! newest number, or a lower one after a crash: where a process that starts begins to read.

use async_trait::async_trait;
use bytes::Bytes;

use super::table::{KeyTable, KeysError};

/// The folder of the documents in their bucket.
pub const KEYS_FOLDER: &str = "keys/";
/// How often a change is made again because another one came first.
const MAX_TRIES: usize = 20;

/// The store of the documents.
#[async_trait]
pub trait Documents: Send + Sync {
    /// Returns the document of this name, if it exists.
    async fn read(&self, name: &str) -> Result<Option<Bytes>, KeysError>;

    /// Writes a document that does not exist yet. Returns false if it does.
    async fn create(&self, name: &str, body: Bytes) -> Result<bool, KeysError>;

    /// Writes a document, whether or not it exists.
    async fn replace(&self, name: &str, body: Bytes) -> Result<(), KeysError>;
}

/// Returns the newest table. `known` is a table that was read before, or the default.
///
/// # Errors
/// If the store does not answer, or a document cannot be read. The caller continues with what it knows.
pub async fn read(documents: &dyn Documents, known: &KeyTable) -> Result<KeyTable, KeysError> {
    let mut table = known.clone();
    if table.number == 0
        && let Some(number) = newest(documents).await?
        && let Some(text) = documents.read(&name(number)).await?
    {
        table = KeyTable::parse(number, &text)?;
    }
    while let Some(text) = documents.read(&name(table.number + 1)).await? {
        table = KeyTable::parse(table.number + 1, &text)?;
    }
    Ok(table)
}

/// Makes a change to the newest table. `edit` may be called several times, each time with a newer table.
///
/// # Errors
/// If `edit` refuses, the store does not answer, or others change the keys all the time.
pub async fn change<T>(
    documents: &dyn Documents,
    mut edit: impl FnMut(&mut KeyTable) -> Result<T, KeysError>,
) -> Result<T, KeysError> {
    let mut table = read(documents, &KeyTable::default()).await?;
    for _ in 0..MAX_TRIES {
        let mut next = KeyTable { number: table.number + 1, ..table.clone() };
        let outcome = edit(&mut next)?;
        if documents.create(&name(next.number), Bytes::from(next.to_json())).await? {
            // The change is made. Readers find it without this document, too.
            if let Err(error) = documents.replace(&newest_name(), Bytes::from(next.number.to_string())).await {
                tracing::warn!(%error, "cannot note the newest document of the keys; reading them takes longer");
            }
            return Ok(outcome);
        }
        table = read(documents, &table).await?;
    }
    Err(KeysError("others change the keys at the same time; nothing was changed: try again".to_owned()))
}

async fn newest(documents: &dyn Documents) -> Result<Option<u64>, KeysError> {
    let text = documents.read(&newest_name()).await?;
    Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok()))
}

fn name(number: u64) -> String {
    format!("{KEYS_FOLDER}{number:012}.json")
}

fn newest_name() -> String {
    format!("{KEYS_FOLDER}newest")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use jiff::Timestamp;

    use super::*;
    use crate::keys::{Key, NewKey, Scope};

    #[derive(Default)]
    struct InMemory(Mutex<BTreeMap<String, Bytes>>);

    #[async_trait]
    impl Documents for InMemory {
        async fn read(&self, name: &str) -> Result<Option<Bytes>, KeysError> {
            let found = self.0.lock().unwrap().get(name).cloned();
            tokio::task::yield_now().await;
            Ok(found)
        }

        async fn create(&self, name: &str, body: Bytes) -> Result<bool, KeysError> {
            tokio::task::yield_now().await;
            let mut documents = self.0.lock().unwrap();
            if documents.contains_key(name) {
                return Ok(false);
            }
            documents.insert(name.to_owned(), body);
            Ok(true)
        }

        async fn replace(&self, name: &str, body: Bytes) -> Result<(), KeysError> {
            self.0.lock().unwrap().insert(name.to_owned(), body);
            Ok(())
        }
    }

    async fn add(documents: &InMemory, name: &str) {
        let new = NewKey { name: name.to_owned(), scopes: vec![Scope::Read], valid_for: None };
        let key = Key::generate().unwrap();
        change(documents, |table| table.add(&key, &new, Timestamp::UNIX_EPOCH)).await.unwrap();
    }

    #[tokio::test]
    async fn changes_at_the_same_time_are_all_kept() {
        let documents = InMemory::default();
        let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        futures::future::join_all(names.iter().map(|name| add(&documents, name))).await;
        let table = read(&documents, &KeyTable::default()).await.unwrap();
        let mut found: Vec<&str> = table.keys.iter().map(|key| key.name.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, names);
        assert_eq!(table.number, 8);
    }

    #[tokio::test]
    async fn readers_find_every_change_wherever_they_begin() {
        let documents = InMemory::default();
        assert_eq!(read(&documents, &KeyTable::default()).await.unwrap(), KeyTable::default());
        add(&documents, "first").await;
        let first = read(&documents, &KeyTable::default()).await.unwrap();
        for name in ["second", "third"] {
            add(&documents, name).await;
        }
        change(&documents, |table| table.revoke("second")).await.unwrap();
        let newest = read(&documents, &first).await.unwrap();
        assert_eq!(newest.keys.len(), 2);
        // The note of the newest document may be old, wrong or missing.
        for note in [Some("1"), Some("99"), Some("x"), None] {
            match note {
                Some(text) => documents.replace(&newest_name(), Bytes::from(text)).await.unwrap(),
                None => drop(documents.0.lock().unwrap().remove(&newest_name())),
            }
            assert_eq!(read(&documents, &KeyTable::default()).await.unwrap(), newest, "{note:?}");
        }
    }
}
