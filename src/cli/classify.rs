//! `imgcls classify`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::boxes::BoxArgs;
use super::cache::CacheArgs;
use super::limits::LimitArgs;
use super::model::ModelArgs;
use super::pile_output::PileOutput;
use super::pile_run::PileRunArgs;
use super::shared::SharedArgs;
use super::usage::usage;
use crate::config::{Backend, Names};
use crate::pile::output::{TableFormat, Target};
use crate::pile::{self, AwsPlace, Boxes, Inputs, Pages, Through};
use crate::transport::ServiceOptions;

#[derive(Debug, Args)]
#[command(
    after_help = "From folders and archives, files with a known image extension are classified; other files and names \
    that begin with a dot are skipped. A link to a folder is followed unless it leads to a folder above it.\n\
    A pattern without a slash matches the name of a file or folder, one with a slash the path below the folder that was \
    named: '*.jpg', 'thumbs', '2024/**'.\n\
    Exit codes: 0 done, 1 an image failed or the run was stopped, 2 usage."
)]
pub struct ClassifyArgs {
    /// Image files, folders (with the folders below them), .tar, .tar.gz and .zip archives, s3://BUCKET/PREFIX; - is one
    /// image on standard input
    #[arg(required_unless_present_any = ["files_from", "boxes"], value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Classify the paths in this file too, one a line or separated by NUL bytes; - is standard input
    #[arg(long, env = "IMGCLS_FILES_FROM", value_name = "LIST")]
    pub files_from: Option<PathBuf>,
    #[command(flatten)]
    pub run: PileRunArgs,
    /// The pages of a TIFF with several that are classified. With all, each page is an image of its own, FILE#page=N
    #[arg(long, env = "IMGCLS_PAGES", value_enum, default_value_t = PagesArg::First, conflicts_with = "boxes")]
    pub pages: PagesArg,
    /// Let the workers of a service classify the images: send them through its queue, gather the results into the same
    /// output. --model is then the name of a model of the service [default: classify in this process]
    #[arg(long, env = "IMGCLS_THROUGH", value_enum)]
    pub through: Option<ThroughArg>,
    /// With --through: continue this batch, whose id an earlier run printed, for example elsewhere; images that
    /// have a result are not sent again [default: the batch that FILE.part names, else a new one]
    #[arg(long, env = "IMGCLS_BATCH", value_name = "ID", requires = "through", conflicts_with = "retry_errors")]
    pub batch: Option<Uuid>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub output: PileOutput,
    #[command(flatten)]
    pub boxes: BoxArgs,
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Count the images and the files that would be skipped, and classify nothing
    #[arg(long, env = "IMGCLS_DRY_RUN")]
    pub dry_run: bool,
    /// Print one JSON object per image on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

/// The pages of a TIFF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PagesArg {
    /// The first page
    First,
    /// Every page, without smaller versions of others
    All,
}

/// The replacement of the sessions of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ThroughArg {
    /// The workers of a service, by its queue
    Queue,
}

impl ClassifyArgs {
    /// # Errors
    /// A [`super::UsageError`] if standard input would be read twice, or flags of boxes contradict each other. `service` is
    /// the backend and the names of the service if the images go through one.
    pub fn config(&self, service: Option<(Backend, Names)>) -> anyhow::Result<pile::Config> {
        let is_stdin = |path: &PathBuf| path == Path::new("-");
        if self.paths.iter().chain(&self.files_from).filter(|path| is_stdin(path)).count() > 1 {
            return Err(usage("classify", "standard input can be read once: give - only once"));
        }
        if self.cache.cache && self.through.is_some() {
            return Err(usage("classify", "with --through the workers keep answers: give --cache to them"));
        }
        if self.cache.cache && self.boxes.boxes.is_some() {
            return Err(usage("classify", "--cache keeps answers about whole images: leave it out with --boxes"));
        }
        let boxes = self.boxes.config(&self.paths, self.output.out.as_ref())?;
        let top_k = self.run.top_k.unwrap_or_else(|| self.output.default_top_k(self.json));
        let options = match self.pages {
            PagesArg::First => BTreeMap::new(),
            PagesArg::All => BTreeMap::from([("--pages".to_owned(), "all".to_owned())]),
        };
        let mut output = self.output.config(self.json, top_k, Vec::new(), false, options);
        if let (Some(Boxes { observations: Some(_), .. }), Target::File(file)) = (&boxes, &mut output.target) {
            file.format = TableFormat::CamtrapDp;
        }
        Ok(pile::Config {
            inputs: Inputs {
                paths: if boxes.is_some() { Vec::new() } else { self.paths.clone() },
                files_from: self.files_from.clone(),
                rules: self.run.rules(),
                pages: match self.pages {
                    PagesArg::First => Pages::First,
                    PagesArg::All => Pages::All,
                },
                boxes: boxes.clone(),
                watch: None,
                aws: AwsPlace { region: self.shared.region.clone(), endpoint_url: self.shared.endpoint_url.clone() },
            },
            cache: self.cache.config(self.model.choice().cache_dir.as_ref()),
            model: self.model.choice(),
            limits: self.limits.limits(1),
            through: service.map(|(backend, names)| self.through(backend, names)),
            jobs: self.run.jobs,
            is_nice: self.run.nice,
            top_k,
            json: self.json,
            dry_run: self.dry_run,
            output,
        })
    }

    fn through(&self, backend: Backend, names: Names) -> Through {
        let SharedArgs { stack, visibility_timeout, max_receive_count, .. } = &self.shared;
        let options = ServiceOptions { visibility_timeout: *visibility_timeout, max_receive_count: *max_receive_count };
        let (stack, model) = (stack.clone(), self.model.model.clone());
        let read_buckets = self.shared.read_buckets.clone();
        Through { backend, names, options, stack, model, read_buckets, batch: self.batch }
    }
}
