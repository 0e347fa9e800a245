//! The settings of a fleet as the file that `imgcls provision --config` reads.

use std::fmt::Write as _;
use std::time::Duration;

use super::config::PlanConfig;
use super::money::Choice;
use super::report::PlanReport;
use crate::scaling_policy::Policy;

pub(super) fn text(report: &PlanReport, best: &Choice<'_>, config: &PlanConfig) -> String {
    let bounds = best.fleet.variant.bounds;
    let (web_count, web_type) = &config.web;
    let mut text = format!(
        "# Written by `imgcls plan`: {}.\n# Goal: {}. By simulation it is met for {:.2} {} a month, by the prices of {}.\n\
         # imgcls provision plan --config FILE --region REGION shows what provision would do.\n\n[provision]\n",
        report.load_text,
        report.goals.join(", "),
        best.cost.month,
        report.prices.currency,
        report.prices.date,
    );
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    line("instance-type", format!("[\"{}\"]", best.instance_type));
    line("min", bounds.min().to_string());
    line("max", bounds.max().to_string());
    line("spot-share", format!("{:.0}", config.spot_share * 100.0));
    line("web-instances", web_count.to_string());
    line("web-instance-type", format!("\"{web_type}\""));
    match best.fleet.variant.policy {
        Policy::Step(step) => {
            line("policy", "\"step\"".to_owned());
            line("scale-out-above", step.scale_out_above.to_string());
            line("scale-out-period", seconds(step.scale_out_period));
            line("scale-in-below", step.scale_in_below.to_string());
            line("scale-in-period", seconds(step.scale_in_period));
        }
        Policy::Target(target) => {
            line("policy", "\"target\"".to_owned());
            line("slo", seconds(target.acceptable_latency));
            line("service-time", seconds(target.service_time));
            line("tolerance", target.tolerance_percent.to_string());
            line("scale-in-stabilization", seconds(target.scale_in_stabilization));
        }
    }
    if let Some(sessions) = config.sessions {
        let _ = write!(text, "\n[worker]\nsessions = {sessions}\n");
    }
    text
}

/// A duration as the flags take it. Service times are far below a second.
fn seconds(duration: Duration) -> String {
    format!("\"{}s\"", (duration.as_secs_f64() * 1e6).round() / 1e6)
}
