//! `imgcls loadgen`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use http::{HeaderName, HeaderValue};

use super::arrivals::{ArrivalArgs, Unbounded};
use super::parse::positive;
use crate::workload::Trace;
use crate::{config, loadgen};

/// Requests that are sent unless a flag limits them.
const DEFAULT_NUM_REQUEST: u64 = 100;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 all requests were answered and all thresholds hold; 99 a threshold was missed, \
    whatever else happened; 1 a request failed, or the run could not start or was interrupted; 2 usage.\n\
    Latency is that of good answers, counted from the intended start. A threshold is METRIC OPERATOR VALUE; metrics: \
    p50 p90 p99 p99.9 (any percentile) min mean max, with a unit; accuracy top5, as 0.8 or 80%; failed ok; rate, in \
    images/s. Operators: < <= > >= ==")]
pub struct LoadgenArgs {
    /// Address to send requests to, as --url
    #[arg(value_name = "URL", value_parser = |text: &str| text.parse::<loadgen::BaseUrl>())]
    pub address: Option<loadgen::BaseUrl>,
    /// Address to send requests to, http:// or https://; a path other than / is posted to as it is. The argument URL takes precedence
    #[arg(long, env = "IMGCLS_URL", default_value = "http://127.0.0.1:8080/", value_parser = |text: &str| text.parse::<loadgen::BaseUrl>())]
    pub url: loadgen::BaseUrl,
    /// API of the target: v1 is POST /v1/classify with JSON answers, legacy is the form and the plain-text label of the
    /// legacy system
    #[arg(long, env = "IMGCLS_API", default_value = "v1")]
    pub api: ApiArg,
    /// Key of a service that needs one, sent as `Authorization: Bearer KEY`. Other users of this machine can see flags: use
    /// the variable or --key-file
    #[arg(long, env = "IMGCLS_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// File with the key in its first line; used without --key
    #[arg(long, env = "IMGCLS_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Folder of image files, sent in sorted order and then again from the first [default: images in the binary]
    #[arg(long, alias = "image_folder", env = "IMGCLS_IMAGE_FOLDER")]
    pub image_folder: Option<PathBuf>,
    /// Most requests in flight, each on a connection of its own that is kept open
    #[arg(long, short = 'c', env = "IMGCLS_CONCURRENCY", default_value_t = 100, value_parser = positive)]
    pub concurrency: usize,
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// A header of every request, `Name: value`; may be repeated. It replaces a header of that name that the API has
    #[arg(long = "header", short = 'H', env = "IMGCLS_HEADER", value_name = "HEADER", hide_env_values = true, value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Search for the highest rate at which all these hold, such as 'p99<500ms', and no request fails: trials of --duration
    /// (10s) in an open loop, whose rate is found by bisection and confirmed by a second trial; may be repeated
    #[arg(long = "find-rate", env = "IMGCLS_FIND_RATE", value_delimiter = ',', value_parser = |text: &str| text.parse::<loadgen::Threshold>(), conflicts_with_all = ["thresholds", "stages", "trace", "num_request", "expect", "html", "verbose", "rubric", "answers", "push_gateway"])]
    pub find_rate: Vec<loadgen::Threshold>,
    /// CSV file with columns `file` and `class_index` or `label`; answers are compared with it (top-1 and top-5)
    #[arg(long, env = "IMGCLS_EXPECT")]
    pub expect: Option<PathBuf>,
    /// Names of the classes, several for each, by which the labels of --expect and of answers are compared: JSON, or text with
    /// a line for each class in the order of their indices, its names separated by commas. A class index beats a name
    #[arg(long, env = "IMGCLS_NAMES", requires = "expect")]
    pub names: Option<PathBuf>,
    /// CSV file with columns `points` and `condition` (as --threshold) and perhaps `what`; the report has the points of each
    /// condition that holds, and their sum. It does not change the exit code
    #[arg(long, env = "IMGCLS_RUBRIC")]
    pub rubric: Option<PathBuf>,
    /// Write a line for each request to this CSV file: file, answer, expected, correct, latency, error
    #[arg(long, env = "IMGCLS_ANSWERS")]
    pub answers: Option<PathBuf>,
    /// Push the figures to this Prometheus Pushgateway when the run ends, such as http://127.0.0.1:9091/
    #[arg(long, env = "IMGCLS_PUSH_GATEWAY", value_parser = |text: &str| text.parse::<loadgen::BaseUrl>())]
    pub push_gateway: Option<loadgen::BaseUrl>,
    /// Exit with 99 unless it holds: 'p99<500ms', 'accuracy>=0.8', 'failed==0', 'rate>=100'; may be repeated
    #[arg(long = "threshold", env = "IMGCLS_THRESHOLD", value_delimiter = ',', value_parser = |text: &str| text.parse::<loadgen::Threshold>())]
    pub thresholds: Vec<loadgen::Threshold>,
    /// How long one request may take, until its job has ended
    #[arg(long, env = "IMGCLS_TIMEOUT", default_value = "600s", value_parser = config::duration)]
    pub timeout: Duration,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
    /// Write the report as one self-contained page with charts to this file, too
    #[arg(long, env = "IMGCLS_HTML")]
    pub html: Option<PathBuf>,
    /// Do not show the run live on a terminal
    #[arg(long, env = "IMGCLS_NO_TUI")]
    pub no_tui: bool,
    /// Print each image and its label as answers arrive, as the legacy load generator does
    #[arg(long, short = 'v', env = "IMGCLS_VERBOSE")]
    pub verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApiArg {
    V1,
    #[value(alias = "original")]
    Legacy,
}

impl LoadgenArgs {
    /// `trace` is the content of the file that `arrivals` names, if any.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other; one line if no request or too many would start.
    pub fn config(&self, trace: Option<Trace>) -> anyhow::Result<loadgen::Config> {
        let arrivals = self.arrivals.arrivals("loadgen", trace)?;
        Ok(loadgen::Config {
            url: self.address.clone().unwrap_or_else(|| self.url.clone()),
            api: match self.api {
                ApiArg::V1 => loadgen::Api::V1,
                ApiArg::Legacy => loadgen::Api::Legacy,
            },
            key: match (&self.key, &self.key_file) {
                (Some(key), _) => Some(loadgen::Key::Text(key.clone())),
                (None, Some(file)) => Some(loadgen::Key::File(file.clone())),
                (None, None) => None,
            },
            num_request: match &arrivals {
                // Each trial of a search counts its own.
                Some(_) if !self.find_rate.is_empty() => u64::MAX,
                Some(arrivals) => self.arrivals.count(arrivals, Unbounded::Requests(DEFAULT_NUM_REQUEST))?,
                None => self.arrivals.closed_loop_count(DEFAULT_NUM_REQUEST),
            },
            duration: self.arrivals.duration,
            headers: self.headers.clone(),
            find_rate: self.find_rate.clone(),
            html: self.html.clone(),
            live: !self.no_tui,
            concurrency: self.concurrency,
            image_folder: self.image_folder.clone(),
            arrivals,
            seed: self.arrivals.seed,
            expect: self.expect.clone(),
            names: self.names.clone(),
            rubric: self.rubric.clone(),
            answers: self.answers.clone(),
            push_gateway: self.push_gateway.clone(),
            thresholds: self.thresholds.clone(),
            timeout: self.timeout,
            json: self.json,
            verbose: self.verbose,
        })
    }
}

/// A header, `Name: value`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("give a name and a value, such as 'X-Client: test'")?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| format!("{name:?} is not the name of a header"))?;
    let value =
        HeaderValue::try_from(value.trim()).map_err(|_| format!("the value of {name} has invalid characters"))?;
    Ok((name, value))
}
