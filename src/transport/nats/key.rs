//! Keys of objects as subjects of NATS. The parts of a key between slashes are tokens, so that keys of a folder have a
//! wildcard. Characters that a subject or a key of JetStream's key-value store cannot have are written as `=` and two
//! hexadecimal digits.

use std::fmt::Write as _;

/// Returns the subject of a key, relative to the subject of its bucket.
pub(super) fn encoded(key: &str) -> String {
    let tokens: Vec<String> = key.split('/').map(token).collect();
    tokens.join(".")
}

/// Returns the wildcard of the keys that begin with `prefix`, and maybe of more.
pub(super) fn wildcard(prefix: &str) -> String {
    match prefix.rsplit_once('/') {
        Some((folder, _)) => format!("{}.>", encoded(folder)),
        None => ">".to_owned(),
    }
}

/// Returns the key of a subject. `None` if it is not the subject of a key.
pub(super) fn decoded(subject: &str) -> Option<String> {
    let mut parts = Vec::new();
    for token in subject.split('.') {
        parts.push(if token == "=" { String::new() } else { of_token(token)? });
    }
    Some(parts.join("/"))
}

fn token(part: &str) -> String {
    if part.is_empty() {
        return "=".to_owned();
    }
    let mut token = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            let _ = write!(token, "={byte:02X}");
        }
    }
    token
}

fn of_token(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'=' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_of_keys_give_the_keys_again() {
        for key in ["images/0", "results/.idempotency/ab.json", "a//b/", "ünï 漢/=2E*>", "/", "-_"] {
            let subject = encoded(key);
            assert!(subject.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte)), "{subject}");
            assert!(!subject.contains("..") && !subject.ends_with('.'), "{subject}");
            assert_eq!(decoded(&subject).as_deref(), Some(key));
        }
        assert_eq!(decoded("=c.abc.0"), None, "a piece of an object is no key");
    }

    #[test]
    fn wildcards_contain_the_keys_of_a_prefix() {
        assert_eq!(wildcard("results/.idempotency/a"), "results.=2Eidempotency.>");
        assert_eq!((wildcard("res"), wildcard("")), (">".to_owned(), ">".to_owned()));
    }
}
