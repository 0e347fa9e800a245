//! The exported configuration of Terraform, under a check of our own: neither Terraform nor its provider can be had from a
//! package registry. The check knows the arguments of each type of resource that imgcls writes, and follows every
//! reference. Every argument in its table is one of the provider `hashicorp/aws` 6.25.0, by the bindings of that version
//! on PyPI (`cdktf-cdktf-provider-aws` 21.22.1, 59 MB, so that it is no part of the tests).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Stack;
use super::balancer::CERTIFICATE;

/// Each type with its required and its other arguments, those of blocks with a dot.
const TYPES: &[(&str, &[&str], &[&str])] = &[
    ("aws_cloudwatch_log_group", &[], &["name", "retention_in_days", "tags"]),
    (
        "aws_sqs_queue",
        &[],
        &[
            "name",
            "visibility_timeout_seconds",
            "message_retention_seconds",
            "max_message_size",
            "sqs_managed_sse_enabled",
            "redrive_policy",
            "tags",
        ],
    ),
    ("aws_s3_bucket", &[], &["bucket", "tags"]),
    (
        "aws_s3_bucket_public_access_block",
        &["bucket"],
        &["block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"],
    ),
    (
        "aws_s3_bucket_server_side_encryption_configuration",
        &["bucket", "rule"],
        &["rule.apply_server_side_encryption_by_default", "rule.apply_server_side_encryption_by_default.sse_algorithm"],
    ),
    (
        "aws_s3_bucket_lifecycle_configuration",
        &["bucket", "rule", "rule.id", "rule.status"],
        &["rule.filter", "rule.filter.prefix", "rule.expiration", "rule.expiration.days"],
    ),
    ("aws_s3_bucket_policy", &["bucket", "policy"], &[]),
    ("aws_s3_object", &["bucket", "key"], &["source", "content_type"]),
    ("aws_iam_role", &["assume_role_policy"], &["name", "path", "permissions_boundary", "tags"]),
    ("aws_iam_role_policy", &["role", "policy"], &["name"]),
    ("aws_iam_instance_profile", &[], &["name", "path", "role", "tags"]),
    (
        "aws_security_group",
        // Blocks that are also attributes: in the JSON syntax all members have to be there.
        &[
            "egress.cidr_blocks",
            "egress.description",
            "egress.from_port",
            "egress.ipv6_cidr_blocks",
            "egress.prefix_list_ids",
            "egress.protocol",
            "egress.security_groups",
            "egress.self",
            "egress.to_port",
        ],
        &[
            "name",
            "description",
            "vpc_id",
            "ingress",
            "egress",
            "tags",
            "ingress.cidr_blocks",
            "ingress.description",
            "ingress.from_port",
            "ingress.ipv6_cidr_blocks",
            "ingress.prefix_list_ids",
            "ingress.protocol",
            "ingress.security_groups",
            "ingress.self",
            "ingress.to_port",
        ],
    ),
    (
        "aws_launch_template",
        &[],
        &[
            "name",
            "update_default_version",
            "image_id",
            "instance_type",
            "iam_instance_profile",
            "iam_instance_profile.arn",
            "vpc_security_group_ids",
            "metadata_options",
            "metadata_options.http_endpoint",
            "metadata_options.http_tokens",
            "metadata_options.http_put_response_hop_limit",
            "block_device_mappings",
            "block_device_mappings.device_name",
            "block_device_mappings.ebs",
            "block_device_mappings.ebs.delete_on_termination",
            "block_device_mappings.ebs.encrypted",
            "block_device_mappings.ebs.volume_type",
            "block_device_mappings.ebs.volume_size",
            "tag_specifications",
            "tag_specifications.resource_type",
            "tag_specifications.tags",
            "user_data",
            "tags",
        ],
    ),
    (
        "aws_autoscaling_group",
        &["min_size", "max_size", "tag.key", "tag.value", "tag.propagate_at_launch"],
        &[
            "name",
            "vpc_zone_identifier",
            "launch_template",
            "launch_template.name",
            "launch_template.version",
            "mixed_instances_policy",
            "mixed_instances_policy.instances_distribution",
            "mixed_instances_policy.instances_distribution.on_demand_base_capacity",
            "mixed_instances_policy.instances_distribution.on_demand_percentage_above_base_capacity",
            "mixed_instances_policy.instances_distribution.on_demand_allocation_strategy",
            "mixed_instances_policy.instances_distribution.spot_allocation_strategy",
            "mixed_instances_policy.launch_template",
            "mixed_instances_policy.launch_template.launch_template_specification",
            "mixed_instances_policy.launch_template.launch_template_specification.launch_template_name",
            "mixed_instances_policy.launch_template.launch_template_specification.version",
            "mixed_instances_policy.launch_template.override",
            "mixed_instances_policy.launch_template.override.instance_type",
            "capacity_rebalance",
            "default_instance_warmup",
            "protect_from_scale_in",
            "health_check_type",
            "health_check_grace_period",
            "target_group_arns",
            "enabled_metrics",
            "metrics_granularity",
            "tag",
            "instance_refresh",
            "instance_refresh.strategy",
            "instance_refresh.preferences",
            "instance_refresh.preferences.min_healthy_percentage",
            "instance_refresh.preferences.max_healthy_percentage",
            "instance_refresh.preferences.skip_matching",
            "instance_refresh.preferences.scale_in_protected_instances",
            "wait_for_capacity_timeout",
        ],
    ),
    (
        "aws_autoscaling_lifecycle_hook",
        &["name", "autoscaling_group_name", "lifecycle_transition"],
        &["heartbeat_timeout", "default_result"],
    ),
    (
        "aws_autoscaling_policy",
        &["name", "autoscaling_group_name"],
        &[
            "policy_type",
            "adjustment_type",
            "metric_aggregation_type",
            "estimated_instance_warmup",
            "step_adjustment",
            "step_adjustment.scaling_adjustment",
            "step_adjustment.metric_interval_lower_bound",
            "step_adjustment.metric_interval_upper_bound",
            "target_tracking_configuration",
            "target_tracking_configuration.target_value",
            "target_tracking_configuration.disable_scale_in",
            "target_tracking_configuration.customized_metric_specification",
            "target_tracking_configuration.customized_metric_specification.namespace",
            "target_tracking_configuration.customized_metric_specification.metric_name",
            "target_tracking_configuration.customized_metric_specification.statistic",
            "target_tracking_configuration.customized_metric_specification.period",
            "target_tracking_configuration.customized_metric_specification.metric_dimension",
            "target_tracking_configuration.customized_metric_specification.metric_dimension.name",
            "target_tracking_configuration.customized_metric_specification.metric_dimension.value",
        ],
    ),
    (
        "aws_cloudwatch_metric_alarm",
        &["alarm_name", "comparison_operator", "evaluation_periods", "metric_query.id"],
        &[
            "alarm_description",
            "namespace",
            "metric_name",
            "dimensions",
            "statistic",
            "period",
            "metric_query",
            "metric_query.label",
            "metric_query.expression",
            "metric_query.return_data",
            "metric_query.metric",
            "metric_query.metric.namespace",
            "metric_query.metric.metric_name",
            "metric_query.metric.dimensions",
            "metric_query.metric.period",
            "metric_query.metric.stat",
            "threshold",
            "treat_missing_data",
            "alarm_actions",
            "actions_enabled",
            "tags",
        ],
    ),
    ("aws_cloudwatch_dashboard", &["dashboard_name", "dashboard_body"], &[]),
    ("aws_sqs_queue_policy", &["queue_url", "policy"], &[]),
    ("aws_sns_topic", &[], &["name", "tags"]),
    ("aws_sns_topic_subscription", &["topic_arn", "protocol", "endpoint"], &[]),
    (
        "aws_budgets_budget",
        &[
            "budget_type",
            "time_unit",
            "cost_filter.name",
            "cost_filter.values",
            "notification.comparison_operator",
            "notification.notification_type",
            "notification.threshold",
            "notification.threshold_type",
        ],
        &[
            "name",
            "limit_amount",
            "limit_unit",
            "cost_filter",
            "notification",
            "notification.subscriber_email_addresses",
            "notification.subscriber_sns_topic_arns",
        ],
    ),
    (
        "aws_lb",
        &["name", "subnets"],
        &["load_balancer_type", "internal", "security_groups", "idle_timeout", "drop_invalid_header_fields", "tags"],
    ),
    (
        "aws_lb_target_group",
        &["name", "port", "protocol", "vpc_id"],
        &[
            "target_type",
            "health_check",
            "health_check.protocol",
            "health_check.path",
            "health_check.interval",
            "health_check.timeout",
            "health_check.healthy_threshold",
            "health_check.unhealthy_threshold",
            "health_check.matcher",
            "tags",
        ],
    ),
    (
        "aws_lb_listener",
        &["load_balancer_arn", "default_action", "default_action.type"],
        &["port", "protocol", "ssl_policy", "certificate_arn", "default_action.target_group_arn"],
    ),
];

/// Arguments of every resource.
const META: [&str; 2] = ["depends_on", "lifecycle"];
/// Arguments whose members are keys and values, not arguments.
const MAPS: [&str; 2] = ["tags", "dimensions"];
/// Attributes that other resources refer to.
const ATTRIBUTES: [&str; 7] = ["arn", "bucket", "dns_name", "id", "latest_version", "name", "url"];

/// Checks a configuration and returns what is wrong with it.
fn wrong(configuration: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let of_type = configuration["resource"].as_object().unwrap();
    for (kind, resources) in of_type {
        let Some((_, required, optional)) = TYPES.iter().find(|(name, _, _)| name == kind) else {
            wrong.push(format!("{kind} is not a type"));
            continue;
        };
        for (name, arguments) in resources.as_object().unwrap() {
            let mut paths = BTreeSet::new();
            let arguments = arguments.as_object().unwrap();
            collect("", arguments, &mut paths);
            let known = |path: &str| required.contains(&path) || optional.contains(&path);
            let unknown = paths.iter().filter(|path| !known(path) && !META.contains(&path.as_str()));
            wrong.extend(unknown.map(|path| format!("{kind}.{name} has the unknown argument {path}")));
            let is_missing = |path: &&&str| {
                let block = path.rsplit_once('.').map(|(block, _)| block);
                !paths.contains(**path) && block.is_none_or(|block| paths.contains(block))
            };
            let missing = required.iter().filter(is_missing);
            wrong.extend(missing.map(|path| format!("{kind}.{name} lacks {path}")));
        }
    }
    let text = configuration.to_string();
    let without_escapes = text.replace("$${", "");
    for expression in without_escapes.split("${").skip(1).map(|rest| rest.split('}').next().unwrap()) {
        let parts: Vec<&str> = expression.split('.').collect();
        let is_there = match parts[..] {
            ["var", name] => configuration["variable"].get(name).is_some(),
            [kind, name, attribute] => {
                configuration["resource"][kind].get(name).is_some() && ATTRIBUTES.contains(&attribute)
            }
            _ => false,
        };
        if !is_there {
            wrong.push(format!("${{{expression}}} refers to nothing"));
        }
    }
    for dependency in configuration["resource"]["aws_autoscaling_group"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, group)| group["depends_on"].as_array().cloned().unwrap_or_default())
    {
        let (kind, name) = dependency.as_str().unwrap().split_once('.').unwrap();
        if configuration["resource"][kind].get(name).is_none() {
            wrong.push(format!("depends_on {dependency} names nothing"));
        }
    }
    wrong
}

/// The paths of all arguments. Those of entries of a list are those of their block.
fn collect(block: &str, arguments: &Map<String, Value>, paths: &mut BTreeSet<String>) {
    for (name, value) in arguments {
        let path = if block.is_empty() { name.clone() } else { format!("{block}.{name}") };
        let is_literal = MAPS.contains(&name.as_str()) || META.contains(&name.as_str());
        let entries = match value {
            Value::Array(entries) => entries.clone(),
            other => vec![other.clone()],
        };
        for entry in entries.iter().filter_map(Value::as_object).filter(|_| !is_literal) {
            collect(&path, entry, paths);
        }
        paths.insert(path);
    }
}

fn exported(stack: &Stack, flags: &[&str]) -> Value {
    let text = stack.succeeds(&[&["export", "--format", "terraform"][..], flags].concat());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn terraform_configuration_passes_our_own_check_of_arguments_and_references() {
    let stack = Stack::new("terraformed");
    let target = ["--policy", "target", "--service-time", "20ms", "--spot-share", "50", "--min", "1"];
    let group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/a/1";
    let told = ["--notify", "ops@example.org", "--budget", "50", "--watch", "photos"];
    let certificate = ["--certificate", CERTIFICATE, "--allow", "203.0.113.0/24"];
    for flags in [&[][..], &target, &["--web-instances", "0"], &["--target-group", group], &certificate, &told] {
        let configuration = exported(&stack, flags);
        assert_eq!(wrong(&configuration), Vec::<String>::new(), "{flags:?}");
    }
    // The check itself finds what is wrong.
    let mut broken = exported(&stack, &[]);
    broken["resource"]["aws_sqs_queue"]["request_queue"]["colour"] = "red".into();
    broken["resource"]["aws_sqs_queue"]["bulk_queue"]["redrive_policy"] = "${aws_sqs_queue.gone.arn}".into();
    broken["resource"]["aws_autoscaling_policy"]["scale_up_policy"].as_object_mut().unwrap().remove("name");
    broken["variable"].as_object_mut().unwrap().remove("subnets");
    let expected = [
        "aws_autoscaling_policy.scale_up_policy lacks name",
        "aws_sqs_queue.request_queue has the unknown argument colour",
        "${aws_sqs_queue.gone.arn} refers to nothing",
        "${var.subnets} refers to nothing",
    ];
    for line in expected {
        assert!(wrong(&broken).iter().any(|found| found == line), "{line}\n{:?}", wrong(&broken));
    }
}

#[test]
fn terraform_configuration_has_the_names_tags_and_links_of_the_stack() {
    let configuration = exported(&Stack::new("terraformed"), &[]);
    let resource = |kind: &str, name: &str| configuration["resource"][kind][name].clone();
    let queue = resource("aws_sqs_queue", "request_queue");
    assert_eq!(queue["name"], "terraformed-web-app-image-transport");
    assert_eq!(queue["tags"]["imgcls:stack"], "terraformed");
    assert_eq!(
        queue["redrive_policy"],
        r#"{"deadLetterTargetArn":"${aws_sqs_queue.dead_letter_queue.arn}","maxReceiveCount":10}"#
    );
    let group = resource("aws_autoscaling_group", "worker_group");
    assert_eq!((&group["min_size"], &group["max_size"]), (&"${var.min_workers}".into(), &"${var.max_workers}".into()));
    assert_eq!(group["vpc_zone_identifier"], "${var.subnets}");
    let template = &group["mixed_instances_policy"]["launch_template"]["launch_template_specification"];
    assert_eq!(template["version"], "${aws_launch_template.worker_template.latest_version}");
    let alarm = resource("aws_cloudwatch_metric_alarm", "scale_up_alarm");
    assert_eq!(alarm["alarm_actions"], serde_json::json!(["${aws_autoscaling_policy.scale_up_policy.arn}"]));
    let profile = resource("aws_iam_instance_profile", "worker_profile");
    assert_eq!(profile["role"], "${aws_iam_role.worker_role.name}");
    assert_eq!(profile["tags"]["imgcls:region"], "us-east-1", "without tags a plan would not find it");
    assert_eq!(resource("aws_s3_object", "bundle")["source"], "${var.bundle}");
    let secure = exported(&Stack::new("terraformed"), &["--certificate", CERTIFICATE]);
    let of = |kind: &str, name: &str| secure["resource"][kind][name].clone();
    assert_eq!(of("aws_lb_listener", "web_listener")["certificate_arn"], CERTIFICATE);
    assert_eq!(of("aws_lb", "web_balancer")["idle_timeout"], 660);
    assert_eq!(
        of("aws_security_group", "web_security_group")["ingress"][0]["security_groups"],
        serde_json::json!(["${aws_security_group.balancer_security_group.id}"])
    );
    assert_eq!(secure["output"]["web_url"]["value"], "https://${aws_lb.web_balancer.dns_name}/");
    let variables = configuration["variable"].as_object().unwrap();
    assert!(variables["bundle"].get("default").is_none() && variables["vpc"]["default"].is_string());
}
