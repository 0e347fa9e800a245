//! The decision whether a request may pass: pure, of what it needs and of the key that it has.

use jiff::Timestamp;

use super::need::Need;
use super::principal::Principal;
use crate::keys::{KeyRecord, Scope};

/// How a web tier decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    /// Requests need a key.
    pub(super) requires_key: bool,
    /// Routes of operators need no key: on a loopback address without keys.
    pub(super) is_open_to_operators: bool,
}

/// The key of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presented {
    /// The request has none.
    Nothing,
    /// The service has no such key.
    Unknown,
    /// The service has this key.
    Known(std::sync::Arc<KeyRecord>),
}

/// Why a request may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoKey,
    WrongKey,
    ExpiredKey(Timestamp),
    MissingScope(Scope),
    /// The job belongs to another key. The client is told that there is no such job.
    NotOwner,
}

impl Refusal {
    /// The label of the metric and of the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Refusal::NoKey => "no_key",
            Refusal::WrongKey => "wrong_key",
            Refusal::ExpiredKey(_) => "expired_key",
            Refusal::MissingScope(_) => "missing_scope",
            Refusal::NotOwner => "not_owner",
        }
    }
}

/// Decides on a request. Returns the principal, which handlers ask about jobs.
pub(super) fn decide(policy: Policy, need: Need, presented: &Presented, now: Timestamp) -> Result<Principal, Refusal> {
    let is_open = match need {
        Need::Nothing => true,
        Need::Operate => policy.is_open_to_operators,
        _ => !policy.requires_key,
    };
    if is_open {
        return Ok(Principal::everybody());
    }
    let key = match presented {
        Presented::Nothing => return Err(Refusal::NoKey),
        Presented::Unknown => return Err(Refusal::WrongKey),
        Presented::Known(key) => key,
    };
    if let Some(at) = key.expires_at.filter(|_| key.is_expired(now)) {
        return Err(Refusal::ExpiredKey(at));
    }
    let principal = Principal::of(std::sync::Arc::clone(key));
    match need {
        Need::Nothing | Need::AnyKey => Ok(principal),
        Need::Submit if key.may(Scope::Classify) => Ok(principal),
        Need::Submit => Err(Refusal::MissingScope(Scope::Classify)),
        Need::Operate if key.may(Scope::Admin) => Ok(principal),
        Need::Operate => Err(Refusal::MissingScope(Scope::Admin)),
        Need::ReadJob(id) if principal.may_read(id) => Ok(principal),
        Need::ChangeJob(id) if principal.may_change(id) => Ok(principal),
        // A key that may read the job knows that it exists.
        Need::ChangeJob(id) if principal.may_read(id) => Err(Refusal::MissingScope(Scope::Admin)),
        Need::ReadJob(_) | Need::ChangeJob(_) => Err(Refusal::NotOwner),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::clock;
    use crate::keys::KeyHash;

    const CLOSED: Policy = Policy { requires_key: true, is_open_to_operators: false };

    fn key(text: &str, scopes: &[Scope], expires_at: i64) -> Presented {
        Presented::Known(Arc::new(KeyRecord {
            hash: KeyHash::of(text.as_bytes()),
            name: text.to_owned(),
            scopes: scopes.to_vec(),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Some(Timestamp::from_second(expires_at).unwrap()),
        }))
    }

    /// Every need with every kind of key: `y` passes, `n` has no key or a wrong one, `s` lacks a scope, `o` is told that
    /// there is no such job.
    #[test]
    fn every_need_is_decided_for_every_kind_of_key() {
        let mine = KeyHash::of(b"classify").mark(clock::new_id());
        let nobodys = clock::new_id();
        let keys = [
            Presented::Nothing,
            Presented::Unknown,
            key("expired", &[Scope::Admin], 9),
            key("classify", &[Scope::Classify], 11),
            key("read", &[Scope::Read], 11),
            key("admin", &[Scope::Admin], 11),
        ];
        let table: [(Need, &str); 8] = [
            (Need::Nothing, "yyyyyy"),
            (Need::AnyKey, "nnnyyy"),
            (Need::Submit, "nnnysy"),
            (Need::Operate, "nnnssy"),
            (Need::ReadJob(mine), "nnnyyy"),
            (Need::ReadJob(nobodys), "nnnoyy"),
            (Need::ChangeJob(mine), "nnnysy"),
            (Need::ChangeJob(nobodys), "nnnosy"),
        ];
        let now = Timestamp::from_second(10).unwrap();
        for (need, expected) in table {
            for (key, expected) in keys.iter().zip(expected.chars()) {
                let outcome = match decide(CLOSED, need, key, now) {
                    Ok(_) => 'y',
                    Err(Refusal::MissingScope(_)) => 's',
                    Err(Refusal::NotOwner) => 'o',
                    Err(_) => 'n',
                };
                assert_eq!(outcome, expected, "{need:?} with {key:?}");
            }
        }
    }

    #[test]
    fn without_required_keys_only_operators_may_need_one() {
        let open = Policy { requires_key: false, is_open_to_operators: true };
        let exposed = Policy { is_open_to_operators: false, ..open };
        let id = Uuid::from_u128(1);
        for need in [Need::Submit, Need::AnyKey, Need::ReadJob(id), Need::ChangeJob(id)] {
            let principal = decide(exposed, need, &Presented::Unknown, Timestamp::UNIX_EPOCH).unwrap();
            assert!(principal.may_read(id) && principal.may_change(id), "{need:?}");
        }
        assert!(decide(open, Need::Operate, &Presented::Nothing, Timestamp::UNIX_EPOCH).is_ok());
        let refused = decide(exposed, Need::Operate, &Presented::Nothing, Timestamp::UNIX_EPOCH);
        assert_eq!(refused.err(), Some(Refusal::NoKey));
    }
}
