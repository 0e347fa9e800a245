//! The addresses of NATS, and how to log in there.

use std::path::PathBuf;

use url::Url;

/// The address where a NATS server of this machine listens by default.
pub const DEFAULT_NATS_URL: &str = "nats://127.0.0.1:4222";
/// The schemes of addresses of NATS.
const SCHEMES: [&str; 2] = ["nats", "tls"];

/// The addresses of NATS, and how to log in there. Its `Debug` and [`NatsLocation::servers`] show no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsLocation {
    /// Addresses of servers, separated by commas. User and password, or a token, may stand before the host.
    pub url: String,
    /// A file of credentials, as `nsc` writes them: a JWT and the seed of its key.
    pub credentials: Option<PathBuf>,
    /// Certificates of the authorities that may have signed those of the servers. With it, TLS is required.
    pub ca: Option<PathBuf>,
    /// How many servers keep each stream that is created.
    pub replicas: u8,
}

/// The login that an address contains.
#[derive(Clone, PartialEq, Eq)]
pub enum NatsLogin {
    /// The address has none.
    None,
    /// User and password.
    User {
        /// The name.
        name: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
}

impl NatsLocation {
    /// The addresses without logins, for messages and logs.
    pub fn servers(&self) -> String {
        match self.urls() {
            Ok(urls) => urls.into_iter().map(|url| shown(&url)).collect::<Vec<_>>().join(","),
            Err(_) => "an address that cannot be read".to_owned(),
        }
    }

    /// The addresses without logins, one by one.
    ///
    /// # Errors
    /// One line without any part of the address.
    pub fn addresses(&self) -> Result<Vec<String>, String> {
        Ok(self.urls()?.iter().map(shown).collect())
    }

    /// The login of the first address that has one.
    ///
    /// # Errors
    /// One line without any part of the address.
    pub fn login(&self) -> Result<NatsLogin, String> {
        let urls = self.urls()?;
        let Some(url) = urls.iter().find(|url| !url.username().is_empty() || url.password().is_some()) else {
            return Ok(NatsLogin::None);
        };
        let name = plain(url.username());
        Ok(match url.password() {
            Some(password) => NatsLogin::User { name, password: plain(password) },
            None => NatsLogin::Token(name),
        })
    }

    fn urls(&self) -> Result<Vec<Url>, String> {
        self.url.split(',').map(|text| nats_url(text.trim())).collect()
    }
}

impl std::fmt::Debug for NatsLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NatsLocation { url: _, credentials, ca, replicas } = self;
        let mut shown = f.debug_struct("NatsLocation");
        let shown = shown.field("servers", &self.servers()).field("credentials", credentials);
        shown.field("ca", ca).field("replicas", replicas).finish()
    }
}

/// Parses one address. The error shows no part of it, since it may hold a password.
fn nats_url(text: &str) -> Result<Url, String> {
    let wrong = || "an address of NATS has the form nats://HOST:4222 or tls://HOST:4222".to_owned();
    let text = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
    let url = Url::parse(&text).map_err(|_| wrong())?;
    let is_address = SCHEMES.contains(&url.scheme()) && url.host_str().is_some_and(|host| !host.is_empty());
    let is_plain = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if is_address && is_plain { Ok(url) } else { Err(wrong()) }
}

/// The address without a login.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}:{}", url.scheme(), url.port().unwrap_or(4222))
}

fn plain(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> NatsLocation {
        NatsLocation { url: url.to_owned(), credentials: None, ca: None, replicas: 1 }
    }

    #[test]
    fn addresses_may_contain_a_login_which_is_never_shown() {
        let place = location("nats://ann:se%40cret@a.example:4223, tls://b.example");
        let user = NatsLogin::User { name: "ann".to_owned(), password: "se@cret".to_owned() };
        assert!(place.login() == Ok(user));
        assert_eq!(place.servers(), "nats://a.example:4223,tls://b.example:4222");
        assert!(!format!("{place:?}").contains("cret"), "{place:?}");
        assert!(location("nats://t0ken@h").login() == Ok(NatsLogin::Token("t0ken".to_owned())));
        assert!(location(DEFAULT_NATS_URL).login() == Ok(NatsLogin::None));
        assert_eq!(location("h:1").servers(), "nats://h:1");
        assert_eq!(location("[::1]").servers(), "nats://[::1]:4222");
    }

    #[test]
    fn addresses_that_are_refused_are_not_repeated() {
        for wrong in ["http://user:hunter2@h", "nats://hunter2@", "nats://h/hunter2", "", "nats://a, ,"] {
            let error = location(wrong).addresses().expect_err(wrong);
            assert!(!error.contains("hunter2"), "{error}");
            assert!(!location(wrong).servers().contains("hunter2"));
        }
    }
}
