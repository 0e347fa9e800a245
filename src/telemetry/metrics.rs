//! The metrics of this process and of the processes that it started, in Prometheus' text format.
//!
//! A process that starts others gets their metrics as text ([`ChildMetrics`]). [`text`] adds them up, sample by sample, so
//! that a scraper that can only reach the parent sees all of them. The counts of a child that has ended are kept: a counter
//! that fell would look like a restart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::{Counter, Gauge, IntGauge, register_counter, register_gauge, register_int_gauge};
use prometheus::{opts, register_int_gauge_vec};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The families of a child that its parent publishes: those with this prefix under their own names, and these two
/// under names that do not collide with the parent's own.
const CHILD_PREFIX: &str = "imgcls_worker_";
const CHILD_NAMES: [(&str, &str); 2] = [
    ("process_cpu_seconds_total", "imgcls_worker_cpu_seconds_total"),
    ("process_resident_memory_bytes", "imgcls_worker_resident_memory_bytes"),
];

/// Returns all metrics of this process, and the sums of those of its children.
pub fn text() -> String {
    PROCESS.update();
    let own = encoded();
    let children = lock();
    if children.live.is_empty() && children.ended.0.is_empty() {
        return own;
    }
    let mut all = Families::parse(&own, |name| Some(name.to_owned()));
    all.add(&children.ended);
    children.live.values().for_each(|child| all.add(child));
    all.to_text()
}

fn encoded() -> String {
    let families = prometheus::gather();
    prometheus::TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// The metrics of one child process. Dropping it says that the child has ended.
#[derive(Debug)]
pub struct ChildMetrics(u64);

impl ChildMetrics {
    /// A child that has reported nothing yet.
    #[expect(clippy::new_without_default, reason = "each is another child")]
    pub fn new() -> ChildMetrics {
        let mut children = lock();
        children.count += 1;
        ChildMetrics(children.count)
    }

    /// Replaces the metrics of the child by those of its newest report, which is its own [`text`].
    pub fn record(&self, text: &str) {
        lock().live.insert(self.0, Families::parse(text, child_name));
    }
}

impl Drop for ChildMetrics {
    fn drop(&mut self) {
        let mut children = lock();
        if let Some(mut child) = children.live.remove(&self.0) {
            child.0.retain(|_, family| family.kind != "gauge");
            children.ended.add(&child);
        }
    }
}

/// The metrics of all children.
#[derive(Debug, Default)]
struct Children {
    /// The number of children so far.
    count: u64,
    live: BTreeMap<u64, Families>,
    /// The sums of those that have ended, without gauges.
    ended: Families,
}

static CHILDREN: LazyLock<Mutex<Children>> = LazyLock::new(Mutex::default);

/// No code panics while it holds this lock, so a poisoned one still guards consistent sums.
fn lock() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn child_name(name: &str) -> Option<String> {
    let renamed = CHILD_NAMES.iter().find_map(|(own, published)| (*own == name).then(|| (*published).to_owned()));
    renamed.or_else(|| name.starts_with(CHILD_PREFIX).then(|| name.to_owned()))
}

/// Metric families by name.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

#[derive(Debug, Default)]
struct Family {
    help: String,
    /// `counter`, `gauge` or `histogram`.
    kind: String,
    /// The text of each line before its value, after the name of the family, and the value. They keep their order.
    samples: Vec<(String, f64)>,
}

impl Families {
    /// Reads the text of [`encoded`]. `published` returns the name under which a family is kept, if it is.
    fn parse(text: &str, published: impl Fn(&str) -> Option<String>) -> Families {
        let mut families = Families::default();
        // The encoder writes the help of a family, then its type, then its samples.
        let mut current: Option<(String, &str)> = None;
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                current = published(name).map(|kept| (kept, name));
                if let Some((kept, _)) = &current {
                    help.clone_into(&mut families.0.entry(kept.clone()).or_default().help);
                }
                continue;
            }
            let Some((kept, name)) = &current else { continue };
            let Some(family) = families.0.get_mut(kept) else { continue };
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                rest.rsplit(' ').next().unwrap_or_default().clone_into(&mut family.kind);
            } else if let Some((series, value)) = line.strip_prefix(name).and_then(|rest| rest.rsplit_once(' '))
                && let Ok(value) = value.parse()
            {
                family.samples.push((series.to_owned(), value));
            }
        }
        families
    }

    /// Adds every sample of `other`. The buckets of a histogram are counts, so that sums of them are right, too.
    fn add(&mut self, other: &Families) {
        for (name, theirs) in &other.0 {
            let family = self.0.entry(name.clone()).or_default();
            if family.kind.is_empty() {
                (family.help, family.kind) = (theirs.help.clone(), theirs.kind.clone());
            }
            for (series, value) in &theirs.samples {
                match family.samples.iter_mut().find(|(known, _)| known == series) {
                    Some((_, sum)) => *sum += value,
                    None => family.samples.push((series.clone(), *value)),
                }
            }
        }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, samples }) in self.0.iter().filter(|(_, family)| !family.samples.is_empty()) {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (series, value) in samples {
                let _ = writeln!(text, "{name}{series} {value}");
            }
        }
        text
    }
}

/// The metrics that every program has, under the names that Prometheus' client libraries give them.
struct ProcessMetrics {
    cpu_seconds: Counter,
    /// `None` if the system has no `/proc`.
    from_proc: Option<ProcMetrics>,
}

struct ProcMetrics {
    resident_bytes: IntGauge,
    virtual_bytes: IntGauge,
    threads: IntGauge,
    open_descriptors: IntGauge,
}

static PROCESS: LazyLock<ProcessMetrics> = LazyLock::new(ProcessMetrics::register);

/// Registers the metrics of this process. Call it when the process starts, which is the start time that they report.
pub(super) fn start() {
    LazyLock::force(&PROCESS);
}

impl ProcessMetrics {
    fn register() -> ProcessMetrics {
        let registered = "each name is registered once; this is a bug";
        let started: Gauge =
            register_gauge!("process_start_time_seconds", "Start time of the process, in seconds since the Unix epoch")
                .expect(registered);
        started.set(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64());
        let most: IntGauge =
            register_int_gauge!("process_max_fds", "Most open file descriptors of the process").expect(registered);
        most.set(getrlimit(Resource::Nofile).current.map_or(i64::MAX, |most| i64::try_from(most).unwrap_or(i64::MAX)));
        let build = register_int_gauge_vec!(
            opts!("imgcls_build_info", "1; the labels say which program this is"),
            &["version", "os", "arch"]
        )
        .expect(registered);
        let labels = [env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH];
        build.with_label_values(&labels).set(1);
        ProcessMetrics {
            cpu_seconds: register_counter!(
                "process_cpu_seconds_total",
                "CPU time of the process in user and system mode, in seconds"
            )
            .expect(registered),
            from_proc: std::fs::exists("/proc/self/status").is_ok_and(|exists| exists).then(|| ProcMetrics {
                resident_bytes: register_int_gauge!("process_resident_memory_bytes", "Resident memory of the process")
                    .expect(registered),
                virtual_bytes: register_int_gauge!("process_virtual_memory_bytes", "Virtual memory of the process")
                    .expect(registered),
                threads: register_int_gauge!("process_threads", "Threads of the process").expect(registered),
                open_descriptors: register_int_gauge!("process_open_fds", "Open file descriptors of the process")
                    .expect(registered),
            }),
        }
    }

    fn update(&self) {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        let spent = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default());
        self.cpu_seconds.inc_by((spent.as_secs_f64() - self.cpu_seconds.get()).max(0.0));
        let Some(proc) = &self.from_proc else { return };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        };
        let kib = |name: &str| field(name).unwrap_or(0i64).saturating_mul(1_024);
        proc.resident_bytes.set(kib("VmRSS:"));
        proc.virtual_bytes.set(kib("VmSize:"));
        proc.threads.set(field("Threads:").unwrap_or(0));
        // The descriptor of the directory itself does not count.
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
        proc.open_descriptors.set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "# HELP imgcls_worker_received_total Messages\n# TYPE imgcls_worker_received_total counter\n\
        imgcls_worker_received_total 3\n# HELP imgcls_worker_model 1 for each\n# TYPE imgcls_worker_model gauge\n\
        imgcls_worker_model{name=\"a b\",version=\"1\"} 1\n# HELP process_cpu_seconds_total CPU\n\
        # TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 0.5\n# HELP process_threads T\n\
        # TYPE process_threads gauge\nprocess_threads 9\n# HELP imgcls_worker_stage_seconds S\n\
        # TYPE imgcls_worker_stage_seconds histogram\nimgcls_worker_stage_seconds_bucket{stage=\"x\",le=\"1\"} 1\n\
        imgcls_worker_stage_seconds_bucket{stage=\"x\",le=\"+Inf\"} 2\nimgcls_worker_stage_seconds_sum{stage=\"x\"} 3.5\n\
        imgcls_worker_stage_seconds_count{stage=\"x\"} 2\n";

    fn value(families: &Families, line: &str) -> Option<f64> {
        families.to_text().lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn samples_of_all_children_are_added_up() {
        let child = Families::parse(REPORT, child_name);
        let mut sum = Families::default();
        sum.add(&child);
        sum.add(&child);
        for (line, expected) in [
            ("imgcls_worker_received_total", 6.0),
            ("imgcls_worker_model{name=\"a b\",version=\"1\"}", 2.0),
            ("imgcls_worker_cpu_seconds_total", 1.0),
            ("imgcls_worker_stage_seconds_bucket{stage=\"x\",le=\"+Inf\"}", 4.0),
            ("imgcls_worker_stage_seconds_sum{stage=\"x\"}", 7.0),
        ] {
            assert_eq!(value(&sum, line), Some(expected), "{}", sum.to_text());
        }
        assert!(!sum.to_text().contains("process_"), "{}", sum.to_text());
        assert_eq!(sum.to_text().matches("# TYPE imgcls_worker_stage_seconds histogram").count(), 1);
    }

    #[test]
    fn counts_of_a_child_that_ended_are_kept_and_its_gauges_are_not() {
        let line = "imgcls_worker_ended_test_total";
        let of_children = || {
            let children = lock();
            let mut sum = Families::default();
            sum.add(&children.ended);
            children.live.values().for_each(|child| sum.add(child));
            (value(&sum, line), value(&sum, "imgcls_worker_ended_test"))
        };
        let report = |count: u32| {
            format!(
                "# HELP {line} C\n# TYPE {line} counter\n{line} {count}\n# HELP imgcls_worker_ended_test G\n\
                 # TYPE imgcls_worker_ended_test gauge\nimgcls_worker_ended_test 1\n"
            )
        };
        let child = ChildMetrics::new();
        child.record(&report(1));
        child.record(&report(5));
        assert_eq!(of_children(), (Some(5.0), Some(1.0)));
        drop(child);
        assert_eq!(of_children(), (Some(5.0), None));
        let next = ChildMetrics::new();
        next.record(&report(2));
        assert_eq!(of_children(), (Some(7.0), Some(1.0)));
    }

    #[test]
    fn broken_report_loses_only_the_lines_that_are_broken() {
        let families = Families::parse(
            "nonsense\n# HELP imgcls_worker_a x\nimgcls_worker_a{ 1 2 x\nimgcls_worker_a 4\n",
            child_name,
        );
        assert_eq!(value(&families, "imgcls_worker_a"), Some(4.0));
    }
}
