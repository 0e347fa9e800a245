//! Settings and durations in words.

use std::time::Duration;

use crate::scaling_policy::Policy;
use crate::simulate::config::Variant;
use crate::workload::{Arrivals, Bursts, Day};

pub(super) fn policy_text(variant: &Variant) -> String {
    let rule = match variant.policy {
        Policy::Step(step) => format!(
            "one more above {} waiting, every {}; one less below {}, every {}",
            step.scale_out_above,
            time(step.scale_out_period),
            step.scale_in_below,
            time(step.scale_in_period)
        ),
        Policy::Target(target) => format!(
            "{} acceptable, {:.1} images a worker, {} % tolerance; less after {}",
            time(target.acceptable_latency),
            target.backlog_per_worker(),
            target.tolerance_percent,
            time(target.scale_in_stabilization)
        ),
    };
    let late = match variant.metric_delay {
        Duration::ZERO => String::new(),
        delay => format!(", {} late", time(delay)),
    };
    format!(
        "{rule}\n{} to {} workers, ready after {}; queue seen every {}{late}",
        variant.bounds.min(),
        variant.bounds.max(),
        time(variant.boot_time),
        time(variant.metric_period)
    )
}

pub(crate) fn arrivals_text(arrivals: &Arrivals) -> String {
    match arrivals {
        Arrivals::Constant { rate } => format!("{rate}/s, evenly"),
        Arrivals::Poisson { rate } => format!("{rate}/s, Poisson"),
        Arrivals::Burst(Bursts { rate, burst_rate, length, every }) => {
            let every = every.map_or("once".to_owned(), |every| format!("every {}", time(every)));
            let between = if *rate > 0.0 { format!("{rate}/s, and ") } else { String::new() };
            format!("{between}{burst_rate}/s for {} {every}", time(*length))
        }
        Arrivals::Day(Day { rate, length }) => format!("{rate}/s over a day of {}, a fifth at midnight", time(*length)),
        Arrivals::Trace(_) => "by a trace".to_owned(),
        Arrivals::Stages(stages) => format!("in stages over {}", time(stages.length())),
    }
}

/// A duration in its one or two largest units.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = seconds.round() as u64;
    match seconds {
        ..0.9995 => format!("{} ms", round(seconds * 1e3)),
        ..59.95 => format!("{} s", round(seconds)),
        ..3599.5 if whole.is_multiple_of(60) => format!("{} min", whole / 60),
        ..3599.5 => format!("{} min {} s", whole / 60, whole % 60),
        _ if (whole / 60).is_multiple_of(60) => format!("{} h", whole / 3600),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Three significant digits without trailing zeros.
fn round(value: f64) -> String {
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_use_natural_units() {
        let texts = [0.0, 0.004_2, 0.999_4, 0.9996, 1.0, 12.34, 59.96, 60.0, 90.4, 3600.0, 5400.0, 90_000.0]
            .map(|seconds| time(Duration::from_secs_f64(seconds)));
        let expected = [
            "0 ms",
            "4.2 ms",
            "999 ms",
            "1 s",
            "1 s",
            "12.3 s",
            "1 min",
            "1 min",
            "1 min 30 s",
            "1 h",
            "1 h 30 min",
            "25 h",
        ];
        assert_eq!(texts, expected);
    }
}
