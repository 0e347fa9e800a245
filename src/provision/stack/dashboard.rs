//! The dashboard of a stack.

use serde_json::{Value, json};

use super::builder::{Builder, MINUTE};
use crate::provision::names::dashboard_mark;
use crate::provision::resource::Kind;

impl Builder<'_> {
    pub(super) fn dashboard(&mut self) {
        let queue = &self.settings.names.request_queue;
        let (bulk, dead_letters) = (self.settings.names.bulk_queue(), self.settings.names.dead_letter_queue());
        let widget = |x: u32, y: u32, title: &str, metrics: Value| {
            json!({
                "type": "metric", "x": x, "y": y, "width": 12, "height": 6,
                "properties": {
                    "title": title, "region": self.site.region, "view": "timeSeries", "period": MINUTE,
                    "stat": "Maximum", "metrics": metrics,
                },
            })
        };
        let group = &self.names.worker_group;
        let sqs = |metric: &str, queue: &str| json!(["AWS/SQS", metric, "QueueName", queue]);
        let scaling = |metric: &str| json!(["AWS/AutoScaling", metric, "AutoScalingGroupName", group]);
        let body = json!({"widgets": [
            {
                "type": "text", "x": 0, "y": 12, "width": 24, "height": 1,
                "properties": {"markdown": dashboard_mark(&self.settings.stack)},
            },
            widget(0, 0, "Images waiting and in work", json!([
                sqs("ApproximateNumberOfMessagesVisible", queue),
                sqs("ApproximateNumberOfMessagesNotVisible", queue),
                sqs("ApproximateNumberOfMessagesVisible", &bulk),
                sqs("ApproximateNumberOfMessagesNotVisible", &bulk),
            ])),
            widget(12, 0, "Workers", json!([scaling("GroupDesiredCapacity"), scaling("GroupInServiceInstances")])),
            widget(0, 6, "Oldest image, seconds", json!([sqs("ApproximateAgeOfOldestMessage", queue)])),
            widget(12, 6, "Dead letters", json!([sqs("ApproximateNumberOfMessagesVisible", &dead_letters)])),
        ]});
        let members = json!({"DashboardBody": body.to_string()});
        self.add("Dashboard", Kind::Dashboard, self.names.dashboard.clone(), members);
    }
}
