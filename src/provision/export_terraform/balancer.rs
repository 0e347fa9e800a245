//! The load balancer of a stack in Terraform's words.

use serde_json::{Value, json};

use super::{listed, tags};

pub(super) fn target_group(name: &str, found: &Value) -> Value {
    json!({
        "name": name,
        "target_type": found["TargetType"],
        "protocol": found["Protocol"],
        "port": found["Port"],
        "vpc_id": found["VpcId"],
        "health_check": {
            "protocol": found["HealthCheckProtocol"],
            "path": found["HealthCheckPath"],
            "interval": found["HealthCheckIntervalSeconds"],
            "timeout": found["HealthCheckTimeoutSeconds"],
            "healthy_threshold": found["HealthyThresholdCount"],
            "unhealthy_threshold": found["UnhealthyThresholdCount"],
            "matcher": found["Matcher"]["HttpCode"],
        },
        "tags": tags(&found["Tags"]),
    })
}

/// The attributes of a load balancer are arguments of their own, with types of their own.
pub(super) fn load_balancer(name: &str, found: &Value) -> Value {
    let attributes = listed(&found["LoadBalancerAttributes"]);
    let attribute = |key: &str| attributes.iter().find(|one| one["Key"] == key).and_then(|one| one["Value"].as_str());
    let idle_timeout = attribute("idle_timeout.timeout_seconds").and_then(|text| text.parse::<u64>().ok());
    json!({
        "name": name,
        "load_balancer_type": found["Type"],
        "internal": found["Scheme"] == "internal",
        "subnets": found["Subnets"],
        "security_groups": found["SecurityGroups"],
        "idle_timeout": idle_timeout,
        "drop_invalid_header_fields": attribute("routing.http.drop_invalid_header_fields.enabled") == Some("true"),
        "tags": tags(&found["Tags"]),
    })
}

pub(super) fn listener(found: &Value) -> Value {
    let actions = listed(&found["DefaultActions"]).into_iter();
    let actions = actions.map(|action| json!({"type": action["Type"], "target_group_arn": action["TargetGroupArn"]}));
    json!({
        "load_balancer_arn": found["LoadBalancerArn"],
        "port": found["Port"],
        "protocol": found["Protocol"],
        "ssl_policy": found["SslPolicy"],
        "certificate_arn": found["Certificates"][0]["CertificateArn"],
        "default_action": actions.collect::<Vec<_>>(),
    })
}
