//! Parsers of values that several commands take.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::config::{self, BackendKind};

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("give a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    config::duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("give a duration above 0".to_owned()),
        more => Ok(more),
    })
}

/// An amount in the currency of the prices.
pub(super) fn money(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(amount) if amount > 0.0 && amount.is_finite() => Ok(amount),
        _ => Err("give an amount above 0, in the currency of the prices".to_owned()),
    }
}

/// SQS allows up to 12 h. Below a second a lease could not be renewed in time.
pub(super) fn visibility_timeout(text: &str) -> Result<Duration, String> {
    let timeout = config::duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(12 * 3600)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("give a duration between 1s and 12h".to_owned())
    }
}

/// `10` or `10%`.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).trim().parse() {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err("give a percentage from 0 to 100".to_owned()),
    }
}

/// An address to listen at: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or `:8080` for every address of this machine.
/// Names are not looked up.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong =
        "give an address and a port: 127.0.0.1:8080, localhost:8080, or :8080 for every address of this machine";
    let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong)?;
    match host {
        "" => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        "localhost" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ => Err(wrong.to_owned()),
    }
}

/// A switch in a variable or a file; on the command line the flag alone turns it on.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("give 1 or 0, true or false, yes or no, on or off".to_owned()),
    }
}

/// A value of `--backend`.
pub(super) fn backend_kind() -> impl TypedValueParser<Value = BackendKind> {
    let names = BackendKind::ALL.map(BackendKind::name);
    PossibleValuesParser::new(names)
        .try_map(|name| BackendKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or("no backend has this name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_name_this_machine_or_only_a_port() {
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("localhost:80", "127.0.0.1:80"),
            (":8080", "0.0.0.0:8080"),
            ("[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().expect("address of the test")), "{text}");
        }
        for wrong in ["", "8080", "localhost", "example.org:80", ":65536", "::1", "127.0.0.1"] {
            assert!(listen_address(wrong).is_err(), "{wrong}");
        }
    }
}
