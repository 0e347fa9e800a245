//! The secret of a client.

use rand::TryRngCore as _;
use rand::rngs::OsRng;

use super::hash::KeyHash;

/// The beginning of every key, by which people and scanners for secrets recognise one.
const PREFIX: &str = "imgcls_";
const SECRET_BYTES: usize = 32;

/// A key: 256 random bits. It is shown once, when it is made, and only its hash is stored. It has no `Debug`, so that
/// no log can contain it.
pub struct Key(String);

impl Key {
    /// Makes a new key from the random numbers of the system.
    ///
    /// # Errors
    /// If the system has none.
    pub fn generate() -> std::io::Result<Key> {
        let mut secret = [0; SECRET_BYTES];
        OsRng.try_fill_bytes(&mut secret).map_err(std::io::Error::other)?;
        Ok(Key(format!("{PREFIX}{}", super::hash::hex(&secret))))
    }

    /// The text that the client sends. Only the command that made the key prints it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The hash that is stored.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.0.as_bytes())
    }
}
