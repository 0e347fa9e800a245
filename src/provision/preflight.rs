//! Checks of an account and a bundle before a stack is made: region, zones, processor, C library, root volume, the free
//! plan, and the quotas of vCPUs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::artifacts::Artifacts;
use super::bundle::{BundleRef, Cpu};
use super::checks::{Check, InstanceType, Verdict, not_enabled};
use super::elf::Glibc;
use super::operations::{Provision, print, say};
use super::settings::{Network, Settings};
use super::text;

/// A network without a way to Service Quotas must not hold up a plan.
const QUOTA_TIMEOUT: Duration = Duration::from_secs(6);

impl Provision {
    /// Makes all checks and prints them.
    ///
    /// # Errors
    /// The bundle cannot be made.
    pub(super) async fn preflight(&self) -> anyhow::Result<Outcome> {
        let bundle = Artifacts::of(&self.config.sources)?.bundle.reference;
        let checks = self.checks(&bundle).await;
        if self.config.json {
            print(&json!({"preflight": checks}))?;
        } else {
            say(&text::preflight(&checks))?;
        }
        let is_broken = checks.iter().any(|check| check.verdict == Verdict::Broken);
        Ok(if is_broken { Outcome::Faults } else { Outcome::Done })
    }

    async fn checks(&self, bundle: &BundleRef) -> Vec<Check> {
        let settings = &self.config.settings;
        let (region, cpu) = (self.cloud.aws().region(), bundle.cpu);
        let is_enabled = match self.cloud.has_region().await {
            Ok(true) => Ok(format!("the account has enabled {region}")),
            Ok(false) => Err(not_enabled(region)),
            Err(error) => Err(format!("{error:#}")),
        };
        let network = self.cloud.network(&settings.network, &settings.types_of_tiers(cpu)).await;
        let balancer = self.check_of_balancer(&network);
        let root_volume = self.cloud.root_volume(settings.image.as_deref(), cpu).await.map(|volume| {
            format!("{} with {} GB, which hold the snapshot of the AMI", volume.device, volume.gigabytes)
        });
        let mut checks = vec![
            Check::of("region", is_enabled),
            Check::of("types per zone", network.map(|network| types_words(settings, cpu, &network))),
            Check::of("processor", settings.check_cpu(cpu).map(|()| format!("the bundle and all types are {cpu}"))),
            Check::of("C library", settings.check_glibc(bundle.glibc).map(|()| glibc_words(settings, bundle.glibc))),
            Check::of("root volume", root_volume),
        ];
        checks.extend(balancer);
        checks.extend(self.quotas(cpu).await);
        checks
    }

    /// Checks whether the zones and the region fit the load balancer, if one is wanted.
    fn check_of_balancer(&self, network: &anyhow::Result<Network>) -> Option<Check> {
        let settings = &self.config.settings;
        let network = network.as_ref().ok().filter(|_| settings.certificate.is_some())?;
        let found = settings.check_site(self.cloud.aws().region(), network);
        let words =
            || format!("it has {} zones, and its certificate is of this region", network.balancer_subnets.len());
        Some(Check::of("load balancer", found.map(|()| words())))
    }

    /// Checks whether the account may start these types, if it is on the free plan. Other accounts start all of them.
    async fn free_plan(&self, types: &BTreeMap<String, InstanceType>) -> Option<Check> {
        const OF: &str = "free plan";
        let others: Vec<&str> =
            types.iter().filter(|(_, found)| !found.is_in_free_plan).map(|(name, _)| name.as_str()).collect();
        if others.is_empty() {
            return None;
        }
        let others = others.join(" and ");
        Some(match tokio::time::timeout(QUOTA_TIMEOUT, self.cloud.is_on_free_plan()).await {
            Ok(Ok(false)) => Check::new(OF, Verdict::Ok, "the account is not on the free plan of AWS"),
            Ok(Ok(true)) => Check::new(
                OF,
                Verdict::Broken,
                format!(
                    "the account is on the free plan of AWS, which does not start {others}: give types such as c7i-flex.large or t3.small, or upgrade the plan"
                ),
            ),
            Ok(Err(error)) => {
                Check::new(OF, Verdict::Unknown, format!("an account on it cannot start {others}; {error:#}"))
            }
            Err(_) => Check::new(
                OF,
                Verdict::Unknown,
                format!("an account on it cannot start {others}; AWS does not say which plan this one has"),
            ),
        })
    }

    /// Compares the machines that the stack may run at once with the quotas of the account.
    pub(super) async fn quotas(&self, cpu: Cpu) -> Vec<Check> {
        const OF: &str = "vCPU quota";
        let settings = &self.config.settings;
        let types = settings.types_of_tiers(cpu).concat();
        let known = match self.cloud.instance_types(&types).await {
            Ok(known) => known,
            Err(error) => return vec![Check::new(OF, Verdict::Unknown, format!("{error:#}"))],
        };
        let vcpus = known.iter().map(|(name, found)| (name.clone(), found.vcpus)).collect();
        let mut checks: Vec<Check> = self.free_plan(&known).await.into_iter().collect();
        for demand in demands(settings, cpu, &vcpus) {
            let Some(quota) = demand.quota else {
                let found = format!("imgcls does not know the quota of {}", demand.types.join(", "));
                checks.push(Check::new(OF, Verdict::Unknown, found));
                continue;
            };
            let asked = tokio::time::timeout(QUOTA_TIMEOUT, self.cloud.quota_of_ec2(quota.code)).await;
            checks.push(match asked {
                Ok(Ok(limit)) => verdict_of(&demand, quota, limit),
                Ok(Err(error)) => Check::new(OF, Verdict::Unknown, format!("{error:#}")),
                Err(_) => Check::new(OF, Verdict::Unknown, "Service Quotas does not answer"),
            });
        }
        checks
    }
}

fn types_words(settings: &Settings, cpu: Cpu, network: &Network) -> String {
    let types = settings.types_of_tiers(cpu).concat().join(", ");
    format!("{types} in {} subnets of {}", network.subnets.len(), network.vpc_id)
}

fn glibc_words(settings: &Settings, needed: Option<Glibc>) -> String {
    match (needed, &settings.image) {
        (None, _) => "the bundle needs none".to_owned(),
        (Some(needed), None) => format!("the bundle needs glibc {needed}, Debian 12 has {}", Cpu::DEBIAN_GLIBC),
        (Some(needed), Some(image)) => format!("the bundle needs glibc {needed}; that of {image} is not known"),
    }
}

fn verdict_of(demand: &Demand, quota: Quota, limit: f64) -> Check {
    let Demand { vcpus, types, .. } = demand;
    let needed = format!("{vcpus} vCPUs of {} at most", types.join(", "));
    let Quota { name, code } = quota;
    if f64::from(*vcpus) <= limit {
        return Check::new(
            "vCPU quota",
            Verdict::Ok,
            format!("{needed}; {name} allows {limit}, other machines of the account included"),
        );
    }
    let found = format!(
        "{needed}, and {name} allows {limit}: ask for more in Service Quotas ({code}), or give less --max or other types"
    );
    Check::new("vCPU quota", Verdict::Broken, found)
}

/// A quota of EC2 for machines that run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Quota {
    name: &'static str,
    code: &'static str,
}

/// The vCPUs that a stack may need under one quota.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Demand {
    quota: Option<Quota>,
    vcpus: u32,
    types: Vec<String>,
}

/// Source: the quotas of EC2 in the AWS General Reference. Programs that ask Service Quotas by these codes have the same ones,
/// among them Cloud-Z (`collect-aws`), which has those of Spot with the families. Other families have quotas of their own,
/// which are not known here.
fn quota_of(instance_type: &str, is_spot: bool) -> Option<Quota> {
    let family: String = instance_type.chars().take_while(char::is_ascii_alphabetic).collect();
    let (name, code) = match (family.as_str(), is_spot) {
        ("a" | "c" | "d" | "h" | "i" | "im" | "is" | "m" | "r" | "t" | "z", false) => {
            ("Running On-Demand Standard instances", "L-1216C47A")
        }
        ("a" | "c" | "d" | "h" | "i" | "im" | "is" | "m" | "r" | "t" | "z", true) => {
            ("All Standard Spot Instance Requests", "L-34B43A08")
        }
        ("g" | "vt", false) => ("Running On-Demand G and VT instances", "L-DB2E81BA"),
        ("g" | "vt", true) => ("All G and VT Spot Instance Requests", "L-3819A6DF"),
        ("p", false) => ("Running On-Demand P instances", "L-417A185B"),
        ("p", true) => ("All P Spot Instance Requests", "L-7212CCBC"),
        _ => return None,
    };
    Some(Quota { name, code })
}

/// The machines of both tiers at their largest number, by quota. A group of several types may run the largest alone.
fn demands(settings: &Settings, cpu: Cpu, vcpus: &BTreeMap<String, u32>) -> Vec<Demand> {
    let workers = settings.bounds.max();
    let spot = workers.saturating_mul(settings.spot_percent).div_ceil(100);
    let on_demand = workers.saturating_mul(100_u32.saturating_sub(settings.spot_percent)).div_ceil(100);
    let worker_types = settings.worker_types(cpu);
    let web_types = [settings.web_type(cpu).to_owned()];
    let tiers: [(&[String], u32, bool); 3] =
        [(&worker_types, on_demand, false), (&worker_types, spot, true), (&web_types, settings.web_instances, false)];
    let mut demands: Vec<Demand> = Vec::new();
    for (types, machines, is_spot) in tiers {
        let largest = types.iter().max_by_key(|name| vcpus.get(*name).copied().unwrap_or_default());
        let Some(largest) = largest.filter(|_| machines > 0) else { continue };
        let quota = quota_of(largest, is_spot);
        let more = vcpus.get(largest).copied().unwrap_or_default().saturating_mul(machines);
        match demands.iter_mut().find(|demand| demand.quota == quota && quota.is_some()) {
            Some(demand) => {
                demand.vcpus = demand.vcpus.saturating_add(more);
                if !demand.types.contains(largest) {
                    demand.types.push(largest.clone());
                }
            }
            None => demands.push(Demand { quota, vcpus: more, types: vec![largest.clone()] }),
        }
    }
    demands
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling_policy::Bounds;

    fn demanded(settings: &Settings) -> Vec<(Option<&'static str>, u32)> {
        let sizes = [("c7i.large", 2), ("c7i.xlarge", 4), ("t3.small", 2), ("g5.xlarge", 4), ("x2idn.32xlarge", 128)];
        let vcpus = sizes.into_iter().map(|(name, vcpus)| (name.to_owned(), vcpus)).collect();
        let demands = demands(settings, Cpu::X86_64, &vcpus);
        demands.into_iter().map(|demand| (demand.quota.map(|quota| quota.code), demand.vcpus)).collect()
    }

    #[test]
    fn machines_of_both_tiers_share_the_quota_of_their_families() {
        let settings = Settings { bounds: Bounds::new(0, 10).unwrap(), ..Settings::for_tests("imgcls") };
        assert_eq!(demanded(&settings), [(Some("L-1216C47A"), 22)]);
        let types = vec!["c7i.large".to_owned(), "c7i.xlarge".to_owned()];
        let mixed = Settings { instance_types: types, spot_percent: 75, web_instances: 0, ..settings.clone() };
        assert_eq!(demanded(&mixed), [(Some("L-1216C47A"), 12), (Some("L-34B43A08"), 32)]);
        let with = |name: &str| Settings { instance_types: vec![name.to_owned()], ..settings.clone() };
        assert_eq!(demanded(&with("g5.xlarge")), [(Some("L-DB2E81BA"), 40), (Some("L-1216C47A"), 2)]);
        assert_eq!(demanded(&with("x2idn.32xlarge")), [(None, 1280), (Some("L-1216C47A"), 2)]);
    }
}
