//! The people who are told of problems of a stack.

use std::time::Duration;

use clap::Args;

use super::parse::positive_duration;
use super::usage::usage;
use crate::provision::Notify;

/// The last two flags need the first.
#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// Tell this e-mail address or SNS topic of dead letters, of images that wait too long and of machines that fail to start;
    /// may be repeated
    #[arg(long, env = "IMGCLS_NOTIFY", value_name = "EMAIL|ARN", value_delimiter = ',', value_parser = recipient)]
    pub notify: Vec<String>,
    /// With --notify: how long an image may wait
    #[arg(long, env = "IMGCLS_MAX_IMAGE_AGE", default_value = "15m", value_parser = positive_duration)]
    pub max_image_age: Duration,
    /// With --notify: a limit in US dollars a month; people are told at 80 and 100 % of it, and when the month will exceed it
    #[arg(long, env = "IMGCLS_BUDGET", value_name = "AMOUNT", value_parser = super::parse::money)]
    pub budget: Option<f64>,
}

impl NotifyArgs {
    /// # Errors
    /// A [`super::UsageError`] if there are more recipients than AWS allows, or a budget that nobody is told of.
    pub fn notify(&self) -> anyhow::Result<Notify> {
        let (topics, emails): (Vec<String>, Vec<String>) =
            self.notify.iter().cloned().partition(|recipient| is_topic(recipient));
        let most_topics = if self.budget.is_some() { 1 } else { Notify::MOST_TOPICS };
        if topics.len() > most_topics || emails.len() > Notify::MOST_EMAILS {
            return Err(usage(
                "provision",
                format!("give at most {most_topics} topics and {} addresses to --notify", Notify::MOST_EMAILS),
            ));
        }
        if self.budget.is_some() && self.notify.is_empty() {
            return Err(usage("provision", "--budget needs --notify: who is told when the limit is reached"));
        }
        Ok(Notify { emails, topics, max_image_age: self.max_image_age, monthly_budget: self.budget })
    }
}

fn is_topic(recipient: &str) -> bool {
    recipient.starts_with("arn:")
}

fn recipient(text: &str) -> Result<String, String> {
    let is_plain = !text.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'<>,".contains(c));
    let is_known = if is_topic(text) {
        text.split(':').count() == 6 && text.split(':').nth(2) == Some("sns")
    } else {
        text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !host.contains('@'))
    };
    if is_plain && is_known && text.len() <= 256 {
        Ok(text.to_owned())
    } else {
        Err("give an e-mail address, or the ARN of a topic such as arn:aws:sns:us-east-1:123456789012:problems"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_addresses_and_topics() {
        for good in ["ops@example.org", "a.b+c@example.co.uk", "arn:aws-cn:sns:cn-north-1:123456789012:problems"] {
            assert_eq!(recipient(good).as_deref(), Ok(good));
        }
        for bad in ["ops", "@example.org", "ops@example", "ops@a@b.c", "a b@c.d", "arn:aws:sqs:us-east-1:1:queue"] {
            assert!(recipient(bad).is_err(), "{bad}");
        }
    }
}
