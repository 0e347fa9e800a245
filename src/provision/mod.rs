//! Makes the resources of a service on AWS equal to their description.
//!
//! The wanted state (`Stack`) and the actual state (`Inventory`) are plain values. A `Plan` is their difference: it can
//! be printed, saved and applied. Nothing is decided while a plan is applied. An interrupted run is therefore completed
//! by making a new plan from the state it left, and after all changes the next plan is empty.
//!
//! - `operations`: what a run does, from the parts below
//! - `resource`: the vocabulary of all three, which is CloudFormation's
//! - `settings`, `tier`, `names`, `arns`, `partition`: values that the others share
//! - `stack`, `permissions`, `user_data`: the wanted state
//! - `bundle`, `package`: what machines download; `artifacts` has both, `archive` their form,
//!   `elf` what they need of the system
//! - `inventory`, `aws`: the actual state, and single changes to it
//! - `plan`: the difference; `adoption`: what it takes over from the actual state
//! - `provisioner`: the permissions of the person who runs this
//! - `preflight`: whether an account and a bundle fit, before a stack is made; `checks` are its results
//! - `machines`: the machines that run
//! - `rollout`: new machines for a new bundle, and the way back
//! - `log_reader`: what the machines logged
//! - `doctor`: problems of a stack, whether imgcls or somebody else made it
//! - `notifications`: what people have to do to be told of problems
//! - `first_key`: the first key of a stack whose clients need one
//! - `export`, `export_terraform`: the stack as a CloudFormation template, and as a configuration of Terraform
//! - `money`: what a stack costs
//! - `rules`, `drift`: rules of security groups, and differences that matter for security, as text
//! - `text`: all of this as text for people

mod adoption;
mod archive;
mod arns;
mod artifacts;
mod aws;
mod bundle;
mod change;
mod checks;
mod doctor;
mod drift;
mod elf;
mod export;
mod export_terraform;
mod first_key;
mod inventory;
mod log_reader;
mod machines;
mod money;
mod names;
mod notifications;
mod operations;
mod package;
mod partition;
mod permissions;
mod plan;
mod policy_evaluation;
mod preflight;
mod provisioner;
mod resource;
mod rollout;
mod rules;
mod settings;
mod stack;
mod text;
mod tier;
mod user_data;

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use artifacts::Sources;
use operations::Provision;
pub use settings::{Allow, NetworkChoice, Notify, Settings, Watched};

/// Configuration of one run of `imgcls provision`.
pub struct Config {
    /// The region; if absent, as the AWS command line finds it.
    pub region: Option<String>,
    /// Endpoint of all services, if it is not AWS's own.
    pub endpoint_url: Option<String>,
    /// The wanted stack.
    pub settings: Settings,
    /// The sources of the uploads.
    pub sources: Sources,
    /// Take over resources that have the stack's names and no owner.
    pub adopt: bool,
    /// A file of prices to use instead of the built-in ones.
    pub prices: Option<PathBuf>,
    /// Limit of the cost of an hour at the largest number of workers.
    pub max_hourly: Option<f64>,
    /// Print JSON.
    pub json: bool,
    /// The operation.
    pub action: Action,
}

/// An operation of `imgcls provision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Shows the changes that `Apply` would make.
    Plan {
        /// A file to save the plan to.
        out: Option<PathBuf>,
        /// Return [`Outcome::Changes`] if the plan is not empty.
        says_changes: bool,
    },
    /// Makes the actual state equal to the wanted one.
    Apply {
        /// Do not ask for confirmation.
        is_confirmed: bool,
        /// A saved plan to apply.
        saved: Option<PathBuf>,
        /// The treatment of machines that run an older version.
        refreshes: Refreshes,
    },
    /// Returns to the bundle before the current one.
    Rollback {
        /// Do not ask for confirmation.
        is_confirmed: bool,
        /// Wait until the machines are replaced.
        waits: bool,
    },
    /// Prints what the machines logged.
    Logs {
        /// How far back the log is read.
        since: Duration,
        /// Continue until interrupted.
        follows: bool,
    },
    /// Shows each resource and its differences.
    Status,
    /// Deletes everything that belongs to the stack.
    Destroy {
        /// Do not ask for confirmation.
        is_confirmed: bool,
        /// Delete buckets that contain images or results too.
        deletes_data: bool,
    },
    /// Prints the stack for another tool.
    Export {
        /// The tool.
        format: ExportFormat,
        /// Write the bundle to this file instead.
        bundle_to: Option<PathBuf>,
    },
    /// Prints the permissions that a person who provisions the stack needs.
    Policy,
    /// Diagnoses a stack that imgcls or somebody else made.
    Doctor {
        /// Check the account and the bundle instead, before there is a stack.
        is_preflight: bool,
        /// Name of the workers' Auto Scaling group, if it is not the stack's default.
        group: Option<String>,
        /// Name of the workers' role, if it is not the stack's default.
        worker_role: Option<String>,
        /// Name of the web tier's role, if it is not the stack's default.
        web_role: Option<String>,
    },
}

/// The treatment of machines that run an older version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshes {
    /// They run on.
    None,
    /// Their groups begin to replace them.
    Started,
    /// The same, and the run ends when they are replaced.
    Finished,
}

/// A tool that can make a stack too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A CloudFormation template.
    CloudFormation,
    /// A configuration of Terraform in its JSON syntax.
    Terraform,
}

/// The outcome of a run that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The operation is done.
    Done,
    /// The plan is not empty, and the caller asked to report that.
    Changes,
    /// The user declined the confirmation.
    Declined,
    /// The doctor found something that does not work.
    Faults,
}

/// Runs one operation. `shutdown` interrupts it between two changes.
///
/// # Errors
/// One line: what failed, on what, and what to do.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<Outcome> {
    if let Action::Export { bundle_to: Some(path), .. } = &config.action {
        return operations::export_bundle(&config, path);
    }
    let provision = Provision::connect(config, shutdown).await?;
    match provision.config.action.clone() {
        Action::Plan { out, says_changes } => provision.plan(out.as_deref(), says_changes).await,
        Action::Apply { is_confirmed, saved: None, refreshes } => provision.apply(is_confirmed, refreshes).await,
        Action::Apply { saved: Some(path), refreshes, .. } => provision.apply_saved(&path, refreshes).await,
        Action::Rollback { is_confirmed, waits } => provision.rollback(is_confirmed, waits).await,
        Action::Logs { since, follows } => provision.logs(since, follows).await,
        Action::Status => provision.status().await,
        Action::Destroy { is_confirmed, deletes_data } => provision.destroy(is_confirmed, deletes_data).await,
        Action::Export { format, .. } => provision.export(format).await,
        Action::Policy => provision.policy(),
        Action::Doctor { is_preflight: true, .. } => provision.preflight().await,
        Action::Doctor { group, worker_role, web_role, .. } => provision.doctor(group, worker_role, web_role).await,
    }
}
