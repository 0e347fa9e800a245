//! Load balancers with their target groups and listeners. Their calls do without an SDK crate, as those of EC2.

use serde_json::{Value, json};

use aws_sdk_sqs::error::ProvideErrorMetadata as _;

use super::client::{Attributes, Cloud, member, owner_by_tags, retry_while, text};
use super::ec2::{pairs, tag_parameters};
use super::query::{self, Lists, list};
use super::signed::{Call, SignedError};
use crate::provision::change::Change;
use crate::provision::doctor::Balancer;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::resource::{DNS_NAME, Kind, Resource, in_group, label, our_tags};
use crate::provision::stack::Stack;

const SERVICE: &str = "elasticloadbalancing";
const VERSION: &str = "2015-12-01";
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_ELASTIC_LOAD_BALANCING_V2";
/// Error codes for resources that do not exist.
const MISSING: [&str; 3] = ["ListenerNotFound", "LoadBalancerNotFound", "TargetGroupNotFound"];
/// A target group that a load balancer which is being deleted still uses.
const IN_USE: &str = "ResourceInUse";
/// The attributes of load balancers that a stack sets. All others are left alone.
const ATTRIBUTES: [&str; 2] = ["idle_timeout.timeout_seconds", "routing.http.drop_invalid_header_fields.enabled"];
/// The properties of target groups that are texts, and those that are numbers.
const TEXTS: [&str; 5] = ["HealthCheckPath", "HealthCheckProtocol", "Protocol", "TargetType", "VpcId"];
const NUMBERS: [&str; 5] = [
    "HealthCheckIntervalSeconds",
    "HealthCheckTimeoutSeconds",
    "HealthyThresholdCount",
    "Port",
    "UnhealthyThresholdCount",
];

impl Cloud {
    async fn elb(&self, operation: &'static str, parameters: &Value) -> Result<Value, SignedError> {
        let body = query::form(operation, VERSION, Lists::Members, parameters);
        let answer = self.signed.call(Call::query(SERVICE, ENDPOINT_VARIABLE, operation, body)).await?;
        let answer = query::parse(&answer).map_err(SignedError::construction_failure)?;
        Ok(answer[format!("{operation}Result")].clone())
    }

    /// The answer of a call, or `None` if the resource does not exist.
    async fn ask_elb(&self, operation: &'static str, what: &str, parameters: Value) -> anyhow::Result<Option<Value>> {
        match self.elb(operation, &parameters).await {
            Err(error) if error.code().is_some_and(|code| MISSING.contains(&code)) => Ok(None),
            answer => self.done(&action(operation), what, answer).map(Some),
        }
    }

    /// Reads all pages of a list. If these credentials may not read it, and `is_wanted` is false, it counts as empty.
    async fn list_elb(
        &self,
        operation: &'static str,
        what: &str,
        name: &str,
        is_wanted: bool,
        parameters: Value,
    ) -> anyhow::Result<Vec<Value>> {
        let (mut parameters, mut entries) = (parameters, Vec::new());
        loop {
            let answer = match self.elb(operation, &parameters).await {
                Err(error) if error.code().is_some_and(|code| MISSING.contains(&code)) => return Ok(entries),
                answer => self.if_visible(&action(operation), what, is_wanted, answer)?,
            };
            let Some(answer) = answer else { return Ok(entries) };
            entries.extend(list(&answer, name).cloned());
            match answer["NextMarker"].as_str().filter(|marker| !marker.is_empty()) {
                Some(marker) => parameters["Marker"] = marker.into(),
                None => return Ok(entries),
            }
        }
    }

    /// Observes the load balancers and target groups that have the stack's names, and the listeners of those.
    pub(super) async fn observe_balancers(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let is_wanted = stack.names(Kind::LoadBalancer).next().is_some();
        let nothing = json!({});
        let (balancers, groups) = tokio::try_join!(
            self.list_elb("DescribeLoadBalancers", "the load balancers", "LoadBalancers", is_wanted, nothing.clone()),
            self.list_elb("DescribeTargetGroups", "the target groups", "TargetGroups", is_wanted, nothing),
        )?;
        let names = stack.names_of_balancers();
        let is_named = |value: &Value| value.as_str().is_some_and(|name| names.iter().any(|wanted| wanted == name));
        let balancers: Vec<Value> = balancers.into_iter().filter(|one| is_named(&one["LoadBalancerName"])).collect();
        let groups: Vec<Value> = groups.into_iter().filter(|one| is_named(&one["TargetGroupName"])).collect();
        let arns = balancers.iter().map(|one| &one["LoadBalancerArn"]);
        let arns: Vec<Value> = arns.chain(groups.iter().map(|one| &one["TargetGroupArn"])).cloned().collect();
        let tags = self.tags_of_balancers(&arns).await?;
        let tags_of = |arn: &Value| {
            let of_it = tags.iter().filter(|tagged| tagged["ResourceArn"] == *arn);
            let pairs = of_it.flat_map(|tagged| list(tagged, "Tags"));
            pairs.map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect::<Vec<_>>()
        };
        let mut found = Vec::new();
        for group in &groups {
            let tags = tags_of(&group["TargetGroupArn"]);
            let owner = owner_by_tags(pairs(&tags), stack);
            if is_wanted || owner == Owner::This {
                found.push(target_group(group, owner, &our_tags(pairs(&tags), &stack.own_tags)));
            }
        }
        for balancer in &balancers {
            let tags = tags_of(&balancer["LoadBalancerArn"]);
            let owner = owner_by_tags(pairs(&tags), stack);
            if !is_wanted && owner != Owner::This {
                continue;
            }
            let name = text(&balancer["LoadBalancerName"]);
            let (what, arn) =
                (label(Kind::LoadBalancer, &name), json!({"LoadBalancerArn": balancer["LoadBalancerArn"]}));
            let attributes = self.ask_elb("DescribeLoadBalancerAttributes", &what, arn.clone()).await?;
            let attributes = attributes.unwrap_or_default();
            let listeners = self.list_elb("DescribeListeners", &what, "Listeners", true, arn).await?;
            found.extend(listeners.iter().map(|one| listener(&name, one, owner.clone())));
            found.push(load_balancer(&name, balancer, &attributes, owner, &our_tags(pairs(&tags), &stack.own_tags)));
        }
        Ok(found)
    }

    async fn tags_of_balancers(&self, arns: &[Value]) -> anyhow::Result<Vec<Value>> {
        if arns.is_empty() {
            return Ok(Vec::new());
        }
        let parameters = json!({ "ResourceArns": arns });
        let answer = self.ask_elb("DescribeTags", "the load balancers", parameters).await?.unwrap_or_default();
        Ok(list(&answer, "TagDescriptions").cloned().collect())
    }

    async fn tag_balancer(&self, arn: &str, resource: &Resource) -> anyhow::Result<()> {
        let parameters = json!({"ResourceArns": [arn], "Tags": tag_parameters(resource)});
        let answer = self.elb("AddTags", &parameters).await;
        self.done(&action("AddTags"), &resource.label(), answer).map(drop)
    }

    pub(super) async fn put_target_group(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let mut parameters = json!({});
        for (name, value) in &resource.properties {
            // Those of a target group that exists cannot change, except for its health check.
            if name != "Tags" && (found.is_none() || !resource.kind.is_fixed(name)) {
                parameters[name] = value.clone();
            }
        }
        let Some(arn) = arn_of(found) else {
            parameters["Name"] = resource.name.clone().into();
            parameters["Tags"] = tag_parameters(resource).into();
            let answer =
                self.done(&action("CreateTargetGroup"), &what, self.elb("CreateTargetGroup", &parameters).await)?;
            return Ok(vec![("Ref".to_owned(), text(&answer["TargetGroups"][0]["TargetGroupArn"]))]);
        };
        self.tag_balancer(&arn, resource).await?;
        parameters["TargetGroupArn"] = arn.clone().into();
        self.done(&action("ModifyTargetGroup"), &what, self.elb("ModifyTargetGroup", &parameters).await)?;
        Ok(vec![("Ref".to_owned(), arn)])
    }

    pub(super) async fn put_load_balancer(
        &self,
        resource: &Resource,
        change: &Change,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let arn = match arn_of(found) {
            Some(arn) => {
                self.tag_balancer(&arn, resource).await?;
                arn
            }
            None => {
                let parameters = json!({
                    "Name": resource.name,
                    "Scheme": member(resource, &["Scheme"])?,
                    "Type": member(resource, &["Type"])?,
                    "Subnets": member(resource, &["Subnets"])?,
                    "SecurityGroups": member(resource, &["SecurityGroups"])?,
                    "Tags": tag_parameters(resource),
                });
                let answer = self.elb("CreateLoadBalancer", &parameters).await;
                let answer = self.done(&action("CreateLoadBalancer"), &what, answer)?;
                text(&answer["LoadBalancers"][0]["LoadBalancerArn"])
            }
        };
        for (property, operation) in [("Subnets", "SetSubnets"), ("SecurityGroups", "SetSecurityGroups")] {
            if change.differs(property) {
                let mut parameters = json!({ "LoadBalancerArn": arn });
                parameters[property] = member(resource, &[property])?.clone();
                self.done(&action(operation), &what, self.elb(operation, &parameters).await)?;
            }
        }
        let attributes = member(resource, &["LoadBalancerAttributes"])?;
        let parameters = json!({"LoadBalancerArn": arn, "Attributes": attributes});
        let answer = self.elb("ModifyLoadBalancerAttributes", &parameters).await;
        self.done(&action("ModifyLoadBalancerAttributes"), &what, answer)?;
        Ok(vec![("Ref".to_owned(), arn)])
    }

    pub(super) async fn put_listener(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let mut parameters = json!(resource.properties);
        let operation = match arn_of(found) {
            Some(arn) => {
                parameters["ListenerArn"] = arn.into();
                if let Some(members) = parameters.as_object_mut() {
                    members.remove("LoadBalancerArn");
                }
                "ModifyListener"
            }
            None => "CreateListener",
        };
        let answer = self.elb(operation, &parameters).await;
        let answer = self.done(&action(operation), &resource.label(), answer)?;
        Ok(vec![("Ref".to_owned(), text(&answer["Listeners"][0]["ListenerArn"]))])
    }

    pub(super) async fn delete_listener(&self, name: &str, found: Option<&FoundResource>) -> anyhow::Result<()> {
        let Some(arn) = arn_of(found) else { return Ok(()) };
        self.ask_elb("DeleteListener", &label(Kind::Listener, name), json!({ "ListenerArn": arn })).await.map(drop)
    }

    pub(super) async fn delete_load_balancer(&self, name: &str, found: Option<&FoundResource>) -> anyhow::Result<()> {
        let Some(arn) = arn_of(found) else { return Ok(()) };
        let parameters = json!({ "LoadBalancerArn": arn });
        self.ask_elb("DeleteLoadBalancer", &label(Kind::LoadBalancer, name), parameters).await.map(drop)
    }

    pub(super) async fn delete_target_group(&self, name: &str, found: Option<&FoundResource>) -> anyhow::Result<()> {
        let Some(arn) = arn_of(found) else { return Ok(()) };
        let parameters = json!({ "TargetGroupArn": arn });
        let is_in_use = |error: &SignedError| error.code() == Some(IN_USE);
        match retry_while(is_in_use, async || self.elb("DeleteTargetGroup", &parameters).await).await {
            Err(error) if error.code().is_some_and(|code| MISSING.contains(&code)) => Ok(()),
            answer => self.gone(&action("DeleteTargetGroup"), &label(Kind::TargetGroup, name), answer),
        }
    }

    /// Examines the target group with this ARN, and the load balancer in front of it, for `provision doctor`.
    pub(super) async fn examine_target_group(&self, arn: &str) -> anyhow::Result<Balancer> {
        let mut balancer = Balancer::unknown(arn);
        let by_arn = json!({ "TargetGroupArn": arn });
        let what = label(Kind::TargetGroup, arn);
        let groups = self.ask_elb("DescribeTargetGroups", &what, json!({ "TargetGroupArns": [arn] })).await?;
        let Some(group) = groups.as_ref().and_then(|answer| list(answer, "TargetGroups").next()) else {
            return Ok(balancer);
        };
        balancer.target_group = Some(text(&group["TargetGroupName"]));
        let health = self.ask_elb("DescribeTargetHealth", &what, by_arn).await?.unwrap_or_default();
        for target in list(&health, "TargetHealthDescriptions") {
            let state = &target["TargetHealth"];
            let words = ["Reason", "Description"].map(|name| state[name].as_str().unwrap_or_default());
            balancer.targets.push((
                text(&target["Target"]["Id"]),
                text(&state["State"]),
                words.join(" ").trim().to_owned(),
            ));
        }
        let Some(arn) = list(group, "LoadBalancerArns").find_map(Value::as_str) else { return Ok(balancer) };
        let what = label(Kind::LoadBalancer, arn);
        let found = self.ask_elb("DescribeLoadBalancers", &what, json!({ "LoadBalancerArns": [arn] })).await?;
        let Some(found) = found.as_ref().and_then(|answer| list(answer, "LoadBalancers").next()) else {
            return Ok(balancer);
        };
        balancer.name = Some(text(&found["LoadBalancerName"]));
        let state = ["Code", "Reason"].map(|name| found["State"][name].as_str().unwrap_or_default());
        state.join(" ").trim().clone_into(&mut balancer.state);
        let by_arn = json!({ "LoadBalancerArn": arn });
        let listeners = self.list_elb("DescribeListeners", &what, "Listeners", true, by_arn.clone()).await?;
        balancer.listeners = listeners.iter().map(listener_to_json).collect();
        let attributes = self.ask_elb("DescribeLoadBalancerAttributes", &what, by_arn).await?.unwrap_or_default();
        let idle = list(&attributes, "Attributes").find(|one| one["Key"] == ATTRIBUTES[0]);
        balancer.idle_timeout_seconds = idle.and_then(|one| one["Value"].as_str()?.parse().ok());
        Ok(balancer)
    }
}

fn action(operation: &str) -> String {
    format!("{SERVICE}:{operation}")
}

fn arn_of(found: Option<&FoundResource>) -> Option<String> {
    found?.attributes.get("Ref").cloned()
}

fn number(value: &Value) -> Value {
    value.as_str().and_then(|text| text.parse::<i64>().ok()).map_or(Value::Null, Value::from)
}

fn target_group(group: &Value, owner: Owner, tags: &Value) -> FoundResource {
    let mut members = json!({"Matcher": {"HttpCode": group["Matcher"]["HttpCode"]}, "Tags": tags});
    for name in TEXTS {
        members[name] = group[name].clone();
    }
    for name in NUMBERS {
        members[name] = number(&group[name]);
    }
    let arn = text(&group["TargetGroupArn"]);
    FoundResource::new(Kind::TargetGroup, text(&group["TargetGroupName"]), owner, members).with("Ref", arn)
}

fn load_balancer(name: &str, balancer: &Value, attributes: &Value, owner: Owner, tags: &Value) -> FoundResource {
    let sorted = |mut values: Vec<String>| {
        values.sort_unstable();
        values
    };
    let subnets = list(balancer, "AvailabilityZones").map(|zone| text(&zone["SubnetId"])).collect();
    let groups = list(balancer, "SecurityGroups").map(text).collect();
    let value =
        |key: &str| list(attributes, "Attributes").find(|one| one["Key"] == key).map(|one| one["Value"].clone());
    let attributes: Vec<Value> =
        ATTRIBUTES.iter().filter_map(|key| Some(json!({"Key": key, "Value": value(key)?}))).collect();
    let members = json!({
        "Type": balancer["Type"],
        "Scheme": balancer["Scheme"],
        "Subnets": sorted(subnets),
        "SecurityGroups": sorted(groups),
        "LoadBalancerAttributes": attributes,
        "Tags": tags,
    });
    let arn = text(&balancer["LoadBalancerArn"]);
    let found = FoundResource::new(Kind::LoadBalancer, name, owner, members).with("Ref", arn);
    found.with(DNS_NAME, text(&balancer["DNSName"]))
}

fn listener(balancer: &str, listener: &Value, owner: Owner) -> FoundResource {
    let name = in_group(balancer, listener["Port"].as_str().unwrap_or_default());
    let mut members = listener_to_json(listener);
    members["LoadBalancerArn"] = listener["LoadBalancerArn"].clone();
    FoundResource::new(Kind::Listener, name, owner, members).with("Ref", text(&listener["ListenerArn"]))
}

fn listener_to_json(listener: &Value) -> Value {
    let certificates: Vec<Value> = list(listener, "Certificates")
        .map(|certificate| json!({"CertificateArn": certificate["CertificateArn"]}))
        .collect();
    // A forward to one target group is shown in two forms.
    let actions: Vec<Value> = list(listener, "DefaultActions")
        .map(|action| {
            let mut members = json!({"Type": action["Type"]});
            if action["TargetGroupArn"].is_string() {
                members["TargetGroupArn"] = action["TargetGroupArn"].clone();
            }
            members
        })
        .collect();
    json!({
        "Port": number(&listener["Port"]),
        "Protocol": listener["Protocol"],
        "SslPolicy": listener["SslPolicy"],
        "Certificates": certificates,
        "DefaultActions": actions,
    })
}
