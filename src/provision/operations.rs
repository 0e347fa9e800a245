//! The operations of a run: each puts the other modules together.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::artifacts::Artifacts;
use super::aws::{self, Cloud, KnownAttributes};
use super::bundle::{BundleRef, Cpu};
use super::change::Change;
use super::checks::{Verdict, not_enabled};
use super::doctor::{self, Severity, Target};
use super::inventory::Inventory;
use super::machines::{Machines, outdated, ready_after_seconds, web_addresses};
use super::names::ResourceNames;
use super::plan::{self, Plan};
use super::resource::{self, Kind};
use super::settings::{Allow, Network, RootVolume, Site};
use super::stack::Stack;
use super::tier::Tier;
use super::{
    Config, ExportFormat, Outcome, Refreshes, adoption, export, export_terraform, first_key, money, provisioner, text,
};
use crate::aws::Aws;
use crate::config::Backend;
use crate::keys::Key;
use crate::scaling_policy::cost::Prices;
use crate::telemetry::output;

/// Longest time to wait until AWS shows all changes, and the address of a web tier that was just created.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

pub(super) struct Provision {
    pub config: Config,
    pub cloud: Cloud,
    account: String,
    pub shutdown: CancellationToken,
}

impl Provision {
    pub(super) async fn connect(config: Config, shutdown: CancellationToken) -> anyhow::Result<Provision> {
        let aws = Box::pin(Aws::connect(config.region.as_deref(), config.endpoint_url.as_deref())).await?;
        let account = Box::pin(aws.account()).await;
        let cloud = Cloud::new(aws);
        match account {
            Ok(account) => Ok(Provision { config, cloud, account, shutdown }),
            // A region that is not enabled says that the credentials are unknown.
            Err(refusal)
                if refusal.is_unknown_credentials && matches!(Box::pin(cloud.has_region()).await, Ok(false)) =>
            {
                Err(anyhow!(not_enabled(cloud.aws().region())))
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    pub(super) async fn plan(&self, out: Option<&Path>, says_changes: bool) -> anyhow::Result<Outcome> {
        let (_, plan, _) = self.make_plan().await?;
        if let Some(path) = out {
            let text = serde_json::to_string_pretty(&plan)?;
            std::fs::write(path, text).with_context(|| format!("cannot save the plan to {}", path.display()))?;
        }
        let cost = self.cost(&plan.stack)?;
        // All else that a preflight checks would have ended this run.
        let quotas = self.quotas(plan.stack.bundle.cpu).await;
        if self.config.json {
            print(&json!({"plan": plan, "cost": cost, "preflight": quotas}))?;
        } else {
            let broken: Vec<_> = quotas.into_iter().filter(|check| check.verdict == Verdict::Broken).collect();
            say(&format!("{}{}{}", text::preflight(&broken), text::plan(&plan), text::cost(&cost)))?;
        }
        Ok(if says_changes && !plan.is_empty() { Outcome::Changes } else { Outcome::Done })
    }

    pub(super) async fn apply(&self, is_confirmed: bool, refreshes: Refreshes) -> anyhow::Result<Outcome> {
        let (artifacts, plan, inventory) = self.make_plan().await?;
        let cost = self.cost(&plan.stack)?;
        if !self.config.json {
            say(&format!("{}{}", text::plan(&plan), text::cost(&cost)))?;
        }
        if !plan.is_empty() && !is_confirmed && !self.config.json && !confirmed("Make these changes?")? {
            return Ok(Outcome::Declined);
        }
        self.apply_changes(&plan.stack, &plan.changes, &inventory, Some(&artifacts)).await?;
        self.report_applied(&plan, refreshes).await
    }

    /// Applies a saved plan, or nothing if the state has changed since it was made.
    pub(super) async fn apply_saved(&self, path: &Path, refreshes: Refreshes) -> anyhow::Result<Outcome> {
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
        self.report_applied(&plan, refreshes).await
    }

    pub(super) async fn status(&self) -> anyhow::Result<Outcome> {
        let (_, stack) = self.wanted(Artifacts::of(&self.config.sources)?).await?;
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let plan = Plan::new(stack, &inventory, self.config.adopt)?;
        let machines = self.machines(&plan.stack, &inventory).await?;
        if self.config.json {
            print(&json!({"plan": plan, "inventory": inventory, "machines": machines, "web": machines.web}))?;
        } else {
            say(&format!("{}{}", text::status(&plan, &inventory, &machines), text::machines(&plan.stack, &machines)))?;
        }
        Ok(Outcome::Done)
    }

    pub(super) async fn destroy(&self, is_confirmed: bool, deletes_data: bool) -> anyhow::Result<Outcome> {
        let site = self.site_without_network();
        let stack = Stack::new(&self.config.settings, &site, &BundleRef::unknown(), &[]);
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let changes = plan::removal(&inventory);
        let kept = adoption::kept(&inventory);
        let is_deleted = |bucket: &&String| !kept.contains(&(Kind::Bucket, bucket.as_str()));
        if let Some(bucket) = inventory.buckets_with_data.iter().find(is_deleted).filter(|_| !deletes_data) {
            bail!(
                "bucket {bucket:?} contains images or results: give --delete-data to delete them too; nothing was deleted"
            );
        }
        if !self.config.json {
            say(&text::removal(&stack, &changes, &kept))?;
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
        self.cloud.wait_for_deleted_queues(&stack, &kept).await?;
        self.check_nothing_is_left(&stack).await?;
        if self.config.json {
            let kept: Vec<String> = kept.iter().map(|(kind, name)| resource::label(*kind, name)).collect();
            print(&json!({"removed": changes, "kept": kept}))?;
        }
        Ok(Outcome::Done)
    }

    /// # Errors
    /// Something with the stack's tag still exists.
    async fn check_nothing_is_left(&self, stack: &Stack) -> anyhow::Result<()> {
        let inventory = Box::pin(self.cloud.observe(stack)).await?;
        let left = plan::removal(&inventory);
        if !left.is_empty() {
            let names: Vec<String> = left.iter().map(Change::label).collect();
            bail!("of stack {:?} there still exist {}: run this again", stack.name, names.join(", "));
        }
        if !self.config.json {
            say(&text::removed(stack, adoption::kept(&inventory).len()))?;
        }
        Ok(())
    }

    pub(super) async fn export(&self, format: ExportFormat) -> anyhow::Result<Outcome> {
        let (_, stack) = self.wanted(Artifacts::in_one_bundle(&self.config.sources)?).await?;
        let template = match format {
            ExportFormat::CloudFormation => export::template(&stack),
            ExportFormat::Terraform => export_terraform::configuration(&stack),
        };
        // CloudFormation takes 51,200 bytes, which white space would exceed. Terraform takes any length.
        let is_read = format == ExportFormat::Terraform || std::io::stdout().is_terminal();
        say(&if is_read { format!("{template:#}\n") } else { format!("{template}\n") })?;
        Ok(Outcome::Done)
    }

    pub(super) fn policy(&self) -> anyhow::Result<Outcome> {
        let policy =
            provisioner::policy(&self.config.settings, self.config.adopt, &self.account, self.cloud.aws().region());
        say(&format!("{policy:#}\n"))?;
        Ok(Outcome::Done)
    }

    pub(super) async fn doctor(
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
            read_buckets: &self.config.settings.read_buckets,
            group: &group,
            web_group: &names.web_group,
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
        let site = self.site(artifacts.bundle.reference.cpu).await?;
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
        let BundleRef { cpu, glibc, .. } = artifacts.bundle.reference;
        let settings = &self.config.settings;
        settings.check_cpu(cpu).and_then(|()| settings.check_glibc(glibc)).map_err(|error| anyhow!(error))?;
        Ok(artifacts)
    }

    /// The account, region and network for a bundle of this processor.
    async fn site(&self, cpu: Cpu) -> anyhow::Result<Site> {
        let settings = &self.config.settings;
        let network = self.cloud.network(&settings.network, &settings.types_of_tiers(cpu)).await?;
        let allowed = match &settings.allow {
            None => network.cidrs.clone(),
            Some(Allow::Network(network)) => vec![network.clone()],
            Some(Allow::Me) => vec![format!("{}/32", self.cloud.own_address().await?)],
        };
        let root_volume = self.cloud.root_volume(settings.image.as_deref(), cpu).await?;
        let is_balancer_public = settings.is_balancer_public(&network);
        settings.check_site(self.cloud.aws().region(), &network).map_err(|error| anyhow!(error))?;
        Ok(Site { network, root_volume, allowed, is_balancer_public, ..self.site_without_network() })
    }

    /// The part of the site that is needed to find the resources of a stack.
    pub(super) fn site_without_network(&self) -> Site {
        Site {
            account: self.account.clone(),
            region: self.cloud.aws().region().to_owned(),
            network: Network::default(),
            root_volume: RootVolume::default(),
            allowed: Vec::new(),
            is_balancer_public: false,
            endpoint_url: self.cloud.aws().endpoint_url().map(str::to_owned),
        }
    }

    fn cost(&self, stack: &Stack) -> anyhow::Result<money::Cost> {
        let prices = prices(self.config.prices.as_deref())?;
        let cost = money::cost(&self.config.settings, stack, &prices);
        match (self.config.max_hourly, cost.at_max_hour) {
            (Some(most), None) => bail!(
                "the price of {} is unknown, so that --max-hourly {most} cannot be checked: give prices with --prices FILE, or other types",
                cost.unknown_types.join(" and ")
            ),
            (Some(most), Some(_)) if cost.region_without_prices.is_some() => bail!(
                "the prices are those of {}, not of {}, so that --max-hourly {most} cannot be checked: give prices with --prices FILE",
                cost.prices_region,
                stack.region
            ),
            (Some(most), Some(at_max)) if at_max > most => bail!(
                "at --max {} machines the stack costs {at_max:.2} {} an hour, more than --max-hourly {most}: give less --max, other types, or more",
                self.config.settings.bounds.max(),
                cost.currency
            ),
            _ => Ok(cost),
        }
    }

    /// Applies changes one after the other. The error of a failed change says how many were made before.
    pub(super) async fn apply_changes(
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

    async fn report_applied(&self, plan: &Plan, refreshes: Refreshes) -> anyhow::Result<Outcome> {
        let key = self.first_key(&plan.stack).await?;
        let mut machines = self.look_again(&plan.stack).await?;
        if refreshes != Refreshes::None {
            let is_newer = plan.changes.iter().any(|change| change.kind == Kind::LaunchTemplate);
            self.refresh(&plan.stack, &mut machines.outdated, is_newer).await?;
        }
        let waits = refreshes == Refreshes::Finished;
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
        if waits {
            let groups = machines.outdated.iter().map(|outdated| outdated.group.as_str());
            self.until_replaced(groups).await?;
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
        let names = ResourceNames::of(&stack.name);
        let mut outdated = outdated(stack, inventory);
        for of_group in &mut outdated {
            of_group.refresh = self.cloud.last_refresh(&of_group.group).await?;
        }
        let starts = self.cloud.starts(there).await?;
        Ok(Machines {
            stalled: self.cloud.stalled(&self.config.settings.names.request_queue, &names.worker_group).await?,
            web: web_addresses(stack, inventory),
            outdated,
            ready_after_seconds: ready_after_seconds(&starts, inventory),
            failed_starts: starts.failed,
        })
    }

    /// Plans again from the state that AWS shows now, until nothing is left to do and the web tier has an address.
    ///
    /// # Errors
    /// Something still differs after [`LONGEST_LOOK`]: AWS did not keep a change, or somebody else made one.
    async fn look_again(&self, stack: &Stack) -> anyhow::Result<Machines> {
        let deadline = tokio::time::Instant::now() + LONGEST_LOOK;
        let mut backoff = aws::POLL_DELAYS.start();
        loop {
            let inventory = Box::pin(self.cloud.observe(stack)).await?;
            let left = Plan::new(stack.clone(), &inventory, self.config.adopt)?;
            let has_address = stack.get("WebGroup").is_none() || !web_addresses(stack, &inventory).is_empty();
            let is_over = tokio::time::Instant::now() > deadline || self.shutdown.is_cancelled();
            if left.is_empty() && (has_address || is_over) {
                return self.machines(stack, &inventory).await;
            }
            if is_over {
                let left: Vec<String> = left.changes.iter().map(Change::label).collect();
                bail!(
                    "all changes are made, but AWS shows that these still differ: {}: see `imgcls provision status`, or run the same command again",
                    left.join(", ")
                );
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

/// Writes the bundle to a file.
pub(super) fn export_bundle(config: &Config, path: &Path) -> anyhow::Result<Outcome> {
    let bundle = Artifacts::in_one_bundle(&config.sources)?.bundle;
    std::fs::write(path, bundle.packed()?).with_context(|| format!("cannot write the bundle to {}", path.display()))?;
    print(&json!({"bundle": bundle.reference, "key": bundle.reference.key()}))?;
    Ok(Outcome::Done)
}

/// Asks for confirmation at a terminal. Without a terminal the answer is yes.
pub(super) fn confirmed(question: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    say(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) fn print(value: &serde_json::Value) -> anyhow::Result<()> {
    say(&format!("{value:#}\n"))
}

pub(super) fn say(text: &str) -> anyhow::Result<()> {
    output::print(text).context("cannot write to standard output")
}
