//! The target of the load: its base URL and its API.

use std::fmt;
use std::str::FromStr;

use http::Uri;

/// A base URL, `http://host:port/path` or `https://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// True for `https://`.
    pub is_tls: bool,
    /// The host without brackets.
    pub host: String,
    /// The port; 80 or 443 if the URL has none.
    pub port: u16,
    /// Value of the `Host` header: the host, and the port if the URL has one.
    pub authority: String,
    /// The path and query; `/` if the URL has none.
    pub path_and_query: String,
}

/// The API of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// `POST /v1/classify` with JSON answers.
    #[default]
    V1,
    /// `POST /` with the form field `myfile`, answered by a label as plain text. The legacy system has this API, and
    /// imgcls has it too.
    Legacy,
}

impl Api {
    /// The name in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Api::V1 => "v1",
            Api::Legacy => "original",
        }
    }
}

impl BaseUrl {
    /// Returns true if the URL names only the server, so that the API decides the path.
    pub fn is_server(&self) -> bool {
        self.path_and_query == "/"
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri =
            with_scheme.parse().map_err(|error| format!("{error}; use a URL such as http://127.0.0.1:8080/"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            other => return Err(format!("unknown scheme {:?}; use http:// or https://", other.unwrap_or_default())),
        };
        let authority =
            uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("the URL has no host")?;
        if authority.as_str().contains('@') {
            return Err("user names in the URL are not supported".to_owned());
        }
        Ok(BaseUrl {
            is_tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path_and_query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_port_and_path_of_a_url_are_optional() {
        let url: BaseUrl = "http://127.0.0.1:8080".parse().expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.path_and_query.as_str()), ("127.0.0.1", 8080, "/"));
        assert!(url.is_server());
        assert_eq!(url.to_string(), "http://127.0.0.1:8080/");
        let url: BaseUrl = "[::1]:81/classify?x=1".parse().expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.path_and_query.as_str()), ("::1", 81, "/classify?x=1"));
        assert_eq!(url.authority, "[::1]:81");
        assert_eq!("http://web.example".parse::<BaseUrl>().expect("valid").port, 80);
        let url: BaseUrl = "https://web.example".parse().expect("valid");
        assert_eq!((url.port, url.is_tls, url.to_string().as_str()), (443, true, "https://web.example/"));
    }

    #[test]
    fn unsupported_urls_are_refused_with_advice() {
        let refused = |text: &str| text.parse::<BaseUrl>().expect_err(text);
        assert!(refused("ftp://web.example/").contains("http://"));
        assert!(refused("http://me@web.example/").contains("user names"));
        for bad in ["", "http://", "http://a b/", "http:///x"] {
            refused(bad);
        }
    }
}
