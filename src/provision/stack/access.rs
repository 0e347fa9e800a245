//! Roles, instance profiles and security groups of a stack.

use serde_json::{Value, json};

use super::builder::Builder;
use crate::provision::names::{ResourceNames, role_path};
use crate::provision::permissions;
use crate::provision::resource::{Kind, attribute};

impl Builder<'_> {
    pub(super) fn roles(&mut self) {
        let ResourceNames { worker_group, web_group, log_group, .. } = &self.names;
        let (names, read_buckets) = (&self.settings.names, &self.settings.read_buckets);
        let (arns, session_manager) = (&self.arns, self.settings.session_manager);
        let scope =
            permissions::Scope { arns, names, read_buckets, worker_group, web_group, log_group, session_manager };
        let (worker, web) = (permissions::worker(&scope), permissions::web(&scope));
        let (worker_role, web_role) = (self.names.worker_role.clone(), self.names.web_role.clone());
        self.role("WorkerRole", "WorkerProfile", worker_role, &worker);
        self.role("WebRole", "WebProfile", web_role, &web);
    }

    fn role(&mut self, role_id: &str, profile_id: &str, name: String, permissions: &Value) {
        let path = role_path(&self.settings.stack);
        let role = json!({
            "Path": path,
            "AssumeRolePolicyDocument": permissions::assumed_by_instances(&self.site.region),
            "Policies": [{"PolicyName": "imgcls", "PolicyDocument": permissions}],
            "ManagedPolicyArns": [],
            "PermissionsBoundary": self.settings.permissions_boundary,
            "Tags": self.tags_with_region(),
        });
        let profile = json!({"Path": path, "Roles": [name], "Tags": self.tags_with_region()});
        self.add(role_id, Kind::Role, name.clone(), role);
        self.add(profile_id, Kind::InstanceProfile, name, profile);
    }

    pub(super) fn security_groups(&mut self) {
        let http = if self.settings.certificate.is_some() {
            let https = self.rules_of_clients(443, "HTTPS to the load balancer");
            let name = self.names.balancer_security_group.clone();
            self.security_group("BalancerSecurityGroup", name, "imgcls load balancer: HTTPS comes in", &https);
            json!([{
                "IpProtocol": "tcp", "FromPort": 80, "ToPort": 80,
                "SourceSecurityGroupId": attribute("BalancerSecurityGroup", "GroupId"),
                "Description": "HTTP from the load balancer",
            }])
        } else {
            self.rules_of_clients(80, "HTTP to the web tier")
        };
        let (workers, web) = (self.names.worker_security_group.clone(), self.names.web_security_group.clone());
        self.security_group("WorkerSecurityGroup", workers, "imgcls workers: nothing comes in", &json!([]));
        self.security_group("WebSecurityGroup", web, "imgcls web tier: HTTP comes in", &http);
    }

    /// A rule for each network that may reach the web tier, in the order in which the rules of a group are observed.
    fn rules_of_clients(&self, port: u16, description: &str) -> Value {
        let rule = |network: &String| {
            json!({
                "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIp": network, "Description": description,
            })
        };
        let mut rules: Vec<Value> = self.site.allowed.iter().map(rule).collect();
        rules.sort_by_key(ToString::to_string);
        rules.into()
    }

    fn security_group(&mut self, id: &str, name: String, description: &str, ingress: &Value) {
        let members = json!({
            "GroupDescription": description,
            "VpcId": self.site.network.vpc_id,
            "SecurityGroupIngress": ingress,
            "SecurityGroupEgress": [{"IpProtocol": "-1", "CidrIp": "0.0.0.0/0"}],
            "Tags": self.tags(),
        });
        self.add(id, Kind::SecurityGroup, name, members);
    }
}
