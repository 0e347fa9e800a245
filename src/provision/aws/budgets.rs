//! The budget of a stack. Its calls of AWS Budgets do without an SDK crate, as those of EC2.
//!
//! A budget holds nothing that has to be kept, so a change deletes it and makes it again. If a run dies in between, the next
//! one makes it.

use serde_json::{Value, json};

use super::client::{Attributes, Cloud, member};
use super::signed::{Call, Scope, SignedError};
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::names;
use crate::provision::partition::Partition;
use crate::provision::resource::{Kind, Resource, label, number, properties};
use crate::provision::stack::{Stack, budget_filters};

const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_BUDGETS";

impl Cloud {
    async fn budgets(&self, operation: &'static str, body: Value) -> Result<Value, SignedError> {
        let headers = vec![
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("x-amz-target", format!("AWSBudgetServiceGateway.{operation}")),
        ];
        let call = Call {
            service: "budgets",
            endpoint_variable: ENDPOINT_VARIABLE,
            scope: Scope::Budgets,
            operation,
            headers,
            body: body.to_string(),
        };
        Ok(serde_json::from_str(&self.signed.call(call).await?).unwrap_or_default())
    }

    pub(super) async fn observe_budget(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let name = names::budget(&stack.name, &stack.region);
        let is_wanted = stack.find(Kind::Budget, &name).is_some();
        if Partition::of(&stack.region).budgets().is_none() {
            anyhow::ensure!(!is_wanted, "there is no AWS Budgets for {}: leave out --budget", stack.region);
            return Ok(Vec::new());
        }
        let (what, by_name) = (label(Kind::Budget, &name), json!({"AccountId": stack.account, "BudgetName": name}));
        let answer = self.budgets("DescribeBudget", by_name.clone()).await;
        let Some(answer) = self.if_visible("budgets:ViewBudget", &what, is_wanted, answer)? else {
            return Ok(Vec::new());
        };
        let budget = &answer["Budget"];
        let is_ours = budget["CostFilters"] == budget_filters(&stack.name, &stack.region);
        let limit = &budget["BudgetLimit"];
        // AWS writes `50.0`.
        let amount = limit["Amount"].as_str().and_then(|text| text.parse().ok()).map(number);
        let members = json!({
            "Budget": properties(json!({
                "BudgetName": budget["BudgetName"], "BudgetType": budget["BudgetType"],
                "TimeUnit": budget["TimeUnit"], "CostFilters": budget["CostFilters"],
                "BudgetLimit": {"Amount": amount.unwrap_or_else(|| limit["Amount"].clone()), "Unit": limit["Unit"]},
            })),
            "NotificationsWithSubscribers": self.budget_notifications(&by_name, &what).await?,
        });
        let owner = if is_ours { Owner::This } else { Owner::Nobody };
        Ok(vec![FoundResource::new(Kind::Budget, name, owner, members)])
    }

    /// In the order of a stack.
    async fn budget_notifications(&self, by_name: &Value, what: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.budgets("DescribeNotificationsForBudget", by_name.clone()).await;
        let answer = self.if_there("budgets:ViewBudget", what, answer)?.unwrap_or_default();
        let mut found = Vec::new();
        for notification in answer["Notifications"].as_array().into_iter().flatten() {
            let notification = properties(json!({
                "ComparisonOperator": notification["ComparisonOperator"],
                "NotificationType": notification["NotificationType"],
                "Threshold": notification["Threshold"].as_f64().map(number),
                "ThresholdType": notification["ThresholdType"],
            }));
            let mut of_budget = by_name.clone();
            of_budget["Notification"] = json!(notification);
            let answer = self.budgets("DescribeSubscribersForNotification", of_budget).await;
            let answer = self.if_there("budgets:ViewBudget", what, answer)?.unwrap_or_default();
            let mut subscribers = answer["Subscribers"].as_array().cloned().unwrap_or_default();
            subscribers.sort_by_key(ToString::to_string);
            found.push(json!({"Notification": notification, "Subscribers": subscribers}));
        }
        found.sort_by_key(|entry| {
            let notification = &entry["Notification"];
            (notification["NotificationType"].to_string(), notification["Threshold"].as_i64())
        });
        Ok(found)
    }

    pub(super) async fn put_budget(
        &self,
        resource: &Resource,
        stack: &Stack,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        if found.is_some() {
            self.delete_budget(&resource.name, stack).await?;
        }
        let mut budget = member(resource, &["Budget"])?.clone();
        budget["BudgetLimit"]["Amount"] = budget["BudgetLimit"]["Amount"].to_string().into();
        let body = json!({
            "AccountId": stack.account,
            "Budget": budget,
            "NotificationsWithSubscribers": member(resource, &["NotificationsWithSubscribers"])?,
        });
        self.done("budgets:ModifyBudget", &resource.label(), self.budgets("CreateBudget", body).await)?;
        Ok(Vec::new())
    }

    pub(super) async fn delete_budget(&self, name: &str, stack: &Stack) -> anyhow::Result<()> {
        let by_name = json!({"AccountId": stack.account, "BudgetName": name});
        self.gone("budgets:ModifyBudget", &label(Kind::Budget, name), self.budgets("DeleteBudget", by_name).await)
    }
}
