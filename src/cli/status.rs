//! `imgcls status` and `imgcls top`.

use std::time::Duration;

use clap::Args;

use super::parse::positive_duration;
use super::shared::{OutputArgs, SharedArgs};
use crate::config::{Backend, Names};
use crate::{loadgen, status};

/// The web tier of a service on this machine.
const LOCAL_URL: &str = "http://127.0.0.1:8080/";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imgcls status\n  imgcls status --json --data-dir /var/lib/imgcls\n  \
    imgcls status --region us-east-1 --url http://balancer.example/\n\
    Exit codes: 0 the service is ready, 1 it is not or cannot be reached, 2 usage.")]
pub struct StatusArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub service: StatusServiceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imgcls top\n  imgcls top --refresh 5s --data-dir /var/lib/imgcls\n\
    Output that is not a terminal gets the reports one after the other.")]
pub struct TopArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub service: StatusServiceArgs,
    /// End after this many reports [default: Ctrl-C ends it]
    #[arg(long, env = "IMGCLS_COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// The web tier that is asked.
#[derive(Debug, Args)]
pub struct StatusServiceArgs {
    /// Address of a web tier, or of its --admin-listen. On AWS none is asked unless this names one
    #[arg(long, env = "IMGCLS_URL", default_value = LOCAL_URL, value_parser = |text: &str| text.parse::<loadgen::BaseUrl>())]
    pub url: loadgen::BaseUrl,
    /// A key with the scope `admin`, for the metrics of a listener that needs one; better in the variable, which the list of
    /// processes does not show
    #[arg(long, env = "IMGCLS_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Time between two readings, over which rates are measured
    #[arg(long, env = "IMGCLS_REFRESH", default_value = "2s", value_parser = positive_duration)]
    pub refresh: Duration,
}

impl StatusServiceArgs {
    pub fn config(&self, backend: Backend, names: Names) -> status::Config {
        let is_named = LOCAL_URL.parse::<loadgen::BaseUrl>().is_ok_and(|local| local != self.url);
        status::Config {
            url: (is_named || backend.data_dir().is_some()).then(|| self.url.clone()),
            key: self.key.clone(),
            interval: self.refresh,
            backend,
            names,
        }
    }
}
