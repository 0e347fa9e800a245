//! `imgcls provision`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::auth::AuthArg;
use super::aws_values::{allow, ami, boundary, certificate, instance_type, plain_name, subnet, tag, target_group, vpc};
use super::model::ModelsDirArgs;
use super::notify::NotifyArgs;
use super::parse::{percent, positive_duration};
use super::policy::{Defaults, PolicyArgs, PolicyKind};
use super::retention::KeepArgs;
use super::shared::{OutputArgs, SharedArgs};
use super::usage::usage;
use crate::config::{Backend, BackendKind, Machines, Names, Setting};
use crate::model::ModelChoice;
use crate::provision::{self, Action, Allow, ExportFormat, NetworkChoice, Refreshes, Watched};
use crate::scaling_policy::{Bounds, Policy};

/// A hundred years, as for local data.
const MOST_DAYS: i64 = 36_500;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Without a command: apply.\n\
    Exit codes: 0 done, 1 failed, 2 usage; `provision plan --detailed-exitcode`: 0 nothing to do, 3 changes.")]
pub struct ProvisionArgs {
    #[command(subcommand)]
    pub command: Option<ProvisionCommand>,
    #[command(flatten)]
    pub apply: ApplyArgs,
}

#[derive(Debug, Subcommand)]
pub enum ProvisionCommand {
    /// Print what has to change, and what the stack will cost; change nothing
    Plan {
        #[command(flatten)]
        stack: StackArgs,
        /// Save the plan to this file; `provision apply FILE` carries out exactly this plan
        #[arg(long, env = "IMGCLS_OUT")]
        out: Option<PathBuf>,
        /// Exit with 3 if there are changes, with 0 if there are none
        #[arg(long, env = "IMGCLS_DETAILED_EXITCODE")]
        detailed_exitcode: bool,
    },
    /// Create or update the stack; may be interrupted and run again at any moment
    Apply(ApplyArgs),
    /// Print what exists, what differs and the address of the web tier
    Status {
        #[command(flatten)]
        stack: StackArgs,
    },
    /// Return to the bundle before the current one: new machines start with it, and then the others end
    Rollback {
        #[command(flatten)]
        stack: StackArgs,
        /// Do not ask; there is no question either if standard input is no terminal
        #[arg(long)]
        yes: bool,
        /// Return once the machines are being replaced, instead of waiting until they are
        #[arg(long, env = "IMGCLS_NO_WAIT")]
        no_wait: bool,
    },
    /// Print what the machines of the stack logged
    Logs {
        #[command(flatten)]
        stack: StackArgs,
        /// How far back
        #[arg(long, env = "IMGCLS_SINCE", default_value = "10m", value_parser = positive_duration)]
        since: Duration,
        /// Go on printing what the machines log, until interrupted
        #[arg(long, env = "IMGCLS_FOLLOW")]
        follow: bool,
    },
    /// Remove everything that has the stack's tag, after a confirmation
    Destroy {
        #[command(flatten)]
        stack: StackArgs,
        /// Do not ask; required if standard input is no terminal
        #[arg(long)]
        yes: bool,
        /// Delete the images and results too
        #[arg(long)]
        delete_data: bool,
    },
    /// Print the stack for CloudFormation or Terraform, or write the bundle that its machines run to a file
    Export {
        #[command(flatten)]
        stack: StackArgs,
        /// The tool to print it for [default: cloudformation]
        #[arg(long, env = "IMGCLS_FORMAT", value_enum)]
        format: Option<ExportFormatArg>,
        /// Write the bundle (this program, ONNX Runtime, the models) to this file instead
        #[arg(long, env = "IMGCLS_BUNDLE_TO")]
        bundle_to: Option<PathBuf>,
    },
    /// Print the least IAM policy for a person who runs `provision` with the same flags, as JSON
    Policy {
        #[command(flatten)]
        stack: StackArgs,
    },
    /// Print what will not work and how to repair it, also for a stack that was made by hand. Exit code 1: something is broken
    Doctor {
        #[command(flatten)]
        stack: StackArgs,
        /// Check, before there is a stack, whether the account and the bundle fit: region, types per zone, processor, C
        /// library, root volume, vCPU quotas
        #[arg(long, env = "IMGCLS_PREFLIGHT")]
        preflight: bool,
        /// The workers' Auto Scaling group [default: apptierAutoscaling]
        #[arg(long, env = "IMGCLS_GROUP")]
        group: Option<String>,
        /// The workers' role [default: app-tier-sqs-s3-access-role]
        #[arg(long, env = "IMGCLS_WORKER_ROLE")]
        worker_role: Option<String>,
        /// The web tier's role [default: web-tier-sqs-access-role]
        #[arg(long, env = "IMGCLS_WEB_ROLE")]
        web_role: Option<String>,
    },
}

/// The formats of `export`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ExportFormatArg {
    /// A CloudFormation template
    Cloudformation,
    /// A configuration of Terraform in its JSON syntax, for a file such as stack.tf.json
    Terraform,
}

impl From<ExportFormatArg> for ExportFormat {
    fn from(format: ExportFormatArg) -> ExportFormat {
        match format {
            ExportFormatArg::Cloudformation => ExportFormat::CloudFormation,
            ExportFormatArg::Terraform => ExportFormat::Terraform,
        }
    }
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub stack: StackArgs,
    /// A plan that `provision plan --out` saved: it is carried out exactly, or not at all if anything has changed since
    pub plan: Option<PathBuf>,
    /// Do not ask; there is no question either if standard input is no terminal
    #[arg(long)]
    pub yes: bool,
    /// Let machines that run an older version run on, instead of replacing them
    #[arg(long, env = "IMGCLS_NO_REFRESH")]
    pub no_refresh: bool,
    /// Return once machines that run an older version are being replaced, instead of waiting until they are
    #[arg(long, env = "IMGCLS_NO_WAIT")]
    pub no_wait: bool,
}

/// The wanted stack.
#[derive(Debug, Args)]
pub struct StackArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Classify every image that is written to this bucket, below this prefix: the bucket tells the workers, and their role
    /// may read it. Other notifications of the bucket stay; may be repeated
    #[arg(long, env = "IMGCLS_WATCH", value_name = "BUCKET[/PREFIX]", value_delimiter = ',',
        value_parser = |text: &str| text.parse::<Watched>())]
    pub watch: Vec<Watched>,
    /// How the number of workers follows the queue
    #[arg(long, env = "IMGCLS_POLICY", default_value = "step")]
    pub policy: PolicyKind,
    #[command(flatten)]
    pub scaling: PolicyArgs,
    /// `target`: time that one busy worker takes for an image, as `loadgen` measures it
    #[arg(long, env = "IMGCLS_SERVICE_TIME", value_parser = positive_duration)]
    pub service_time: Option<Duration>,
    /// Minimum number of workers
    #[arg(long, env = "IMGCLS_MIN", default_value_t = 0)]
    pub min: u32,
    /// Maximum number of workers
    #[arg(long, env = "IMGCLS_MAX", default_value_t = 4)]
    pub max: u32,
    /// Instance type of workers, the preferred one first; may be repeated [default: c7i.large, for arm64 c7g.large]
    #[arg(long = "instance-type", env = "IMGCLS_INSTANCE_TYPE", value_delimiter = ',', value_parser = instance_type)]
    pub instance_types: Vec<String>,
    /// Share of the workers that are Spot, in percent
    #[arg(long, env = "IMGCLS_SPOT_SHARE", default_value = "0", value_parser = percent)]
    pub spot_share: u32,
    /// Start workers from the default version of this launch template, which imgcls does not change
    #[arg(long, env = "IMGCLS_EXISTING_LAUNCH_TEMPLATE", value_parser = plain_name)]
    pub existing_launch_template: Option<String>,
    /// Number of machines of the web tier
    #[arg(long, env = "IMGCLS_WEB_INSTANCES", default_value_t = 1)]
    pub web_instances: u32,
    /// Instance type of the web tier [default: t3.small, for arm64 t4g.small]
    #[arg(long, env = "IMGCLS_WEB_INSTANCE_TYPE", value_parser = instance_type)]
    pub web_instance_type: Option<String>,
    /// Serve HTTPS by a load balancer with this certificate, the ARN of one in ACM or IAM; machines of the web tier then take
    /// HTTP from the load balancer alone
    #[arg(long, env = "IMGCLS_CERTIFICATE", value_name = "ARN", value_parser = certificate)]
    pub certificate: Option<String>,
    /// With --certificate: subnets of the load balancer, one in each zone of the machines; may be repeated [default: those of
    /// the machines]
    #[arg(long, env = "IMGCLS_BALANCER_SUBNETS", value_delimiter = ',', value_parser = subnet)]
    pub balancer_subnets: Vec<String>,
    /// ARN of your own load balancer's target group that the web tier joins; the load balancer terminates TLS
    #[arg(long, env = "IMGCLS_TARGET_GROUP", value_parser = target_group)]
    pub target_group: Option<String>,
    /// Network whose addresses may reach the web tier: a CIDR, or `me` for the address from which AWS sees this
    /// machine [default: the VPC of the web tier alone]
    #[arg(long, env = "IMGCLS_ALLOW", value_parser = allow)]
    pub allow: Option<Allow>,
    /// Keys of clients. With `required`, `apply` creates the first one and prints it; `none` keeps clients without keys
    /// working, for the addresses of --allow [default: required]
    #[arg(long, env = "IMGCLS_AUTH")]
    pub auth: Option<AuthArg>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Earlier spelling of --keep-images, in days; takes precedence over it
    #[arg(long, env = "IMGCLS_KEEP_IMAGES_DAYS", value_parser = clap::value_parser!(u32).range(1..=MOST_DAYS))]
    pub keep_images_days: Option<u32>,
    /// Earlier spelling of --keep-results, in days; takes precedence over it
    #[arg(long, env = "IMGCLS_KEEP_RESULTS_DAYS", value_parser = clap::value_parser!(u32).range(1..=MOST_DAYS))]
    pub keep_results_days: Option<u32>,
    /// VPC of the machines [default: that of --subnets, else the default VPC of the region]
    #[arg(long, env = "IMGCLS_VPC", value_parser = vpc)]
    pub vpc: Option<String>,
    /// Subnets of the machines; may be repeated [default: those of the VPC whose zone offers the instance types]
    #[arg(long, env = "IMGCLS_SUBNETS", value_delimiter = ',', value_parser = subnet)]
    pub subnets: Vec<String>,
    /// AMI of the machines, an id or resolve:ssm:PARAMETER; its C library must be that of Debian 12 or newer [default:
    /// Debian 12]
    #[arg(long, env = "IMGCLS_IMAGE", value_parser = ami)]
    pub image: Option<String>,
    /// Bundle that machines run: an archive that `provision export --bundle-to FILE` wrote [default: this program]
    #[arg(long, env = "IMGCLS_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Model of the machines: a folder, NAME or NAME@VERSION; may be repeated. Its package goes to the input bucket, and
    /// running machines switch to it [default: efficientnet-lite0, as part of the bundle]
    #[arg(long = "model", env = "IMGCLS_MODEL", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    /// ONNX Runtime library in the bundle [default: $ORT_DYLIB_PATH, else searched for near the binary]
    #[arg(long, env = "IMGCLS_ORT_DYLIB")]
    pub ort_dylib: Option<PathBuf>,
    /// Adopt resources that have the stack's names and belong to no stack: they are tagged and changed as planned
    #[arg(long, env = "IMGCLS_ADOPT")]
    pub adopt: bool,
    /// A TOML file of prices [default: dated prices of us-east-1 in the binary]
    #[arg(long, env = "IMGCLS_PRICES")]
    pub prices: Option<PathBuf>,
    /// Tag all resources of the stack; may be repeated
    #[arg(long = "tag", env = "IMGCLS_TAG", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = tag)]
    pub tags: Vec<(String, String)>,
    /// ARN of a policy that limits what both roles may do, where an account requires one
    #[arg(long, env = "IMGCLS_PERMISSIONS_BOUNDARY", value_name = "ARN", value_parser = boundary)]
    pub permissions_boundary: Option<String>,
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// Let people with the permission ssm:StartSession open a shell on the machines, without an open port: the roles get
    /// what Session Manager needs, and machines install its agent
    #[arg(long, env = "IMGCLS_SSM")]
    pub ssm: bool,
    /// Refuse a stack whose machines may cost more per hour than this
    #[arg(long, env = "IMGCLS_MAX_HOURLY", value_parser = super::parse::money)]
    pub max_hourly: Option<f64>,
}

impl StackArgs {
    fn model_choice(&self, model: &str) -> ModelChoice {
        ModelChoice { model: Some(model.to_owned()), models_dir: self.models_dir.folder(), ..ModelChoice::default() }
    }
}

impl ProvisionArgs {
    pub fn stack(&self) -> &StackArgs {
        match &self.command {
            None => &self.apply.stack,
            Some(ProvisionCommand::Apply(apply)) => &apply.stack,
            Some(
                ProvisionCommand::Plan { stack, .. }
                | ProvisionCommand::Status { stack }
                | ProvisionCommand::Rollback { stack, .. }
                | ProvisionCommand::Logs { stack, .. }
                | ProvisionCommand::Destroy { stack, .. }
                | ProvisionCommand::Export { stack, .. }
                | ProvisionCommand::Policy { stack }
                | ProvisionCommand::Doctor { stack, .. },
            ) => stack,
        }
    }

    /// The backend, which is always AWS.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the local backend was asked for.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        let SharedArgs { backend, region, endpoint_url, .. } = &self.stack().shared;
        match backend {
            Some(BackendKind::Aws) | None => {
                Ok(Backend::Aws { region: region.clone(), endpoint_url: endpoint_url.clone() })
            }
            Some(_) => Err(usage("provision", "`provision` is for AWS; on this machine `up` needs no provisioning")),
        }
    }

    /// Returns true if the command uses the names of queues and buckets. A bundle belongs to no stack, so that writing one
    /// needs no AWS account.
    pub fn needs_names(&self) -> bool {
        !matches!(self.action(), Action::Export { bundle_to: Some(_), .. })
    }

    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn config(&self, names: Names, machines: Machines) -> anyhow::Result<provision::Config> {
        let stack = self.stack();
        let wrong = |message: &str| Err(usage("provision", message));
        let bounds = match Bounds::new(stack.min, stack.max) {
            Ok(bounds) => bounds,
            Err(error) => return wrong(&format!("{error}: see --min and --max")),
        };
        let policy = stack.scaling.policy(stack.policy, Defaults::INSTANCES);
        let policy = match (policy, stack.service_time) {
            (Policy::Target(_), None) => {
                return wrong(
                    "--policy target needs --service-time: the time that one worker takes for an image, as `imgcls loadgen` measures it",
                );
            }
            (policy, Some(time)) => policy.with_service_time(time),
            (policy, None) => policy,
        };
        let SharedArgs { region, endpoint_url, stack: name, .. } = &stack.shared;
        if name == "sg" || name.starts_with("sg-") {
            return wrong("EC2 takes no security group whose name begins with `sg-`: give another --stack");
        }
        if let Some(fault) = fault_of_watched(&stack.watch, &names) {
            return wrong(&fault);
        }
        let watched = stack.watch.iter().map(|watched| &watched.bucket);
        let read_buckets: BTreeSet<String> = stack.shared.read_buckets.iter().chain(watched).cloned().collect();
        let variant = machines.worker.get("variant").and_then(Setting::text).map(str::to_owned);
        let settings = provision::Settings {
            stack: stack.shared.stack.clone(),
            names,
            machines,
            read_buckets: read_buckets.into_iter().collect(),
            watched: stack.watch.clone(),
            visibility_timeout: stack.shared.visibility_timeout,
            max_receive_count: stack.shared.max_receive_count,
            bounds,
            policy,
            instance_types: stack.instance_types.clone(),
            spot_percent: stack.spot_share,
            existing_launch_template: stack.existing_launch_template.clone(),
            web_instances: stack.web_instances,
            web_instance_type: stack.web_instance_type.clone(),
            target_group: stack.target_group.clone(),
            certificate: stack.certificate.clone(),
            allow: stack.allow.clone(),
            requires_keys: stack.auth != Some(AuthArg::None),
            keep_images_days: stack.keep_images_days.unwrap_or_else(|| days(stack.keep.keep_images)),
            keep_results_days: stack.keep_results_days.unwrap_or_else(|| days(stack.keep.keep_results)),
            network: NetworkChoice {
                vpc: stack.vpc.clone(),
                subnets: stack.subnets.clone(),
                balancer_subnets: stack.balancer_subnets.clone(),
            },
            image: stack.image.clone(),
            session_manager: stack.ssm,
            tags: stack.tags.clone(),
            permissions_boundary: stack.permissions_boundary.clone(),
            notify: stack.notify.notify()?,
        };
        if let Err(fault) = settings.check_balancer() {
            return wrong(&fault);
        }
        Ok(provision::Config {
            region: region.clone(),
            endpoint_url: endpoint_url.clone(),
            settings,
            sources: provision::Sources {
                runtime: ModelChoice { ort_dylib: stack.ort_dylib.clone(), ..ModelChoice::default() },
                models: stack.models.iter().map(|model| stack.model_choice(model)).collect(),
                variant,
                bundle: stack.bundle.clone(),
            },
            adopt: stack.adopt,
            prices: stack.prices.clone(),
            max_hourly: stack.max_hourly,
            json: stack.output.json,
            action: self.action(),
        })
    }

    fn action(&self) -> Action {
        match &self.command {
            None => self.apply.action(),
            Some(ProvisionCommand::Apply(apply)) => apply.action(),
            Some(ProvisionCommand::Plan { out, detailed_exitcode, .. }) => {
                Action::Plan { out: out.clone(), says_changes: *detailed_exitcode }
            }
            Some(ProvisionCommand::Status { .. }) => Action::Status,
            Some(ProvisionCommand::Rollback { yes, no_wait, .. }) => {
                Action::Rollback { is_confirmed: *yes, waits: !*no_wait }
            }
            Some(ProvisionCommand::Logs { since, follow, .. }) => Action::Logs { since: *since, follows: *follow },
            Some(ProvisionCommand::Destroy { yes, delete_data, .. }) => {
                Action::Destroy { is_confirmed: *yes, deletes_data: *delete_data }
            }
            Some(ProvisionCommand::Policy { .. }) => Action::Policy,
            Some(ProvisionCommand::Doctor { preflight, group, worker_role, web_role, .. }) => Action::Doctor {
                is_preflight: *preflight,
                group: group.clone(),
                worker_role: worker_role.clone(),
                web_role: web_role.clone(),
            },
            Some(ProvisionCommand::Export { format, bundle_to, .. }) => Action::Export {
                format: format.unwrap_or(ExportFormatArg::Cloudformation).into(),
                bundle_to: bundle_to.clone(),
            },
        }
    }
}

/// S3 counts in whole days.
fn days(keep: Duration) -> u32 {
    u32::try_from(keep.as_secs().div_ceil(86_400)).unwrap_or(u32::MAX)
}

impl ApplyArgs {
    fn action(&self) -> Action {
        let refreshes = match (self.no_refresh, self.no_wait) {
            (true, _) => Refreshes::None,
            (false, true) => Refreshes::Started,
            (false, false) => Refreshes::Finished,
        };
        Action::Apply { is_confirmed: self.yes, saved: self.plan.clone(), refreshes }
    }
}

/// The reason why these cannot be watched.
fn fault_of_watched(watched: &[Watched], names: &Names) -> Option<String> {
    for (index, one) in watched.iter().enumerate() {
        if [&names.input_bucket, &names.output_bucket].contains(&&one.bucket) {
            return Some(format!(
                "--watch {}: that is a bucket of the stack itself, whose objects it writes: watch another one",
                one.bucket
            ));
        }
        if watched[..index].iter().any(|other| one.overlaps(other)) {
            return Some(format!(
                "--watch {}/{} is watched twice, which S3 refuses: give prefixes that do not contain each other",
                one.bucket, one.prefix
            ));
        }
    }
    None
}
