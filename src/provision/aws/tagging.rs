//! The queues and buckets that have the tag of a stack. One call lists them, where the tags of each queue and bucket of
//! an account would take a call each.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::client::Cloud;
use super::signed::{Call, Scope};
use crate::provision::resource::STACK_TAG;

const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_RESOURCE_GROUPS_TAGGING_API";
const OPERATION: &str = "GetResources";

/// Names of queues or buckets whose tags have to be read.
pub(super) struct Candidates(Option<BTreeSet<String>>);

impl Candidates {
    /// Returns whether a resource may belong to the stack by its tag.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(name))
    }
}

impl Cloud {
    /// The names of the resources of a service (`sqs`) that have the tag of a stack. If these credentials may not ask, or
    /// the endpoint does not know, every resource is a candidate.
    pub(super) async fn tagged(&self, service: &str, stack: &str) -> Candidates {
        let mut names = BTreeSet::new();
        let mut token = String::new();
        loop {
            let body = json!({
                "TagFilters": [{"Key": STACK_TAG, "Values": [stack]}],
                "ResourceTypeFilters": [service],
                "PaginationToken": token,
            });
            let headers = vec![
                ("content-type", "application/x-amz-json-1.1".to_owned()),
                ("x-amz-target", format!("ResourceGroupsTaggingAPI_20170126.{OPERATION}")),
            ];
            let call = Call {
                service: "tagging",
                endpoint_variable: ENDPOINT_VARIABLE,
                scope: Scope::Region,
                operation: OPERATION,
                headers,
                body: body.to_string(),
            };
            let Ok(answer) = self.signed.call(call).await else { return Candidates(None) };
            let Ok(answer) = serde_json::from_str::<Value>(&answer) else { return Candidates(None) };
            let Some(found) = answer["ResourceTagMappingList"].as_array() else { return Candidates(None) };
            let arns = found.iter().filter_map(|resource| resource["ResourceARN"].as_str());
            names.extend(arns.filter_map(|arn| arn.rsplit(':').next().map(str::to_owned)));
            match answer["PaginationToken"].as_str().filter(|next| !next.is_empty()) {
                Some(next) => next.clone_into(&mut token),
                None => return Candidates(Some(names)),
            }
        }
    }
}
