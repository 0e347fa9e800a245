//! Decides whether the service may call an address that a client named. This file does no I/O.
//!
//! There are two checks. [`Allowed::check_url`] checks what the client wrote, so that a wrong address is refused at once. It
//! takes a URL only in its plain form: parsers disagree about the others, and nobody needs them. [`Allowed::check_address`]
//! checks an address that a connection is about to be made to. That one counts, because what a name stands for may change.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use url::{Host, Url};

use super::ranges::special_kind;
use crate::config::{self, Cidr};

/// The longest address that is accepted, in bytes.
const MAX_URL_BYTES: usize = 2_048;
/// The ports that may be called: those of HTTP. Others belong to services that may take a request for their own protocol.
const PORTS: [u16; 4] = [80, 443, 8080, 8443];
/// The last parts of names that only exist in a private network or on one machine.
const PRIVATE_SUFFIXES: [&str; 6] = ["localhost", "localdomain", "local", "internal", "intranet", "home.arpa"];

/// The hosts and networks that may be called although they are not public.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed(pub Vec<AllowedPlace>);

/// A host or a network that may be called, at any port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedPlace {
    /// The host with this name, whatever its addresses are.
    Host(String),
    /// The addresses of this network.
    Network(Cidr),
}

impl FromStr for AllowedPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let looks_like_address = text.contains([':', '/']) || text.split('.').next_back().is_some_and(is_number);
        if looks_like_address {
            return text.parse().map(AllowedPlace::Network);
        }
        config::host_name(text).map(AllowedPlace::Host)
    }
}

/// An address that may be called, as far as it can be known without looking up its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
    host: String,
    address: Option<IpAddr>,
    port: u16,
}

/// The reason why an address may not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no URL, or one that parsers may understand in different ways.
    #[error("it is not a plain URL such as https://receiver.example/path ({0})")]
    Form(&'static str),
    /// The scheme is neither `http` nor `https`.
    #[error("its scheme is neither https nor http")]
    Scheme,
    /// The URL contains a user name or a password.
    #[error("it contains a user name or a password; leave them out")]
    UserInfo,
    /// The host is a number that is not written as an address.
    #[error("its host is an address in an unusual notation; write it as 192.0.2.1 or [2001:db8::1]")]
    Notation,
    /// The port is not one of HTTP.
    #[error("its port {0} may not be called; use 443, 80, 8080 or 8443")]
    Port(u16),
    /// The name belongs to a private network.
    #[error("its host name is not a public one")]
    PrivateName,
    /// The address is not public.
    #[error("its address is {0}, not a public one")]
    Address(&'static str),
}

impl Target {
    /// The URL that is called.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The host: a name in lower case, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address, if the URL has one instead of a name.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.map(|address| SocketAddr::new(address, self.port))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns true if the connection uses TLS.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The URL without its query, for logs: a query may contain a secret.
    pub fn without_query(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.into()
    }
}

impl Allowed {
    /// Checks an address that a client wrote.
    ///
    /// # Errors
    /// The reason why it may not be called.
    pub fn check_url(&self, text: &str) -> Result<Target, Refusal> {
        let authority = authority(text)?;
        let mut url = Url::parse(text).map_err(|_| Refusal::Form("it cannot be parsed"))?;
        url.set_fragment(None);
        if authority.contains('@') {
            return Err(Refusal::UserInfo);
        }
        let written = without_port(authority).to_ascii_lowercase();
        let port = url.port_or_known_default().ok_or(Refusal::Scheme)?;
        let (host, address) = match url.host() {
            Some(Host::Ipv4(address)) if written == address.to_string() => (written, Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            Some(Host::Domain(name)) if written == name => (name.trim_end_matches('.').to_owned(), None),
            Some(Host::Ipv4(_)) => return Err(Refusal::Notation),
            _ => return Err(Refusal::Form("its host is not written plainly")),
        };
        match address {
            Some(address) => self.check_address(&host, address)?,
            None => self.check_name(&host)?,
        }
        if port == 0 || !(PORTS.contains(&port) || self.is_listed(&host, address)) {
            return Err(Refusal::Port(port));
        }
        Ok(Target { url, host, address, port })
    }

    /// Checks an address that a connection to `host` is about to be made to.
    ///
    /// # Errors
    /// [`Refusal::Address`] if it is not public, and neither it nor the host is listed.
    pub fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Refusal> {
        match special_kind(address) {
            Some(kind) if !self.is_listed(host, Some(address)) => Err(Refusal::Address(kind)),
            _ => Ok(()),
        }
    }

    /// Checks an address that a connection for `target` is about to be made to.
    ///
    /// # Errors
    /// As [`Allowed::check_address`]; [`Refusal::Port`] if the port may only be called in a network that is listed.
    pub fn check_connection(&self, target: &Target, address: IpAddr) -> Result<(), Refusal> {
        self.check_address(&target.host, address)?;
        if PORTS.contains(&target.port) || self.is_listed(&target.host, Some(address)) {
            return Ok(());
        }
        Err(Refusal::Port(target.port))
    }

    /// A name may also turn out to stand for an address that is not public. Here those are refused that cannot be public.
    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        let is_below = |suffix: &&str| name == *suffix || name.ends_with(&format!(".{suffix}"));
        let is_private = !name.contains('.') || PRIVATE_SUFFIXES.iter().any(is_below);
        // Such a name may stand for an address in a network that is listed.
        let may_be_listed = self.is_listed(name, None) || self.0.iter().any(AllowedPlace::is_network);
        if is_private && !may_be_listed { Err(Refusal::PrivateName) } else { Ok(()) }
    }

    fn is_listed(&self, host: &str, address: Option<IpAddr>) -> bool {
        self.0.iter().any(|place| match (place, address) {
            (AllowedPlace::Host(name), _) => name == host,
            (AllowedPlace::Network(network), Some(address)) => {
                network.contains(address) || network.contains(address.to_canonical())
            }
            // The addresses behind a name are checked before each connection.
            (AllowedPlace::Network(_), None) => true,
        })
    }
}

impl AllowedPlace {
    fn is_network(&self) -> bool {
        matches!(self, AllowedPlace::Network(_))
    }
}

/// Returns the part of a URL between `//` and the path.
fn authority(text: &str) -> Result<&str, Refusal> {
    if text.len() > MAX_URL_BYTES {
        return Err(Refusal::Form("it is longer than 2048 bytes"));
    }
    // Parsers drop some of these characters, and take a backslash for a slash.
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Err(Refusal::Form("it has characters other than plain ASCII, or a backslash"));
    }
    let Some((scheme, rest)) = text.split_once(':') else { return Err(Refusal::Form("it has no scheme")) };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(Refusal::Scheme);
    }
    let rest = rest.strip_prefix("//").ok_or(Refusal::Form("two slashes follow its scheme"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() { Err(Refusal::Form("it has no host")) } else { Ok(authority) }
}

/// Removes the port from an authority without user information.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(places: &[&str]) -> Allowed {
        Allowed(places.iter().map(|place| place.parse().expect("a place of the test")).collect())
    }

    fn refusal(text: &str) -> Option<Refusal> {
        Allowed::default().check_url(text).err()
    }

    #[test]
    fn public_addresses_may_be_called() {
        for (url, host, port) in [
            ("https://receiver.example/hook?token=1", "receiver.example", 443),
            ("http://receiver.example", "receiver.example", 80),
            ("HTTPS://Receiver.Example:8443/", "receiver.example", 8443),
            ("http://receiver.example:8080/a", "receiver.example", 8080),
            ("https://receiver.example./", "receiver.example", 443),
            ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
            ("https://8.8.8.8/", "8.8.8.8", 443),
            ("https://172.15.255.255/", "172.15.255.255", 443),
            ("https://172.32.0.1/", "172.32.0.1", 443),
            ("https://100.128.0.1/", "100.128.0.1", 443),
            ("https://[2606:4700::1111]/", "2606:4700::1111", 443),
            ("https://[64:ff9b::808:808]/", "64:ff9b::808:808", 443),
            ("https://receiver.example/#part", "receiver.example", 443),
            ("https://1.2.3.4.example/", "1.2.3.4.example", 443),
            ("https://localhost.example/", "localhost.example", 443),
        ] {
            let target = Allowed::default().check_url(url).unwrap_or_else(|refusal| panic!("{url}: {refusal}"));
            assert_eq!((target.host(), target.port()), (host, port), "{url}");
        }
    }

    /// Each row is an attempt to reach what a client must not reach.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of attempts")]
    fn other_addresses_are_refused() {
        let this_machine = Refusal::Address("of this machine");
        let (private, link_local) = (Refusal::Address("private"), Refusal::Address("link-local"));
        let (reserved, multicast) = (Refusal::Address("reserved"), Refusal::Address("multicast"));
        let documentation = Refusal::Address("reserved for documentation");
        let characters = Refusal::Form("it has characters other than plain ASCII, or a backslash");
        let not_plain = Refusal::Form("its host is not written plainly");
        let unparsable = Refusal::Form("it cannot be parsed");
        let rows: Vec<(&str, Refusal)> = vec![
            // Addresses in their usual notation.
            ("http://127.0.0.1/", this_machine.clone()),
            ("http://127.255.255.254/", this_machine.clone()),
            ("http://0.0.0.0/", this_machine.clone()),
            ("http://0.1.2.3/", this_machine.clone()),
            ("http://10.0.0.1/", private.clone()),
            ("http://172.16.0.1/", private.clone()),
            ("http://172.31.255.255/", private.clone()),
            ("http://192.168.1.1/", private.clone()),
            ("http://169.254.169.254/latest/meta-data/", link_local.clone()),
            ("http://169.254.170.2/v2/credentials", link_local.clone()),
            ("http://100.64.0.1/", Refusal::Address("of a carrier's network")),
            ("http://100.100.100.200/", Refusal::Address("of a carrier's network")),
            ("http://100.127.255.255/", Refusal::Address("of a carrier's network")),
            ("http://168.63.129.16/", Refusal::Address("of the metadata of a cloud")),
            ("http://192.0.0.192/", reserved.clone()),
            ("http://192.0.2.1/", documentation.clone()),
            ("http://198.51.100.1/", documentation.clone()),
            ("http://203.0.113.1/", documentation.clone()),
            ("http://192.88.99.1/", Refusal::Address("of 6to4 relays")),
            ("http://198.18.0.1/", Refusal::Address("reserved for benchmarks")),
            ("http://198.19.255.255/", Refusal::Address("reserved for benchmarks")),
            ("http://224.0.0.1/", multicast.clone()),
            ("http://239.255.255.255/", multicast.clone()),
            ("http://240.0.0.1/", reserved.clone()),
            ("http://255.255.255.255/", Refusal::Address("broadcast")),
            // IPv6.
            ("http://[::1]/", this_machine.clone()),
            ("http://[::]/", this_machine.clone()),
            ("http://[0:0:0:0:0:0:0:1]/", this_machine.clone()),
            ("http://[::ffff:127.0.0.1]/", this_machine.clone()),
            ("http://[::ffff:7f00:1]/", this_machine.clone()),
            ("http://[0:0:0:0:0:ffff:a9fe:a9fe]/", link_local.clone()),
            ("http://[::ffff:10.0.0.1]/", private.clone()),
            ("http://[::127.0.0.1]/", reserved.clone()),
            ("http://[::ffff:0:127.0.0.1]/", reserved.clone()),
            ("http://[64:ff9b::7f00:1]/", this_machine.clone()),
            ("http://[64:ff9b::a9fe:a9fe]/", link_local.clone()),
            ("http://[64:ff9b:1::1]/", reserved.clone()),
            ("http://[2002:7f00:1::]/", Refusal::Address("of 6to4")),
            ("http://[2002:808:808::1]/", Refusal::Address("of 6to4")),
            ("http://[2001::1]/", reserved.clone()),
            ("http://[2001:20::1]/", reserved.clone()),
            ("http://[2001:db8::1]/", documentation.clone()),
            ("http://[3fff::1]/", documentation.clone()),
            ("http://[fc00::1]/", private.clone()),
            ("http://[fd00:ec2::254]/", private.clone()),
            ("http://[fe80::1]/", link_local.clone()),
            ("http://[fec0::1]/", link_local.clone()),
            ("http://[ff02::1]/", multicast.clone()),
            ("http://[100::1]/", reserved.clone()),
            ("http://[5f00::1]/", reserved.clone()),
            ("http://[fe80::1%25eth0]/", unparsable.clone()),
            // Numbers in every notation that parsers take.
            ("http://2130706433/", Refusal::Notation),
            ("http://0x7f000001/", Refusal::Notation),
            ("http://0x7F.1/", Refusal::Notation),
            ("http://0177.0.0.1/", Refusal::Notation),
            ("http://017700000001/", Refusal::Notation),
            ("http://127.1/", Refusal::Notation),
            ("http://127.0.1/", Refusal::Notation),
            ("http://127.0.0.1./", Refusal::Notation),
            ("http://127.000.000.001/", Refusal::Notation),
            ("http://0/", Refusal::Notation),
            ("http://0x8.8.8.8/", Refusal::Notation),
            ("http://134744072/", Refusal::Notation),
            ("http://%31%32%37.0.0.1/", Refusal::Notation),
            ("http://4294967296/", unparsable.clone()),
            ("http://256.0.0.1/", unparsable.clone()),
            ("http://1.2.3.4.5/", unparsable.clone()),
            ("http://\u{ff11}27.0.0.1/", characters.clone()),
            ("http://\u{2460}27.0.0.1/", characters.clone()),
            ("http://127\u{3002}0.0.1/", characters.clone()),
            ("http://b\u{fc}cher.example/", characters.clone()),
            ("http://loc%61lhost/", not_plain.clone()),
            // Names.
            ("http://localhost/", Refusal::PrivateName),
            ("http://LOCALHOST./", Refusal::PrivateName),
            ("http://a.localhost/", Refusal::PrivateName),
            ("http://printer.local/", Refusal::PrivateName),
            ("http://metadata.google.internal/computeMetadata/v1/", Refusal::PrivateName),
            ("http://ip-10-0-0-1.ec2.internal/", Refusal::PrivateName),
            ("http://intranet/", Refusal::PrivateName),
            ("http://router.home.arpa/", Refusal::PrivateName),
            // User information.
            ("http://receiver.example@127.0.0.1/", Refusal::UserInfo),
            ("https://user:password@receiver.example/", Refusal::UserInfo),
            ("https://@receiver.example/", Refusal::UserInfo),
            ("https://receiver.example%40x@receiver.example/", Refusal::UserInfo),
            // Ports.
            ("http://receiver.example:22/", Refusal::Port(22)),
            ("http://receiver.example:25/", Refusal::Port(25)),
            ("http://receiver.example:6379/", Refusal::Port(6379)),
            ("http://8.8.8.8:53/", Refusal::Port(53)),
            ("http://receiver.example:0/", Refusal::Port(0)),
            ("http://receiver.example:65536/", unparsable.clone()),
            ("http://receiver.example:-1/", unparsable.clone()),
            // Schemes.
            ("ftp://receiver.example/", Refusal::Scheme),
            ("file:///etc/passwd", Refusal::Scheme),
            ("gopher://127.0.0.1:6379/_FLUSHALL", Refusal::Scheme),
            ("javascript:alert(1)", Refusal::Scheme),
            ("data:image/png;base64,AAAA", Refusal::Scheme),
            ("unix:/run/docker.sock", Refusal::Scheme),
            ("receiver.example/hook", Refusal::Form("it has no scheme")),
            ("//receiver.example/", Refusal::Form("it has no scheme")),
            ("", Refusal::Form("it has no scheme")),
            // Forms that parsers understand in different ways.
            ("http:/127.0.0.1/", Refusal::Form("two slashes follow its scheme")),
            ("http:127.0.0.1", Refusal::Form("two slashes follow its scheme")),
            ("http:///127.0.0.1/", Refusal::Form("it has no host")),
            ("http://?x", Refusal::Form("it has no host")),
            ("http:\\\\127.0.0.1\\", characters.clone()),
            ("http://receiver.example\\@127.0.0.1/", characters.clone()),
            (" http://receiver.example/", characters.clone()),
            ("http://receiver.example/\r\nHost: x", characters.clone()),
            ("ht\ttp://receiver.example/", characters.clone()),
            ("http://receiver.example/\0", characters.clone()),
            ("http://[::1/", unparsable.clone()),
            ("http://::1/", unparsable.clone()),
            ("http://a b.example/", characters.clone()),
            ("http://a^b.example/", unparsable),
        ];
        assert!(rows.len() >= 100);
        let wrong: Vec<String> = rows
            .iter()
            .filter(|(url, expected)| refusal(url).as_ref() != Some(expected))
            .map(|(url, expected)| format!("{url:?}: {:?}, not {expected:?}", refusal(url)))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(matches!(refusal(&format!("https://a.example/{}", "x".repeat(2_048))), Some(Refusal::Form(_))));
    }

    #[test]
    fn addresses_behind_a_name_are_checked_like_those_in_a_url() {
        let check = |allowed: &Allowed, address: &str| {
            allowed.check_address("receiver.example", address.parse().expect("an address of the test"))
        };
        let none = Allowed::default();
        for public in ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert_eq!(check(&none, public), Ok(()), "{public}");
        }
        for other in
            ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:192.168.0.1", "2002:a00:1::"]
        {
            assert!(check(&none, other).is_err(), "{other}");
            assert_eq!(check(&allowed(&["receiver.example"]), other), Ok(()), "{other}");
            assert!(check(&allowed(&["other.example"]), other).is_err(), "{other}");
        }
    }

    #[test]
    fn listed_hosts_and_networks_may_be_called_at_any_port() {
        let list = allowed(&["10.1.0.0/16", "::1", "hooks.internal"]);
        for (url, may) in [
            ("http://10.1.2.3:9000/", true),
            ("http://10.2.0.1/", false),
            ("http://[::ffff:10.1.2.3]/", true),
            ("http://[::1]:1234/", true),
            ("http://hooks.internal:9000/", true),
            ("http://HOOKS.internal/", true),
            ("http://8.8.8.8:9000/", false),
            ("http://0x0a.1.2.3/", false),
            ("ftp://hooks.internal/", false),
        ] {
            assert_eq!(list.check_url(url).is_ok(), may, "{url}");
        }
        let by_name = list.check_url("http://receiver.example:9000/").expect("its address may be listed");
        let check = |address: &str| list.check_connection(&by_name, address.parse().expect("an address of the test"));
        assert_eq!((check("10.1.2.3"), check("8.8.8.8")), (Ok(()), Err(Refusal::Port(9000))));
        let host = allowed(&["hooks.internal"]);
        assert!(host.check_url("http://other.internal/").is_err());
        assert!(host.check_url("http://receiver.example:9000/").is_err());
        for wrong in ["", "http://x", "10.0.0.0/33", "1.2.3", "a b", "[::1]", "x:80"] {
            assert!(wrong.parse::<AllowedPlace>().is_err(), "{wrong}");
        }
    }
}
