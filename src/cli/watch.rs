//! `imgcls watch`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::cache::CacheArgs;
use super::limits::LimitArgs;
use super::model::ModelArgs;
use super::parse::positive_duration;
use super::pile_output::PileOutput;
use super::pile_run::{PileFilesArgs, PileRunArgs};
use super::usage::usage;
use super::webhook::WebhookArgs;
use crate::pile::output::{OutFile, OutputConfig, TableFormat};
use crate::pile::{self, Inputs, Watch};

#[derive(Debug, Args)]
#[command(
    after_help = "A file is classified when the program that wrote it closed it, or moved it into the folder. Names that \
    begin with a dot are skipped. Each path has one row, also after a restart: FILE.part beside the table says what is \
    done, so keep it. SIGTERM or Ctrl-C finishes the images that were begun.\n\
    Exit codes: 0 stopped by a signal, 1 failed, 2 usage."
)]
pub struct WatchArgs {
    /// The folder to watch, with the folders below it
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The table that grows: FILE.csv, .tsv or .jsonl
    #[arg(long, env = "IMGCLS_OUT", value_name = "FILE")]
    pub out: OutFile,
    /// Replace the file of --out if it exists and was not written by this command
    #[arg(long)]
    pub overwrite: bool,
    /// Classify all images of the folder again
    #[arg(long)]
    pub restart: bool,
    /// Classify the images again that failed earlier
    #[arg(long, env = "IMGCLS_RETRY_ERRORS", conflicts_with = "restart")]
    pub retry_errors: bool,
    #[command(flatten)]
    pub files: PileFilesArgs,
    #[command(flatten)]
    pub run: PileRunArgs,
    /// A file that was not seen being written is whole when it did not change for so long: one that was there before, or
    /// on a network file system
    #[arg(long, env = "IMGCLS_STABLE_AFTER", default_value = "2s", value_parser = positive_duration)]
    pub stable_after: Duration,
    /// How often the folder is read for files of which the system reported no event
    #[arg(long, env = "IMGCLS_RESCAN", default_value = "1m", value_parser = positive_duration)]
    pub rescan: Duration,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

impl WatchArgs {
    /// # Errors
    /// A [`super::UsageError`] if the table cannot grow, or the receiver may not be called.
    pub fn config(self) -> anyhow::Result<pile::Config> {
        if matches!(self.out.format, TableFormat::Parquet | TableFormat::MegaDetector) {
            return Err(usage("watch", "a file of this format cannot grow: give --out FILE.csv, .tsv or .jsonl"));
        }
        let webhook = self.webhook.config(&self.out.path)?;
        let output = PileOutput {
            out: Some(self.out),
            overwrite: self.overwrite,
            resume: false,
            restart: self.restart,
            errors: None,
            retry_errors: self.retry_errors,
            max_failures: None,
            files: self.files,
        };
        let top_k = self.run.top_k.unwrap_or_else(|| output.default_top_k(false));
        Ok(pile::Config {
            inputs: Inputs {
                rules: self.run.rules(),
                watch: Some(Watch { folder: self.folder, stable_after: self.stable_after, rescan: self.rescan }),
                ..Inputs::default()
            },
            cache: self.cache.config(self.model.choice().cache_dir.as_ref()),
            model: self.model.choice(),
            limits: self.limits.limits(1),
            through: None,
            jobs: self.run.jobs,
            is_nice: self.run.nice,
            top_k,
            json: false,
            dry_run: false,
            output: OutputConfig { webhook, ..output.config(false, top_k, Vec::new(), false, BTreeMap::new()) },
        })
    }
}
