//! The settings of a run.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::target::{Api, BaseUrl};
use super::threshold::Threshold;
use crate::workload::Arrivals;

/// The load to send, its rate, and the expected answers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of a web tier, `http://host:port/`. A path other than `/` is used instead of the path of the API.
    pub url: BaseUrl,
    /// The API of the target.
    pub api: Api,
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
