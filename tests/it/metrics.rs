//! `/metrics`: its format and names, the metrics of the workers of `up`, and the files of `deploy/` that use them.

#![allow(clippy::float_cmp, reason = "counts, which are exact")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Process, Service, imgcls, metric, metrics, request, test_image, until};

/// Starts `up` with a log, and returns its address.
pub fn start_up(dir: &Path, flags: &[&str]) -> (Process, SocketAddr) {
    let mut command = imgcls();
    command.args(["up", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"]).arg(dir.join("data"));
    command.args(flags);
    let up = Process::start(command, &dir.join("up.log"));
    let address: SocketAddr = until("the address of `up`", || {
        let log = up.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let address =
            lines.filter(|line| line["message"] == "up").find_map(|line| Some(line["address"].as_str()?.to_owned()));
        address?.parse().ok()
    });
    until("a ready worker", || request(address, "GET", "/readyz", &[], b"").ok().filter(|answer| answer.status == 200));
    (up, address)
}

/// A family of metrics as Prometheus reads it.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    /// Name, labels and value of each sample.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads the text format, and refuses what Prometheus refuses.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut found: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(found.insert(name.to_owned(), family).is_none(), "{name} is there twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(name, current, "a type belongs to the help before it");
            kind.clone_into(&mut found.get_mut(name).unwrap().kind);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
            assert!(seen.insert(series.to_owned()), "{series} is there twice");
            let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| {
                (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}")))
            });
            let family = found.get_mut(&current).unwrap_or_else(|| panic!("{name} has no help"));
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(
                suffixes.iter().any(|suffix| name == format!("{current}{suffix}")),
                "{name} in the family {current}"
            );
            family.samples.push((name.to_owned(), labels_of(labels), value.parse().expect(line)));
        }
    }
    found
}

fn labels_of(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("{text:?}"));
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    });
    pairs.collect()
}

/// The rules of Prometheus for names, which `promtool check metrics` holds, too.
fn name_faults(name: &str, family: &Family) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |text: &str| faults.push(format!("{name}: {text}"));
    if !(name.starts_with("imgcls_") || name.starts_with("process_")) {
        fault("has another prefix");
    }
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        fault("is not in snake case");
    }
    if (family.kind == "counter") != name.ends_with("_total") {
        fault("only counters end in _total, and all do");
    }
    if family.help.is_empty() || !["counter", "gauge", "histogram"].contains(&family.kind.as_str()) {
        fault("has no help or no type");
    }
    let words: Vec<&str> = name.split('_').collect();
    for bad in [
        "ms",
        "millis",
        "milliseconds",
        "minutes",
        "kb",
        "kib",
        "mib",
        "megabytes",
        "counter",
        "gauge",
        "histogram",
        "percent",
    ] {
        if words.contains(&bad) {
            fault(&format!("has {bad:?}: units are base units, and types are not part of a name"));
        }
    }
    if let Some(reserved) = ["_count", "_sum", "_bucket"].iter().find(|suffix| name.ends_with(**suffix)) {
        fault(&format!("ends in {reserved}, which belongs to histograms"));
    }
    for (_, labels, _) in &family.samples {
        let sets = labels.keys().filter(|label| !label.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        sets.for_each(|label| faults.push(format!("{name}: the label {label} is not in snake case")));
    }
    faults
}

fn histogram_faults(name: &str, family: &Family) -> Vec<String> {
    let mut faults = Vec::new();
    let without_le = |labels: &BTreeMap<String, String>| {
        labels.iter().filter(|(name, _)| *name != "le").map(|(a, b)| format!("{a}={b}")).collect::<Vec<_>>().join(",")
    };
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (_, labels, value) in family.samples.iter().filter(|(sample, ..)| sample.ends_with("_bucket")) {
        buckets.entry(without_le(labels)).or_default().push((labels["le"].parse().expect("a bound"), *value));
    }
    for (series, buckets) in buckets {
        let is_rising = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let count = family
            .samples
            .iter()
            .find(|(sample, labels, _)| sample.ends_with("_count") && without_le(labels) == series);
        let last = buckets.last().copied().unwrap_or_default();
        if !is_rising || last.0 != f64::INFINITY || count.is_none_or(|(_, _, count)| *count != last.1) {
            faults.push(format!("{name}{{{series}}}: {buckets:?}, count {count:?}"));
        }
    }
    faults
}

#[test]
fn up_serves_the_metrics_of_its_workers_in_prometheus_format() {
    let dir = tempfile::tempdir().unwrap();
    let (mut up, address) = start_up(dir.path(), &["--min-workers", "2", "--max-workers", "2"]);
    for _ in 0..6 {
        let answer = request(address, "POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let succeeded = || metric(address, "imgcls_worker_endings_total{ending=\"succeeded\"}");
    until("the reports of the workers", || (succeeded() == 6.0).then_some(()));
    until("both workers", || (metric(address, "imgcls_workers_ready") == 2.0).then_some(()));
    assert_eq!(metric(address, "imgcls_workers_wanted"), 2.0);

    let text = request(address, "GET", "/metrics", &[], b"").unwrap().text();
    let families = families(&text);
    let faults: Vec<String> = families
        .iter()
        .flat_map(|(name, family)| {
            let of_histogram = if family.kind == "histogram" { histogram_faults(name, family) } else { Vec::new() };
            [name_faults(name, family), of_histogram].concat()
        })
        .collect();
    assert!(faults.is_empty(), "{}\n{text}", faults.join("\n"));
    for name in [
        "imgcls_build_info",
        "imgcls_data_bytes",
        "imgcls_disk_free_bytes",
        "imgcls_queue_messages",
        "imgcls_queue_oldest_age_seconds",
        "imgcls_web_request_seconds",
        "imgcls_worker_batch_size",
        "imgcls_worker_cpu_seconds_total",
        "imgcls_worker_model",
        "imgcls_worker_resident_memory_bytes",
        "imgcls_worker_stage_seconds",
        "imgcls_workers_restarts_total",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    ] {
        assert!(families.get(name).is_some_and(|family| !family.samples.is_empty()), "no {name} in\n{text}");
    }
    let posted = "imgcls_web_requests_total{method=\"POST\",route=\"/v1/classify\",status=\"200\"}";
    assert_eq!(metric(address, posted), 6.0, "{text}");
    assert!(metric(address, "process_resident_memory_bytes") > 1e6);
    assert!(metrics(address, "imgcls_worker_model").iter().all(|(_, workers)| *workers == 2.0), "{text}");

    // A worker that ends takes its memory along, and not what it has counted.
    let worker = crate::up::children(rustix::process::Pid::from_raw(up.id().cast_signed()).unwrap())[0];
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    until("the restart", || {
        assert_eq!(succeeded(), 6.0);
        (metric(address, "imgcls_workers_restarts_total{cause=\"died\"}") == 1.0).then_some(())
    });
    until("both workers", || (metric(address, "imgcls_workers_ready") == 2.0).then_some(()));
    assert_eq!(succeeded(), 6.0);
    up.signal("TERM");
    assert_eq!(up.wait(), Some(0));
}

#[test]
fn queue_metrics_show_what_waits_and_readyz_that_no_worker_takes_it() {
    let mut service = Service::start(0, &[], &[]);
    let waiting = "imgcls_queue_messages{queue=\"requests\",state=\"visible\"}";
    let text = || service.request("GET", "/readyz", &[], b"");
    assert_eq!(text().text(), "ready\n");
    let ids: Vec<String> = (0..3).map(|_| service.submit("x.jpg", &test_image("cup.jpg"))).collect();
    until("the depth", || (metric(service.address, waiting) == 3.0).then_some(()));
    until("the age", || {
        (metric(service.address, "imgcls_queue_oldest_age_seconds{queue=\"requests\"}") > 0.0).then_some(())
    });
    assert_eq!(metric(service.address, "imgcls_queue_messages{queue=\"dead_letters\",state=\"visible\"}"), 0.0);
    let answer = until("the warning", || Some(text()).filter(|answer| answer.text() != "ready\n"));
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("ready\nwarning: no worker was seen for 1"), "{}", answer.text());
    assert!(metric(service.address, "imgcls_web_worker_unseen_seconds") >= 10.0);

    service.add_worker();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    let text = || service.request("GET", "/readyz", &[], b"").text();
    until("the end of the warning", || (text() == "ready\n").then_some(()));
    until("the empty queue", || (metric(service.address, waiting) == 0.0).then_some(()));
    assert_eq!(metric(service.address, "imgcls_web_worker_unseen_seconds"), 0.0);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of metrics in the sources, which register each with a literal.
fn registered_names() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
        }
    }
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    let sources = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    sources.flat_map(|path| names_in(&fs::read_to_string(path).unwrap())).collect()
}

/// The words of a text that look like names of our metrics, without the suffixes of histograms.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words =
        text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("imgcls_") || word.starts_with("process_"));
    // The file of a package is `imgcls_0.1.0_amd64.deb`.
    let words = words.filter(|word| !word.starts_with("imgcls_0"));
    let base = |word: &str| {
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| word.strip_suffix(suffix));
        suffix.unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

#[test]
fn open_metrics_names_the_trace_of_slow_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, address) = start_up(dir.path(), &["--max-workers", "1"]);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("traceparent", traceparent.as_str())];
    let answer = request(address, "POST", "/v1/classify?wait=60", &headers, &test_image("cup.jpg")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // The header of Prometheus 2.
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let scrape = || request(address, "GET", "/metrics", &[("accept", accept)], b"").unwrap();
    let exemplar_of = |text: &str, family: &str, label: &str| -> Option<String> {
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{family}_bucket{{")));
        let found = lines.rfind(|line| line.contains(label) && line.contains(" # {"));
        found.and_then(|line| Some(line.split_once(" # ")?.1.to_owned()))
    };
    // The worker of `up` reports its metrics to it each second.
    let text = until("an exemplar of the worker", || {
        let text = scrape().text();
        exemplar_of(&text, "imgcls_worker_stage_seconds", "inferred").is_some().then_some(text)
    });
    for (family, label) in [
        ("imgcls_web_request_seconds", "/v1/classify"),
        ("imgcls_worker_stage_seconds", "fetched"),
        ("imgcls_worker_stage_seconds", "decoded"),
        ("imgcls_worker_stage_seconds", "inferred"),
    ] {
        let exemplar = exemplar_of(&text, family, label).unwrap_or_else(|| panic!("{family} {label}: {text}"));
        assert!(exemplar.starts_with(&format!("{{trace_id=\"{trace}\",span_id=\"")), "{exemplar}");
        assert_eq!(exemplar.split(' ').count(), 3, "labels, value and time: {exemplar}");
    }
    let answer = scrape();
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    assert!(text.contains("# TYPE imgcls_web_accepted counter\n") && text.contains("\nimgcls_web_accepted_total 1\n"));
    let whole_bound = |line: &&str| {
        line.split_once("le=\"").is_some_and(|(_, rest)| {
            rest.split('"').next().is_some_and(|bound| bound.bytes().all(|byte| byte.is_ascii_digit()))
        })
    };
    assert_eq!(text.lines().find(whole_bound), None, "bounds are floats");
    let plain = request(address, "GET", "/metrics", &[], b"").unwrap().text();
    assert!(!plain.contains("trace_id") && !plain.contains("# EOF"), "{plain}");
}

#[test]
fn dashboard_and_alerts_use_metrics_that_exist_and_each_alert_is_in_the_run_book() {
    let known = registered_names();
    assert!(known.len() > 40, "{known:?}");
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/imgcls.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().unwrap();
    let expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(expressions.len() > 30, "{expressions:?}");
    let places: Vec<Value> = panels.iter().map(|panel| panel["gridPos"].clone()).collect();
    for (place, at) in places.iter().zip(0..) {
        let (x, w) = (place["x"].as_u64().unwrap(), place["w"].as_u64().unwrap());
        assert!(x + w <= 24, "{place}");
        assert!(!places[..at].contains(place), "two panels at {place}");
    }

    let rules = read("deploy/prometheus/imgcls.rules.yaml");
    let tests = read("deploy/prometheus/imgcls.rules.test.yaml");
    let runbook = read("docs/operations.md");
    for (name, text) in [
        ("the dashboard", expressions.join("\n")),
        ("the rules", rules.clone()),
        ("their tests", tests.clone()),
        ("docs/operations.md", runbook.clone()),
    ] {
        let used = names_in(&text);
        assert!(!used.is_empty(), "{name} names no metric");
        let unknown: Vec<&String> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{name}: no metric has the name {unknown:?}");
    }
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in &alerts {
        assert!(runbook.contains(&format!("| `{alert}` |")), "docs/operations.md has no line for {alert}");
    }
    assert_eq!(rules.matches("runbook: docs/operations.md#alerts").count(), alerts.len());
    assert!(runbook.contains("\n## Alerts\n"));
}
