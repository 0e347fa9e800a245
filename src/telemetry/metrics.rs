//! The metrics of this process and of the processes that it started, in the text formats of Prometheus and OpenMetrics.
//!
//! A process that starts others gets their metrics as text ([`ChildMetrics`]). [`answer`] adds them up, sample by sample, so
//! that a scraper that can only reach the parent sees all of them. The counts of a child that has ended are kept: a counter
//! that fell would look like a restart.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::{Counter, Gauge, IntGauge, register_counter, register_gauge, register_int_gauge};
use prometheus::{opts, register_int_gauge_vec};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::exemplars;
use super::families::Families;

/// The families of a child that its parent publishes: those with this prefix under their own names, and these two
/// under names that do not collide with the parent's own.
const CHILD_PREFIX: &str = "imgcls_worker_";
const CHILD_NAMES: [(&str, &str); 2] = [
    ("process_cpu_seconds_total", "imgcls_worker_cpu_seconds_total"),
    ("process_resident_memory_bytes", "imgcls_worker_resident_memory_bytes"),
];

/// The answer to a scraper: its media type, and all metrics of this process and the sums of those of its children. `accept` is
/// the header of the request. OpenMetrics, which has exemplars, is chosen if the scraper prefers it to the text format.
pub fn answer(accept: Option<&str>) -> (&'static str, String) {
    let mut all = own();
    let children = lock();
    all.add(&children.ended);
    children.live.values().for_each(|child| all.add(child));
    if prefers_open_metrics(accept.unwrap_or_default()) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", all.to_open_metrics())
    } else {
        ("text/plain; version=0.0.4", all.to_text(false))
    }
}

/// The metrics of this process for [`ChildMetrics::record`] of the process that started it.
pub fn report() -> String {
    own().to_text(true)
}

/// The metrics of this process as they are registered.
pub(super) fn gathered() -> Vec<prometheus::proto::MetricFamily> {
    PROCESS.update();
    prometheus::gather()
}

fn own() -> Families {
    let text = prometheus::TextEncoder::new().encode_to_string(&gathered());
    let text = text.unwrap_or_else(|error| format!("# {error}\n"));
    let mut own = Families::parse(&text, |name| Some(name.to_owned()));
    for (name, labels, exemplars) in exemplars::all() {
        own.add_exemplars(name, &labels, &exemplars);
    }
    own
}

/// Compares the weights of the two formats in an `Accept` header.
fn prefers_open_metrics(accept: &str) -> bool {
    let weight = |wanted: &str| {
        let of_range = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let is_wanted = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(wanted));
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
            is_wanted.then(|| weight.unwrap_or(1.0))
        };
        accept.split(',').filter_map(of_range).fold(0.0, f64::max)
    };
    let wanted = weight("application/openmetrics-text");
    wanted > 0.0 && wanted >= weight("text/plain")
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

    /// Replaces the metrics of the child by those of its newest report, which is its own [`report`].
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
        families.to_text(false).lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
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
            assert_eq!(value(&sum, line), Some(expected), "{}", sum.to_text(false));
        }
        assert!(!sum.to_text(false).contains("process_"), "{}", sum.to_text(false));
        assert_eq!(sum.to_text(false).matches("# TYPE imgcls_worker_stage_seconds histogram").count(), 1);
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
    fn open_metrics_is_written_for_a_scraper_that_prefers_it() {
        let of_prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            (of_prometheus, true),
            ("application/openmetrics-text", true),
            ("text/plain, application/openmetrics-text;q=0.5", false),
            ("application/openmetrics-text;q=0", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(prefers_open_metrics(accept), expected, "{accept}");
        }
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
