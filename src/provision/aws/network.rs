//! The network that a stack is made in.

use serde_json::{Value, json};

use super::client::Cloud;
use super::query::list;
use crate::provision::settings::{Network, NetworkChoice};

impl Cloud {
    /// The VPC and the subnets that the user chose, or the default ones. Of the default ones only those are used whose
    /// zone offers one of the instance types.
    ///
    /// # Errors
    /// The choice does not fit together, or there is no default VPC and the user chose none.
    pub(in crate::provision) async fn network(
        &self,
        choice: &NetworkChoice,
        types: &[Vec<String>],
    ) -> anyhow::Result<Network> {
        if choice.subnets.is_empty() {
            self.subnets_of_vpc(choice, types).await
        } else {
            self.chosen_subnets(choice, types).await
        }
    }

    async fn chosen_subnets(&self, choice: &NetworkChoice, types: &[Vec<String>]) -> anyhow::Result<Network> {
        let by_id = json!({ "SubnetIds": choice.subnets });
        let found = self.all("DescribeSubnets", "the subnets", by_id).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut vpcs: Vec<String> = found.iter().map(|subnet| text(&subnet["vpcId"])).collect();
        vpcs.sort_unstable();
        vpcs.dedup();
        let missing = choice.subnets.iter().find(|id| !found.iter().any(|subnet| subnet["subnetId"] == id.as_str()));
        if let Some(id) = missing {
            anyhow::bail!("there is no subnet {id:?} in {}: give another --subnets", self.aws.region());
        }
        let [vpc] = &vpcs[..] else {
            anyhow::bail!("the subnets are in {} VPCs ({}): give --subnets of one", vpcs.len(), vpcs.join(", "));
        };
        if let Some(chosen) = choice.vpc.as_ref().filter(|chosen| *chosen != vpc) {
            anyhow::bail!("the subnets are in VPC {vpc}, not in {chosen}: give another --vpc, or other --subnets");
        }
        let zones: Vec<(String, String)> =
            found.iter().map(|subnet| (text(&subnet["subnetId"]), text(&subnet["availabilityZone"]))).collect();
        let offers = self.offers(types).await?;
        for (subnet, zone) in &zones {
            if let Some(lacking) = offers.lacking(zone, types) {
                anyhow::bail!(
                    "zone {zone} of subnet {subnet} offers no {lacking}: give other --subnets or another type"
                );
            }
        }
        let mut subnets = choice.subnets.clone();
        subnets.sort_unstable();
        self.network_of(vpc.clone(), subnets, &found, choice).await
    }

    async fn subnets_of_vpc(&self, choice: &NetworkChoice, types: &[Vec<String>]) -> anyhow::Result<Network> {
        let region = self.aws.region();
        let vpc = match &choice.vpc {
            Some(vpc) => vpc.clone(),
            None => self.default_vpc().await?,
        };
        let mut filters = vec![json!({"Name": "vpc-id", "Values": [vpc]})];
        if choice.vpc.is_none() {
            filters.push(json!({"Name": "default-for-az", "Values": ["true"]}));
        }
        let found = self.all("DescribeSubnets", "the subnets", json!({ "Filters": filters })).await?;
        if found.is_empty() {
            anyhow::bail!(
                "VPC {vpc} has no subnet: give --subnets, or make one with `aws ec2 create-default-subnet --region {region}`"
            );
        }
        let mut subnets = Vec::new();
        let (offers, mut lacking) = (self.offers(types).await?, None);
        for subnet in &found {
            let zone = subnet["availabilityZone"].as_str().unwrap_or_default();
            match offers.lacking(zone, types) {
                None => subnets.extend(subnet["subnetId"].as_str().map(str::to_owned)),
                Some(name) => lacking = Some(name),
            }
        }
        if let Some(name) = lacking.filter(|_| subnets.is_empty()) {
            anyhow::bail!("no zone of VPC {vpc} in {region} offers {name}: give another type, --vpc or --region");
        }
        subnets.sort_unstable();
        self.network_of(vpc, subnets, &found, choice).await
    }

    async fn network_of(
        &self,
        vpc_id: String,
        subnets: Vec<String>,
        found: &[Value],
        choice: &NetworkChoice,
    ) -> anyhow::Result<Network> {
        let zones = zones_of(&subnets, found);
        let balancer_subnets = match &choice.balancer_subnets[..] {
            [] => one_in_each_zone(&zones),
            chosen => self.subnets_of_balancer(chosen, &vpc_id, &zones).await?,
        };
        let vpcs = self.all("DescribeVpcs", "the networks", json!({ "VpcIds": [vpc_id] })).await?;
        let vpc = vpcs.first().cloned().unwrap_or_default();
        let further = list(&vpc, "cidrBlockAssociationSet").map(|association| &association["cidrBlock"]);
        let mut cidrs: Vec<String> =
            further.chain([&vpc["cidrBlock"]]).filter_map(Value::as_str).map(str::to_owned).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        let is_public = found.iter().all(|subnet| subnet["mapPublicIpOnLaunch"] == "true");
        Ok(Network { vpc_id, subnets, cidrs, is_public, balancer_subnets })
    }

    /// Checks the subnets that the user chose for a load balancer.
    async fn subnets_of_balancer(
        &self,
        chosen: &[String],
        vpc: &str,
        zones_of_machines: &[(String, String)],
    ) -> anyhow::Result<Vec<String>> {
        let found = self.all("DescribeSubnets", "the subnets", json!({ "SubnetIds": chosen })).await?;
        let in_vpc: Vec<Value> = found.into_iter().filter(|subnet| subnet["vpcId"] == vpc).collect();
        let zones = zones_of(chosen, &in_vpc);
        if let Some(id) = chosen.iter().find(|id| !zones.iter().any(|(found, _)| found == *id)) {
            anyhow::bail!("there is no subnet {id:?} in VPC {vpc}: give another --balancer-subnets");
        }
        if one_in_each_zone(&zones).len() < zones.len() {
            anyhow::bail!("a load balancer takes one subnet in each zone: give fewer --balancer-subnets");
        }
        if let Some((machines, zone)) =
            zones_of_machines.iter().find(|(_, zone)| !zones.iter().any(|(_, there)| there == zone))
        {
            anyhow::bail!(
                "a load balancer reaches machines in its own zones alone, and none of --balancer-subnets is in zone {zone} of subnet {machines}: give one, or other --subnets"
            );
        }
        let mut subnets = chosen.to_owned();
        subnets.sort_unstable();
        Ok(subnets)
    }

    async fn default_vpc(&self) -> anyhow::Result<String> {
        let region = self.aws.region();
        let filter = json!({"Filters": [{"Name": "is-default", "Values": ["true"]}]});
        let networks = self.all("DescribeVpcs", "the networks", filter).await?;
        let Some(vpc) = networks.first().and_then(|network| network["vpcId"].as_str()) else {
            anyhow::bail!(
                "region {region} has no default VPC: give --vpc and --subnets, or make one with `aws ec2 create-default-vpc --region {region}`"
            );
        };
        Ok(vpc.to_owned())
    }

    /// The instance types that the zones of the region offer.
    async fn offers(&self, types: &[Vec<String>]) -> anyhow::Result<Offers> {
        let mut names: Vec<&String> = types.iter().flatten().collect();
        names.sort_unstable();
        names.dedup();
        let filter = json!({
            "LocationType": "availability-zone", "Filters": [{"Name": "instance-type", "Values": names}],
        });
        let offers = self.all("DescribeInstanceTypeOfferings", "the instance types of the zones", filter).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Offers(offers.iter().map(|offer| (text(&offer["location"]), text(&offer["instanceType"]))).collect()))
    }
}

/// The zone of each of these subnets, sorted by subnet.
fn zones_of(subnets: &[String], found: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = found.iter().map(|subnet| (text(&subnet["subnetId"]), text(&subnet["availabilityZone"])));
    let mut zones: Vec<(String, String)> = all.filter(|(subnet, _)| subnets.contains(subnet)).collect();
    zones.sort_unstable();
    zones
}

/// The first subnet in each zone.
fn one_in_each_zone(zones: &[(String, String)]) -> Vec<String> {
    let is_first = |index: &usize| !zones[..*index].iter().any(|(_, zone)| *zone == zones[*index].1);
    (0..zones.len()).filter(is_first).map(|index| zones[index].0.clone()).collect()
}

/// Zones and the instance types that they offer.
struct Offers(Vec<(String, String)>);

impl Offers {
    /// Returns the types of a tier if the zone offers none of them. `types` has a list for each tier.
    fn lacking(&self, zone: &str, types: &[Vec<String>]) -> Option<String> {
        let is_offered = |name: &String| self.0.iter().any(|(at, offered)| at == zone && offered == name);
        types.iter().find(|of_tier| !of_tier.iter().any(is_offered)).map(|of_tier| of_tier.join(" or "))
    }
}
