//! The command line: every flag and variable, as clap types, with one file per command.
//!
//! A setting is declared once, as a field of an `Args` struct. [`settings`] takes its value from a flag, a variable or a
//! file alike, and remembers which. Each command turns its arguments into the `Config` of its room. Nothing here acts:
//! what has to be looked up first (the AWS account, the result of `imgcls tune`) is passed in by `main`.

#![allow(
    missing_docs,
    reason = "docs of these items are help texts, and a flattened group of flags has none of its own"
)]

mod arrivals;
mod auth;
mod autoscale;
mod aws_values;
mod batch;
mod boxes;
mod cache;
mod classify;
mod color;
mod completions;
mod config;
mod data;
mod eval;
mod examples;
mod fit;
mod help;
mod http;
mod keys;
mod limits;
mod loadgen;
mod model;
mod model_command;
mod model_run;
mod model_sync;
mod notify;
mod parse;
mod pile_output;
mod pile_run;
mod plan;
mod policy;
mod processing;
mod provision;
mod queue;
mod report;
mod retention;
mod serve_web;
mod settings;
mod shared;
mod simulate;
mod status;
mod thumbnail;
mod tune;
mod units;
mod up;
mod usage;
mod version;
mod watch;
mod webhook;
mod worker;
mod workers;

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use self::arrivals::ArrivalArgs;
pub use self::auth::{AuthArg, AuthArgs};
pub use self::autoscale::AutoscaleArgs;
pub use self::batch::{BatchCommand, BatchCommandArgs};
pub use self::boxes::{BoxArgs, BoxShape, BoxTable};
pub use self::cache::CacheArgs;
pub use self::classify::ClassifyArgs;
pub use self::color::ColorArg;
pub use self::completions::{CompletionsArgs, ManArgs, ShellArg};
pub use self::config::{ConfigArgs, ConfigCommand, ShowArgs};
pub use self::data::DataArgs;
pub use self::eval::EvalArgs;
pub use self::fit::FitArgs;
pub use self::http::HttpArgs;
pub use self::keys::{KeysArgs, KeysCommand};
pub use self::limits::{BatchArgs, LeaseArgs, LimitArgs};
pub use self::loadgen::LoadgenArgs;
pub use self::model::{LabelSetArg, ModelArgs, ModelNamesArgs, ModelsDirArgs, RunArgs, ServiceModelArgs};
pub use self::model_command::{ModelCommand, ModelCommandArgs, ModelGroup};
pub use self::model_run::ModelRunArgs;
pub use self::model_sync::ModelSyncArgs;
pub use self::pile_output::PileOutput;
pub use self::pile_run::{PileFilesArgs, PileRunArgs, Sidecar, SortAs};
pub use self::plan::PlanArgs;
pub use self::policy::{PolicyArgs, PolicyKind};
pub use self::processing::ProcessingArgs;
pub use self::provision::ProvisionArgs;
pub use self::queue::{QueueArgs, QueueCommand};
pub use self::report::{error_json, error_line, wants_json};
pub use self::retention::{KeepArgs, RetentionArgs};
pub use self::serve_web::ServeWebArgs;
pub use self::settings::SettingsError;
pub use self::shared::{OutputArgs, SharedArgs};
pub use self::simulate::SimulateArgs;
pub use self::status::{StatusArgs, StatusServiceArgs, TopArgs};
pub use self::thumbnail::ThumbnailArgs;
pub use self::tune::TuneArgs;
pub use self::up::UpArgs;
pub use self::usage::UsageError;
pub use self::version::VersionArgs;
pub use self::watch::WatchArgs;
pub use self::worker::{GroupArg, WorkerArgs};
pub use self::workers::{NOT_PASSED_TO_WORKERS, SupervisorArgs, WorkersArgs};

use crate::config::{Document, Machines};
use crate::model::JPEG_DECODER;
use crate::telemetry::{Color, LogFormat};

/// The version, and the library that decodes JPEGs.
static LONG_VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}\nJPEG: {JPEG_DECODER}", env!("CARGO_PKG_VERSION")));

/// Elastic image classification through a queue: one binary, on one machine or on AWS.
#[derive(Debug, Parser)]
#[command(name = "imgcls", version, long_version = LONG_VERSION.as_str(), arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Start with `imgcls up`, open http://127.0.0.1:8080/, drop a photograph on the page.\n\
    Every setting is a flag, a variable IMGCLS_<FLAG>, and for services a key in the file that --config names.\n\
    A flag takes precedence over a variable, a variable over the file. `imgcls config show` prints all of them.\n\
    Exit codes: 0 done, 1 failed, 2 usage, 99 a threshold was missed; `provision plan\n\
    --detailed-exitcode`: 0 nothing to do, 3 changes.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Colours of messages and of the log; auto means on a terminal, unless NO_COLOR, CLICOLOR_FORCE or TERM=dumb say
    /// otherwise
    #[arg(long, global = true, env = "IMGCLS_COLOR", value_name = "WHEN", value_enum, default_value_t = ColorArg::Auto)]
    pub color: ColorArg,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: web tier, queue, store and an elastic set of workers
    Up(UpArgs),
    /// Run the web tier alone
    ServeWeb(ServeWebArgs),
    /// Run one worker: images from the queue, results to the store and back to the web tier
    Worker(WorkerArgs),
    /// Keep the number of workers at what the queue needs: the Auto Scaling group, or processes on this machine
    Autoscale(AutoscaleArgs),
    /// Send load, measure it, check the answers
    Loadgen(LoadgenArgs),
    /// Run scaling policies against a virtual clock: latency and cost of a fleet under a load
    Simulate(SimulateArgs),
    /// Find the fleet that keeps a latency under a load at the lowest price: instance type, number, policy
    Plan(PlanArgs),
    /// Create and update the AWS side: queues, buckets, instances, alarms; plan, inspect and remove it
    Provision(Box<ProvisionArgs>),
    /// Show the state of a service: readiness, workers, throughput, queues, disk, last errors
    Status(StatusArgs),
    /// Show the same live in the terminal
    Top(TopArgs),
    /// Inspect queues; list, show and resend dead letters
    Queue(QueueArgs),
    /// Batches of images: list them, show how far they are, print results, cancel, send failed images again
    Batch(BatchCommandArgs),
    /// Inspect what is stored on this machine; delete images and results of finished jobs
    Data(DataArgs),
    /// Create, list and revoke the keys of clients
    Keys(KeysArgs),
    /// Classify files, folders, archives or buckets: in this process, or through the queue of a service
    Classify(Box<ClassifyArgs>),
    /// Classify the images that come into a folder, and write a table that grows
    Watch(WatchArgs),
    /// Add models as they were exported, check them, and choose the versions that services use
    Model(ModelCommandArgs),
    /// Measure how often a model is right on labelled images; compare two models
    Eval(EvalArgs),
    /// Measure how the model runs fastest on this machine; workers that start later use the result
    Tune(TuneArgs),
    /// Show the settings of a command
    Config(ConfigArgs),
    /// Write a small copy of the image on standard input; the web tier starts it, so that no decoder runs in its own process
    #[command(hide = true)]
    Thumbnail(ThumbnailArgs),
    /// Print a script that completes commands and flags in a shell
    Completions(CompletionsArgs),
    /// Print the version, the digest of the program, the runtime, the features of this CPU and the models
    Version(VersionArgs),
    /// Write the man pages to a directory
    #[command(hide = true)]
    Man(ManArgs),
}

/// A parsed command line, with the value and the source of every setting.
#[derive(Debug)]
pub struct Invocation {
    pub command: Command,
    pub settings: Document,
    /// Settings of the web tier, the workers and `autoscale` on the machines of a stack, from the file that `provision`
    /// was given.
    pub machines: Machines,
    pub color: Color,
    /// How values without a unit were read, one line each.
    pub warnings: Vec<String>,
}

impl Cli {
    /// Parses the command line (the program's name first), the variables, and the file that `--config` names.
    ///
    /// # Errors
    /// A [`clap::Error`] if a flag is wrong or help is asked for; a [`SettingsError`] if a variable or the file is.
    pub fn read(arguments: &[OsString]) -> anyhow::Result<Invocation> {
        let command = help::arranged(Cli::command()).color(color::of_command_line(arguments));
        let settings::Read { matches, document, machines, warnings } = settings::read(command, arguments)?;
        let cli = Cli::from_arg_matches(&matches)?;
        Ok(Invocation { command: cli.command, settings: document, machines, color: cli.color.color(), warnings })
    }

    /// The text that `imgcls config show` prints.
    ///
    /// # Errors
    /// As [`Cli::read`] for the command that is shown.
    pub fn show(args: &ShowArgs) -> anyhow::Result<String> {
        let shown = Cli::read(&args.command_line()?)?;
        if args.is_json() {
            return Ok(format!("{:#}\n", shown.settings.to_json(&shown.machines)));
        }
        Ok(shown.settings.to_text(&shown.machines))
    }
}

impl CompletionsArgs {
    /// The script for the shell.
    pub fn text(&self) -> String {
        self.script(Cli::command())
    }
}

impl ManArgs {
    /// Writes a page for each command.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_pages(&self) -> anyhow::Result<()> {
        self.write(Cli::command())
    }
}

impl Command {
    pub fn log_format(&self) -> LogFormat {
        match self {
            Command::Up(args) => args.supervisor.shared.log_format,
            Command::ServeWeb(args) => args.shared.log_format,
            Command::Worker(args) => args.shared.log_format,
            Command::Autoscale(args) => args.supervisor.shared.log_format,
            Command::Status(args) => args.shared.log_format,
            Command::Top(args) => args.shared.log_format,
            Command::Queue(args) => args.command.shared().log_format,
            Command::Batch(args) => args.command.shared().log_format,
            Command::Data(args) => args.command.shared().log_format,
            Command::Keys(args) => args.command.shared().log_format,
            Command::Classify(args) => args.shared.log_format,
            Command::Provision(args) => args.stack().shared.log_format,
            Command::Loadgen(_)
            | Command::Simulate(_)
            | Command::Plan(_)
            | Command::Watch(_)
            | Command::Eval(_)
            | Command::Model(_)
            | Command::Thumbnail(_)
            | Command::Tune(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Version(_)
            | Command::Man(_) => LogFormat::Text,
        }
    }
}

impl UsageError {
    /// Ends the process as a wrong flag does: a line, the usage of the command, exit code 2.
    pub fn exit(&self) -> ! {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let mut cli = Cli::command().color(color::of_command_line(&arguments));
        cli.build();
        let command = cli.find_subcommand_mut(self.command).expect("the name of a command; this is a bug");
        command.error(clap::error::ErrorKind::ValueValidation, &self.message).exit()
    }
}
