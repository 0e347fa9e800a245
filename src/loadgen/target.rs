//! Where requests go: the base URL and the API that is spoken there.

use std::fmt;
use std::str::FromStr;

use http::Uri;

/// `http://host:port/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// Without brackets.
    pub host: String,
    pub port: u16,
    /// Value of the `Host` header: the host, and the port where it was given.
    pub authority: String,
    /// `/` where none was given.
    pub path_and_query: String,
}

/// Which API the target speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// `POST /v1/classify`, JSON answers.
    #[default]
    V1,
    /// `POST /` with the form field `myfile`, answered by a label as plain text: the system that imgcls replaces, and
    /// imgcls itself.
    Original,
}

impl Api {
    pub fn as_str(self) -> &'static str {
        match self {
            Api::V1 => "v1",
            Api::Original => "original",
        }
    }
}

impl BaseUrl {
    /// Whether only the server was named and the API decides the path.
    pub fn is_server(&self) -> bool {
        self.path_and_query == "/"
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri =
            with_scheme.parse().map_err(|error| format!("{error}; a URL such as http://127.0.0.1:8080/ is wanted"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "only http:// is spoken here: TLS ends in front of the service, give the http address behind it"
                        .to_owned(),
                );
            }
            other => return Err(format!("unknown scheme {:?}, http:// is wanted", other.unwrap_or_default())),
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("no host in it")?;
        if authority.as_str().contains('@') {
            return Err("user names in the URL are not supported".to_owned());
        }
        Ok(BaseUrl {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path_and_query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_with_and_without_its_parts() {
        let url: BaseUrl = "http://127.0.0.1:8080".parse().expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.path_and_query.as_str()), ("127.0.0.1", 8080, "/"));
        assert!(url.is_server());
        assert_eq!(url.to_string(), "http://127.0.0.1:8080/");
        let url: BaseUrl = "[::1]:81/classify?x=1".parse().expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.path_and_query.as_str()), ("::1", 81, "/classify?x=1"));
        assert_eq!(url.authority, "[::1]:81");
        assert_eq!("http://web.example".parse::<BaseUrl>().expect("valid").port, 80);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() {
        let refused = |text: &str| text.parse::<BaseUrl>().expect_err(text);
        assert!(refused("https://web.example/").contains("TLS ends in front"));
        assert!(refused("ftp://web.example/").contains("http://"));
        assert!(refused("http://me@web.example/").contains("user names"));
        for bad in ["", "http://", "http://a b/", "http:///x"] {
            refused(bad);
        }
    }
}
