//! How much of this machine other processes use. What was measured beside them would not hold later.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::telemetry;

/// If other processes use more of the machine than this share, nothing is measured.
const BUSY_SHARE: f64 = 0.05;
const WATCHED: Duration = Duration::from_secs(1);
/// Fields of the first line of /proc/stat that are work: user, nice, system, irq, softirq, steal. The fourth and fifth
/// are idle time.
const WORK_FIELDS: [usize; 6] = [0, 1, 2, 5, 6, 7];

/// Watches the machine for a second.
///
/// # Errors
/// If other processes use it, unless `busy_ok`: then it only warns.
pub(super) fn check(busy_ok: bool) -> anyhow::Result<()> {
    let others = Others::begin();
    std::thread::sleep(WATCHED);
    let Some(share) = others.share() else { return Ok(()) };
    if share <= BUSY_SHARE {
        return Ok(());
    }
    let percent = (share * 100.0).round();
    if !busy_ok {
        bail!(
            "other processes use {percent} % of this machine, so the result would mislead; wait until it is idle, or give \
             --busy-ok to measure anyway"
        );
    }
    telemetry::stderr_line(&format!("tune: other processes use {percent} % of this machine; the result may mislead"));
    Ok(())
}

/// The CPU time of other processes since a moment.
pub(super) struct Others {
    since: Instant,
    ticks: Option<Ticks>,
}

/// CPU time in clock ticks, all of the machine and of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    /// All cores, their idle time too.
    total: u64,
    work: u64,
    own: u64,
}

impl Others {
    pub(super) fn begin() -> Others {
        Others { since: Instant::now(), ticks: Ticks::read() }
    }

    /// The share of the machine that others used; 1 is all cores. `None` if the system does not tell, or no tick has
    /// passed.
    pub(super) fn share(&self) -> Option<f64> {
        if self.since.elapsed() < Duration::from_millis(100) {
            return None;
        }
        share_between(self.ticks?, Ticks::read()?)
    }
}

fn share_between(before: Ticks, after: Ticks) -> Option<f64> {
    let total = after.total.checked_sub(before.total).filter(|total| *total > 0)?;
    let work = after.work.saturating_sub(before.work);
    let own = after.own.saturating_sub(before.own);
    Some(work.saturating_sub(own) as f64 / total as f64)
}

impl Ticks {
    fn read() -> Option<Ticks> {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        Ticks::parse(&read("/proc/stat")?, &read("/proc/self/stat")?)
    }

    fn parse(machine: &str, process: &str) -> Option<Ticks> {
        let fields: Vec<u64> =
            machine.lines().next()?.split_ascii_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        // Guests' time, which follows, is part of user and nice.
        let total = fields.get(..8)?.iter().sum();
        let work = WORK_FIELDS.iter().map(|field| fields[*field]).sum();
        // The name in parentheses may contain anything. After it come state, parent, …, and from the 12th on the times.
        let (_, after_name) = process.rsplit_once(')')?;
        let own =
            after_name.split_ascii_whitespace().skip(11).take(2).map_while(|field| field.parse::<u64>().ok()).sum();
        Some(Ticks { total, work, own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_others_leaves_out_idle_time_and_this_process() {
        let process = |user: u64, system: u64| format!("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 {user} {system} 0 0 20 0");
        let before = Ticks::parse("cpu 100 0 50 800 50 0 0 0 0 0\ncpu0 1", &process(10, 5)).unwrap();
        assert_eq!(before, Ticks { total: 1000, work: 150, own: 15 });
        let after = Ticks::parse("cpu 150 0 60 920 60 0 0 10 0 0", &process(50, 10)).unwrap();
        assert_eq!(share_between(before, after), Some(25.0 / 200.0));
        assert_eq!(share_between(before, before), None);
        assert_eq!(Ticks::parse("", ""), None);
    }
}
