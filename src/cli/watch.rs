//! `imgcls watch`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::cache::CacheArgs;
use super::limits::LimitArgs;
use super::model::ModelArgs;
use super::parse::{positive, positive_duration};
use super::pile_output::{PileOutput, Sidecar, SortAs};
use super::usage::usage;
use crate::pile::output::{OutFile, TableFormat};
use crate::pile::{self, Inputs, Pattern, Rules, Watch};

#[derive(Debug, Args)]
#[command(
    after_help = "A file is classified when the program that wrote it closed it, or moved it into the folder. Names that \
    begin with a dot are skipped. Each path has one row, also after a restart: FILE.part beside the table says what is \
    done, so keep it. SIGTERM or Ctrl-C finishes the images that were begun.\n\
    Exit codes: 0 stopped by a signal, 1 failed, 2 usage."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
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
    /// Write a row for each prediction instead of a row for each image
    #[arg(long, env = "IMGCLS_LONG")]
    pub long: bool,
    /// Make a folder for each class in this folder, with a link to each image of the class
    #[arg(long, env = "IMGCLS_SORT_INTO", value_name = "DIR")]
    pub sort_into: Option<PathBuf>,
    /// The kind of link that --sort-into makes. Without hard links on the file system, it makes copies
    #[arg(long, env = "IMGCLS_SORT_AS", value_enum, default_value_t = SortAs::Hardlink, requires = "sort_into")]
    pub sort_as: SortAs,
    /// Write a file with the classes beside each image: IMAGE.json, IMAGE.txt or IMAGE.xmp. Files that imgcls did not
    /// write are left alone
    #[arg(long, env = "IMGCLS_SIDECAR", value_enum)]
    pub sidecar: Option<Sidecar>,
    /// Classify only files that match this pattern, whatever their extension; may be repeated
    #[arg(long, env = "IMGCLS_INCLUDE", value_name = "PATTERN", value_parser = |text: &str| text.parse::<Pattern>())]
    pub include: Vec<Pattern>,
    /// Leave out files and folders that match this pattern; may be repeated
    #[arg(long, env = "IMGCLS_EXCLUDE", value_name = "PATTERN", value_parser = |text: &str| text.parse::<Pattern>())]
    pub exclude: Vec<Pattern>,
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
    /// Predictions per image [default: 1, with --long 5]
    #[arg(long, env = "IMGCLS_TOP_K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top_k: Option<u32>,
    /// Images that are classified at the same time [default: as `imgcls tune` found, else the number of cores]
    #[arg(long, env = "IMGCLS_JOBS", value_parser = positive)]
    pub jobs: Option<usize>,
    /// Run with the lowest priority, so that other programs are not slowed down
    #[arg(long, env = "IMGCLS_NICE")]
    pub nice: bool,
}

impl WatchArgs {
    /// # Errors
    /// A [`super::UsageError`] if the table cannot grow.
    pub fn config(&self) -> anyhow::Result<pile::Config> {
        if matches!(self.out.format, TableFormat::Parquet | TableFormat::MegaDetector) {
            return Err(usage("watch", "a file of this format cannot grow: give --out FILE.csv, .tsv or .jsonl"));
        }
        let output = PileOutput {
            out: Some(self.out.clone()),
            overwrite: self.overwrite,
            resume: false,
            restart: self.restart,
            long: self.long,
            errors: None,
            retry_errors: self.retry_errors,
            max_failures: None,
            sort_into: self.sort_into.clone(),
            sort_as: self.sort_as,
            sidecar: self.sidecar,
        };
        let top_k = self.top_k.unwrap_or_else(|| output.default_top_k(false));
        Ok(pile::Config {
            inputs: Inputs {
                rules: Rules { include: self.include.clone(), exclude: self.exclude.clone() },
                watch: Some(Watch {
                    folder: self.folder.clone(),
                    stable_after: self.stable_after,
                    rescan: self.rescan,
                }),
                ..Inputs::default()
            },
            cache: self.cache.config(self.model.choice().cache_dir.as_ref()),
            model: self.model.choice(),
            limits: self.limits.limits(1),
            through: None,
            jobs: self.jobs,
            is_nice: self.nice,
            top_k,
            json: false,
            dry_run: false,
            output: output.config(false, top_k, Vec::new(), false, BTreeMap::new()),
        })
    }
}
