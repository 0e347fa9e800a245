//! Names of a stack's resources on AWS beside its queues and buckets. They are those of the legacy system where it has
//! the resource.

use super::resource::STACK_TAG;
use crate::protocol;

/// Names of the resources of one stack.
pub(super) struct ResourceNames {
    pub log_group: String,
    pub worker_role: String,
    pub web_role: String,
    pub worker_group: String,
    pub web_group: String,
    pub worker_template: String,
    pub web_template: String,
    pub scale_up_alarm: String,
    pub scale_down_alarm: String,
    pub scale_from_zero_alarm: String,
    pub dead_letters_alarm: String,
    pub oldest_image_alarm: String,
    pub missing_workers_alarm: String,
    pub missing_web_machines_alarm: String,
    pub topic: String,
    pub dashboard: String,
    pub worker_security_group: String,
    pub web_security_group: String,
    pub balancer_security_group: String,
    prefix_of_balancers: String,
    prefix: String,
}

impl ResourceNames {
    pub(super) fn of(stack: &str) -> ResourceNames {
        let prefix = protocol::stack_prefix(stack);
        let name = |name: &str| format!("{prefix}{name}");
        ResourceNames {
            log_group: name("imgcls"),
            worker_role: name("app-tier-sqs-s3-access-role"),
            web_role: name("web-tier-sqs-access-role"),
            worker_group: protocol::worker_group(stack),
            web_group: name("webtierAutoscaling"),
            worker_template: name("ApptierTemplate"),
            web_template: name("WebtierTemplate"),
            scale_up_alarm: name("ScaleUpAlarm"),
            scale_down_alarm: name("ScaleDownAlarm"),
            scale_from_zero_alarm: name("ScaleFromZeroAlarm"),
            dead_letters_alarm: name("DeadLettersAlarm"),
            oldest_image_alarm: name("OldestImageAlarm"),
            missing_workers_alarm: name("MissingWorkersAlarm"),
            missing_web_machines_alarm: name("MissingWebMachinesAlarm"),
            topic: name("imgcls-problems"),
            dashboard: name("imgcls"),
            worker_security_group: name("imgcls-app-tier"),
            web_security_group: name("imgcls-web-tier"),
            // It sorts before the group of the web tier, whose rule names it: groups are deleted from the last to the first.
            balancer_security_group: name("imgcls-balancer"),
            prefix_of_balancers: name("imgcls-"),
            prefix: prefix.clone(),
        }
    }

    /// The name of the load balancer and of its target group. A load balancer cannot change whether it is reached from the
    /// Internet, and a target group belongs to one load balancer. With a name for each case, the next pair is made before
    /// the last one is deleted.
    pub(super) fn balancer(&self, is_public: bool) -> String {
        format!("{}{}", self.prefix_of_balancers, if is_public { "web" } else { "vpc" })
    }

    /// A pattern for both names.
    pub(super) fn balancers(&self) -> String {
        format!("{}*", self.prefix_of_balancers)
    }

    /// The name of a scaling policy. A name has to be unique within its group only; the prefix also tells the policies
    /// of several stacks apart in the console.
    pub(super) fn scaling_policy(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// The name of a stack's budget. Budgets belong to the whole account, so the name has the region.
pub(super) fn budget(stack: &str, region: &str) -> String {
    format!("{}imgcls-{region}", protocol::stack_prefix(stack))
}

/// The path of a stack's roles and instance profiles. IAM lists them by it.
pub(super) fn role_path(stack: &str) -> String {
    format!("/imgcls/{stack}/")
}

/// The text widget that marks a dashboard as a stack's. Dashboards have no tags.
pub(super) fn dashboard_mark(stack: &str) -> String {
    format!("{STACK_TAG}={stack}")
}
