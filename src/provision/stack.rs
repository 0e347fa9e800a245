//! What is wanted: the whole stack as a plain value, made of the settings alone.

use std::time::Duration;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::{BundleRef, Cpu};
use super::inventory::{Found, Inventory, Owner};
use super::resource::{Kind, REGION_TAG, Resource, STACK_TAG, attribute, in_group, number, properties, reference};
use super::roles::{self, Arns};
use super::user_data::{self, Tier};
use crate::config::Names;
use crate::protocol::{self, BACKLOG_DIMENSION, BACKLOG_METRIC, BACKLOG_NAMESPACE, DRAIN_HOOK};
use crate::protocol::{DEAD_LETTER_RETENTION, REDRIVE_MARGIN};
use crate::scaling::{Bounds, Policy, StepPolicy, TargetPolicy};

const RETENTION: Duration = Duration::from_secs(4 * 24 * 3600);
/// An instance that starts: system, bundle, model.
const INSTANCE_WARMUP: Duration = Duration::from_secs(120);
/// How long an instance that is to end may drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
const LOG_RETENTION_DAYS: u32 = 30;
/// The file of the system; bundle and model take less than one.
pub const VOLUME_GB: u32 = 8;
const ROOT_DEVICE: &str = "/dev/xvda";
const MINUTE: u64 = 60;
const BACKLOG_PERIOD: u64 = 10;
/// Of a launch template: changes with every version.
pub const LATEST_VERSION: &str = "LatestVersionNumber";

/// What a user says of a stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub stack: String,
    pub names: Names,
    pub visibility_timeout: Duration,
    pub max_receive_count: u32,
    pub bounds: Bounds,
    pub policy: Policy,
    /// Of workers, the preferred one first. None: by the bundle's processor.
    pub instance_types: Vec<String>,
    pub spot_percent: u32,
    pub existing_launch_template: Option<String>,
    pub web_instances: u32,
    /// None: by the bundle's processor.
    pub web_instance_type: Option<String>,
    /// ARN of a load balancer's target group that the web tier joins.
    pub target_group: Option<String>,
    /// Who may reach the web tier, as CIDR.
    pub allow: String,
    pub keep_images_days: u32,
    pub keep_results_days: u32,
    /// Image of the machines. None: Debian 12.
    pub image: Option<String>,
}

/// Where the stack is to stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub account: String,
    pub region: String,
    pub vpc_id: String,
    pub subnets: Vec<String>,
    /// Another address for every service; the machines use it too.
    pub endpoint_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    pub name: String,
    pub region: String,
    pub account: String,
    pub vpc_id: String,
    pub result_queue: String,
    pub bundle: BundleRef,
    /// In the order in which they are made.
    pub resources: Vec<Resource>,
}

/// Machines of a group that start from now on run something newer than these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outdated {
    pub group: String,
    pub machines: usize,
}

/// Names on AWS beside queues and buckets: the original's where it has one.
pub struct Fleet {
    pub log_group: String,
    pub worker_role: String,
    pub web_role: String,
    pub worker_group: String,
    pub web_group: String,
    pub worker_template: String,
    pub web_template: String,
    pub scale_up_alarm: String,
    pub scale_down_alarm: String,
    pub scale_from_zero_alarm: String,
    pub dashboard: String,
    pub worker_security_group: String,
    prefix: String,
    pub web_security_group: String,
}

impl Fleet {
    pub fn of(stack: &str) -> Fleet {
        let prefix = protocol::stack_prefix(stack);
        let name = |name: &str| format!("{prefix}{name}");
        Fleet {
            log_group: name("imgcls"),
            worker_role: name("app-tier-sqs-s3-access-role"),
            web_role: name("web-tier-sqs-access-role"),
            worker_group: protocol::worker_group(stack),
            web_group: name("webtierAutoscaling"),
            worker_template: name("ApptierTemplate"),
            web_template: name("WebtierTemplate"),
            scale_up_alarm: name("ScaleUpAlarm"),
            scale_down_alarm: name("ScaleDownAlarm"),
            scale_from_zero_alarm: name("ScaleFromZeroAlarm"),
            dashboard: name("imgcls"),
            prefix: prefix.clone(),
            worker_security_group: name("imgcls-app-tier"),
            web_security_group: name("imgcls-web-tier"),
        }
    }
}

impl Settings {
    pub fn worker_types(&self, cpu: Cpu) -> Vec<String> {
        if self.instance_types.is_empty() {
            vec![cpu.default_worker_type().to_owned()]
        } else {
            self.instance_types.clone()
        }
    }

    pub fn web_type(&self, cpu: Cpu) -> &str {
        self.web_instance_type.as_deref().unwrap_or_else(|| cpu.default_web_type())
    }

    /// # Errors
    /// Where a machine's processor is not the bundle's.
    pub fn check_cpu(&self, cpu: Cpu) -> Result<(), String> {
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

impl Fleet {
    /// A scaling policy's name: unique in its group, and among stacks where somebody looks at all of them.
    fn policy(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Stack {
    pub fn new(settings: &Settings, site: &Site, bundle: &BundleRef) -> Stack {
        let builder = Builder {
            settings,
            site,
            bundle,
            fleet: Fleet::of(&settings.stack),
            arns: Arns::new(&site.account, &site.region),
            resources: Vec::new(),
        };
        Stack {
            name: settings.stack.clone(),
            region: site.region.clone(),
            account: site.account.clone(),
            vpc_id: site.vpc_id.clone(),
            result_queue: settings.names.result_queue.clone(),
            bundle: bundle.clone(),
            resources: builder.build(),
        }
    }

    pub fn get(&self, id: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.id == id)
    }

    pub fn find(&self, kind: Kind, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.kind == kind && resource.name == name)
    }

    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.resources.iter().filter(move |resource| resource.kind == kind).map(|resource| resource.name.as_str())
    }

    /// What an id and an attribute of it stand for, where that is there already.
    pub fn attribute(&self, inventory: &Inventory, id: &str, attribute: &str) -> Option<String> {
        let resource = self.get(id)?;
        inventory.get(resource.kind, &resource.name)?.attributes.get(attribute).cloned()
    }

    /// Machines that were started from an older version of their launch template, by group: they run an older build, or
    /// are told other names. Of a template that is the user's own nothing is known.
    pub fn outdated(&self, inventory: &Inventory) -> Vec<Outdated> {
        let groups = [("WorkerGroup", "WorkerTemplate"), ("WebGroup", "WebTemplate")];
        let outdated = groups.iter().filter_map(|(group, template)| {
            let group = self.get(group)?.name.clone();
            let latest = self.attribute(inventory, template, LATEST_VERSION)?;
            let is_older = |version: &String| *version != latest;
            let machines = inventory.instances.iter().filter(|machine| {
                machine.group == group && machine.is_up() && machine.template_version.as_ref().is_some_and(is_older)
            });
            Some(Outdated { machines: machines.count(), group }).filter(|outdated| outdated.machines > 0)
        });
        outdated.collect()
    }

    /// What is the stack's and is no longer wanted. Bundles stay: a machine that starts just now may need an old one.
    pub fn unwanted<'a>(&self, inventory: &'a Inventory) -> Vec<&'a Found> {
        let ours = inventory.found.iter().filter(|found| found.owner == Owner::This && found.kind != Kind::Bundle);
        ours.filter(|found| self.find(found.kind, &found.name).is_none()).collect()
    }
}

struct Builder<'a> {
    settings: &'a Settings,
    site: &'a Site,
    bundle: &'a BundleRef,
    fleet: Fleet,
    arns: Arns<'a>,
    resources: Vec<Resource>,
}

impl Builder<'_> {
    fn build(mut self) -> Vec<Resource> {
        self.log_group();
        self.queues();
        self.buckets();
        self.bundle();
        self.bucket_policies();
        self.roles();
        self.security_groups();
        self.workers();
        self.scaling();
        self.web();
        self.dashboard();
        self.resources
    }

    fn add(&mut self, id: &str, kind: Kind, name: impl Into<String>, members: Value) {
        self.resources.push(Resource { id: id.to_owned(), kind, name: name.into(), properties: properties(members) });
    }

    fn tags(&self) -> Value {
        json!([{"Key": STACK_TAG, "Value": self.settings.stack}])
    }

    /// Of what is the whole account's.
    fn tags_with_region(&self) -> Value {
        json!([{"Key": REGION_TAG, "Value": self.site.region}, {"Key": STACK_TAG, "Value": self.settings.stack}])
    }

    fn log_group(&mut self) {
        let members = json!({"RetentionInDays": LOG_RETENTION_DAYS, "Tags": self.tags()});
        self.add("LogGroup", Kind::LogGroup, self.fleet.log_group.clone(), members);
    }

    fn queues(&mut self) {
        let names = &self.settings.names;
        let queue = |retention: Duration, redrive: Value| {
            json!({
                "VisibilityTimeout": self.settings.visibility_timeout.as_secs(),
                "MessageRetentionPeriod": retention.as_secs(),
                "MaximumMessageSize": 1 << 20,
                "SqsManagedSseEnabled": true,
                "RedrivePolicy": redrive,
                "Tags": self.tags(),
            })
        };
        let dead_letters = names.dead_letter_queue();
        let redrive = json!({
            "deadLetterTargetArn": self.arns.queue(&dead_letters),
            "maxReceiveCount": self.settings.max_receive_count.saturating_add(REDRIVE_MARGIN),
        });
        let (request, result) = (names.request_queue.clone(), names.result_queue.clone());
        let dead = queue(DEAD_LETTER_RETENTION, Value::Null);
        let (requests, results) = (queue(RETENTION, redrive), queue(RETENTION, Value::Null));
        self.add("DeadLetterQueue", Kind::Queue, dead_letters, dead);
        self.add("RequestQueue", Kind::Queue, request, requests);
        self.add("ResultQueue", Kind::Queue, result, results);
    }

    fn buckets(&mut self) {
        let Names { input_bucket, output_bucket, .. } = self.settings.names.clone();
        self.bucket("InputBucket", &input_bucket, "images", self.settings.keep_images_days);
        self.bucket("OutputBucket", &output_bucket, "results", self.settings.keep_results_days);
    }

    /// Only what lies under `folder` expires: bundles never do, nor do keys of the original's form.
    fn bucket(&mut self, id: &str, name: &str, folder: &str, keep_days: u32) {
        let members = json!({
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": true, "BlockPublicPolicy": true,
                "IgnorePublicAcls": true, "RestrictPublicBuckets": true,
            },
            "BucketEncryption": {"ServerSideEncryptionConfiguration": [
                {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}},
            ]},
            "LifecycleConfiguration": {"Rules": [{
                "Id": format!("imgcls-{folder}"), "Prefix": format!("{folder}/"),
                "Status": "Enabled", "ExpirationInDays": keep_days,
            }]},
            "Tags": self.tags(),
        });
        self.add(id, Kind::Bucket, name, members);
    }

    /// Where everything is spoken to over a plain line they would shut out everybody.
    fn bucket_policies(&mut self) {
        if self.site.endpoint_url.as_ref().is_some_and(|url| url.starts_with("http://")) {
            return;
        }
        let Names { input_bucket, output_bucket, .. } = self.settings.names.clone();
        for (id, name) in [("InputBucketPolicy", input_bucket), ("OutputBucketPolicy", output_bucket)] {
            let policy = roles::tls_only(&self.arns.bucket(&name));
            self.add(id, Kind::BucketPolicy, name, json!({"PolicyDocument": policy}));
        }
    }

    fn bundle(&mut self) {
        let members = json!({"Digest": self.bundle.digest});
        self.add("Bundle", Kind::Bundle, self.bundle.key(), members);
    }

    fn roles(&mut self) {
        let Fleet { worker_group, log_group, .. } = &self.fleet;
        let scope = roles::Scope { arns: &self.arns, names: &self.settings.names, worker_group, log_group };
        let (worker, web) = (roles::worker(&scope), roles::web(&scope));
        let (worker_role, web_role) = (self.fleet.worker_role.clone(), self.fleet.web_role.clone());
        self.role("WorkerRole", "WorkerProfile", worker_role, &worker);
        self.role("WebRole", "WebProfile", web_role, &web);
    }

    fn role(&mut self, role_id: &str, profile_id: &str, name: String, permissions: &Value) {
        let path = role_path(&self.settings.stack);
        let role = json!({
            "Path": path,
            "AssumeRolePolicyDocument": roles::assumed_by_instances(&self.site.region),
            "Policies": [{"PolicyName": "imgcls", "PolicyDocument": permissions}],
            "Tags": self.tags_with_region(),
        });
        let profile = json!({"Path": path, "Roles": [name], "Tags": self.tags_with_region()});
        self.add(role_id, Kind::Role, name.clone(), role);
        self.add(profile_id, Kind::InstanceProfile, name, profile);
    }

    fn security_groups(&mut self) {
        let http = json!([{
            "IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "CidrIp": self.settings.allow,
            "Description": "HTTP to the web tier",
        }]);
        let (workers, web) = (self.fleet.worker_security_group.clone(), self.fleet.web_security_group.clone());
        self.security_group("WorkerSecurityGroup", workers, "imgcls workers: nothing comes in", &json!([]));
        self.security_group("WebSecurityGroup", web, "imgcls web tier: HTTP comes in", &http);
    }

    fn security_group(&mut self, id: &str, name: String, description: &str, ingress: &Value) {
        let members = json!({
            "GroupDescription": description,
            "VpcId": self.site.vpc_id,
            "SecurityGroupIngress": ingress,
            "Tags": self.tags(),
        });
        self.add(id, Kind::SecurityGroup, name, members);
    }

    fn template(&mut self, id: &str, name: String, tier: Tier, instance_type: &str) {
        let (profile, security_group) = match tier {
            Tier::Worker => (&self.fleet.worker_role, "WorkerSecurityGroup"),
            Tier::Web => (&self.fleet.web_role, "WebSecurityGroup"),
        };
        let script = user_data::render(tier, self.settings, self.site, self.bundle);
        let tags = self.tags();
        let tagged = |what: &str| json!({"ResourceType": what, "Tags": tags});
        let members = json!({
            "LaunchTemplateData": {
                "ImageId": self.settings.image.clone().unwrap_or_else(|| self.bundle.cpu.debian_image()),
                "InstanceType": instance_type,
                "IamInstanceProfile": {"Arn": self.arns.instance_profile(&self.settings.stack, profile)},
                "SecurityGroupIds": [attribute(security_group, "GroupId")],
                "MetadataOptions": {
                    "HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1,
                },
                "BlockDeviceMappings": [{
                    "DeviceName": ROOT_DEVICE,
                    "Ebs": {"DeleteOnTermination": true, "Encrypted": true, "VolumeSize": VOLUME_GB, "VolumeType": "gp3"},
                }],
                "TagSpecifications": [tagged("instance"), tagged("volume")],
                "UserData": base64::engine::general_purpose::STANDARD.encode(script),
            },
            "Tags": tags,
        });
        self.add(id, Kind::LaunchTemplate, name, members);
    }

    fn workers(&mut self) {
        let settings = self.settings;
        let types = settings.worker_types(self.bundle.cpu);
        let specification = match &settings.existing_launch_template {
            Some(name) => json!({"LaunchTemplateName": name, "Version": "$Default"}),
            None => {
                let name = self.fleet.worker_template.clone();
                self.template("WorkerTemplate", name.clone(), Tier::Worker, &types[0]);
                json!({
                    "LaunchTemplateName": name,
                    "Version": attribute("WorkerTemplate", LATEST_VERSION),
                })
            }
        };
        let overrides: Vec<Value> = types.iter().map(|name| json!({"InstanceType": name})).collect();
        let members = json!({
            "MinSize": settings.bounds.min().to_string(),
            "MaxSize": settings.bounds.max().to_string(),
            "VPCZoneIdentifier": self.site.subnets,
            "MixedInstancesPolicy": {
                "InstancesDistribution": {
                    "OnDemandBaseCapacity": 0,
                    "OnDemandPercentageAboveBaseCapacity": 100_u32.saturating_sub(settings.spot_percent),
                    "OnDemandAllocationStrategy": "prioritized",
                    "SpotAllocationStrategy": "price-capacity-optimized",
                },
                "LaunchTemplate": {"LaunchTemplateSpecification": specification, "Overrides": overrides},
            },
            "CapacityRebalance": settings.spot_percent > 0,
            "DefaultInstanceWarmup": INSTANCE_WARMUP.as_secs(),
            "MetricsCollection": [{
                "Granularity": "1Minute",
                "Metrics": ["GroupDesiredCapacity", "GroupInServiceInstances"],
            }],
            "NewInstancesProtectedFromScaleIn": false,
            "Tags": self.group_tags(),
        });
        let group = self.fleet.worker_group.clone();
        self.add("WorkerGroup", Kind::AutoScalingGroup, group.clone(), members);
        let hook = json!({
            "AutoScalingGroupName": group,
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "HeartbeatTimeout": DRAIN_TIMEOUT.as_secs(),
            "DefaultResult": "CONTINUE",
        });
        self.add("WorkerDrainHook", Kind::LifecycleHook, in_group(&group, DRAIN_HOOK), hook);
    }

    fn group_tags(&self) -> Value {
        json!([{"Key": STACK_TAG, "PropagateAtLaunch": true, "Value": self.settings.stack}])
    }

    fn scaling(&mut self) {
        self.step_policy("ScaleFromZeroPolicy", "ScaleFromZero", 1);
        let from_zero = self.fleet.scale_from_zero_alarm.clone();
        let members = self.alarm_at_zero();
        match self.settings.policy {
            Policy::Step(step) => self.step_scaling(&step),
            Policy::Target(target) => self.target_tracking(&target),
        }
        self.add("ScaleFromZeroAlarm", Kind::Alarm, from_zero, members);
    }

    fn step_scaling(&mut self, step: &StepPolicy) {
        self.step_policy("ScaleUpPolicy", "ScaleUp", 1);
        self.step_policy("ScaleDownPolicy", "ScaleDown", -1);
        let (up, down) = (self.fleet.scale_up_alarm.clone(), self.fleet.scale_down_alarm.clone());
        let up_members = json!({
            "AlarmDescription": format!("More than {} images wait: one worker more", step.scale_out_above),
            "Namespace": "AWS/SQS",
            "MetricName": "ApproximateNumberOfMessagesVisible",
            "Dimensions": [{"Name": "QueueName", "Value": self.settings.names.request_queue}],
            "Statistic": "Sum",
            "Period": whole_minutes(step.scale_out_period),
            "EvaluationPeriods": 1,
            "Threshold": number(step.scale_out_above as f64),
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",
            "AlarmActions": [reference("ScaleUpPolicy")],
            "Tags": self.tags(),
        });
        let (below, period) = (step.scale_in_below, whole_minutes(step.scale_in_period));
        // As long as there is an image, the last worker stays: its work counts as what keeps a worker.
        let work = format!("IF(workers <= 1 AND visible + in_flight >= 1, {below}, visible + in_flight)");
        let down_members = json!({
            "AlarmDescription":
                format!("Fewer than {below} images wait or are in work: one worker less, the last one at none"),
            "Metrics": [
                self.queue_metric("visible", "ApproximateNumberOfMessagesVisible", period),
                self.queue_metric("in_flight", "ApproximateNumberOfMessagesNotVisible", period),
                self.workers_metric(period),
                {"Id": "work", "Label": "work", "Expression": work, "ReturnData": true},
            ],
            "EvaluationPeriods": 1,
            "Threshold": number(below as f64),
            "ComparisonOperator": "LessThanThreshold",
            "TreatMissingData": "notBreaching",
            "AlarmActions": [reference("ScaleDownPolicy")],
            "Tags": self.tags(),
        });
        self.add("ScaleUpAlarm", Kind::Alarm, up, up_members);
        self.add("ScaleDownAlarm", Kind::Alarm, down, down_members);
    }

    /// One policy both out and in. CloudWatch makes and keeps its alarms.
    fn target_tracking(&mut self, target: &TargetPolicy) {
        let group = self.fleet.worker_group.clone();
        let members = json!({
            "AutoScalingGroupName": group,
            "PolicyType": "TargetTrackingScaling",
            "EstimatedInstanceWarmup": INSTANCE_WARMUP.as_secs(),
            "TargetTrackingConfiguration": {
                "CustomizedMetricSpecification": {
                    "Namespace": BACKLOG_NAMESPACE,
                    "MetricName": BACKLOG_METRIC,
                    "Dimensions": [{"Name": BACKLOG_DIMENSION, "Value": self.settings.stack}],
                    "Statistic": "Average",
                    "Period": BACKLOG_PERIOD,
                },
                "TargetValue": number(target.backlog_per_worker()),
                "DisableScaleIn": false,
            },
        });
        self.add(
            "BacklogPolicy",
            Kind::ScalingPolicy,
            in_group(&group, &self.fleet.policy("BacklogPerWorker")),
            members,
        );
    }

    /// At no worker and one image waiting. It reads the group's size too: an alarm on the queue alone would add a
    /// worker a minute for as long as a single image waits. It adds one rather than setting one, since metrics are a
    /// minute old and the group may have grown meanwhile.
    fn alarm_at_zero(&self) -> Value {
        json!({
            "AlarmDescription": "An image waits and there is no worker: one worker",
            "Metrics": [
                self.queue_metric("visible", "ApproximateNumberOfMessagesVisible", MINUTE),
                self.workers_metric(MINUTE),
                {
                    "Id": "needed", "Label": "needed",
                    "Expression": "IF(visible >= 1 AND workers < 1, 1, 0)", "ReturnData": true,
                },
            ],
            "EvaluationPeriods": 1,
            "Threshold": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching",
            "AlarmActions": [reference("ScaleFromZeroPolicy")],
            "Tags": self.tags(),
        })
    }

    fn queue_metric(&self, id: &str, name: &str, period: u64) -> Value {
        json!({
            "Id": id,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/SQS",
                    "MetricName": name,
                    "Dimensions": [{"Name": "QueueName", "Value": self.settings.names.request_queue}],
                },
                "Period": period,
                "Stat": "Sum",
            },
            "ReturnData": false,
        })
    }

    fn workers_metric(&self, period: u64) -> Value {
        json!({
            "Id": "workers",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/AutoScaling",
                    "MetricName": "GroupDesiredCapacity",
                    "Dimensions": [{"Name": "AutoScalingGroupName", "Value": self.fleet.worker_group}],
                },
                "Period": period,
                "Stat": "Average",
            },
            "ReturnData": false,
        })
    }

    fn step_policy(&mut self, id: &str, name: &str, adjustment: i32) {
        let bound = if adjustment > 0 { "MetricIntervalLowerBound" } else { "MetricIntervalUpperBound" };
        let group = self.fleet.worker_group.clone();
        let mut members = json!({
            "AutoScalingGroupName": group,
            "PolicyType": "StepScaling",
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "StepAdjustments": [{bound: 0, "ScalingAdjustment": adjustment}],
        });
        if adjustment > 0 {
            members["EstimatedInstanceWarmup"] = INSTANCE_WARMUP.as_secs().into();
        }
        self.add(id, Kind::ScalingPolicy, in_group(&group, &self.fleet.policy(name)), members);
    }

    fn web(&mut self) {
        if self.settings.web_instances == 0 {
            return;
        }
        let name = self.fleet.web_template.clone();
        self.template("WebTemplate", name.clone(), Tier::Web, self.settings.web_type(self.bundle.cpu));
        let size = self.settings.web_instances.to_string();
        let members = json!({
            "MinSize": size,
            "MaxSize": size,
            "VPCZoneIdentifier": self.site.subnets,
            "LaunchTemplate": {
                "LaunchTemplateName": name,
                "Version": attribute("WebTemplate", LATEST_VERSION),
            },
            "DefaultInstanceWarmup": INSTANCE_WARMUP.as_secs(),
            "TargetGroupARNs": self.settings.target_group.iter().collect::<Vec<_>>(),
            "Tags": self.group_tags(),
        });
        self.add("WebGroup", Kind::AutoScalingGroup, self.fleet.web_group.clone(), members);
    }

    fn dashboard(&mut self) {
        let queue = &self.settings.names.request_queue;
        let dead_letters = self.settings.names.dead_letter_queue();
        let widget = |x: u32, y: u32, title: &str, metrics: Value| {
            json!({
                "type": "metric", "x": x, "y": y, "width": 12, "height": 6,
                "properties": {
                    "title": title, "region": self.site.region, "view": "timeSeries", "period": MINUTE,
                    "stat": "Maximum", "metrics": metrics,
                },
            })
        };
        let group = &self.fleet.worker_group;
        let sqs = |metric: &str, queue: &str| json!(["AWS/SQS", metric, "QueueName", queue]);
        let scaling = |metric: &str| json!(["AWS/AutoScaling", metric, "AutoScalingGroupName", group]);
        let body = json!({"widgets": [
            {
                "type": "text", "x": 0, "y": 12, "width": 24, "height": 1,
                "properties": {"markdown": dashboard_mark(&self.settings.stack)},
            },
            widget(0, 0, "Images waiting and in work", json!([
                sqs("ApproximateNumberOfMessagesVisible", queue),
                sqs("ApproximateNumberOfMessagesNotVisible", queue),
            ])),
            widget(12, 0, "Workers", json!([scaling("GroupDesiredCapacity"), scaling("GroupInServiceInstances")])),
            widget(0, 6, "Oldest image, seconds", json!([sqs("ApproximateAgeOfOldestMessage", queue)])),
            widget(12, 6, "Dead letters", json!([sqs("ApproximateNumberOfMessagesVisible", &dead_letters)])),
        ]});
        let members = json!({"DashboardBody": body.to_string()});
        self.add("Dashboard", Kind::Dashboard, self.fleet.dashboard.clone(), members);
    }
}

/// Dashboards have no tags: this text in it says whose it is.
pub fn dashboard_mark(stack: &str) -> String {
    format!("{STACK_TAG}={stack}")
}

/// The path of a stack's roles and instance profiles, by which they are found.
pub fn role_path(stack: &str) -> String {
    format!("/imgcls/{stack}/")
}

/// CloudWatch's metrics of SQS have one value a minute.
fn whole_minutes(period: Duration) -> u64 {
    period.as_secs().div_ceil(MINUTE).max(1) * MINUTE
}

#[cfg(test)]
impl Site {
    fn for_tests() -> Site {
        Site {
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            vpc_id: "vpc-1".to_owned(),
            subnets: vec!["subnet-a".to_owned(), "subnet-b".to_owned()],
            endpoint_url: None,
        }
    }
}

#[cfg(test)]
impl Settings {
    /// A stack of the defaults.
    pub fn for_tests(stack: &str) -> Settings {
        Settings {
            stack: stack.to_owned(),
            names: Names::aws(stack, "123456789012", "us-east-1"),
            visibility_timeout: Duration::from_secs(30),
            max_receive_count: 5,
            bounds: Bounds::new(0, 4).expect("bounds of the test"),
            policy: Policy::Step(StepPolicy::ORIGINAL),
            instance_types: Vec::new(),
            spot_percent: 0,
            existing_launch_template: None,
            web_instances: 1,
            web_instance_type: None,
            target_group: None,
            allow: "0.0.0.0/0".to_owned(),
            keep_images_days: 7,
            keep_results_days: 30,
            image: None,
        }
    }

    pub fn stack_for_tests(&self) -> Stack {
        let site = Site::for_tests();
        let bundle = BundleRef { digest: "d".repeat(64), cpu: Cpu::X86_64, model: "efficientnet-lite0".to_owned() };
        Stack::new(self, &site, &bundle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies_at(endpoint_url: Option<&str>) -> Vec<Resource> {
        let site = Site { endpoint_url: endpoint_url.map(str::to_owned), ..Site::for_tests() };
        let stack = Stack::new(&Settings::for_tests("imgcls"), &site, &BundleRef::unknown());
        stack.resources.into_iter().filter(|resource| resource.kind == Kind::BucketPolicy).collect()
    }

    #[test]
    fn both_buckets_refuse_a_line_that_can_be_listened_to_wherever_there_is_another() {
        for endpoint_url in [None, Some("https://s3.example.com")] {
            let policies = policies_at(endpoint_url);
            for (policy, folder) in policies.iter().zip(["input", "output"]) {
                let bucket = format!("arn:aws:s3:::imgcls-123456789012-us-east-1-{folder}");
                let expected = json!([{
                    "Sid": "ImgclsTlsOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
                    "Resource": [bucket, format!("{bucket}/*")],
                    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                }]);
                assert_eq!(policy.properties["PolicyDocument"]["Statement"], expected);
            }
            assert_eq!(policies.len(), 2, "{endpoint_url:?}");
        }
        assert_eq!(policies_at(Some("http://127.0.0.1:5000")), []);
    }
}
