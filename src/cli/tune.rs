//! `imgcls tune`.

use std::path::PathBuf;
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
    /// A folder of images on which the answers of the model's files are compared [default: six built-in photographs]
    #[arg(long, env = "IMGCLS_IMAGES", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Measure even if other processes use more than 5 % of this machine
    #[arg(long, env = "IMGCLS_BUSY_OK")]
    pub busy_ok: bool,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl TuneArgs {
    pub fn config(&self) -> tune::Config {
        tune::Config {
            model: self.model.choice(),
            duration: self.seconds,
            images: self.images.clone(),
            busy_ok: self.busy_ok,
            json: self.json,
        }
    }
}

/// Less than a tenth of a second measures nothing; more than ten minutes is a mistake.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give a number of seconds, 0.1 to 600".to_owned()),
    }
}
