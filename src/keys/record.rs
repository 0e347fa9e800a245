//! The description of one key.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hash::KeyHash;

/// Something that a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Submit images, and read and delete the jobs of this key.
    Classify,
    /// Read any job.
    Read,
    /// Everything, also what is for operators.
    Admin,
}

impl Scope {
    /// The name in flags, lists and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Classify => "classify",
            Scope::Read => "read",
            Scope::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Scope, String> {
        let all = [Scope::Classify, Scope::Read, Scope::Admin];
        let found = all.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not a scope: give classify, read or admin, or several with commas"))
    }
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The hash of the key.
    pub hash: KeyHash,
    /// The name of the key in lists.
    pub name: String,
    /// The scopes of the key; never empty.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused. `None` means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl KeyRecord {
    /// Returns true if the key has the scope, or `admin`, which includes all others.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Returns true if the key has expired at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The scopes, separated by commas.
    pub fn scopes_text(&self) -> String {
        let names: Vec<&str> = self.scopes.iter().map(|scope| scope.as_str()).collect();
        names.join(",")
    }
}
