//! The AWS side of a service, made equal to its description.
//!
//! What is wanted ([`Stack`]) and what is found ([`Inventory`]) are plain values; a [`Plan`] is their difference: printed,
//! saved, carried out. Nothing is decided while acting, so a plan that was cut off anywhere is made anew from what stands
//! then, and after all changes nothing is left to do.
//!
//! - `resource`: the language of all three, CloudFormation's
//! - `stack`, `roles`, `user_data`, `bundle`: what is wanted
//! - `inventory`, `aws`: what is found, and single changes
//! - `plan`: the difference
//! - `doctor`: what will not work, in anybody's stack
//! - `export`: the same stack as a template

mod aws;
mod bundle;
mod doctor;
mod export;
mod inventory;
mod money;
mod plan;
mod resource;
mod roles;
mod stack;
mod text;
mod user_data;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::aws::Aws;
use crate::model::ModelChoice;
use crate::scaling_policy::cost::Prices;
use crate::telemetry::output;
use aws::{Cloud, Known};
use bundle::{Bundle, BundleRef};
use doctor::{Called, Severity};
use inventory::Inventory;
use plan::{Change, Plan};
use resource::Kind;
pub use stack::Settings;
use stack::{Fleet, Outdated, Site, Stack};
use user_data::Tier;

/// How long is waited for the address of a web tier that has just been asked for.
const ADDRESS_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

pub struct Config {
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    pub settings: Settings,
    pub model: ModelChoice,
    /// An archive in the place of this program.
    pub bundle: Option<PathBuf>,
    /// What stands under the stack's names and is nobody's becomes the stack's.
    pub adopt: bool,
    /// A file in the place of the prices carried in the binary.
    pub prices: Option<PathBuf>,
    /// The most that an hour of machines may cost.
    pub max_hourly: Option<f64>,
    pub json: bool,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Plan {
        out: Option<PathBuf>,
        says_changes: bool,
    },
    Apply {
        is_confirmed: bool,
        saved: Option<PathBuf>,
    },
    Status,
    Destroy {
        is_confirmed: bool,
        deletes_data: bool,
    },
    Export {
        bundle_to: Option<PathBuf>,
    },
    /// Of a stack that somebody else may have made.
    Doctor {
        group: Option<String>,
        worker_role: Option<String>,
        web_role: Option<String>,
    },
}

/// How it ended, where it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Done,
    /// There are changes to make, and the caller asked to be told so.
    Changes,
    Declined,
    /// The doctor found something that does not work.
    Faults,
}

/// # Errors
/// One line: what is wrong, with what, and the way out.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<Ending> {
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

/// What is to be said of a stack's machines.
#[derive(Debug, Serialize)]
struct Machines {
    /// Where the web tier answers.
    web: Vec<String>,
    outdated: Vec<Outdated>,
    /// Why a group's last try to start a machine failed, by group.
    failed_starts: Vec<(String, String)>,
}

struct Provision {
    config: Config,
    cloud: Cloud,
    account: String,
    shutdown: CancellationToken,
}

impl Provision {
    async fn plan(&self, out: Option<&Path>, says_changes: bool) -> anyhow::Result<Ending> {
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
        Ok(if says_changes && !plan.is_empty() { Ending::Changes } else { Ending::Done })
    }

    async fn apply(&self, is_confirmed: bool) -> anyhow::Result<Ending> {
        let (bundle, plan, inventory) = self.make_plan().await?;
        let cost = self.cost(&plan.stack)?;
        if !self.config.json {
            say(&format!("{}{}", text::plan(&plan), text::cost(&cost)))?;
        }
        if !plan.is_empty() && !is_confirmed && !self.config.json && !confirmed("Make these changes?")? {
            return Ok(Ending::Declined);
        }
        self.make(&plan.stack, &plan.changes, &inventory, Some(&bundle)).await?;
        self.tell_address(&plan).await
    }

    /// Exactly what was planned, or nothing.
    async fn apply_saved(&self, path: &Path) -> anyhow::Result<Ending> {
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
        let bundle = self.bundle()?;
        if bundle.reference != plan.stack.bundle {
            bail!("{} was made with another build of imgcls or its model: make a new one", path.display());
        }
        let inventory = Box::pin(self.cloud.observe(&plan.stack)).await?;
        plan.check_inventory(&inventory)?;
        if !self.config.json {
            say(&text::plan(&plan))?;
        }
        self.make(&plan.stack, &plan.changes, &inventory, Some(&bundle)).await?;
        self.tell_address(&plan).await
    }

    async fn status(&self) -> anyhow::Result<Ending> {
        let (_, stack) = self.wanted().await?;
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let plan = Plan::new(stack, &inventory, self.config.adopt)?;
        let machines = self.machines(&plan.stack, &inventory).await?;
        if self.config.json {
            print(&json!({"plan": plan, "inventory": inventory, "machines": machines, "web": machines.web}))?;
        } else {
            say(&format!("{}{}", text::status(&plan, &inventory), text::machines(&plan.stack, &machines)))?;
        }
        Ok(Ending::Done)
    }

    async fn destroy(&self, is_confirmed: bool, deletes_data: bool) -> anyhow::Result<Ending> {
        let site = self.site().await?;
        let stack = Stack::new(&self.config.settings, &site, &BundleRef::unknown());
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let changes = plan::removal(&inventory);
        if let Some(bucket) = inventory.buckets_with_data.first().filter(|_| !deletes_data) {
            bail!(
                "bucket {bucket:?} holds images or results: give --delete-data to delete them too; nothing was removed"
            );
        }
        if !self.config.json {
            say(&text::removal(&stack, &changes))?;
        }
        if !changes.is_empty() && !is_confirmed {
            if !std::io::stdin().is_terminal() || self.config.json {
                bail!("nobody is there to be asked: give --yes to destroy stack {:?}; nothing was removed", stack.name);
            }
            if !confirmed(&format!("Destroy stack {:?}?", stack.name))? {
                return Ok(Ending::Declined);
            }
        }
        self.make(&stack, &changes, &inventory, None).await?;
        self.sweep(&stack).await?;
        if self.config.json {
            print(&json!({"removed": changes}))?;
        }
        Ok(Ending::Done)
    }

    /// Nothing with the stack's tag is left.
    async fn sweep(&self, stack: &Stack) -> anyhow::Result<()> {
        let left = plan::removal(&Box::pin(self.cloud.observe(stack)).await?);
        if !left.is_empty() {
            let names: Vec<String> = left.iter().map(Change::label).collect();
            bail!("of stack {:?} there still is {}: run this again", stack.name, names.join(", "));
        }
        if !self.config.json {
            say(&format!("nothing is left that has the tag {}={}\n", resource::STACK_TAG, stack.name))?;
        }
        Ok(())
    }

    async fn export(&self) -> anyhow::Result<Ending> {
        let (_, stack) = self.wanted().await?;
        print(&export::template(&stack))?;
        Ok(Ending::Done)
    }

    async fn doctor(
        &self,
        group: Option<String>,
        worker_role: Option<String>,
        web_role: Option<String>,
    ) -> anyhow::Result<Ending> {
        let fleet = Fleet::of(&self.config.settings.stack);
        let group = group.unwrap_or(fleet.worker_group);
        let called = Called {
            account: &self.account,
            region: self.cloud.aws().region(),
            names: &self.config.settings.names,
            group: &group,
            log_group: &fleet.log_group,
        };
        let roles =
            [(Tier::Worker, worker_role.unwrap_or(fleet.worker_role)), (Tier::Web, web_role.unwrap_or(fleet.web_role))];
        let seen = Box::pin(self.cloud.examine(&called, &roles)).await?;
        let findings = doctor::diagnose(&seen, &called);
        if self.config.json {
            print(&json!({"findings": findings, "seen": seen}))?;
        } else {
            say(&text::findings(&findings))?;
        }
        let is_broken = findings.iter().any(|finding| finding.severity == Severity::Broken);
        Ok(if is_broken { Ending::Faults } else { Ending::Done })
    }

    async fn wanted(&self) -> anyhow::Result<(Bundle, Stack)> {
        let bundle = self.bundle()?;
        let site = self.site().await?;
        self.check_given_template().await?;
        let stack = Stack::new(&self.config.settings, &site, &bundle.reference);
        Ok((bundle, stack))
    }

    /// Before anything is made for it.
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

    async fn make_plan(&self) -> anyhow::Result<(Bundle, Plan, Inventory)> {
        let (bundle, stack) = self.wanted().await?;
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let plan = Plan::new(stack, &inventory, self.config.adopt)?;
        Ok((bundle, plan, inventory))
    }

    fn bundle(&self) -> anyhow::Result<Bundle> {
        let bundle = find_bundle(&self.config)?;
        self.config.settings.check_cpu(bundle.reference.cpu).map_err(|error| anyhow!(error))?;
        Ok(bundle)
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

    /// Carries out changes one after the other; where one fails, says what stands.
    async fn make(
        &self,
        stack: &Stack,
        changes: &[Change],
        inventory: &Inventory,
        bundle: Option<&Bundle>,
    ) -> anyhow::Result<()> {
        let mut known = Known::of(stack, inventory);
        for (done, change) in changes.iter().enumerate() {
            let left = || {
                format!(
                    "{done} of {} changes are made, the next one is {}; the same command goes on from there",
                    changes.len(),
                    text::change(change)
                )
            };
            if self.shutdown.is_cancelled() {
                bail!("interrupted: {}", left());
            }
            Box::pin(self.cloud.carry_out(change, stack, inventory, &mut known, bundle)).await.with_context(left)?;
            if !self.config.json {
                // What is made does not depend on who reads of it.
                let _ = say(&format!("{} done\n", text::change(change)));
            }
        }
        Ok(())
    }

    async fn tell_address(&self, plan: &Plan) -> anyhow::Result<Ending> {
        let machines = self.wait_for_address(&plan.stack).await?;
        if self.config.json {
            print(&json!({"changes": plan.changes, "machines": machines, "web": machines.web}))?;
        } else {
            say(&format!("{}{}", text::applied(plan), text::machines(&plan.stack, &machines)))?;
        }
        Ok(Ending::Done)
    }

    async fn machines(&self, stack: &Stack, inventory: &Inventory) -> anyhow::Result<Machines> {
        let groups: Vec<&str> = stack.names(Kind::AutoScalingGroup).collect();
        let there = groups.into_iter().filter(|name| inventory.get(Kind::AutoScalingGroup, name).is_some());
        Ok(Machines {
            web: web_addresses(stack, inventory),
            outdated: stack.outdated(inventory),
            failed_starts: self.cloud.failed_starts(there).await?,
        })
    }

    async fn wait_for_address(&self, stack: &Stack) -> anyhow::Result<Machines> {
        let end = tokio::time::Instant::now() + ADDRESS_WITHIN;
        loop {
            let inventory = Box::pin(self.cloud.observe(stack)).await?;
            let is_enough = stack.get("WebGroup").is_none() || !web_addresses(stack, &inventory).is_empty();
            if is_enough || tokio::time::Instant::now() > end || self.shutdown.is_cancelled() {
                return self.machines(stack, &inventory).await;
            }
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
    }
}

/// The prices of a file, or those carried in the binary.
fn prices(path: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = path else { return Ok(Prices::built_in()) };
    let context = || format!("the prices {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    Prices::parse(&text).map_err(anyhow::Error::msg).with_context(context)
}

fn find_bundle(config: &Config) -> anyhow::Result<Bundle> {
    match &config.bundle {
        Some(path) => Bundle::of_archive(path),
        None => Bundle::of_this_program(&config.model),
    }
}

fn export_bundle(config: &Config, path: &Path) -> anyhow::Result<Ending> {
    let bundle = find_bundle(config)?;
    std::fs::write(path, bundle.packed()?).with_context(|| format!("cannot write the bundle to {}", path.display()))?;
    print(&json!({"bundle": bundle.reference, "key": bundle.reference.key()}))?;
    Ok(Ending::Done)
}

/// Where the web tier answers.
fn web_addresses(stack: &Stack, inventory: &Inventory) -> Vec<String> {
    let group = Fleet::of(&stack.name).web_group;
    let machines = inventory.instances.iter().filter(|machine| machine.group == group && machine.is_up());
    machines.filter_map(|instance| instance.address.as_ref()).map(|address| format!("http://{address}/")).collect()
}

/// Whether a person at a terminal says yes. Where nobody can be asked, what was asked for is done.
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

/// A reader that went away does not stop a change half-way.
fn say(text: &str) -> anyhow::Result<()> {
    output::print(text).context("cannot write to standard output")
}
