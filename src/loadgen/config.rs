//! The settings of a run.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderName, HeaderValue};

use super::target::{Api, BaseUrl};
use super::threshold::Threshold;
use crate::workload::Arrivals;

/// A key is far shorter.
const MAX_KEY_FILE_BYTES: u64 = 64 << 10;

/// The key of a service that needs one. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// The key itself.
    Text(String),
    /// A file with the key in its first line.
    File(PathBuf),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Text(_) => f.write_str("Key"),
            Key::File(path) => f.debug_tuple("KeyFile").field(path).finish(),
        }
    }
}

impl Key {
    /// Reads the key, and returns the header `Authorization` that carries it.
    ///
    /// # Errors
    /// The file cannot be read, or the key is empty or has characters that a header cannot have.
    pub(super) fn authorization(&self) -> anyhow::Result<HeaderValue> {
        let (text, place) = match self {
            Key::Text(text) => (text.clone(), "--key".to_owned()),
            Key::File(path) => {
                let place = format!("--key-file {}", path.display());
                let file = File::open(path).with_context(|| format!("cannot open {place}"))?;
                let mut text = String::new();
                file.take(MAX_KEY_FILE_BYTES)
                    .read_to_string(&mut text)
                    .with_context(|| format!("cannot read {place}"))?;
                (text.lines().next().unwrap_or_default().to_owned(), place)
            }
        };
        let key = text.trim();
        let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        anyhow::ensure!(is_key, "{place}: not a key; `imgcls keys create` prints one");
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The load to send, its rate, and the expected answers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of a web tier, `http://host:port/` or `https://…`. A path other than `/` is used instead of the path of the API.
    pub url: BaseUrl,
    /// The API of the target.
    pub api: Api,
    /// The key that is sent with every request, or where it is.
    pub key: Option<Key>,
    /// The most requests to send.
    pub num_request: u64,
    /// When a closed loop ends; `None` ends it after `num_request`.
    pub duration: Option<Duration>,
    /// Headers of every request, beside those of the API, which they replace.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The maximum number of requests in flight. A closed loop always has this many.
    pub concurrency: usize,
    /// The images to send; `None` sends the built-in ones.
    pub image_folder: Option<PathBuf>,
    /// Arrivals of an open loop, at most `num_request` of them. `None` means a closed loop.
    pub arrivals: Option<Arrivals>,
    /// Seed of random arrivals.
    pub seed: u64,
    /// The expected answers: a CSV file with the columns `file` and `class_index` or `label`.
    pub expect: Option<PathBuf>,
    /// Names of the classes, several for each, by which expected labels and answers are compared.
    pub names: Option<PathBuf>,
    /// Conditions with points: a CSV file with the columns `points` and `condition`.
    pub rubric: Option<PathBuf>,
    /// Write a line for each request to this CSV file.
    pub answers: Option<PathBuf>,
    /// Push the figures to this Pushgateway.
    pub push_gateway: Option<BaseUrl>,
    /// The conditions that the run must meet.
    pub thresholds: Vec<Threshold>,
    /// Search for the highest rate that keeps these conditions; empty runs the load once. Then `duration` is the length of a
    /// trial, and the rate of `arrivals` the first one.
    pub find_rate: Vec<Threshold>,
    /// Maximum time from the start of a request to the end of its answer.
    pub timeout: Duration,
    /// Print the report as JSON.
    pub json: bool,
    /// Write the report as a page to this file, too.
    pub html: Option<PathBuf>,
    /// Show the run live on standard error, if that is a terminal.
    pub live: bool,
    /// Print two lines for each image, as the legacy system does.
    pub verbose: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_sent_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "imgcls_secret\nsecond line\n").unwrap();
        for key in [Key::Text(" imgcls_secret ".to_owned()), Key::File(file)] {
            let value = key.authorization().unwrap();
            assert_eq!(value, "Bearer imgcls_secret");
            assert!(!format!("{key:?} {value:?}").contains("secret"));
        }
        for key in [Key::Text(String::new()), Key::Text("two words".to_owned()), Key::File(dir.path().join("none"))] {
            let error = format!("{:#}", key.authorization().unwrap_err());
            assert!(error.contains("--key") && !error.contains("words"), "{error}");
        }
    }
}
