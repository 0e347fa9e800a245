//! `imgcls classify PATH…`: classifies a few files or any pile of them in this process, without a queue.
//!
//! - `source`: finds the images one after the other; `count`: how many there are
//! - `boxes`: parts of images, which a detector found; `watch`: images that come into a folder
//! - `pipeline`: connects the stages: `read` lists and reads, `session` decodes and infers, the outcomes are put into the
//!   order of the input; `message` and `finished` are what the stages exchange, `memory` limits what is read ahead
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
mod read;
mod session;
mod source;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

pub use self::boxes::{Boxes, Observations, Selection};
pub use self::source::{Inputs, Pattern, Rules};
pub use self::watch::Watch;

use self::finished::{Answer, BoxAnswer, Finished};
use self::output::{ClassName, Classified, Flow, Output, OutputConfig, PathText, Row, Summary, Target};
use self::pipeline::{End, Run};
use self::print::Printer;
use self::progress::{Counters, Progress};
use crate::config::Limits;
use crate::model::{self, ModelChoice, ModelPackage, Session, TunedChoice};
use crate::protocol::ModelRef;
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
    /// The model to run.
    pub model: ModelChoice,
    /// Limits on the cost of one image.
    pub limits: Limits,
    /// Number of sessions. `None` means what `imgcls tune` found, or one for each core.
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
    let TunedChoice { choice, tuning } = TunedChoice::read(config.model.clone());
    let package = ModelPackage::load(&choice)?;
    let threads = choice.intra_threads.unwrap_or(1).max(1);
    let sessions = config.jobs.or(tuning.map(|tuning| tuning.sessions)).unwrap_or(model::cores() / threads);
    let sessions = sessions.min(config.inputs.single_files().unwrap_or(usize::MAX)).max(1);
    let sessions = (0..sessions).map(|_| Session::open(&package, &choice)).collect::<anyhow::Result<Vec<_>>>()?;
    let described = sessions.first().map(Session::describe);
    tracing::debug!(model = package.summary(), session = described, sessions = sessions.len(), "model loaded");
    // An output that is opened has begun: a header may be printed.
    let output = Output::open(&config.output_for(&package)?)?;

    let counters = Arc::new(Counters::default());
    let is_watch = config.inputs.watch.is_some();
    let is_long = !is_watch && config.inputs.single_files().is_none_or(|files| files > MANY);
    let is_in_file = matches!(config.output.target, Target::File(_));
    let mut progress = Progress::new(Arc::clone(&counters), is_long, !is_in_file || config.json);
    if is_long {
        count::in_background(
            config.inputs.clone(),
            config.limits.max_upload_bytes,
            Arc::clone(&counters),
            stop.child_token(),
        )?;
    }
    let done = output.done();
    let (printer, model) = (config.printer(&package), package.model_ref());
    let mut sink = Sink { printer, output, model, counters: Arc::clone(&counters), total: None, is_watch };
    let run = Run {
        inputs: config.inputs.clone(),
        package,
        choice,
        sessions,
        limits: config.limits,
        top_k: config.top_k,
        reads_time: sink.printer.is_none() || is_in_file || config.output.sidecar.is_some(),
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
    /// The output, completed by the model.
    ///
    /// # Errors
    /// If the detector's file cannot be read.
    fn output_for(&self, package: &ModelPackage) -> anyhow::Result<OutputConfig> {
        let mut output = self.output.clone();
        if self.prints_text() {
            output.target = Target::Nothing;
        }
        let class = |index| ClassName {
            label: package.label(index).to_owned(),
            id: package.class_id(index).map(str::to_owned),
        };
        output.classes = (0..package.classes() as u32).map(class).collect();
        output.has_labels = package.has_thresholds();
        let limits = &self.limits;
        let ModelRef { digest, .. } = package.model_ref();
        output.options.extend([
            ("model".to_owned(), digest),
            ("max-upload-bytes".to_owned(), limits.max_upload_bytes.to_string()),
            ("max-pixels".to_owned(), limits.max_pixels.to_string()),
        ]);
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

    /// Single files on a terminal are printed with bars.
    fn prints_text(&self) -> bool {
        self.output.target == Target::Terminal && !self.inputs.is_pile()
    }

    fn printer(&self, package: &ModelPackage) -> Option<Printer> {
        (self.json || self.prints_text()).then(|| Printer { model: package.model_ref(), is_json: self.json })
    }
}

/// Takes the outcomes in the order of the input.
struct Sink {
    printer: Option<Printer>,
    output: Output,
    model: ModelRef,
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
        for row in rows(image, &self.model) {
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
fn rows(image: Finished, model: &ModelRef) -> Vec<Row> {
    let Finished { path, file, boxes, outcome, .. } = image;
    let Some(boxes) = boxes else {
        let outcome = outcome.map(|answer| classified(answer, model));
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
                model: model.clone(),
            }
        });
        Row { path: PathText::new(path), file: file.clone(), outcome }
    };
    paths.iter().enumerate().map(row).collect()
}

fn classified(answer: Answer, model: &ModelRef) -> Classified {
    let Answer { predictions, labels, width, height, datetime_original, .. } = answer;
    Classified { predictions, labels, width, height, datetime_original, model: model.clone() }
}
