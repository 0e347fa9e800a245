//! The first key of a stack whose clients need one.

use anyhow::Context as _;

use crate::clock;
use crate::config::{Backend, Names};
use crate::keys::{Key, KeyTable, NewKey, Scope, journal};
use crate::transport;

/// The name of the key in `imgcls keys list`.
const NAME: &str = "provision";

/// Creates a key that may do everything, unless the stack has a valid key. Returns the new one, which the caller prints.
///
/// # Errors
/// If the keys in the input bucket cannot be read or changed.
pub(super) async fn create(backend: &Backend, names: &Names) -> anyhow::Result<Option<Key>> {
    let documents = Box::pin(transport::open_key_documents(backend, names)).await?;
    let now = clock::now();
    if journal::read(&*documents, &KeyTable::default()).await?.has_valid_key(now) {
        return Ok(None);
    }
    let key = Key::generate().context("the system gave no random numbers")?;
    let new = NewKey { name: NAME.to_owned(), scopes: vec![Scope::Admin], valid_for: None };
    journal::change(&*documents, |table| table.add(&key, &new, now)).await?;
    Ok(Some(key))
}
