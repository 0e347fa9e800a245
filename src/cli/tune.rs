//! `imgcls tune`.

use std::time::Duration;

use clap::Args;

use super::model::ModelArgs;
use crate::tune;

#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Seconds for all measurements together
    #[arg(long, env = "IMGCLS_SECONDS", default_value = "20", value_parser = seconds)]
    pub seconds: Duration,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl TuneArgs {
    pub fn config(&self) -> tune::Config {
        tune::Config { model: self.model.choice(), duration: self.seconds, json: self.json }
    }
}

/// Less than a tenth of a second measures nothing; more than ten minutes is a mistake.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give a number of seconds, 0.1 to 600".to_owned()),
    }
}
