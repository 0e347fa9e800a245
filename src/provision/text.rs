//! Plans, states and costs as text for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::change::{Action, Change, leaves};
use super::checks::{Check, Verdict};
use super::doctor::{Finding, Severity, Stalled};
use super::drift;
use super::inventory::Inventory;
use super::machines::{Machines, Outdated, Refresh, RefreshState};
use super::money::Cost;
use super::plan::Plan;
use super::resource::{Kind, STACK_TAG, target_of};
use super::stack::Stack;

/// Names the resources that have to exist in subnets whose machines have no public address.
const PRIVATE_SUBNETS: &str = "machines get no public address in these subnets: they need a NAT gateway, or endpoints of \
    S3, SQS, STS, CloudWatch, CloudWatch Logs and EC2 Auto Scaling in the VPC\n";
/// Says why a load balancer is not reached from the Internet although `--allow` lets others in.
const INNER_BALANCER: &str = "the load balancer has private addresses, for networks that are connected with the VPC: \
    --balancer-subnets with public subnets and --allow with a public network make it reached from the Internet\n";
/// Longer values are shown by size and digest.
const LONGEST_VALUE: usize = 100;

pub(super) fn plan(plan: &Plan) -> String {
    let mut text = header(&plan.stack);
    for change in &plan.changes {
        let _ = writeln!(text, "  {}", self::change(change));
        for difference in &change.differences {
            if let Some(entries) = drift::entries(difference) {
                for entry in entries {
                    let _ = writeln!(text, "      {} {}", if entry.is_foreign { '−' } else { '+' }, entry.words);
                }
                continue;
            }
            for (path, found, wanted) in leaves(difference) {
                let _ = writeln!(text, "      {path}: {} → {}", value(found.as_ref()), value(wanted.as_ref()));
            }
        }
    }
    text.push_str(&totals(plan));
    for note in &plan.notes {
        let _ = writeln!(text, "{note}");
    }
    if plan.stack.has_inner_balancer() && !plan.stack.is_private {
        text.push_str(INNER_BALANCER);
    }
    if !plan.stack.has_public_addresses {
        text.push_str(PRIVATE_SUBNETS);
    }
    text
}

fn header(stack: &Stack) -> String {
    format!("stack {} in {}, account {}\n", stack.name, stack.region, stack.account)
}

fn totals(plan: &Plan) -> String {
    if plan.is_empty() {
        return format!("nothing to do: all {} resources are as wanted\n", plan.stack.resources.len());
    }
    let count = |action| plan.count(action);
    format!(
        "{} to create, {} to update, {} to delete\n",
        count(Action::Create),
        count(Action::Update),
        count(Action::Delete)
    )
}

/// One line without its end: `+ queue requests`.
pub(super) fn change(change: &Change) -> String {
    let sign = match change.action {
        Action::Create => '+',
        Action::Update => '~',
        Action::Delete => '−',
    };
    format!("{sign} {:<18} {}", change.kind, change.name)
}

fn value(value: Option<&Value>) -> String {
    let Some(value) = value else { return "(none)".to_owned() };
    if let Some((id, attribute)) = target_of(value) {
        return format!("({id}.{attribute}, known after it is created)");
    }
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.len() <= LONGEST_VALUE {
        return text;
    }
    let digest = format!("{:x}", Sha256::digest(&text));
    format!("({} bytes, sha256 {}…)", text.len(), &digest[..12])
}

pub(super) fn cost(cost: &Cost) -> String {
    let Cost { currency, prices_of, per_million_images, .. } = cost;
    let prices_region = match &cost.region_without_prices {
        None => cost.prices_region.clone(),
        Some(region) => format!("{}, which are not those of {region}", cost.prices_region),
    };
    let not_counted = match &cost.not_counted[..] {
        [] => String::new(),
        usage => format!("; not counted, since the prices lack them: {}", usage.join(", ")),
    };
    let balanced = match cost.per_gigabyte_balanced {
        Some(price) => format!("; the load balancer adds {price} {currency} a gigabyte of images"),
        None => String::new(),
    };
    let (Some(at_rest_month), Some(at_max_day)) = (cost.at_rest_month, cost.at_max_day) else {
        return format!(
            "cost by the prices of {prices_of} ({prices_region}): {per_million_images:.2} {currency} a million images; \
             price unknown for {}, so that the cost of machines is too (--prices FILE){balanced}{not_counted}\n",
            cost.unknown_types.join(", ")
        );
    };
    format!(
        "cost by the prices of {prices_of} ({prices_region}): {at_rest_month:.2} {currency} a month at rest, \
         {per_million_images:.2} a million images, {at_max_day:.2} a day with all {} workers ({}){balanced}{not_counted}\n",
        cost.most_workers, cost.workers
    )
}

pub(super) fn removal(stack: &Stack, changes: &[Change], kept: &BTreeSet<(Kind, &str)>) -> String {
    let mut text = header(stack);
    for change in changes {
        let _ = writeln!(text, "  {}", self::change(change));
    }
    for (kind, name) in kept {
        let _ = writeln!(text, "  = {kind:<18} {name} stays: it was adopted, or belongs to what was");
    }
    let _ = writeln!(text, "{} to delete", changes.len());
    text
}

/// For a stack of which nothing but so many adopted resources is left.
pub(super) fn removed(stack: &Stack, kept: usize) -> String {
    let but = if kept == 0 { String::new() } else { format!(", except {kept} that stay") };
    format!("no resource with the tag {STACK_TAG}={} is left{but}\n", stack.name)
}

/// For a plan after whose changes the state was read again.
pub(super) fn applied(plan: &Plan) -> String {
    format!("all {} resources are as wanted\n", plan.stack.resources.len())
}

pub(super) fn first_key(key: &str) -> String {
    format!("key for clients, printed only now: {key}\n")
}

pub(super) fn status(plan: &Plan, inventory: &Inventory, machines: &Machines) -> String {
    let mut text = header(&plan.stack);
    for resource in &plan.stack.resources {
        let change = plan.changes.iter().find(|change| change.id.as_deref() == Some(&resource.id));
        let state = match change.map(|change| change.action) {
            None => "exists",
            Some(Action::Create) => "missing",
            Some(Action::Update | Action::Delete) => "differs",
        };
        let _ = writeln!(text, "  {state:<8} {:<18} {}", resource.kind, resource.name);
        for difference in change.into_iter().flat_map(|change| &change.differences) {
            if let Some(entries) = drift::entries(difference) {
                for entry in entries {
                    let _ = writeln!(
                        text,
                        "      {} {}",
                        if entry.is_foreign { "foreign" } else { "missing" },
                        entry.words
                    );
                }
                continue;
            }
            for (path, found, wanted) in leaves(difference) {
                let _ = writeln!(text, "      {path}: {}, not {}", value(found.as_ref()), value(wanted.as_ref()));
            }
        }
    }
    for change in plan.changes.iter().filter(|change| change.action == Action::Delete) {
        let _ = writeln!(text, "  unwanted {:<18} {}", change.kind, change.name);
    }
    text.push_str(&totals(plan));
    for note in &plan.notes {
        let _ = writeln!(text, "{note}");
    }
    for instance in &inventory.instances {
        let ready = machines.ready_after_seconds.get(&instance.id);
        let ready = ready.map(|seconds| format!(", ready {seconds} s after its start")).unwrap_or_default();
        let _ = writeln!(text, "machine {} of {}: {}{ready}", instance.id, instance.group, instance.state);
    }
    text
}

pub(super) fn machines(stack: &Stack, machines: &Machines) -> String {
    let mut text = String::new();
    for (group, reason) in &machines.failed_starts {
        let _ = writeln!(text, "{group} could not start a machine and retries by itself: {reason}");
    }
    if let Some(Stalled { visible, in_service }) = machines.stalled {
        let _ = writeln!(
            text,
            "{visible} images wait, {in_service} machines are in service, and nobody receives: a machine needs some \
             minutes to start; after that see `imgcls provision doctor`"
        );
    }
    for outdated in &machines.outdated {
        let _ = writeln!(text, "{}", self::outdated(outdated));
    }
    text.push_str(&web(stack, &machines.web));
    text
}

fn outdated(outdated: &Outdated) -> String {
    let Outdated { group, machines, refresh } = outdated;
    let older = format!("machines of {group} that run an older version: {machines}");
    match refresh {
        Some(Refresh { state: RefreshState::Running, percent, .. }) => format!(
            "{older}; they are replaced ({} % done), each after a new one has started its service",
            percent.unwrap_or_default()
        ),
        Some(Refresh { state: RefreshState::Failed, reason, .. }) => format!(
            "{older}; replacing them failed, and they run on: {}; `imgcls provision rollback` returns to the bundle \
             before, and `imgcls provision apply` tries again",
            reason.as_deref().unwrap_or("AWS gives no reason")
        ),
        _ => format!("{older}; `imgcls provision apply` replaces them"),
    }
}

/// A group that replaces its machines.
pub(super) fn replacing(group: &str, refresh: &Refresh) -> String {
    let percent = refresh.percent.unwrap_or_default();
    format!("{group}: {percent} % of the machines are replaced; Ctrl-C ends the wait alone\n")
}

pub(super) fn replaced(group: &str) -> String {
    format!("{group}: all machines run the current version\n")
}

pub(super) fn interrupted_refresh(group: &str) -> String {
    format!("interrupted: {group} goes on replacing its machines; `imgcls provision status` shows how far it is")
}

pub(super) fn refresh_cancelled(group: &str) -> String {
    format!("somebody cancelled the replacement of the machines of {group}: `imgcls provision apply` starts it again")
}

pub(super) fn refresh_failed(group: &str, refresh: &Refresh) -> String {
    format!(
        "replacing the machines of {group} failed, and those of the older version run on: {}; `imgcls provision logs` shows \
         what the new ones logged, and `imgcls provision rollback` returns to the bundle before",
        refresh.reason.as_deref().unwrap_or("AWS gives no reason")
    )
}

/// Group, current bundle and bundle to return to of each tier.
pub(super) fn rollback<'a>(stack: &Stack, tiers: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let mut text = header(stack);
    for (group, from, to) in tiers {
        let short = |digest: &'a str| digest.get(..12).unwrap_or(digest);
        let _ = writeln!(text, "  {group}: bundle {} → {}", short(from), short(to));
    }
    text
}

pub(super) const ROLLBACK_STARTED: &str = "the machines are being replaced, each after a new one has started its service; \
    `imgcls provision status` shows how far that is\n";

/// A line for each check.
pub(super) fn preflight(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { of, verdict, found } in checks {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Broken => "broken",
            Verdict::Unknown => "unknown",
        };
        let _ = writeln!(text, "{word:<7} {of}: {found}");
    }
    text
}

pub(super) fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { severity, on, fault, remedy } in findings {
        let word = match severity {
            Severity::Broken => "broken",
            Severity::Risk => "risk",
        };
        let _ = writeln!(text, "{word:<7} {on}: {fault}\n        {remedy}");
    }
    if findings.is_empty() {
        text.push_str("no problems found\n");
    }
    text
}

fn web(stack: &Stack, addresses: &[String]) -> String {
    if stack.get("WebGroup").is_none() {
        return String::new();
    }
    if addresses.is_empty() {
        return "web tier: no machine yet; `imgcls provision status` shows its address\n".to_owned();
    }
    if stack.get("WebBalancer").is_some() {
        return balancer(stack, addresses);
    }
    let reach = if stack.is_private {
        "; it is reached from its VPC alone, and --allow CIDR or --allow me lets others in"
    } else {
        ""
    };
    format!("web tier: {} (a machine answers about a minute after its start{reach})\n", addresses.join(" "))
}

fn balancer(stack: &Stack, addresses: &[String]) -> String {
    let reach = if stack.is_private { "; it is reached from its VPC alone, and --allow lets others in" } else { "" };
    format!(
        "web tier: {} (a new load balancer answers after some minutes; give a name of the certificate an alias or CNAME record \
         to it, and use that name{reach})\n",
        addresses.join(" ")
    )
}
