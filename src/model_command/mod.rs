//! `imgcls model …`: adds models to the models directory, lists and checks them, and chooses the version in use.
//!
//! - `source`: the files of an export; `recognise`: what each framework's files say, as a `draft`
//! - `complete`: a draft and the facts of the ONNX file; `description`: `model.toml`; `package`: the files of a package
//! - `trial`: a package runs on photographs; `add`: all of it, in order
//! - `inspect`: `list`, `show` and `check`

mod add;
mod complete;
mod description;
mod draft;
mod inspect;
mod package;
mod recognise;
mod source;
mod trial;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

pub use self::add::{Add, Preset};
pub use self::draft::{Channels, Draft, Filter, Head, Labels, Layout, Position, Resize, Rounding, Size, Sourced};
use crate::model::{Library, ModelChoice, Reference};
use crate::telemetry::output;

/// Settings of one `imgcls model` command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The models directory, or `None` if the environment names no home directory.
    pub models_dir: Option<PathBuf>,
    /// How models run while they are checked.
    pub run: ModelChoice,
    /// Print JSON instead of text.
    pub json: bool,
    /// The command.
    pub action: Action,
}

/// The commands under `imgcls model`.
#[derive(Debug, Clone)]
pub enum Action {
    /// Add a model.
    Add(Box<Add>),
    /// List every version of every model.
    List,
    /// Print what is known about a model.
    Show {
        /// The model.
        reference: Reference,
    },
    /// Verify digests, load and run a model, or all of them.
    Check {
        /// The model, or `None` for every version in the models directory.
        reference: Option<Reference>,
    },
    /// Make a version the current one.
    Use {
        /// The model and its version.
        reference: Reference,
    },
    /// Return to the version that was in use before.
    Rollback {
        /// The model.
        name: String,
    },
    /// Delete a version, or a model with all its versions.
    Remove {
        /// The model, and its version unless all are deleted.
        reference: Reference,
        /// Delete the version in use too.
        force: bool,
    },
}

/// Runs the command. Returns false if a check found something.
///
/// # Errors
/// A message of one line that says what is wrong, with what, and what to do.
pub fn run(config: &Config) -> anyhow::Result<bool> {
    match &config.action {
        Action::Add(add) => add::run(config, add),
        Action::List => inspect::list(config),
        Action::Show { reference } => inspect::show(config, reference),
        Action::Check { reference } => inspect::check(config, reference.as_ref()),
        Action::Use { reference } => use_version(config, reference),
        Action::Rollback { name } => rollback(config, name),
        Action::Remove { reference, force } => remove(config, reference, *force),
    }
}

impl Config {
    fn library(&self) -> anyhow::Result<Library> {
        let folder = self.models_dir.as_ref().context(
            "there is no models directory, because neither XDG_DATA_HOME nor HOME is set; give one with --models-dir",
        )?;
        Ok(Library::new(folder))
    }

    /// How a model runs that is named or lies in a folder.
    fn choice(&self, model: String) -> ModelChoice {
        ModelChoice { model: Some(model), models_dir: self.models_dir.clone(), ..self.run.clone() }
    }

    /// Prints a report as JSON, or as the text.
    fn print(&self, report: &impl Serialize, text: &str) -> anyhow::Result<()> {
        let json = || serde_json::to_string(report).expect("reports serialise; this is a bug") + "\n";
        output::print(&if self.json { json() } else { text.to_owned() }).context("cannot print the result")
    }
}

/// The report of a command that moves the pointer.
#[derive(Serialize)]
struct Moved<'a> {
    name: &'a str,
    version: &'a str,
    before: Option<String>,
}

fn use_version(config: &Config, reference: &Reference) -> anyhow::Result<bool> {
    let Reference { name, version } = reference;
    let library = config.library()?;
    let Some(version) = version else {
        let versions: Vec<String> = library.versions(name)?.into_iter().map(|found| found.version).collect();
        anyhow::ensure!(!versions.is_empty(), "there is no model {name:?}; `imgcls model list` shows the models");
        anyhow::bail!(
            "say which version, as in `imgcls model use {name}@VERSION`; {name} has: {}",
            versions.join(", ")
        );
    };
    let before = library.use_version(name, version)?;
    let text = match before.as_deref() {
        Some(before) if before != version => {
            format!("{name}@{version} is in use, instead of {before}; `imgcls model rollback {name}` returns to that\n")
        }
        _ => format!("{name}@{version} is in use\n"),
    };
    config.print(&Moved { name, version, before }, &text)?;
    Ok(true)
}

fn rollback(config: &Config, name: &str) -> anyhow::Result<bool> {
    let (left, version) = config.library()?.rollback(name)?;
    let text = format!("{name}@{version} is in use again, instead of {left}\n");
    config.print(&Moved { name, version: &version, before: Some(left) }, &text)?;
    Ok(true)
}

fn remove(config: &Config, reference: &Reference, force: bool) -> anyhow::Result<bool> {
    #[derive(Serialize)]
    struct Removed<'a> {
        name: &'a str,
        versions: &'a [String],
    }
    let name = &reference.name;
    let versions = config.library()?.remove(reference, force)?;
    let removed: String = versions.iter().map(|version| format!("removed {name}@{version}\n")).collect();
    config.print(&Removed { name, versions: &versions }, &removed)?;
    Ok(true)
}
