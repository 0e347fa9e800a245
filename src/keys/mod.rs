//! The keys of clients: their form, what is stored of them, and which jobs belong to them.
//!
//! - [`Key`] is the secret that a client sends, and [`KeyHash`] is what is stored of it.
//! - [`KeyRecord`] describes a key: name, [`Scope`]s, expiry. [`KeyTable`] has all keys of a service.
//! - [`journal`] stores the table as numbered documents ([`Documents`]), so that processes that change it at the same
//!   time lose no change.
//! - [`WebhookSecrets`] signs the callbacks of each key.
//! - [`KeyHash::mark`] makes the id of a job show which key it belongs to.

mod hash;
pub mod journal;
mod key;
mod record;
mod table;
mod webhook;

pub use self::hash::KeyHash;
pub use self::journal::Documents;
pub use self::key::Key;
pub use self::record::{KeyRecord, Scope};
pub use self::table::{KeyTable, KeysError, NewKey};
pub use self::webhook::{WebhookSecret, WebhookSecrets};
