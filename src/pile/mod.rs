//! `imgcls classify PATH…`: classifies a few files or any pile of them, in this process or through the queue of a service.
//!
//! - `source`: finds the images one after the other; `count`: how many there are
//! - `boxes`: parts of images, which a detector found; `watch`: images that come into a folder
//! - `pipeline`: connects the stages: `read` lists and reads, `session` decodes and infers, the outcomes are put into the
//!   order of the input; `message` and `finished` are what the stages exchange, `memory` limits what is read ahead
//! - `service`: takes the place of the sessions if the images go through a queue
//! - `output`: tables, links and files beside the images; `print`: the rows of a few images; `progress`: how far a run is

mod boxes;
mod count;
mod finished;
mod memory;
mod message;
pub mod output;
mod pipeline;
mod print;
mod progress;
mod queue;
mod read;
mod service;
mod session;
mod source;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

pub use self::boxes::{Boxes, Observations, Selection};
pub use self::service::Through;
pub use self::source::{AwsPlace, Inputs, Pages, Pattern, Rules};
pub use self::watch::Watch;

use self::finished::{Answer, BoxAnswer, Finished};
use self::output::{ClassName, Classified, Flow, Output, OutputConfig, PathText, Row, Summary, Target};
use self::pipeline::{Classifier, End, OwnSessions, Run};
use self::print::Printer;
use self::progress::{Counters, Progress};
use self::service::Service;
use crate::model::{self, Limits, ModelChoice, ModelPackage, ModelRef, Session, TunedChoice};
use crate::result_cache::{CacheConfig, ResultCache};
use crate::shutdown::CancellationToken;
use crate::telemetry;

/// From so many images on a run shows its progress.
const MANY: usize = 100;
/// The priority of a run with `--nice`: the lowest.
const NICE: i32 = 19;

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The images.
    pub inputs: Inputs,
    /// Keeps answers, so that an image that was classified before is not classified again.
    pub cache: Option<CacheConfig>,
    /// The model to run.
    pub model: ModelChoice,
    /// Limits on the cost of one image.
    pub limits: Limits,
    /// Classifies the images with the workers of a service, instead of with sessions of this process.
    pub through: Option<Through>,
    /// Number of sessions, or of jobs of the service. `None` means what `imgcls tune` found, or one for each core.
    pub jobs: Option<usize>,
    /// Leaves the cores to other processes that need them.
    pub is_nice: bool,
    /// Number of predictions for each image.
    pub top_k: u32,
    /// Prints one line of JSON for each image.
    pub json: bool,
    /// Counts the images and classifies none.
    pub dry_run: bool,
    /// The tables, links and files. Its classes and options are those of the model.
    pub output: OutputConfig,
}

/// Classifies every image, and writes its predictions or its error. Returns whether every image was classified, or not
/// more failed than are allowed.
///
/// # Errors
/// If the model cannot be loaded, or the output cannot be written. A reader of standard output that went away is not an
/// error.
pub fn run(config: &Config, stop: &CancellationToken) -> anyhow::Result<bool> {
    if config.dry_run {
        return dry_run(config, stop);
    }
    if config.is_nice {
        rustix::process::nice(NICE).context("cannot lower the priority of this process")?;
    }
    let (output, classifier) = match &config.through {
        None => config.open_sessions()?,
        Some(through) => config.open_service(through)?,
    };
    let counters = Arc::new(Counters::default());
    let is_watch = config.inputs.watch.is_some();
    let is_long = !is_watch && config.inputs.single_files().is_none_or(|files| files > MANY);
    let is_in_file = config.is_in_file();
    let mut progress = Progress::new(Arc::clone(&counters), is_long, !is_in_file || config.json);
    if is_long {
        count::in_background(
            config.inputs.clone(),
            config.limits.max_upload_bytes,
            Arc::clone(&counters),
            stop.child_token(),
        )?;
    }
    let cache = classifier.cache();
    let done = output.done();
    let mut sink = Sink { printer: config.printer(), output, counters: Arc::clone(&counters), total: None, is_watch };
    let run = Run {
        inputs: config.inputs.clone(),
        classifier,
        limits: config.limits,
        is_done: Box::new(move |path: &Path| done.contains(&PathText::new(path))),
        counters: Arc::clone(&counters),
    };
    let collected = run.collect(&mut progress, stop, &mut sink);
    let last_line = progress.finish();
    let end = match collected {
        Ok(end) => end,
        Err(error) => {
            // The next run continues the rows that were written. The first error says what happened.
            let _ = sink.output.suspend();
            return Err(error);
        }
    };
    let summary = if end == End::Complete { sink.output.finish() } else { sink.output.suspend() }?;
    if is_long {
        telemetry::stderr_line(&format!("classify: {last_line}"));
        if let Some(cache) = cache {
            telemetry::stderr_line(&format!("classify: {} images were answered from the cache", cache.answered()));
        }
    }
    Ok(report(end, &summary) || (is_watch && end == End::Interrupted))
}

/// Prints the last lines. Returns whether the run succeeded.
fn report(end: End, summary: &Summary) -> bool {
    for line in &summary.lines {
        telemetry::stderr_line(&format!("classify: {line}"));
    }
    match end {
        End::Complete => summary.is_within_limit,
        // Without a failure, the reader of standard output went away.
        End::Refused => summary.failed == 0,
        End::Interrupted => false,
    }
}

fn dry_run(config: &Config, stop: &CancellationToken) -> anyhow::Result<bool> {
    let count = count::count(&config.inputs, config.limits.max_upload_bytes, stop)?;
    let text = if config.json {
        format!("{}\n", serde_json::to_string(&count)?)
    } else {
        format!(
            "{} images, {} other files skipped, {} inputs cannot be read\n",
            count.images, count.skipped, count.unreadable
        )
    };
    telemetry::output::print(&text).context("cannot print the number of images")?;
    Ok(count.unreadable == 0)
}

impl Config {
    /// Opens sessions of the model, and then the output: an output that is opened has begun, and a header may be printed.
    fn open_sessions(&self) -> anyhow::Result<(Output, Classifier)> {
        let TunedChoice { choice, tuning } = TunedChoice::read(self.model.clone());
        let package = ModelPackage::load(&choice)?;
        let threads = choice.intra_threads.unwrap_or(1).max(1);
        let sessions = self.jobs.or(tuning.map(|tuning| tuning.sessions)).unwrap_or(model::cores() / threads);
        let sessions = sessions.min(self.inputs.single_files().unwrap_or(usize::MAX)).max(1);
        let first = Session::open(&package, &choice)?;
        tracing::debug!(model = package.summary(), session = first.describe(), sessions, "model loaded");
        let ModelRef { digest, .. } = package.model_ref();
        let options = [
            ("model".to_owned(), digest),
            ("max-upload-bytes".to_owned(), self.limits.max_upload_bytes.to_string()),
            ("max-pixels".to_owned(), self.limits.max_pixels.to_string()),
        ];
        let output = Output::open(&self.output_for(Some(&package), options)?)?;
        let reads_time = self.printer().is_none() || self.is_in_file() || self.output.sidecar.is_some();
        let cache = self.cache.as_ref().map(ResultCache::open);
        let own = OwnSessions { package, choice, first, sessions, cache, top_k: self.top_k, reads_time };
        Ok((output, Classifier::Sessions(Box::new(own))))
    }

    /// Opens the output, which knows the batch, and then the service.
    fn open_service(&self, through: &Through) -> anyhow::Result<(Output, Classifier)> {
        // The package is here on most machines. It only gives the classes their ids.
        let package = ModelPackage::load(&self.model).ok();
        // Requests name a model by its name. The folder of a package says which.
        let is_folder = through.model.as_ref().is_some_and(|model| Path::new(model).is_dir());
        let of_folder = package.as_ref().filter(|_| is_folder).map(|package| package.model_ref().name);
        let model = of_folder.or_else(|| through.model.clone());
        let options = [
            ("through".to_owned(), "queue".to_owned()),
            ("model".to_owned(), model.clone().unwrap_or_else(|| "that of the service".to_owned())),
            ("max-upload-bytes".to_owned(), self.limits.max_upload_bytes.to_string()),
        ];
        let mut output = Output::open(&self.output_for(package.as_ref(), options)?)?;
        let batch = output.batch(through.batch)?;
        let through = Through { model, ..through.clone() };
        let service = Service::open(&through, batch, self.top_k, self.jobs)?;
        telemetry::stderr_line(&format!("classify: batch {}", batch.id));
        Ok((output, Classifier::Service(Box::new(service))))
    }

    /// The output, completed by the model.
    ///
    /// # Errors
    /// If the detector's file cannot be read.
    fn output_for(
        &self,
        package: Option<&ModelPackage>,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<OutputConfig> {
        let mut output = self.output.clone();
        if self.prints_text() {
            output.target = Target::Nothing;
        }
        if let Some(package) = package {
            let class = |index| ClassName {
                label: package.label(index).to_owned(),
                id: package.class_id(index).map(str::to_owned),
            };
            output.classes = (0..package.classes() as u32).map(class).collect();
            output.has_labels = package.has_thresholds();
        }
        output.options.extend(options);
        if let Some(boxes) = &self.inputs.boxes {
            output.options.extend(boxes.options()?);
        }
        if let Some(watch) = &self.inputs.watch {
            output.options.insert("the watched folder".to_owned(), watch.name()?);
        }
        output.boxes.clone_from(&self.inputs.boxes);
        output.grows = self.inputs.watch.is_some();
        Ok(output)
    }

    fn is_in_file(&self) -> bool {
        matches!(self.output.target, Target::File(_))
    }

    /// Single files on a terminal are printed with bars.
    fn prints_text(&self) -> bool {
        self.output.target == Target::Terminal && !self.inputs.is_pile()
    }

    fn printer(&self) -> Option<Printer> {
        (self.json || self.prints_text()).then_some(Printer { is_json: self.json })
    }
}

/// Takes the outcomes in the order of the input.
struct Sink {
    printer: Option<Printer>,
    output: Output,
    counters: Arc<Counters>,
    /// The number of images of the pile, once the output knows it.
    total: Option<u64>,
    is_watch: bool,
}

impl pipeline::Sink for Sink {
    fn append(&mut self, image: Finished) -> anyhow::Result<Flow> {
        let printed = match &self.printer {
            Some(printer) => printer.print(&image).context("cannot print the result")?,
            None => Flow::Continue,
        };
        if let (true, Err(error)) = (self.is_watch, &image.outcome) {
            tracing::warn!(image = %image.path.display(), code = error.code.as_str(), "{}", error.message);
        }
        let total = self.counters.total();
        // A limit on failures as a share is one of rows, which are as many as images unless they are of boxes.
        if let Some(images) = total.filter(|_| self.total != total && image.boxes.is_none()) {
            self.output.set_total(images);
            self.total = total;
        }
        let mut flow = printed;
        for row in rows(image) {
            if self.output.append(row)? == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        Ok(flow)
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        self.output.idle()
    }
}

/// The row of an image, or those of its boxes.
fn rows(image: Finished) -> Vec<Row> {
    let Finished { path, file, boxes, outcome, .. } = image;
    let Some(boxes) = boxes else {
        let outcome = outcome.map(classified);
        return vec![Row { path: PathText::new(&path), file, outcome }];
    };
    let paths = boxes.row_paths(&path);
    let row = |(index, path): (usize, &PathBuf)| {
        let outcome = outcome.as_ref().map_err(Clone::clone).map(|answer| {
            let nothing = BoxAnswer::default();
            let BoxAnswer { predictions, labels } = answer.boxes.get(index).unwrap_or(&nothing);
            Classified {
                predictions: predictions.clone(),
                labels: labels.clone(),
                width: answer.width,
                height: answer.height,
                datetime_original: answer.datetime_original.clone(),
                model: answer.model.clone(),
            }
        });
        Row { path: PathText::new(path), file: file.clone(), outcome }
    };
    paths.iter().enumerate().map(row).collect()
}

fn classified(answer: Answer) -> Classified {
    let Answer { predictions, labels, width, height, datetime_original, model, .. } = answer;
    Classified { predictions, labels, width, height, datetime_original, model }
}
