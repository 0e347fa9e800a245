//! `imgcls loadgen`: load, measure, check answers, report.

use std::path::PathBuf;
use std::time::Duration;

/// What to send, how fast, and what to hold the answers against.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of a web tier, `http://host:port/`; a path other than `/` is posted to as it is.
    pub url: String,
    pub num_request: u64,
    /// Closed loop: requests in flight. Open loop: the most that may be in flight.
    pub concurrency: usize,
    /// None: pictures carried in the binary.
    pub image_folder: Option<PathBuf>,
    /// Open loop: requests a second.
    pub rate: Option<f64>,
    pub arrivals: Arrivals,
    pub seed: u64,
    /// CSV with columns `file` and `class_index` or `label`.
    pub expect: Option<PathBuf>,
    /// Such as `p99<500ms`, `accuracy>=0.8`, `failed==0`.
    pub thresholds: Vec<String>,
    pub timeout: Duration,
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    #[default]
    Constant,
    Poisson,
}
