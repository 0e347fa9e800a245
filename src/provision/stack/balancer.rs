//! The load balancer in front of the web tier, which terminates TLS.

use serde_json::{Value, json};

use super::builder::Builder;
use crate::provision::resource::{Kind, attribute, in_group, reference};

/// The path of the web tier that says whether a process is alive. It needs no key, and does not ask SQS or S3: machines are
/// not replaced because those are out of reach.
const HEALTH_PATH: &str = "/healthz";
const HTTPS: u16 = 443;
/// TLS 1.2 with forward secrecy, and TLS 1.3. AWS recommends it for Application Load Balancers.
const TLS_POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";

impl Builder<'_> {
    /// The load balancer, if there is a certificate for it.
    pub(super) fn balancer(&mut self) {
        let Some(certificate) = self.settings.certificate.clone() else { return };
        let is_public = self.site.is_balancer_public;
        let name = self.names.balancer(is_public);
        self.target_group(&name);
        let idle_timeout = self.settings.balancer_idle_timeout().as_secs().to_string();
        let members = json!({
            "Type": "application",
            "Scheme": if is_public { "internet-facing" } else { "internal" },
            "Subnets": self.site.network.balancer_subnets,
            "SecurityGroups": [attribute("BalancerSecurityGroup", "GroupId")],
            "LoadBalancerAttributes": [
                {"Key": "idle_timeout.timeout_seconds", "Value": idle_timeout},
                {"Key": "routing.http.drop_invalid_header_fields.enabled", "Value": "true"},
            ],
            "Tags": self.tags(),
        });
        self.add("WebBalancer", Kind::LoadBalancer, name.clone(), members);
        let members = json!({
            "LoadBalancerArn": reference("WebBalancer"),
            "Port": HTTPS,
            "Protocol": "HTTPS",
            "SslPolicy": TLS_POLICY,
            "Certificates": [{"CertificateArn": certificate}],
            "DefaultActions": [{"Type": "forward", "TargetGroupArn": reference("WebTargetGroup")}],
        });
        self.add("WebListener", Kind::Listener, in_group(&name, &HTTPS.to_string()), members);
    }

    fn target_group(&mut self, name: &str) {
        let members = json!({
            "TargetType": "instance",
            "Protocol": "HTTP",
            "Port": 80,
            "VpcId": self.site.network.vpc_id,
            "HealthCheckProtocol": "HTTP",
            "HealthCheckPath": HEALTH_PATH,
            "HealthCheckIntervalSeconds": 10,
            "HealthCheckTimeoutSeconds": 5,
            "HealthyThresholdCount": 2,
            "UnhealthyThresholdCount": 3,
            "Matcher": {"HttpCode": "200"},
            "Tags": self.tags(),
        });
        self.add("WebTargetGroup", Kind::TargetGroup, name, members);
    }

    /// The ARNs of the target groups that the web tier joins.
    pub(super) fn target_groups(&self) -> Vec<Value> {
        let own = self.settings.certificate.as_ref().map(|_| reference("WebTargetGroup"));
        own.into_iter().chain(self.settings.target_group.iter().map(|arn| arn.as_str().into())).collect()
    }
}
