//! The stack as a configuration of Terraform's AWS provider, in the JSON syntax of Terraform (`*.tf.json`). Its resources
//! have the names and tags of `apply`, so that `plan` finds nothing to do.
//!
//! Property names are those of CloudFormation until here: each kind of resource is translated by one function.

mod balancer;

use serde_json::{Map, Value, json};

use super::export::{PARAMETERS, linked_properties};
use super::policy_evaluation::listed;
use super::resource::{Kind, Resource, split_group, target_of};
use super::stack::Stack;

/// The provider whose arguments are used here: its bindings in PyPI's `cdktf-cdktf-provider-aws` 21.22.1 have all of them.
const PROVIDER_VERSION: &str = ">= 6.25";
const TERRAFORM_VERSION: &str = ">= 1.5";
/// The variable with the file of the bundle.
const BUNDLE: &str = "bundle";

/// The configuration. Terraform uploads the bundle too.
pub(super) fn configuration(stack: &Stack) -> Value {
    let mut resources: Map<String, Value> = Map::new();
    let translator = Translator { stack };
    for resource in &stack.resources {
        for (kind, name, members) in translator.translated(resource) {
            let of_kind = resources.entry(kind).or_insert_with(|| json!({}));
            of_kind[name] = without_nulls(members);
        }
    }
    let mut variables: Map<String, Value> = PARAMETERS
        .iter()
        .filter_map(|parameter| {
            let default = parameter.default(stack)?;
            let kind = if default.is_array() { "list(string)" } else { "string" };
            let variable = json!({"type": kind, "description": parameter.description, "default": default});
            Some((snake(parameter.id), variable))
        })
        .collect();
    variables.insert(
        BUNDLE.to_owned(),
        json!({"type": "string", "description": "File that `imgcls provision export --bundle-to FILE` wrote"}),
    );
    let mut outputs = json!({
        "request_queue_url": {"value": "${aws_sqs_queue.request_queue.url}"},
        "input_bucket": {"value": "${aws_s3_bucket.input_bucket.bucket}"},
    });
    if stack.get("WebBalancer").is_some() {
        outputs["web_url"] = json!({"value": "https://${aws_lb.web_balancer.dns_name}/"});
    }
    json!({
        "//": format!("imgcls, stack {}: image classification through a queue", stack.name),
        "terraform": {
            "required_version": TERRAFORM_VERSION,
            "required_providers": {"aws": {"source": "hashicorp/aws", "version": PROVIDER_VERSION}},
        },
        "provider": {"aws": {"region": stack.region, "allowed_account_ids": [stack.account]}},
        "variable": variables,
        "resource": resources,
        "output": outputs,
    })
}

/// Type, name and arguments of a resource of Terraform.
type Translated = (String, String, Value);

struct Translator<'a> {
    stack: &'a Stack,
}

impl Translator<'_> {
    fn translated(&self, resource: &Resource) -> Vec<Translated> {
        let name = snake(&resource.id);
        let found = self.interpolated(&Value::Object(linked_properties(self.stack, resource)));
        let one = |kind: &str, members: Value| vec![(kind.to_owned(), name.clone(), members)];
        match resource.kind {
            Kind::LogGroup => one(
                "aws_cloudwatch_log_group",
                json!({
                    "name": resource.name, "retention_in_days": found["RetentionInDays"], "tags": tags(&found["Tags"]),
                }),
            ),
            Kind::Queue => one("aws_sqs_queue", queue(&resource.name, &found)),
            Kind::Bucket => bucket(&name, &resource.name, &found),
            Kind::Bundle => one(
                "aws_s3_object",
                json!({
                    "bucket": "${aws_s3_bucket.input_bucket.bucket}", "key": resource.name,
                    "source": format!("${{var.{BUNDLE}}}"), "content_type": "application/gzip",
                }),
            ),
            // An export has its models in the bundle. Terraform would remove the notifications of others from a bucket.
            Kind::ModelPackage | Kind::ModelPointer | Kind::BucketNotification => Vec::new(),
            Kind::BucketPolicy => {
                let bucket = self.address(Kind::Bucket, &resource.name);
                let bucket = bucket.map_or_else(|| resource.name.clone(), |address| format!("${{{address}.bucket}}"));
                one("aws_s3_bucket_policy", json!({"bucket": bucket, "policy": text(&found["PolicyDocument"])}))
            }
            Kind::QueuePolicy => {
                let queue = self.address(Kind::Queue, &resource.name).unwrap_or_default();
                let policy = text(&found["PolicyDocument"]);
                one("aws_sqs_queue_policy", json!({"queue_url": format!("${{{queue}.url}}"), "policy": policy}))
            }
            Kind::Topic => topic(&name, &resource.name, &found),
            Kind::Budget => one("aws_budgets_budget", budget(&found)),
            Kind::Role => role(&name, &resource.name, &found),
            Kind::InstanceProfile => one(
                "aws_iam_instance_profile",
                json!({
                    "name": resource.name, "path": found["Path"], "role": found["Roles"][0], "tags": tags(&found["Tags"]),
                }),
            ),
            Kind::SecurityGroup => one("aws_security_group", security_group(&resource.name, &found)),
            Kind::TargetGroup => one("aws_lb_target_group", balancer::target_group(&resource.name, &found)),
            Kind::LoadBalancer => one("aws_lb", balancer::load_balancer(&resource.name, &found)),
            Kind::Listener => one("aws_lb_listener", balancer::listener(&found)),
            Kind::LaunchTemplate => one("aws_launch_template", launch_template(&resource.name, &found)),
            Kind::AutoScalingGroup => one("aws_autoscaling_group", group(&resource.name, &found)),
            Kind::LifecycleHook => one("aws_autoscaling_lifecycle_hook", hook(split_group(&resource.name).1, &found)),
            Kind::ScalingPolicy => one("aws_autoscaling_policy", policy(split_group(&resource.name).1, &found)),
            Kind::Alarm => one("aws_cloudwatch_metric_alarm", alarm(&resource.name, &found)),
            Kind::Dashboard => one(
                "aws_cloudwatch_dashboard",
                json!({"dashboard_name": resource.name, "dashboard_body": found["DashboardBody"]}),
            ),
        }
    }

    /// The type and name of a resource, as expressions have them.
    fn address(&self, kind: Kind, name: &str) -> Option<String> {
        let resource = self.stack.find(kind, name)?;
        Some(format!("{}.{}", terraform_type(kind)?, snake(&resource.id)))
    }

    /// Replaces references with expressions of Terraform, and escapes all other texts.
    fn interpolated(&self, value: &Value) -> Value {
        if let Some((id, attribute)) = target_of(value) {
            return self.expression(id, attribute).into();
        }
        match value {
            Value::String(text) => text.replace("${", "$${").replace("%{", "%%{").into(),
            Value::Array(items) => items.iter().map(|item| self.interpolated(item)).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(name, member)| (name.clone(), self.interpolated(member)))
                .collect::<Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    fn expression(&self, id: &str, attribute: &str) -> String {
        if PARAMETERS.iter().any(|parameter| parameter.id == id) {
            return format!("${{var.{}}}", snake(id));
        }
        let kind = self.stack.get(id).map(|resource| resource.kind);
        let attribute = match (kind, attribute) {
            (Some(Kind::Bucket), "Ref") => "bucket",
            (Some(Kind::Role | Kind::AutoScalingGroup), "Ref") => "name",
            (Some(Kind::SecurityGroup), "GroupId") => "id",
            (Some(Kind::LaunchTemplate), _) => "latest_version",
            _ => "arn",
        };
        let kind = kind.and_then(terraform_type).unwrap_or_default();
        format!("${{{kind}.{}.{attribute}}}", snake(id))
    }
}

/// The type of the main resource of each kind.
fn terraform_type(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::LogGroup => "aws_cloudwatch_log_group",
        Kind::Queue => "aws_sqs_queue",
        Kind::Bucket => "aws_s3_bucket",
        Kind::Bundle => "aws_s3_object",
        Kind::ModelPackage | Kind::ModelPointer | Kind::BucketNotification => return None,
        Kind::QueuePolicy => "aws_sqs_queue_policy",
        Kind::TargetGroup => "aws_lb_target_group",
        Kind::LoadBalancer => "aws_lb",
        Kind::Listener => "aws_lb_listener",
        Kind::Topic => "aws_sns_topic",
        Kind::Budget => "aws_budgets_budget",
        Kind::BucketPolicy => "aws_s3_bucket_policy",
        Kind::Role => "aws_iam_role",
        Kind::InstanceProfile => "aws_iam_instance_profile",
        Kind::SecurityGroup => "aws_security_group",
        Kind::LaunchTemplate => "aws_launch_template",
        Kind::AutoScalingGroup => "aws_autoscaling_group",
        Kind::LifecycleHook => "aws_autoscaling_lifecycle_hook",
        Kind::ScalingPolicy => "aws_autoscaling_policy",
        Kind::Alarm => "aws_cloudwatch_metric_alarm",
        Kind::Dashboard => "aws_cloudwatch_dashboard",
    })
}

fn queue(name: &str, found: &Value) -> Value {
    json!({
        "name": name,
        "visibility_timeout_seconds": found["VisibilityTimeout"],
        "message_retention_seconds": found["MessageRetentionPeriod"],
        "max_message_size": found["MaximumMessageSize"],
        "sqs_managed_sse_enabled": found["SqsManagedSseEnabled"],
        "redrive_policy": found.get("RedrivePolicy").map(text),
        "tags": tags(&found["Tags"]),
    })
}

/// The bucket, and what CloudFormation has as its properties.
fn bucket(id: &str, name: &str, found: &Value) -> Vec<Translated> {
    let of = |kind: &str, members: Value| (kind.to_owned(), id.to_owned(), members);
    let this = format!("${{aws_s3_bucket.{id}.bucket}}");
    let block = &found["PublicAccessBlockConfiguration"];
    let encryption = &found["BucketEncryption"]["ServerSideEncryptionConfiguration"];
    let algorithms = listed(encryption).into_iter().map(|rule| &rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"]);
    let encryption: Vec<Value> = algorithms
        .map(|algorithm| json!({"apply_server_side_encryption_by_default": {"sse_algorithm": algorithm}}))
        .collect();
    let rules = listed(&found["LifecycleConfiguration"]["Rules"]).into_iter().map(|rule| {
        json!({
            "id": rule["Id"], "status": rule["Status"], "filter": {"prefix": rule["Prefix"]},
            "expiration": {"days": rule["ExpirationInDays"]},
        })
    });
    let rules: Vec<Value> = rules.collect();
    vec![
        of("aws_s3_bucket", json!({"bucket": name, "tags": tags(&found["Tags"])})),
        of(
            "aws_s3_bucket_public_access_block",
            json!({
                "bucket": this,
                "block_public_acls": block["BlockPublicAcls"],
                "block_public_policy": block["BlockPublicPolicy"],
                "ignore_public_acls": block["IgnorePublicAcls"],
                "restrict_public_buckets": block["RestrictPublicBuckets"],
            }),
        ),
        of("aws_s3_bucket_server_side_encryption_configuration", json!({"bucket": this, "rule": encryption})),
        of("aws_s3_bucket_lifecycle_configuration", json!({"bucket": this, "rule": rules})),
    ]
}

/// The topic and its subscriptions.
fn topic(id: &str, name: &str, found: &Value) -> Vec<Translated> {
    let topic = json!({"name": name, "tags": tags(&found["Tags"])});
    let mut translated = vec![("aws_sns_topic".to_owned(), id.to_owned(), topic)];
    for (index, subscription) in listed(&found["Subscription"]).into_iter().enumerate() {
        let members = json!({
            "topic_arn": format!("${{aws_sns_topic.{id}.arn}}"),
            "protocol": subscription["Protocol"],
            "endpoint": subscription["Endpoint"],
        });
        translated.push(("aws_sns_topic_subscription".to_owned(), format!("{id}_{index}"), members));
    }
    translated
}

fn budget(found: &Value) -> Value {
    let (budget, filters) = (&found["Budget"], found["Budget"]["CostFilters"].as_object());
    let filters = filters.into_iter().flatten().map(|(name, values)| json!({"name": name, "values": values}));
    let notifications = listed(&found["NotificationsWithSubscribers"]).into_iter().map(|told| {
        let notification = &told["Notification"];
        let of = |kind: &str| {
            let subscribers = listed(&told["Subscribers"]).into_iter();
            let addresses = subscribers.filter(|one| one["SubscriptionType"] == kind).map(|one| &one["Address"]);
            addresses.collect::<Vec<_>>()
        };
        json!({
            "comparison_operator": notification["ComparisonOperator"],
            "notification_type": notification["NotificationType"],
            "threshold": notification["Threshold"],
            "threshold_type": notification["ThresholdType"],
            "subscriber_email_addresses": of("EMAIL"),
            "subscriber_sns_topic_arns": of("SNS"),
        })
    });
    json!({
        "name": budget["BudgetName"],
        "budget_type": budget["BudgetType"],
        "time_unit": budget["TimeUnit"],
        "limit_amount": budget["BudgetLimit"]["Amount"],
        "limit_unit": budget["BudgetLimit"]["Unit"],
        "cost_filter": filters.collect::<Vec<_>>(),
        "notification": notifications.collect::<Vec<_>>(),
    })
}

fn role(id: &str, name: &str, found: &Value) -> Vec<Translated> {
    let role = json!({
        "name": name, "path": found["Path"], "assume_role_policy": text(&found["AssumeRolePolicyDocument"]),
        "permissions_boundary": found.get("PermissionsBoundary"),
        "tags": tags(&found["Tags"]),
    });
    let mut translated = vec![("aws_iam_role".to_owned(), id.to_owned(), role)];
    for policy in listed(&found["Policies"]) {
        let members = json!({
            "name": policy["PolicyName"], "role": format!("${{aws_iam_role.{id}.name}}"),
            "policy": text(&policy["PolicyDocument"]),
        });
        let name = format!("{id}_{}", snake(policy["PolicyName"].as_str().unwrap_or_default()));
        translated.push(("aws_iam_role_policy".to_owned(), name, members));
    }
    translated
}

fn security_group(name: &str, found: &Value) -> Value {
    json!({
        "name": name, "description": found["GroupDescription"], "vpc_id": found["VpcId"],
        "ingress": listed(&found["SecurityGroupIngress"]).into_iter().map(rule).collect::<Vec<_>>(),
        "egress": listed(&found["SecurityGroupEgress"]).into_iter().map(rule).collect::<Vec<_>>(),
        "tags": tags(&found["Tags"]),
    })
}

/// A rule. In the JSON syntax all of its members have to be there.
fn rule(rule: &Value) -> Value {
    let port = |name: &str| rule.get(name).cloned().unwrap_or_else(|| 0.into());
    json!({
        "protocol": rule["IpProtocol"], "from_port": port("FromPort"), "to_port": port("ToPort"),
        "cidr_blocks": rule.get("CidrIp").into_iter().collect::<Vec<_>>(),
        "description": rule["Description"].as_str().unwrap_or_default(),
        "ipv6_cidr_blocks": [], "prefix_list_ids": [],
        "security_groups": rule.get("SourceSecurityGroupId").into_iter().collect::<Vec<_>>(), "self": false,
    })
}

fn launch_template(name: &str, found: &Value) -> Value {
    let data = &found["LaunchTemplateData"];
    let options = &data["MetadataOptions"];
    let volumes = listed(&data["BlockDeviceMappings"]).into_iter().map(|mapping| {
        let ebs = &mapping["Ebs"];
        json!({"device_name": mapping["DeviceName"], "ebs": {
            "delete_on_termination": ebs["DeleteOnTermination"], "encrypted": ebs["Encrypted"],
            "volume_type": ebs["VolumeType"], "volume_size": ebs["VolumeSize"],
        }})
    });
    let tagged = listed(&data["TagSpecifications"]).into_iter();
    let tagged = tagged.map(|of| json!({"resource_type": of["ResourceType"], "tags": tags(&of["Tags"])}));
    json!({
        "name": name,
        "update_default_version": true,
        "image_id": data["ImageId"],
        "instance_type": data["InstanceType"],
        "iam_instance_profile": {"arn": data["IamInstanceProfile"]["Arn"]},
        "vpc_security_group_ids": data["SecurityGroupIds"],
        "metadata_options": {
            "http_endpoint": options["HttpEndpoint"], "http_tokens": options["HttpTokens"],
            "http_put_response_hop_limit": options["HttpPutResponseHopLimit"],
        },
        "block_device_mappings": volumes.collect::<Vec<_>>(),
        "tag_specifications": tagged.collect::<Vec<_>>(),
        "user_data": data["UserData"],
        "tags": tags(&found["Tags"]),
    })
}

/// A group. Its desired capacity is left to scaling, and its machines are replaced as by `apply`.
fn group(name: &str, found: &Value) -> Value {
    let specification = |found: &Value| json!({"name": found["LaunchTemplateName"], "version": found["Version"]});
    let mixed = found.get("MixedInstancesPolicy").map(|policy| {
        let (distribution, template) = (&policy["InstancesDistribution"], &policy["LaunchTemplate"]);
        let types = listed(&template["Overrides"]).into_iter();
        let found = &template["LaunchTemplateSpecification"];
        json!({
            "instances_distribution": {
                "on_demand_base_capacity": distribution["OnDemandBaseCapacity"],
                "on_demand_percentage_above_base_capacity": distribution["OnDemandPercentageAboveBaseCapacity"],
                "on_demand_allocation_strategy": distribution["OnDemandAllocationStrategy"],
                "spot_allocation_strategy": distribution["SpotAllocationStrategy"],
            },
            "launch_template": {
                "launch_template_specification": {
                    "launch_template_name": found["LaunchTemplateName"], "version": found["Version"],
                },
                "override": types.map(|of| json!({"instance_type": of["InstanceType"]})).collect::<Vec<_>>(),
            },
        })
    });
    let metrics = listed(&found["MetricsCollection"]).into_iter().next();
    let tags = listed(&found["Tags"])
        .into_iter()
        .map(|tag| json!({"key": tag["Key"], "value": tag["Value"], "propagate_at_launch": tag["PropagateAtLaunch"]}));
    json!({
        "name": name,
        "min_size": found["MinSize"],
        "max_size": found["MaxSize"],
        "vpc_zone_identifier": found["VPCZoneIdentifier"],
        "launch_template": found.get("LaunchTemplate").map(specification),
        "mixed_instances_policy": mixed,
        "capacity_rebalance": found.get("CapacityRebalance"),
        "default_instance_warmup": found.get("DefaultInstanceWarmup"),
        "protect_from_scale_in": found.get("NewInstancesProtectedFromScaleIn"),
        "health_check_type": found.get("HealthCheckType"),
        "health_check_grace_period": found.get("HealthCheckGracePeriod"),
        "target_group_arns": found.get("TargetGroupARNs"),
        "enabled_metrics": metrics.map(|metrics| &metrics["Metrics"]),
        "metrics_granularity": metrics.map(|metrics| &metrics["Granularity"]),
        "tag": tags.collect::<Vec<_>>(),
        "instance_refresh": {
            "strategy": "Rolling",
            "preferences": {
                "min_healthy_percentage": 100, "max_healthy_percentage": 200, "skip_matching": true,
                "scale_in_protected_instances": "Refresh",
            },
        },
        "wait_for_capacity_timeout": "0",
        "depends_on": ["aws_s3_object.bundle", "aws_iam_role_policy.worker_role_imgcls", "aws_iam_role_policy.web_role_imgcls"],
        "lifecycle": {"ignore_changes": ["desired_capacity"]},
    })
}

fn hook(name: &str, found: &Value) -> Value {
    json!({
        "name": name,
        "autoscaling_group_name": found["AutoScalingGroupName"],
        "lifecycle_transition": found["LifecycleTransition"],
        "heartbeat_timeout": found["HeartbeatTimeout"],
        "default_result": found["DefaultResult"],
    })
}

fn policy(name: &str, found: &Value) -> Value {
    let steps = found.get("StepAdjustments").map(|steps| {
        let steps = listed(steps).into_iter().map(|step| {
            json!({
                "scaling_adjustment": step["ScalingAdjustment"],
                "metric_interval_lower_bound": step.get("MetricIntervalLowerBound"),
                "metric_interval_upper_bound": step.get("MetricIntervalUpperBound"),
            })
        });
        steps.collect::<Vec<_>>()
    });
    let tracking = found.get("TargetTrackingConfiguration").map(|tracking| {
        let metric = &tracking["CustomizedMetricSpecification"];
        json!({
            "target_value": tracking["TargetValue"],
            "disable_scale_in": tracking["DisableScaleIn"],
            "customized_metric_specification": {
                "namespace": metric["Namespace"], "metric_name": metric["MetricName"],
                "statistic": metric["Statistic"], "period": metric["Period"],
                "metric_dimension": dimension_blocks(&metric["Dimensions"]),
            },
        })
    });
    json!({
        "name": name,
        "autoscaling_group_name": found["AutoScalingGroupName"],
        "policy_type": found["PolicyType"],
        "adjustment_type": found.get("AdjustmentType"),
        "metric_aggregation_type": found.get("MetricAggregationType"),
        "estimated_instance_warmup": found.get("EstimatedInstanceWarmup"),
        "step_adjustment": steps,
        "target_tracking_configuration": tracking,
    })
}

fn alarm(name: &str, found: &Value) -> Value {
    let queries = listed(&found["Metrics"]).into_iter().map(|query| {
        let metric = query.get("MetricStat").map(|stat| {
            let metric = &stat["Metric"];
            json!({
                "namespace": metric["Namespace"], "metric_name": metric["MetricName"],
                "dimensions": dimension_map(&metric["Dimensions"]), "period": stat["Period"], "stat": stat["Stat"],
            })
        });
        json!({
            "id": query["Id"], "label": query.get("Label"), "expression": query.get("Expression"),
            "return_data": query["ReturnData"], "metric": metric,
        })
    });
    let queries: Vec<Value> = queries.collect();
    json!({
        "alarm_name": name,
        "alarm_description": found.get("AlarmDescription"),
        "namespace": found.get("Namespace"),
        "metric_name": found.get("MetricName"),
        "dimensions": found.get("Dimensions").map(dimension_map),
        "statistic": found.get("Statistic"),
        "period": found.get("Period"),
        "metric_query": (!queries.is_empty()).then_some(queries),
        "evaluation_periods": found["EvaluationPeriods"],
        "threshold": found["Threshold"],
        "comparison_operator": found["ComparisonOperator"],
        "treat_missing_data": found.get("TreatMissingData"),
        "alarm_actions": found.get("AlarmActions"),
        "actions_enabled": found.get("ActionsEnabled"),
        "tags": tags(&found["Tags"]),
    })
}

fn dimension_map(dimensions: &Value) -> Value {
    pairs(dimensions, "Name")
}

fn dimension_blocks(dimensions: &Value) -> Vec<Value> {
    listed(dimensions).into_iter().map(|of| json!({"name": of["Name"], "value": of["Value"]})).collect()
}

fn tags(tags: &Value) -> Value {
    pairs(tags, "Key")
}

/// A list of keys and values as a map.
fn pairs(list: &Value, key: &str) -> Value {
    let pairs = listed(list).into_iter();
    pairs
        .map(|pair| (pair[key].as_str().unwrap_or_default().to_owned(), pair["Value"].clone()))
        .collect::<Map<_, _>>()
        .into()
}

/// A document as text. Expressions in it stay expressions.
fn text(document: &Value) -> String {
    document.to_string()
}

/// `RequestQueue` becomes `request_queue`.
fn snake(id: &str) -> String {
    let mut name = String::new();
    for character in id.chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_lowercase());
    }
    name
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(name, member)| (name, without_nulls(member)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
