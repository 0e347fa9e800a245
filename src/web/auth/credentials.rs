//! The key that a request carries. Clients of several kinds send it in several ways.

use axum::http::{HeaderMap, HeaderName, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::keys::KeyHash;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longer texts are no key.
const MAX_KEY_BYTES: usize = 256;

/// Returns the hash of the key in a request, or `None` if there is none. The text itself is not kept, so that nothing
/// can log it.
///
/// - `Authorization: Bearer KEY`, or `Token KEY`.
/// - `Authorization: Basic …` with the key as password, and any user name; or as user name without a password.
/// - `Authorization: AWS4-HMAC-SHA256 Credential=KEY/…`: the access key id of AWS's clients. Their signature is not
///   checked, because checking it would need the key itself, and only its hash is stored.
/// - `X-Api-Key: KEY`.
pub(super) fn presented(headers: &HeaderMap) -> Option<KeyHash> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| of_authorization(value.as_bytes()));
    authorization.or_else(|| headers.get(X_API_KEY).and_then(|value| hash(value.as_bytes())))
}

fn of_authorization(value: &[u8]) -> Option<KeyHash> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&value[..at], value[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token") {
        return hash(rest);
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = BASE64_STANDARD.decode(rest).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':').unwrap_or(pair.len());
        let password = pair.get(colon + 1..).unwrap_or_default();
        return hash(if password.is_empty() { &pair[..colon] } else { password });
    }
    if scheme.eq_ignore_ascii_case(b"aws4-hmac-sha256") {
        let mut parameters = rest.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let credential = parameters.find_map(|parameter| parameter.strip_prefix(b"Credential="))?;
        return hash(credential.split(|byte| *byte == b'/').next()?);
    }
    None
}

fn hash(key: &[u8]) -> Option<KeyHash> {
    let key = key.trim_ascii();
    (!key.is_empty() && key.len() <= MAX_KEY_BYTES).then(|| KeyHash::of(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &str)]) -> Option<KeyHash> {
        let pairs = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        presented(&pairs.collect())
    }

    #[test]
    fn every_kind_of_client_can_send_a_key() {
        let key = Some(KeyHash::of(b"imgcls_00"));
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for value in [
            "Bearer imgcls_00",
            "bearer   imgcls_00",
            "Token imgcls_00",
            &basic("anybody:imgcls_00"),
            &basic(":imgcls_00"),
            &basic("imgcls_00:"),
            &basic("imgcls_00"),
            "AWS4-HMAC-SHA256 Credential=imgcls_00/20260101/us-east-1/rekognition/aws4_request, SignedHeaders=host, \
             Signature=0000",
            "AWS4-HMAC-SHA256 SignedHeaders=host,Signature=0,Credential=imgcls_00/20260101",
        ] {
            assert_eq!(of(&[("authorization", value)]), key, "{value}");
        }
        assert_eq!(of(&[("x-api-key", "imgcls_00")]), key);
        assert_eq!(of(&[("authorization", "Digest x"), ("x-api-key", "imgcls_00")]), key);
        for value in [
            "Bearer",
            "Bearer ",
            "Basic !",
            "Basic ",
            "imgcls_00",
            "Negotiate imgcls_00",
            "AWS4-HMAC-SHA256 x",
            &basic(":"),
        ] {
            assert_eq!(of(&[("authorization", value)]), None, "{value}");
        }
        assert_eq!(of(&[("x-api-key", &"x".repeat(257))]), None);
        assert_eq!(of(&[]), None);
    }
}
