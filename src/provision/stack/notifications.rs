//! People are told of problems: the topic, the alarms that send to it, and the budget.

use serde_json::{Value, json};

use super::builder::{Builder, MINUTE};
use crate::provision::names::{self, ResourceNames};
use crate::provision::resource::{Kind, STACK_TAG, number, reference};

/// The id of the topic in a stack.
const TOPIC: &str = "ProblemsTopic";
/// How long fewer machines than wanted may be in service. A machine needs some minutes to start, and one whose service
/// does not start within a quarter of an hour is replaced.
const MINUTES_WITHOUT_MACHINES: u64 = 15;
/// Shares of a budget at which people are told, in percent. The first is what was spent, the second what the month will
/// cost if it goes on.
const BUDGET_THRESHOLDS: [(&str, u32); 3] = [("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100)];

impl Builder<'_> {
    pub(super) fn notifications(&mut self) {
        if !self.settings.notify.has_recipients() {
            return;
        }
        self.topic();
        self.problem_alarms();
        if let Some(amount) = self.settings.notify.monthly_budget {
            self.budget(amount);
        }
    }

    /// The topic for the addresses. Its access policy is the default one, which lets the alarms of the account publish. It is
    /// not encrypted with a key: with that of AWS, alarms could not publish.
    fn topic(&mut self) {
        if self.settings.notify.emails.is_empty() {
            return;
        }
        let mut emails = self.settings.notify.emails.clone();
        emails.sort_unstable();
        emails.dedup();
        let subscriptions: Vec<Value> =
            emails.iter().map(|address| json!({"Endpoint": address, "Protocol": "email"})).collect();
        let members = json!({"Subscription": subscriptions, "Tags": self.tags()});
        self.add(TOPIC, Kind::Topic, self.names.topic.clone(), members);
    }

    /// The ARNs of the topics to which alarms are sent.
    fn recipients(&self) -> Vec<Value> {
        let own = (!self.settings.notify.emails.is_empty()).then(|| reference(TOPIC));
        own.into_iter().chain(self.settings.notify.topics.iter().map(|arn| arn.as_str().into())).collect()
    }

    fn problem_alarms(&mut self) {
        let ResourceNames { dead_letters_alarm, oldest_image_alarm, .. } = &self.names;
        let (dead_letters_alarm, oldest_image_alarm) = (dead_letters_alarm.clone(), oldest_image_alarm.clone());
        let names = &self.settings.names;
        let dead = self.alarm_on_queue(
            "Images that no worker can process are among the dead letters: see `imgcls queue dead`",
            ("ApproximateNumberOfMessagesVisible", &names.dead_letter_queue()),
            0,
        );
        let age = self.settings.notify.max_image_age.as_secs();
        let oldest = self.alarm_on_queue(
            &format!("An image waits for more than {age} s"),
            ("ApproximateAgeOfOldestMessage", &names.request_queue),
            age,
        );
        self.add("DeadLettersAlarm", Kind::Alarm, dead_letters_alarm, dead);
        self.add("OldestImageAlarm", Kind::Alarm, oldest_image_alarm, oldest);

        let (name, group) = (self.names.missing_workers_alarm.clone(), self.names.worker_group.clone());
        let members = self.alarm_on_missing_machines(&group);
        self.add("MissingWorkersAlarm", Kind::Alarm, name, members);
        if self.settings.web_instances > 0 {
            let (name, group) = (self.names.missing_web_machines_alarm.clone(), self.names.web_group.clone());
            let members = self.alarm_on_missing_machines(&group);
            self.add("MissingWebMachinesAlarm", Kind::Alarm, name, members);
        }
    }

    fn alarm_on_queue(&self, description: &str, (metric, queue): (&str, &str), above: u64) -> Value {
        json!({
            "AlarmDescription": description,
            "Namespace": "AWS/SQS",
            "MetricName": metric,
            "Dimensions": [{"Name": "QueueName", "Value": queue}],
            "Statistic": "Maximum",
            "Period": MINUTE,
            "EvaluationPeriods": 1,
            "Threshold": above,
            "ComparisonOperator": "GreaterThanThreshold",
            // The metrics of a queue that nobody uses are missing.
            "TreatMissingData": "notBreaching",
            "ActionsEnabled": true,
            "AlarmActions": self.recipients(),
            "Tags": self.tags(),
        })
    }

    /// There is no metric of failed starts: a group whose machines fail is one that has fewer than it wants.
    fn alarm_on_missing_machines(&self, group: &str) -> Value {
        let metric = |id: &str, name: &str| {
            json!({
                "Id": id,
                "MetricStat": {
                    "Metric": {
                        "Namespace": "AWS/AutoScaling",
                        "MetricName": name,
                        "Dimensions": [{"Name": "AutoScalingGroupName", "Value": group}],
                    },
                    "Period": MINUTE,
                    "Stat": "Average",
                },
                "ReturnData": false,
            })
        };
        let description = format!(
            "Machines of {group} fail to start: fewer than wanted for {MINUTES_WITHOUT_MACHINES} minutes; see `imgcls provision status`"
        );
        json!({
            "AlarmDescription": description,
            "Metrics": [
                metric("wanted", "GroupDesiredCapacity"),
                metric("there", "GroupInServiceInstances"),
                {"Id": "missing", "Label": "missing", "Expression": "wanted - there", "ReturnData": true},
            ],
            "EvaluationPeriods": MINUTES_WITHOUT_MACHINES,
            "Threshold": 0,
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",
            "ActionsEnabled": true,
            "AlarmActions": self.recipients(),
            "Tags": self.tags(),
        })
    }

    /// A budget for what has the stack's tag. It tells the addresses directly: a topic would need an access policy that lets
    /// AWS Budgets publish, which that of the user has to have.
    fn budget(&mut self, amount: f64) {
        let notify = &self.settings.notify;
        let subscriber = |kind: &str, address: &String| json!({"Address": address, "SubscriptionType": kind});
        let emails = notify.emails.iter().map(|address| subscriber("EMAIL", address));
        let topics = notify.topics.iter().map(|arn| subscriber("SNS", arn));
        let mut subscribers: Vec<Value> = emails.chain(topics).collect();
        subscribers.sort_by_key(ToString::to_string);
        subscribers.dedup();
        let notifications: Vec<Value> = BUDGET_THRESHOLDS
            .iter()
            .map(|(kind, percent)| {
                json!({
                    "Notification": {
                        "ComparisonOperator": "GREATER_THAN", "NotificationType": kind, "Threshold": percent,
                        "ThresholdType": "PERCENTAGE",
                    },
                    "Subscribers": subscribers,
                })
            })
            .collect();
        let name = names::budget(&self.settings.stack, &self.site.region);
        let members = json!({
            "Budget": {
                "BudgetName": name,
                "BudgetType": "COST",
                "TimeUnit": "MONTHLY",
                "BudgetLimit": {"Amount": number(amount), "Unit": budget_currency(&self.site.region)},
                "CostFilters": budget_filters(&self.settings.stack, &self.site.region),
            },
            "NotificationsWithSubscribers": notifications,
        });
        self.add("Budget", Kind::Budget, name, members);
    }
}

/// The costs that a budget counts. They also say which stack owns it.
pub(in crate::provision) fn budget_filters(stack: &str, region: &str) -> Value {
    json!({"Region": [region], "TagKeyValue": [format!("user:{STACK_TAG}${stack}")]})
}

/// Accounts in China pay in renminbi, all others in US dollars.
fn budget_currency(region: &str) -> &'static str {
    if region.starts_with("cn-") { "CNY" } else { "USD" }
}
