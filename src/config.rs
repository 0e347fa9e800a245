//! Validated names, the choice of the backend and the settings of a command: shared by every command, without I/O.

mod backend;
mod document;
mod nats;

use std::net::IpAddr;
use std::time::Duration;

pub use self::backend::{AWS_VARIABLES, AwsLocation, Backend, BackendKind, choose_backend};
pub use self::document::{Document, Machines, Setting, Source, toml_text};
pub use self::nats::{DEFAULT_NATS_URL, NatsLocation, NatsLogin};

use crate::protocol;

/// Names of the queues and buckets of one stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The queue of requests to workers.
    pub request_queue: String,
    /// The queue of results that all web processes share.
    pub result_queue: String,
    /// The bucket of images.
    pub input_bucket: String,
    /// The bucket of results.
    pub output_bucket: String,
}

impl Names {
    /// The defaults of the local backend for a stack.
    pub fn local(stack: &str) -> Self {
        let prefix = protocol::stack_prefix(stack);
        Names {
            request_queue: format!("{prefix}{}", protocol::DEFAULT_REQUEST_QUEUE),
            result_queue: format!("{prefix}{}", protocol::DEFAULT_RESULT_QUEUE),
            input_bucket: format!("{prefix}{}", protocol::LOCAL_INPUT_BUCKET),
            output_bucket: format!("{prefix}{}", protocol::LOCAL_OUTPUT_BUCKET),
        }
    }

    /// The defaults on AWS. Bucket names are global, so they contain account and region.
    pub fn aws(stack: &str, account: &str, region: &str) -> Self {
        let bucket = |purpose| protocol::aws_bucket(stack, account, region, purpose);
        Names {
            input_bucket: bucket(protocol::LOCAL_INPUT_BUCKET),
            output_bucket: bucket(protocol::LOCAL_OUTPUT_BUCKET),
            ..Names::local(stack)
        }
    }

    /// Returns the name of the request queue of bulk jobs.
    pub fn bulk_queue(&self) -> String {
        protocol::bulk_queue(&self.request_queue)
    }

    /// Returns the name of the queue of callbacks.
    pub fn callback_queue(&self) -> String {
        protocol::callback_queue(&self.request_queue)
    }

    /// Returns the name of the dead-letter queue of the request queue.
    pub fn dead_letter_queue(&self) -> String {
        protocol::dead_letter_queue(&self.request_queue)
    }
}

/// The stack, and the names that the settings give; the others have defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChoice {
    /// The name of the stack.
    pub stack: String,
    /// The queue of requests, if a setting names it.
    pub request_queue: Option<String>,
    /// The queue of results, if a setting names it.
    pub result_queue: Option<String>,
    /// The bucket of images, if a setting names it.
    pub input_bucket: Option<String>,
    /// The bucket of results, if a setting names it.
    pub output_bucket: Option<String>,
}

impl NameChoice {
    /// Returns true if a bucket has its default name, which on AWS contains the account.
    pub fn has_default_bucket(&self) -> bool {
        self.input_bucket.is_none() || self.output_bucket.is_none()
    }

    /// Completes the names with the defaults of the local backend.
    pub fn with_local_defaults(self) -> Names {
        let defaults = Names::local(&self.stack);
        self.with_defaults(defaults)
    }

    /// Completes the names with `defaults`.
    pub fn with_defaults(self, defaults: Names) -> Names {
        Names {
            request_queue: self.request_queue.unwrap_or(defaults.request_queue),
            result_queue: self.result_queue.unwrap_or(defaults.result_queue),
            input_bucket: self.input_bucket.unwrap_or(defaults.input_bucket),
            output_bucket: self.output_bucket.unwrap_or(defaults.output_bucket),
        }
    }
}

/// Checks a queue name by SQS's rule.
pub fn queue_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=80).contains(&name.len()) && name.chars().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err("a queue name has 1 to 80 letters, digits, `-` or `_`".to_owned())
    }
}

/// A range of addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// Returns whether the network contains `address`. An IPv4 address is in no IPv6 network.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u8| u32::from(width - self.prefix_bits);
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a range of addresses such as 10.0.0.0/8 or 192.0.2.7");
        let (network, bits) = text.split_once('/').map_or((text, None), |(network, bits)| (network, Some(bits)));
        let network: IpAddr = network.parse().map_err(|_| wrong())?;
        let width = if network.is_ipv4() { 32 } else { 128 };
        let prefix_bits = bits.map_or(Ok(width), str::parse::<u8>).map_err(|_| wrong())?;
        if prefix_bits > width { Err(wrong()) } else { Ok(Cidr { network, prefix_bits }) }
    }
}

/// Checks the name of a host, without scheme and port; in lower case.
pub fn host_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if (1..=253).contains(&name.len()) && name.chars().all(allowed) {
        Ok(name.trim_end_matches('.').to_ascii_lowercase())
    } else {
        Err(format!("{name:?} is not the name of a host such as images.example.com (no scheme, no port)"))
    }
}

/// Checks the form of a region, which becomes part of host names. The list of regions changes every year.
pub fn region(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-') {
        Ok(name.to_owned())
    } else {
        Err("a region is named like us-east-1".to_owned())
    }
}

/// Checks the form of an endpoint's address.
pub fn endpoint_url(url: &str) -> Result<String, String> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(url.to_owned()),
        _ => Err("an endpoint is an address like http://127.0.0.1:4566".to_owned()),
    }
}

/// Checks a bucket name by S3's rule, which also makes it a safe directory name.
pub fn bucket_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edges = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good = (3..=63).contains(&name.len())
        && name.chars().all(allowed)
        && edges(name.chars().next())
        && edges(name.chars().next_back())
        && !name.contains("..");
    if good {
        Ok(name.to_owned())
    } else {
        Err("a bucket name has 3 to 63 lower-case letters, digits, `-` or `.`, and starts and ends with a letter or digit".to_owned())
    }
}

/// Checks a stack name: it prefixes queue and bucket names, so it obeys the narrower rule.
pub fn stack_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let first = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    if (1..=20).contains(&name.len()) && first && name.chars().all(allowed) && !name.ends_with('-') {
        Ok(name.to_owned())
    } else {
        Err("a stack name has 1 to 20 lower-case letters, digits or `-`, and starts with a letter".to_owned())
    }
}

/// A duration as people write it: `30s`, `250ms`, `1h`, `1h 30m`; a plain number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is not a duration such as 30s or 1h"))?;
    Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())
}

/// The time for which something is kept: `7d`, `12h`, `1d 12h`; a plain number is seconds. At least a second.
pub fn keep(text: &str) -> Result<Duration, String> {
    match duration_or_days(text)? {
        keep if (Duration::from_secs(1)..=LONGEST_KEPT).contains(&keep) => Ok(keep),
        _ => Err("between 1s and 36500d".to_owned()),
    }
}

/// A [`duration`] that may begin with days: `7d`, `30 days`, `1d 12h`.
pub fn duration_or_days(text: &str) -> Result<Duration, String> {
    let days = text.split_once('d').and_then(|(days, rest)| Some((days.trim().parse::<u32>().ok()?, rest)));
    let Some((days, rest)) = days else { return duration(text) };
    let rest = rest.strip_prefix("ays").or_else(|| rest.strip_prefix("ay")).unwrap_or(rest).trim();
    let rest = if rest.is_empty() { Duration::ZERO } else { duration(rest)? };
    Ok(Duration::from_secs(u64::from(days) * 86_400).saturating_add(rest))
}

/// A hundred years.
const LONGEST_KEPT: Duration = Duration::from_secs(36_500 * 86_400);

/// A limit on stored data. An empty database alone takes a tenth of the smallest limit.
pub fn data_bytes(text: &str) -> Result<u64, String> {
    bytes(text).and_then(|bytes| if bytes < 1 << 20 { Err("at least 1MiB".to_owned()) } else { Ok(bytes) })
}

/// A size as people write it: `20971520`, `512KiB`, `20MiB`, `20MB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        "t" | "tib" => 1 << 40,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{text:?} is not a size such as 20MiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a size such as 20MiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_on_aws_contain_account_and_region() {
        let names = Names::aws("imgcls", "123456789012", "us-east-1");
        assert_eq!(names.input_bucket, "imgcls-123456789012-us-east-1-input");
        assert_eq!(names.request_queue, "web-app-image-transport");
        let names = Names::aws("a-stack-of-20-letter", "123456789012", "ap-southeast-5");
        assert!(bucket_name(&names.output_bucket).is_ok(), "{}", names.output_bucket);
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("-1s").is_err() && duration("soon").is_err() && duration("-3").is_err());
        assert_eq!(bytes("20MiB"), Ok(20 << 20));
        assert_eq!(bytes("1234"), Ok(1234));
        assert_eq!(keep("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(keep("1d 12h"), Ok(Duration::from_secs(36 * 3_600)));
        assert_eq!(keep("30 days"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!((keep("90"), keep("12h")), (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(12 * 3_600))));
        assert!(keep("0s").is_err() && keep("d").is_err() && keep("-1d").is_err() && keep("9999999d").is_err());
        assert_eq!(data_bytes("1TiB"), Ok(1 << 40));
        assert!(data_bytes("1000").is_err());
        assert!(bytes("MiB").is_err() && bytes("20 parsecs").is_err() && bytes("99999999999GiB").is_err());
    }

    #[test]
    fn address_ranges_contain_their_addresses_only() {
        let contains = |range: &str, address: &str| {
            range.parse::<Cidr>().expect("range of the test").contains(address.parse().expect("address of the test"))
        };
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.8"));
        assert!(contains("0.0.0.0/0", "255.1.2.3") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1") && !contains("2001:db8::/32", "2001:db9::1"));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/", "localhost"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        assert_eq!(host_name("Images.Example."), Ok("images.example".to_owned()));
        assert!(host_name("http://images.example").is_err() && host_name("a:80").is_err() && host_name("").is_err());
    }

    #[test]
    fn names_that_could_be_paths_are_rejected() {
        for bad in ["", "..", "a/b", "a..b", "UPPER", "-x-", "a"] {
            assert!(bucket_name(bad).is_err(), "{bad}");
        }
        assert!(bucket_name("imgcls-123-us-east-1-input").is_ok());
        assert!(queue_name("a/b").is_err() && queue_name(&"q".repeat(81)).is_err() && queue_name("a-B_9").is_ok());
        assert!(region("mars/north").is_err() && region("").is_err() && region("eu-west-1").is_ok());
        assert!(endpoint_url("localhost:1").is_err() && endpoint_url("http://localhost:1").is_ok());
        assert!(stack_name("Team").is_err() && stack_name("team-a").is_ok() && stack_name("a-").is_err());
    }
}
