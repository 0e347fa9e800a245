//! Makes the resources of a service on AWS equal to their description.
//!
//! The wanted state (`Stack`) and the actual state (`Inventory`) are plain values. A `Plan` is their difference: it can
//! be printed, saved and applied. Nothing is decided while a plan is applied. An interrupted run is therefore completed
//! by making a new plan from the state it left, and after all changes the next plan is empty.
//!
//! - `resource`: the vocabulary of all three, which is CloudFormation's
//! - `settings`, `tier`, `names`, `arns`: values that the others share
//! - `stack`, `permissions`, `user_data`: the wanted state
//! - `bundle`, `package`: what machines download; `artifacts` has both, `archive` their form
//! - `inventory`, `aws`: the actual state, and single changes to it
//! - `plan`: the difference
//! - `machines`: the machines that run
//! - `doctor`: problems of a stack, whether imgcls or somebody else made it
//! - `first_key`: the first key of a stack whose clients need one
//! - `export`: the stack as a CloudFormation template
//! - `money`: what a stack costs
//! - `text`: all of this as text for people

mod archive;
mod arns;
mod artifacts;
mod aws;
mod bundle;
mod change;
mod doctor;
mod export;
mod first_key;
mod inventory;
mod machines;
mod money;
mod names;
mod package;
mod permissions;
mod plan;
mod policy_evaluation;
mod resource;
mod settings;
mod stack;
mod text;
mod tier;
mod user_data;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::aws::Aws;
use crate::config::Backend;
use crate::keys::Key;
use crate::scaling_policy::cost::Prices;
use crate::telemetry::output;
use artifacts::Artifacts;
pub use artifacts::Sources;
use aws::{Cloud, KnownAttributes};
use bundle::BundleRef;
use change::Change;
use doctor::{Severity, Target};
use inventory::Inventory;
use machines::{Machines, outdated, web_addresses};
use names::ResourceNames;
use plan::Plan;
use resource::Kind;
pub use settings::Settings;
use settings::Site;
use stack::Stack;
use tier::Tier;

/// Longest time to wait for the address of a web tier that was just created.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// Prints the stack as a CloudFormation template.
    Export {
        /// Write the bundle to this file instead.
        bundle_to: Option<PathBuf>,
    },
    /// Diagnoses a stack that imgcls or somebody else made.
    Doctor {
        /// Name of the workers' Auto Scaling group, if it is not the stack's default.
        group: Option<String>,
        /// Name of the workers' role, if it is not the stack's default.
        worker_role: Option<String>,
        /// Name of the web tier's role, if it is not the stack's default.
        web_role: Option<String>,
    },
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
    if let Action::Export { bundle_to: Some(path) } = &config.action {
        return export_bundle(&config, path);
    }
    let aws = Box::pin(Aws::connect(config.region.as_deref(), config.endpoint_url.as_deref())).await?;
    let account = Box::pin(aws.account()).await?;
    let cloud = Cloud::new(aws);
    let provision = Provision { config, cloud, account, shutdown };
    match provision.config.action.clone() {
        Action::Plan { out, says_changes } => provision.plan(out.as_deref(), says_changes).await,
        Action::Apply { is_confirmed, saved: None } => provision.apply(is_confirmed).await,
        Action::Apply { saved: Some(path), .. } => provision.apply_saved(&path).await,
        Action::Status => provision.status().await,
        Action::Destroy { is_confirmed, deletes_data } => provision.destroy(is_confirmed, deletes_data).await,
        Action::Export { .. } => provision.export().await,
        Action::Doctor { group, worker_role, web_role } => provision.doctor(group, worker_role, web_role).await,
    }
}

struct Provision {
    config: Config,
    cloud: Cloud,
    account: String,
    shutdown: CancellationToken,
}

impl Provision {
    async fn plan(&self, out: Option<&Path>, says_changes: bool) -> anyhow::Result<Outcome> {
        let (_, plan, _) = self.make_plan().await?;
        if let Some(path) = out {
            let text = serde_json::to_string_pretty(&plan)?;
            std::fs::write(path, text).with_context(|| format!("cannot save the plan to {}", path.display()))?;
        }
        let cost = self.cost(&plan.stack)?;
        if self.config.json {
            print(&json!({"plan": plan, "cost": cost}))?;
        } else {
            say(&format!("{}{}", text::plan(&plan), text::cost(&cost)))?;
        }
        Ok(if says_changes && !plan.is_empty() { Outcome::Changes } else { Outcome::Done })
    }

    async fn apply(&self, is_confirmed: bool) -> anyhow::Result<Outcome> {
        let (artifacts, plan, inventory) = self.make_plan().await?;
        let cost = self.cost(&plan.stack)?;
        if !self.config.json {
            say(&format!("{}{}", text::plan(&plan), text::cost(&cost)))?;
        }
        if !plan.is_empty() && !is_confirmed && !self.config.json && !confirmed("Make these changes?")? {
            return Ok(Outcome::Declined);
        }
        self.apply_changes(&plan.stack, &plan.changes, &inventory, Some(&artifacts)).await?;
        self.report_applied(&plan).await
    }

    /// Applies a saved plan, or nothing if the state has changed since it was made.
    async fn apply_saved(&self, path: &Path) -> anyhow::Result<Outcome> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the plan {}", path.display()))?;
        let plan = Plan::parse(&text).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?;
        let region = self.cloud.aws().region();
        if plan.stack.account != self.account || plan.stack.region != region {
            bail!(
                "{} is for account {} in {}, these credentials are for {} in {region}: use others, or give --region",
                path.display(),
                plan.stack.account,
                plan.stack.region,
                self.account
            );
        }
        let artifacts = self.checked(Artifacts::of(&self.config.sources)?)?;
        artifacts.check(&plan).with_context(|| path.display().to_string())?;
        let inventory = Box::pin(self.cloud.observe(&plan.stack)).await?;
        plan.check_inventory(&inventory)?;
        if !self.config.json {
            say(&text::plan(&plan))?;
        }
        self.apply_changes(&plan.stack, &plan.changes, &inventory, Some(&artifacts)).await?;
        self.report_applied(&plan).await
    }

    async fn status(&self) -> anyhow::Result<Outcome> {
        let (_, stack) = self.wanted(Artifacts::of(&self.config.sources)?).await?;
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let plan = Plan::new(stack, &inventory, self.config.adopt)?;
        let machines = self.machines(&plan.stack, &inventory).await?;
        if self.config.json {
            print(&json!({"plan": plan, "inventory": inventory, "machines": machines, "web": machines.web}))?;
        } else {
            say(&format!("{}{}", text::status(&plan, &inventory), text::machines(&plan.stack, &machines)))?;
        }
        Ok(Outcome::Done)
    }

    async fn destroy(&self, is_confirmed: bool, deletes_data: bool) -> anyhow::Result<Outcome> {
        let site = self.site().await?;
        let stack = Stack::new(&self.config.settings, &site, &BundleRef::unknown(), &[]);
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let changes = plan::removal(&inventory);
        if let Some(bucket) = inventory.buckets_with_data.first().filter(|_| !deletes_data) {
            bail!(
                "bucket {bucket:?} contains images or results: give --delete-data to delete them too; nothing was deleted"
            );
        }
        if !self.config.json {
            say(&text::removal(&stack, &changes))?;
        }
        if !changes.is_empty() && !is_confirmed {
            if !std::io::stdin().is_terminal() || self.config.json {
                bail!(
                    "standard input is not a terminal: give --yes to destroy stack {:?}; nothing was deleted",
                    stack.name
                );
            }
            if !confirmed(&format!("Destroy stack {:?}?", stack.name))? {
                return Ok(Outcome::Declined);
            }
        }
        self.apply_changes(&stack, &changes, &inventory, None).await?;
        self.check_nothing_is_left(&stack).await?;
        if self.config.json {
            print(&json!({"removed": changes}))?;
        }
        Ok(Outcome::Done)
    }

    /// # Errors
    /// Something with the stack's tag still exists.
    async fn check_nothing_is_left(&self, stack: &Stack) -> anyhow::Result<()> {
        let left = plan::removal(&Box::pin(self.cloud.observe(stack)).await?);
        if !left.is_empty() {
            let names: Vec<String> = left.iter().map(Change::label).collect();
            bail!("of stack {:?} there still exist {}: run this again", stack.name, names.join(", "));
        }
        if !self.config.json {
            say(&format!("no resource with the tag {}={} is left\n", resource::STACK_TAG, stack.name))?;
        }
        Ok(())
    }

    async fn export(&self) -> anyhow::Result<Outcome> {
        let (_, stack) = self.wanted(Artifacts::in_one_bundle(&self.config.sources)?).await?;
        print(&export::template(&stack))?;
        Ok(Outcome::Done)
    }

    async fn doctor(
        &self,
        group: Option<String>,
        worker_role: Option<String>,
        web_role: Option<String>,
    ) -> anyhow::Result<Outcome> {
        let names = ResourceNames::of(&self.config.settings.stack);
        let group = group.unwrap_or(names.worker_group);
        let target = Target {
            account: &self.account,
            region: self.cloud.aws().region(),
            names: &self.config.settings.names,
            group: &group,
            log_group: &names.log_group,
        };
        let roles =
            [(Tier::Worker, worker_role.unwrap_or(names.worker_role)), (Tier::Web, web_role.unwrap_or(names.web_role))];
        let observed = Box::pin(self.cloud.examine(&target, &roles)).await?;
        let findings = doctor::diagnose(&observed, &target);
        if self.config.json {
            print(&json!({"findings": findings, "seen": observed}))?;
        } else {
            say(&text::findings(&findings))?;
        }
        let is_broken = findings.iter().any(|finding| finding.severity == Severity::Broken);
        Ok(if is_broken { Outcome::Faults } else { Outcome::Done })
    }

    async fn wanted(&self, artifacts: Artifacts) -> anyhow::Result<(Artifacts, Stack)> {
        let artifacts = self.checked(artifacts)?;
        let site = self.site().await?;
        self.check_given_template().await?;
        let bundle = &artifacts.bundle.reference;
        let stack = Stack::new(&self.config.settings, &site, bundle, &artifacts.package_refs());
        Ok((artifacts, stack))
    }

    /// Checks that a launch template of the user exists before anything is created.
    async fn check_given_template(&self) -> anyhow::Result<()> {
        let Some(name) = &self.config.settings.existing_launch_template else { return Ok(()) };
        if self.cloud.template_data_of(name, "$Default").await?.is_none() {
            let region = self.cloud.aws().region();
            bail!(
                "there is no launch template {name:?} in {region}: give another --existing-launch-template, or --region"
            );
        }
        Ok(())
    }

    async fn make_plan(&self) -> anyhow::Result<(Artifacts, Plan, Inventory)> {
        let (artifacts, stack) = self.wanted(Artifacts::of(&self.config.sources)?).await?;
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let plan = Plan::new(stack, &inventory, self.config.adopt)?;
        Ok((artifacts, plan, inventory))
    }

    /// Checks that the machines can run the bundle.
    fn checked(&self, artifacts: Artifacts) -> anyhow::Result<Artifacts> {
        self.config.settings.check_cpu(artifacts.bundle.reference.cpu).map_err(|error| anyhow!(error))?;
        Ok(artifacts)
    }

    async fn site(&self) -> anyhow::Result<Site> {
        let (vpc_id, subnets) = self.cloud.default_network().await?;
        Ok(Site {
            account: self.account.clone(),
            region: self.cloud.aws().region().to_owned(),
            vpc_id,
            subnets,
            endpoint_url: self.cloud.aws().endpoint_url().map(str::to_owned),
        })
    }

    fn cost(&self, stack: &Stack) -> anyhow::Result<money::Cost> {
        let prices = prices(self.config.prices.as_deref())?;
        let cost = money::cost(&self.config.settings, stack, &prices).map_err(|error| anyhow!(error))?;
        match self.config.max_hourly {
            Some(most) if cost.at_max_hour > most => bail!(
                "at --max {} machines the stack costs {:.2} {} an hour, more than --max-hourly {most}: give less --max, other types, or more",
                self.config.settings.bounds.max(),
                cost.at_max_hour,
                cost.currency
            ),
            _ => Ok(cost),
        }
    }

    /// Applies changes one after the other. The error of a failed change says how many were made before.
    async fn apply_changes(
        &self,
        stack: &Stack,
        changes: &[Change],
        inventory: &Inventory,
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<()> {
        let mut known = KnownAttributes::of(stack, inventory);
        for (done, change) in changes.iter().enumerate() {
            let left = || {
                format!(
                    "{done} of {} changes are made, the next one is {}; run the same command to continue",
                    changes.len(),
                    text::change(change)
                )
            };
            if self.shutdown.is_cancelled() {
                bail!("interrupted: {}", left());
            }
            Box::pin(self.cloud.apply(change, stack, inventory, &mut known, artifacts)).await.with_context(left)?;
            if !self.config.json {
                // A reader of standard output that went away must not stop the changes.
                let _ = say(&format!("{} done\n", text::change(change)));
            }
        }
        Ok(())
    }

    async fn report_applied(&self, plan: &Plan) -> anyhow::Result<Outcome> {
        let key = self.first_key(&plan.stack).await?;
        let machines = self.wait_for_address(&plan.stack).await?;
        let key = key.as_ref().map(Key::reveal);
        if self.config.json {
            let mut report = json!({"changes": plan.changes, "machines": machines, "web": machines.web});
            if let Some(key) = key {
                report["key"] = json!(key);
            }
            print(&report)?;
        } else {
            let key = key.map(text::first_key).unwrap_or_default();
            say(&format!("{}{key}{}", text::applied(plan), text::machines(&plan.stack, &machines)))?;
        }
        Ok(Outcome::Done)
    }

    /// Creates the first key of a stack whose clients need one. The machines of the web tier start once it exists.
    async fn first_key(&self, stack: &Stack) -> anyhow::Result<Option<Key>> {
        if !stack.requires_keys {
            return Ok(None);
        }
        let Config { region, endpoint_url, settings, .. } = &self.config;
        let backend = Backend::Aws { region: region.clone(), endpoint_url: endpoint_url.clone() };
        let created = Box::pin(first_key::create(&backend, &settings.names)).await;
        created.context("all changes are made, but the first key cannot be created; run the same command again")
    }

    async fn machines(&self, stack: &Stack, inventory: &Inventory) -> anyhow::Result<Machines> {
        let groups: Vec<&str> = stack.names(Kind::AutoScalingGroup).collect();
        let there = groups.into_iter().filter(|name| inventory.get(Kind::AutoScalingGroup, name).is_some());
        Ok(Machines {
            web: web_addresses(stack, inventory),
            outdated: outdated(stack, inventory),
            failed_starts: self.cloud.failed_starts(there).await?,
        })
    }

    async fn wait_for_address(&self, stack: &Stack) -> anyhow::Result<Machines> {
        let deadline = tokio::time::Instant::now() + ADDRESS_TIMEOUT;
        let mut backoff = aws::POLL_DELAYS.start();
        loop {
            let inventory = Box::pin(self.cloud.observe(stack)).await?;
            let is_enough = stack.get("WebGroup").is_none() || !web_addresses(stack, &inventory).is_empty();
            if is_enough || tokio::time::Instant::now() > deadline || self.shutdown.is_cancelled() {
                return self.machines(stack, &inventory).await;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// The prices in a file, or the built-in ones.
fn prices(path: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = path else { return Ok(Prices::built_in()) };
    let context = || format!("the prices {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    Prices::parse(&text).map_err(anyhow::Error::msg).with_context(context)
}

fn export_bundle(config: &Config, path: &Path) -> anyhow::Result<Outcome> {
    let bundle = Artifacts::in_one_bundle(&config.sources)?.bundle;
    std::fs::write(path, bundle.packed()?).with_context(|| format!("cannot write the bundle to {}", path.display()))?;
    print(&json!({"bundle": bundle.reference, "key": bundle.reference.key()}))?;
    Ok(Outcome::Done)
}

/// Asks for confirmation at a terminal. Without a terminal the answer is yes.
fn confirmed(question: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    say(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(value: &serde_json::Value) -> anyhow::Result<()> {
    say(&format!("{value:#}\n"))
}

fn say(text: &str) -> anyhow::Result<()> {
    output::print(text).context("cannot write to standard output")
}
