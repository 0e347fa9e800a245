//! The settings of a stack, and the account and network that it is made in.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bundle::Cpu;
use super::elf::Glibc;
use crate::config::{self, Machines, Names, Setting};
use crate::scaling_policy::{Bounds, Policy};

/// How long a request may wait for its answer unless `sync-timeout` is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Longest time that a load balancer lets a connection be idle.
const LONGEST_IDLE_TIMEOUT: Duration = Duration::from_secs(4_000);
/// How much longer a load balancer waits.
const MORE_THAN_WAIT: Duration = Duration::from_secs(60);

/// The settings of a stack, as a user gives them.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Name of the stack. Every name but `imgcls` prefixes the names of all resources.
    pub stack: String,
    /// Names of queues and buckets.
    pub names: Names,
    /// Buckets of somebody else that workers read images from.
    pub read_buckets: Vec<String>,
    /// Buckets of somebody else whose new images are classified. They are among `read_buckets` too.
    pub watched: Vec<Watched>,
    /// Visibility timeout of the queues.
    pub visibility_timeout: Duration,
    /// Number of receives after which a worker moves a message to the dead letters.
    pub max_receive_count: u32,
    /// Smallest and largest number of workers.
    pub bounds: Bounds,
    /// The scaling policy of the workers.
    pub policy: Policy,
    /// Instance types of workers, the preferred one first. If empty, a default for the bundle's processor.
    pub instance_types: Vec<String>,
    /// Percentage of workers that run on Spot.
    pub spot_percent: u32,
    /// Name of a launch template to use for workers instead of one of the stack's own.
    pub existing_launch_template: Option<String>,
    /// Number of machines of the web tier.
    pub web_instances: u32,
    /// Instance type of the web tier. If absent, a default for the bundle's processor.
    pub web_instance_type: Option<String>,
    /// ARN of a load balancer's target group that the web tier joins.
    pub target_group: Option<String>,
    /// ARN of the certificate of a load balancer in front of the web tier. If absent, there is no load balancer.
    pub certificate: Option<String>,
    /// The addresses that may reach the web tier. If absent, only those of its VPC.
    pub allow: Option<Allow>,
    /// Clients of the web tier need a key.
    pub requires_keys: bool,
    /// Days until images expire in the input bucket.
    pub keep_images_days: u32,
    /// Days until results expire in the output bucket.
    pub keep_results_days: u32,
    /// The network of the machines.
    pub network: NetworkChoice,
    /// AMI of the machines. If absent, Debian 12.
    pub image: Option<String>,
    /// People get a shell on the machines through Session Manager.
    pub session_manager: bool,
    /// Further tags of all resources, as key and value.
    pub tags: Vec<(String, String)>,
    /// ARN of the policy that limits what the roles may do.
    pub permissions_boundary: Option<String>,
    /// The people who are told of problems.
    pub notify: Notify,
    /// Settings of the processes on the machines that the user gave.
    pub machines: Machines,
}

/// The objects of a bucket that are classified when they are written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// The bucket.
    pub bucket: String,
    /// The beginning of the keys. Empty means all objects.
    pub prefix: String,
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Watched, String> {
        let text = text.strip_prefix("s3://").unwrap_or(text);
        let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
        Ok(Watched { bucket: config::bucket_name(bucket)?, prefix: prefix.to_owned() })
    }
}

impl Watched {
    /// Returns true if an object may belong to both. S3 refuses notifications about the same objects.
    pub fn overlaps(&self, other: &Watched) -> bool {
        let (one, other_prefix) = (self.prefix.as_str(), other.prefix.as_str());
        self.bucket == other.bucket && (one.starts_with(other_prefix) || other_prefix.starts_with(one))
    }
}

/// The addresses that may reach the web tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// A network, as CIDR.
    Network(String),
    /// The address from which AWS sees the calls of this program.
    Me,
}

/// The people who are told of problems of a stack, and the problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Notify {
    /// Addresses that get messages.
    pub emails: Vec<String>,
    /// ARNs of SNS topics of the user.
    pub topics: Vec<String>,
    /// An image that waits longer is a problem.
    pub max_image_age: Duration,
    /// Costs of a calendar month that are a problem, in the currency of the account.
    pub monthly_budget: Option<f64>,
}

impl Notify {
    /// Alarms of CloudWatch have five actions at most. One of them is the topic for the addresses.
    pub const MOST_TOPICS: usize = 4;
    /// AWS Budgets tells ten addresses at most of each limit.
    pub const MOST_EMAILS: usize = 10;

    /// Nobody is told.
    pub fn nobody(max_image_age: Duration) -> Notify {
        Notify { emails: Vec::new(), topics: Vec::new(), max_image_age, monthly_budget: None }
    }

    pub(super) fn has_recipients(&self) -> bool {
        !self.emails.is_empty() || !self.topics.is_empty()
    }
}

/// The network that the user chose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkChoice {
    /// Id of the VPC. If absent, that of the subnets, or the default VPC of the region.
    pub vpc: Option<String>,
    /// Ids of the subnets. If there are none, all of the VPC.
    pub subnets: Vec<String>,
    /// Ids of the subnets of the load balancer. If there are none, one of the machines in each zone.
    pub balancer_subnets: Vec<String>,
}

/// A VPC and its subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    pub vpc_id: String,
    /// Sorted.
    pub subnets: Vec<String>,
    /// The IPv4 addresses of the VPC, as CIDRs.
    pub cidrs: Vec<String>,
    /// Machines in all of the subnets get a public address.
    pub is_public: bool,
    /// Subnets of a load balancer, one in each zone. Sorted.
    pub balancer_subnets: Vec<String>,
}

/// The root volume of the machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootVolume {
    /// The name under which the AMI has it. Under another name, machines would get a second volume.
    pub device: String,
    pub gigabytes: u32,
}

impl Default for RootVolume {
    /// That of Debian's AMIs. System, bundle and model together need less.
    fn default() -> RootVolume {
        RootVolume { device: "/dev/xvda".to_owned(), gigabytes: 8 }
    }
}

/// The account, region and network of a stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Site {
    pub account: String,
    pub region: String,
    pub network: Network,
    pub root_volume: RootVolume,
    /// The networks that may reach the web tier, as CIDRs.
    pub allowed: Vec<String>,
    /// The load balancer has public addresses.
    #[serde(default)]
    pub is_balancer_public: bool,
    /// Endpoint of all services if it is not AWS's own. The machines use it too.
    pub endpoint_url: Option<String>,
}

impl Settings {
    /// How long a load balancer lets a connection be idle: longer than a request may wait for its answer.
    pub(super) fn balancer_idle_timeout(&self) -> Duration {
        let given = self.machines.web.get("sync-timeout").and_then(Setting::text);
        let longest_wait = given.and_then(|text| config::duration(text).ok()).unwrap_or(LONGEST_WAIT);
        // Whole seconds.
        Duration::from_secs(longest_wait.max(LONGEST_WAIT).as_secs()) + MORE_THAN_WAIT
    }

    /// The web tier joins a load balancer, of the stack or of the user.
    pub(super) fn has_balancer(&self) -> bool {
        self.certificate.is_some() || self.target_group.is_some()
    }

    /// Returns whether the load balancer has public addresses: others than those of private networks may reach it, and its subnets are
    /// public, as those that were chosen for it count.
    pub(super) fn is_balancer_public(&self, network: &Network) -> bool {
        let is_for_public = match &self.allow {
            None => false,
            Some(Allow::Me) => true,
            Some(Allow::Network(cidr)) => !is_private(cidr),
        };
        is_for_public && (network.is_public || !self.network.balancer_subnets.is_empty())
    }

    /// # Errors
    /// The load balancer cannot be made in this region or network.
    pub(super) fn check_site(&self, region: &str, network: &Network) -> Result<(), String> {
        let Some(certificate) = &self.certificate else { return Ok(()) };
        // Certificates of IAM have no region.
        let its = certificate.split(':').nth(3).unwrap_or_default();
        if !its.is_empty() && its != region {
            return Err(format!(
                "the certificate is in region {its}, and a load balancer in {region} takes one of its own region: give another --certificate, or --region {its}"
            ));
        }
        match network.balancer_subnets.len() {
            0 | 1 => Err(format!(
                "a load balancer needs subnets in at least two zones, and those of VPC {} are in {}: give --subnets in two zones, or --balancer-subnets",
                network.vpc_id,
                network.balancer_subnets.len()
            )),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// A load balancer is wanted, and something else does not fit it.
    pub fn check_balancer(&self) -> Result<(), String> {
        if self.certificate.is_none() {
            if self.network.balancer_subnets.is_empty() {
                return Ok(());
            }
            return Err("--balancer-subnets needs --certificate".to_owned());
        }
        if self.target_group.is_some() {
            return Err(
                "give either --certificate, for a load balancer of the stack, or --target-group, for one of yours"
                    .to_owned(),
            );
        }
        if self.web_instances == 0 {
            return Err("--certificate needs a web tier: give --web-instances".to_owned());
        }
        if self.stack == "internal" || self.stack.starts_with("internal-") || self.stack.contains("--") {
            return Err("Elastic Load Balancing takes no name that begins with `internal-` or contains `--`: give another --stack".to_owned());
        }
        if self.balancer_idle_timeout() > LONGEST_IDLE_TIMEOUT {
            return Err(format!(
                "a load balancer waits for {} s at most, and --sync-timeout has to be a minute shorter: give less",
                LONGEST_IDLE_TIMEOUT.as_secs()
            ));
        }
        Ok(())
    }

    pub(super) fn worker_types(&self, cpu: Cpu) -> Vec<String> {
        if self.instance_types.is_empty() {
            vec![cpu.default_worker_type().to_owned()]
        } else {
            self.instance_types.clone()
        }
    }

    pub(super) fn web_type(&self, cpu: Cpu) -> &str {
        self.web_instance_type.as_deref().unwrap_or_else(|| cpu.default_web_type())
    }

    /// The instance types of each tier.
    pub(super) fn types_of_tiers(&self, cpu: Cpu) -> Vec<Vec<String>> {
        let mut types = vec![self.worker_types(cpu)];
        if self.web_instances > 0 {
            types.push(vec![self.web_type(cpu).to_owned()]);
        }
        types
    }

    /// # Errors
    /// The bundle needs a newer C library than the default AMI has. That of another AMI is unknown.
    pub(super) fn check_glibc(&self, needed: Option<Glibc>) -> Result<(), String> {
        match needed.filter(|needed| self.image.is_none() && *needed > Cpu::DEBIAN_GLIBC) {
            Some(needed) => Err(format!(
                "the bundle needs glibc {needed}, and the AMI of the machines (Debian 12) has {}: build imgcls on Debian 12 or give such a --bundle, or give --image with an AMI that has glibc {needed}",
                Cpu::DEBIAN_GLIBC
            )),
            None => Ok(()),
        }
    }

    /// # Errors
    /// An instance type has another processor than the bundle.
    pub(super) fn check_cpu(&self, cpu: Cpu) -> Result<(), String> {
        let workers = self.worker_types(cpu);
        let mut types = workers.iter().map(String::as_str).chain([self.web_type(cpu)]);
        match types.find(|name| Cpu::of_instance_type(name) != cpu) {
            Some(name) => Err(format!(
                "instance type {name} is {}, the bundle {cpu}: give other types, or --bundle FILE as `imgcls provision export --bundle-to FILE` writes it on an {} machine",
                Cpu::of_instance_type(name),
                Cpu::of_instance_type(name),
            )),
            None => Ok(()),
        }
    }
}

/// Returns whether a network lies in the addresses that the Internet does not route.
fn is_private(cidr: &str) -> bool {
    let address = cidr.split('/').next().and_then(|text| text.parse::<std::net::Ipv4Addr>().ok());
    address.is_some_and(|address| address.is_private())
}

#[cfg(test)]
impl Site {
    pub(super) fn for_tests() -> Site {
        Site {
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            network: Network {
                vpc_id: "vpc-1".to_owned(),
                subnets: vec!["subnet-a".to_owned(), "subnet-b".to_owned()],
                cidrs: vec!["10.0.0.0/16".to_owned()],
                is_public: true,
                balancer_subnets: vec!["subnet-a".to_owned(), "subnet-b".to_owned()],
            },
            is_balancer_public: false,
            root_volume: RootVolume::default(),
            allowed: vec!["10.0.0.0/16".to_owned()],
            endpoint_url: None,
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Settings with the defaults of the command line.
    pub(super) fn for_tests(stack: &str) -> Settings {
        Settings {
            stack: stack.to_owned(),
            names: Names::aws(stack, "123456789012", "us-east-1"),
            read_buckets: Vec::new(),
            watched: Vec::new(),
            visibility_timeout: Duration::from_secs(30),
            max_receive_count: 5,
            bounds: Bounds::new(0, 4).expect("bounds of the test"),
            policy: Policy::Step(crate::scaling_policy::StepPolicy::LEGACY),
            instance_types: Vec::new(),
            spot_percent: 0,
            existing_launch_template: None,
            web_instances: 1,
            web_instance_type: None,
            target_group: None,
            certificate: None,
            allow: None,
            requires_keys: true,
            keep_images_days: 7,
            keep_results_days: 30,
            network: NetworkChoice::default(),
            image: None,
            session_manager: false,
            tags: Vec::new(),
            permissions_boundary: None,
            notify: Notify::nobody(Duration::from_secs(900)),
            machines: Machines::default(),
        }
    }
}
