//! The secrets that callbacks are signed with, as Standard Webhooks says (<https://www.standardwebhooks.com>).
//!
//! A service stores one random secret beside its keys. The secret of a key is derived from that and the hash of the key, so
//! that every web process knows it, and creating or revoking keys changes nothing that is stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use ring::hmac;

use super::journal::{Documents, KEYS_FOLDER};
use super::table::KeysError;

const SECRET_BYTES: usize = 32;
/// Makes the derived secrets different from every other hash of the same parts.
const DOMAIN: &[u8] = b"imgcls secret of callbacks\0";

/// The secret of a service, from which those of its keys are derived. It has no `Debug`, so that no log can contain it.
pub struct WebhookSecrets([u8; SECRET_BYTES]);

/// The secret that signs the callbacks of one key, or those of clients without a key.
pub struct WebhookSecret([u8; SECRET_BYTES]);

impl WebhookSecrets {
    /// Reads the secret of the service. It is made when there is none.
    ///
    /// # Errors
    /// If it can neither be read nor made.
    pub async fn open(documents: &dyn Documents) -> Result<WebhookSecrets, KeysError> {
        let name = format!("{KEYS_FOLDER}webhook-secret");
        if let Some(stored) = documents.read(&name).await? {
            return WebhookSecrets::parse(&stored);
        }
        let made = random_bytes()?;
        if documents.create(&name, Bytes::from(super::hash::hex(&made))).await? {
            return Ok(WebhookSecrets(made));
        }
        // Another process made it at the same time.
        match documents.read(&name).await? {
            Some(stored) => WebhookSecrets::parse(&stored),
            None => Err(KeysError("the secret of callbacks was deleted at this moment; try again".to_owned())),
        }
    }

    fn parse(stored: &[u8]) -> Result<WebhookSecrets, KeysError> {
        let damaged = || KeysError("the stored secret of callbacks is damaged; restore it".to_owned());
        let text = std::str::from_utf8(stored).map_err(|_| damaged())?.trim();
        let mut secret = [0; SECRET_BYTES];
        if text.len() != 2 * SECRET_BYTES || !text.is_ascii() {
            return Err(damaged());
        }
        for (byte, at) in secret.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| damaged())?;
        }
        Ok(WebhookSecrets(secret))
    }

    /// The secret of a key, by its hash in hexadecimal; `None` for that of clients without a key.
    pub fn of(&self, key: Option<&str>) -> WebhookSecret {
        let mut message = DOMAIN.to_vec();
        message.extend_from_slice(key.unwrap_or_default().as_bytes());
        let mut secret = [0; SECRET_BYTES];
        secret.copy_from_slice(&hmac_sha256(&self.0, &message));
        WebhookSecret(secret)
    }
}

impl WebhookSecret {
    /// Makes a secret of its own, which belongs to no service.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate() -> Result<WebhookSecret, KeysError> {
        random_bytes().map(WebhookSecret)
    }

    /// Reads the text of [`WebhookSecret::reveal`]. `None` if it is another one.
    pub fn parse(text: &str) -> Option<WebhookSecret> {
        let bytes = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
        bytes.try_into().ok().map(WebhookSecret)
    }

    /// The text for the receiver. Only the command that is asked for it prints it.
    pub fn reveal(&self) -> String {
        format!("whsec_{}", STANDARD.encode(self.0))
    }

    /// The signature of a call: its id, the time in seconds since the Unix epoch, and its body.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut message = format!("{id}.{timestamp}.").into_bytes();
        message.extend_from_slice(body);
        format!("v1,{}", STANDARD.encode(hmac_sha256(&self.0, &message)))
    }
}

fn random_bytes() -> Result<[u8; SECRET_BYTES], KeysError> {
    let mut bytes = [0; SECRET_BYTES];
    let no_random = |error| KeysError(format!("the system gave no random numbers: {error}"));
    OsRng.try_fill_bytes(&mut bytes).map_err(no_random)?;
    Ok(bytes)
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signature_is_that_of_standard_webhooks() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let message = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}";
        let signature = STANDARD.encode(hmac_sha256(&secret, message));
        assert_eq!(signature, "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_key_has_a_secret_of_its_own() {
        let service = WebhookSecrets([7; SECRET_BYTES]);
        let [nobody, one, other] = [None, Some("00"), Some("01")].map(|key| service.of(key).reveal());
        assert!(nobody != one && one != other && nobody != other);
        assert_eq!(WebhookSecrets([7; SECRET_BYTES]).of(Some("00")).reveal(), one);
        assert_ne!(WebhookSecrets([8; SECRET_BYTES]).of(Some("00")).reveal(), one);
        assert!(one.starts_with("whsec_") && STANDARD.decode(&one[6..]).unwrap().len() == SECRET_BYTES);
    }

    #[test]
    fn stored_secret_is_read_or_reported_as_damaged() {
        let text = "0f".repeat(SECRET_BYTES);
        assert_eq!(WebhookSecrets::parse(text.as_bytes()).ok().unwrap().0, [15; SECRET_BYTES]);
        for wrong in ["", "0f", &"zz".repeat(SECRET_BYTES), &"\u{e9}".repeat(SECRET_BYTES)] {
            assert!(WebhookSecrets::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
