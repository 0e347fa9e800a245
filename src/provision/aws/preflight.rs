//! Questions about an account before a stack exists: whether it has enabled the region, and its quotas.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

use super::client::Cloud;
use super::query::{self, Lists, list, parse};
use super::signed::{Call, Scope};
use crate::provision::checks::InstanceType;

const EC2_VERSION: &str = "2016-11-15";
const EC2_ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_EC2";
const QUOTAS_ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_SERVICE_QUOTAS";
const FREE_PLAN_ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_FREETIER";
const NOT_OPTED_IN: &str = "not-opted-in";

impl Cloud {
    /// Returns whether the account has enabled the region of this run. Asks a region that every account has: the other one
    /// does not know the credentials of an account that has not enabled it.
    ///
    /// # Errors
    /// These credentials may not ask, or AWS does not know the region.
    pub(in crate::provision) async fn has_region(&self) -> anyhow::Result<bool> {
        const OPERATION: &str = "DescribeRegions";
        let region = self.aws.region();
        let parameters = json!({"AllRegions": true, "RegionNames": [region]});
        let body = query::form(OPERATION, EC2_VERSION, Lists::Ec2, &parameters);
        let call = Call { scope: Scope::Home, ..Call::query("ec2", EC2_ENDPOINT_VARIABLE, OPERATION, body) };
        let answer = self.signed.call(call).await;
        let answer = parse(&self.done("ec2:DescribeRegions", &format!("region {region}"), answer)?)?;
        let found = list(&answer, "regionInfo").find(|found| found["regionName"] == region);
        let found = found.with_context(|| format!("AWS has no region {region}: give another --region"))?;
        Ok(found["optInStatus"] != NOT_OPTED_IN)
    }

    /// Reads the facts about each instance type.
    ///
    /// # Errors
    /// One of the types does not exist in the region.
    pub(in crate::provision) async fn instance_types(
        &self,
        types: &[String],
    ) -> anyhow::Result<BTreeMap<String, InstanceType>> {
        let found = self.all("DescribeInstanceTypes", "the instance types", json!({ "InstanceTypes": types })).await?;
        let known = |entry: &Value| {
            let name = entry["instanceType"].as_str()?.to_owned();
            let vcpus = entry["vCpuInfo"]["defaultVCpus"].as_str()?.parse().ok()?;
            Some((name, InstanceType { vcpus, is_in_free_plan: entry["freeTierEligible"] == "true" }))
        };
        let known: BTreeMap<String, InstanceType> = found.iter().filter_map(known).collect();
        match types.iter().find(|name| !known.contains_key(*name)) {
            Some(name) => Err(anyhow!("EC2 does not say how many vCPUs {name} has")),
            None => Ok(known),
        }
    }

    /// Returns whether the account is on the free plan of AWS, which starts few instance types.
    ///
    /// # Errors
    /// These credentials may not ask, or the partition has no such plan.
    pub(in crate::provision) async fn is_on_free_plan(&self) -> anyhow::Result<bool> {
        const OPERATION: &str = "GetAccountPlanState";
        let headers = vec![
            ("content-type", "application/x-amz-json-1.0".to_owned()),
            ("x-amz-target", format!("AWSFreeTierService.{OPERATION}")),
        ];
        let call = Call {
            service: "freetier",
            endpoint_variable: FREE_PLAN_ENDPOINT_VARIABLE,
            scope: Scope::FreePlan,
            operation: OPERATION,
            headers,
            body: "{}".to_owned(),
        };
        let what = "the plan of the account";
        let answer = self.done("freetier:GetAccountPlanState", what, self.signed.call(call).await)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("the answer about {what}"))?;
        Ok(answer["accountPlanType"] == "FREE")
    }

    /// The value of a quota of EC2 in this account and region.
    ///
    /// # Errors
    /// These credentials may not read quotas, or the answer has none.
    pub(in crate::provision) async fn quota_of_ec2(&self, code: &str) -> anyhow::Result<f64> {
        const OPERATION: &str = "GetServiceQuota";
        let headers = vec![
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("x-amz-target", format!("ServiceQuotasV20190624.{OPERATION}")),
        ];
        let call = Call {
            service: "servicequotas",
            endpoint_variable: QUOTAS_ENDPOINT_VARIABLE,
            scope: Scope::Region,
            operation: OPERATION,
            headers,
            body: json!({"ServiceCode": "ec2", "QuotaCode": code}).to_string(),
        };
        let what = format!("quota {code} of EC2");
        let answer = self.done("servicequotas:GetServiceQuota", &what, self.signed.call(call).await)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("the answer about {what}"))?;
        answer["Quota"]["Value"].as_f64().with_context(|| format!("the answer about {what} has no value"))
    }
}
