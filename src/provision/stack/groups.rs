//! Launch templates and Auto Scaling groups of both tiers.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::builder::{Builder, INSTANCE_WARMUP};
use crate::protocol::{DRAIN_HOOK, START_HOOK};
use crate::provision::resource::{Kind, LATEST_VERSION, attribute, in_group};
use crate::provision::tier::Tier;
use crate::provision::user_data;

/// Time after its start in which a machine of the web tier may be unhealthy.
const HEALTH_CHECK_GRACE: Duration = Duration::from_secs(300);
/// Longest time until a machine has started its service. After 15 minutes it switches itself off (`user_data`), so that its
/// log says why.
const START_TIMEOUT: Duration = Duration::from_secs(1_200);
/// Longest time that a worker that is to be terminated may drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

impl Builder<'_> {
    fn template(&mut self, id: &str, name: String, tier: Tier, instance_type: &str) {
        let (profile, security_group) = match tier {
            Tier::Worker => (&self.names.worker_role, "WorkerSecurityGroup"),
            Tier::Web => (&self.names.web_role, "WebSecurityGroup"),
        };
        let script = user_data::render(tier, self.settings, self.site, self.bundle, self.packages);
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
                    "DeviceName": self.site.root_volume.device,
                    "Ebs": {
                        "DeleteOnTermination": true, "Encrypted": true, "VolumeType": "gp3",
                        "VolumeSize": self.site.root_volume.gigabytes,
                    },
                }],
                "TagSpecifications": [tagged("instance"), tagged("volume")],
                "UserData": base64::engine::general_purpose::STANDARD.encode(script),
            },
            "Tags": tags,
        });
        self.add(id, Kind::LaunchTemplate, name, members);
    }

    pub(super) fn workers(&mut self) {
        let settings = self.settings;
        let types = settings.worker_types(self.bundle.cpu);
        let specification = match &settings.existing_launch_template {
            Some(name) => json!({"LaunchTemplateName": name, "Version": "$Default"}),
            None => {
                let name = self.names.worker_template.clone();
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
            "VPCZoneIdentifier": self.site.network.subnets,
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
            "MetricsCollection": group_metrics(),
            "NewInstancesProtectedFromScaleIn": false,
            "SuspendedProcesses": [],
            "Tags": self.group_tags(),
        });
        let group = self.names.worker_group.clone();
        self.add("WorkerGroup", Kind::AutoScalingGroup, group.clone(), members);
        let hook = json!({
            "AutoScalingGroupName": group,
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "HeartbeatTimeout": DRAIN_TIMEOUT.as_secs(),
            "DefaultResult": "CONTINUE",
        });
        self.add("WorkerDrainHook", Kind::LifecycleHook, in_group(&group, DRAIN_HOOK), hook);
        // Machines of a launch template of the user do not complete it.
        if self.settings.existing_launch_template.is_none() {
            self.start_hook("WorkerStartHook", &group);
        }
    }

    pub(super) fn web(&mut self) {
        if self.settings.web_instances == 0 {
            return;
        }
        let name = self.names.web_template.clone();
        self.template("WebTemplate", name.clone(), Tier::Web, self.settings.web_type(self.bundle.cpu));
        let settings = self.settings;
        let size = settings.web_instances.to_string();
        let members = json!({
            "MinSize": size,
            "MaxSize": size,
            "VPCZoneIdentifier": self.site.network.subnets,
            "LaunchTemplate": {
                "LaunchTemplateName": name,
                "Version": attribute("WebTemplate", LATEST_VERSION),
            },
            "DefaultInstanceWarmup": INSTANCE_WARMUP.as_secs(),
            // With a load balancer, a machine that does not answer it is replaced.
            "HealthCheckType": if self.target_groups().is_empty() { "EC2" } else { "ELB" },
            "HealthCheckGracePeriod": HEALTH_CHECK_GRACE.as_secs(),
            "TargetGroupARNs": self.target_groups(),
            // An alarm reads them.
            "MetricsCollection": settings.notify.has_recipients().then(group_metrics),
            "SuspendedProcesses": [],
            "Tags": self.group_tags(),
        });
        let group = self.names.web_group.clone();
        self.add("WebGroup", Kind::AutoScalingGroup, group.clone(), members);
        self.start_hook("WebStartHook", &group);
    }

    /// A machine is in service once its service has started. A new one replaces an old one only then.
    fn start_hook(&mut self, id: &str, group: &str) {
        let hook = json!({
            "AutoScalingGroupName": group,
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
            "HeartbeatTimeout": START_TIMEOUT.as_secs(),
            "DefaultResult": "ABANDON",
        });
        self.add(id, Kind::LifecycleHook, in_group(group, START_HOOK), hook);
    }
}

/// The metrics of a group that alarms read.
fn group_metrics() -> Value {
    json!([{"Granularity": "1Minute", "Metrics": ["GroupDesiredCapacity", "GroupInServiceInstances"]}])
}
