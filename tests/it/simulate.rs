//! `imgcls simulate` as a command: its output, its files and its errors.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::imgcls;

/// The bursts of a minute that the docs use as an example.
const BURSTS: [&str; 14] = [
    "--arrivals",
    "burst",
    "--rate",
    "0.5",
    "--burst-rate",
    "20",
    "--burst-length",
    "60s",
    "--burst-every",
    "15m",
    "--duration",
    "30m",
    "--service-time",
    "1s",
];

fn simulate(arguments: &[&str]) -> Output {
    imgcls().arg("simulate").args(arguments).output().expect("it starts")
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Standard error of a run that must fail with this exit code.
fn refusal(arguments: &[&str], code: i32) -> String {
    let output = simulate(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    if code == 1 {
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    stderr
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn policies_are_compared_side_by_side() {
    let policies =
        ["--sessions", "1", "--policy", "step:metric-period=60s,metric-delay=60s", "--policy", "target:max=8"];
    let text = stdout(&simulate(&[&BURSTS[..], &policies[..]].concat()));
    let golden = include_str!("../golden/simulate.txt");
    assert_eq!(text, golden, "\n--- actual ---\n{text}");
}

#[test]
fn json_has_every_figure_and_a_timeline() {
    let policies = ["--policy", "step", "--policy", "target:slo=20s", "--deaths-per-hour", "6", "--json"];
    let text = stdout(&simulate(&[&BURSTS[..], &policies[..]].concat()));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&report["arrivals"], &report["seed"], &report["sessions_per_worker"]),
        (&json!("burst"), &json!(1), &json!(2))
    );
    assert_eq!((&report["slo_seconds"], &report["prices"]["currency"]), (&json!(20.0), &json!("USD")));
    assert!(report["wall_seconds"].as_f64().is_some_and(|seconds| seconds < 60.0), "{}", report["wall_seconds"]);
    let requests = report["requests"].as_u64().expect("a number");
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    assert_eq!((&runs[0]["policy"], &runs[1]["policy"]), (&json!("step"), &json!("target:slo=20s")));
    assert_eq!(runs[0]["settings"]["target"], Value::Null);
    assert_eq!(runs[1]["settings"]["target"]["backlog_per_worker"], 40.0);
    for run in runs {
        assert_eq!(run["completed"], requests);
        assert!(run["worker_deaths"].as_u64() > Some(0), "{}", run["worker_deaths"]);
        let timeline = &run["timeline"];
        let total = |column: &str| -> u64 {
            timeline[column].as_array().expect("a column").iter().filter_map(Value::as_u64).sum()
        };
        assert_eq!((total("arrivals"), total("completed")), (requests, requests));
        for column in ["visible", "in_flight", "booting", "ready", "draining", "p50_ms", "p90_ms", "p99_ms"] {
            assert_eq!(timeline[column].as_array().map(Vec::len), timeline["arrivals"].as_array().map(Vec::len));
        }
        let latency = |name: &str| run["latency_ms"][name].as_f64().expect("a number");
        assert!(
            latency("p50") <= latency("p90") && latency("p90") <= latency("p99") && latency("p99") <= latency("max")
        );
        let cost = |name: &str| run["cost"][name].as_f64().expect("a number");
        assert!((cost("workers") + cost("calls") - cost("total")).abs() < 1e-9);
        assert!(run["billed_hours"].as_f64() >= run["worker_hours"].as_f64());
    }
}

#[test]
fn load_depends_only_on_the_seed() {
    let run =
        |seed| stdout(&simulate(&["--rate", "5", "--service-time", "1s", "--service-time-p99", "3s", "--seed", seed]));
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn timeline_is_valid_csv_and_plot_a_valid_image() {
    let folder = tempfile::tempdir().expect("a directory");
    let (csv, svg, png) = (folder.path().join("t.csv"), folder.path().join("t.svg"), folder.path().join("t.png"));
    let policies = ["--policy", "step", "--policy", "target", "--csv", path(&csv), "--plot"];
    let text = stdout(&simulate(&[&BURSTS[..], &policies[..], &[path(&svg)]].concat()));
    assert_eq!(text, stdout(&simulate(&[&BURSTS[..], &policies[..], &[path(&png)]].concat())));

    let mut reader = csv::Reader::from_path(&csv).expect("a CSV");
    let heads: Vec<String> = reader.headers().expect("a heading").iter().map(str::to_owned).collect();
    assert_eq!(heads[..4], ["policy", "second", "arrivals", "completed"]);
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("rows of one length");
    let of = |policy: &str| rows.iter().filter(|row| &row[0] == policy).count();
    assert!(of("step") >= 1800 && of("step") == of("target") && of("step") * 2 == rows.len(), "{}", rows.len());

    let plot = fs::read_to_string(&svg).expect("an SVG");
    assert!(plot.contains("images waiting") && plot.contains(">\ntarget\n<"), "no titles");
    assert_well_formed(&plot);
    let plot = image::open(&png).expect("a PNG").into_rgb8();
    assert!(
        plot.width() > 800 && plot.pixels().any(|pixel| pixel[0] > 180 && pixel[2] < 60),
        "no line of the first colour"
    );
}

/// Checks that every element is closed in order and that attributes are quoted.
fn assert_well_formed(xml: &str) {
    let mut open = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a bare >");
        let end = at + rest[at..].find('>').expect("a tag that ends");
        let tag = &rest[at + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().expect("a name");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn trace_and_loadgen_report_are_accepted() {
    let folder = tempfile::tempdir().expect("a directory");
    let (trace, report) = (folder.path().join("trace.csv"), folder.path().join("report.json"));
    fs::write(&trace, "second,count\n0,40\n30,2\n").expect("written");
    fs::write(
        &report,
        r#"{"loop": "closed", "concurrency": 8, "images_per_second": 4.0, "latency_ms": {"mean": 2050.0},
            "server_timings_ms": {"total": 2000.0}}"#,
    )
    .expect("written");
    let measured = ["--from-loadgen", path(&report), "--measured-workers", "2", "--sessions", "1", "--json"];
    let load = ["--arrivals", "trace", "--trace", path(&trace), "--min", "1", "--max", "1"];
    let text = stdout(&simulate(&[&measured[..], &load[..]].concat()));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["requests"], &report["service_time_seconds"]), (&json!(42), &json!(0.5)));
    // Forty images arrive in the first second at one worker, so the last of them completes after 20 s. The two at 30 s
    // complete in 1 s.
    assert_eq!(report["overhead_seconds"], 0.05);
    let run = &report["runs"][0];
    assert_eq!(run["drained_at_seconds"], 31.0);
    assert_eq!(run["latency_ms"]["max"], 19_075.0);
}

#[test]
fn invalid_input_is_refused_with_one_line() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("written");
        path(&file).to_owned()
    };
    let trace = file("trace.csv", "0\n1.5\nnoon\n");
    let prices = file("prices.toml", "date = \"today\"\nregion = 7\n");
    let report = file("report.json", r#"{"loop": "open", "concurrency": 8, "images_per_second": 4.0}"#);
    let (service, rate) = (["--service-time", "1s"], ["--rate", "1"]);
    let nowhere = path(&folder.path().join("nowhere/t.svg")).to_owned();

    for (arguments, expected) in [
        (vec!["--arrivals", "trace", "--trace", &trace, "--service-time", "1s"], "line 3: \"noon\""),
        ([&service[..], &rate, &["--prices", &prices]].concat(), "line 2:"),
        ([&service[..], &rate, &["--prices", "no-such-file.toml"]].concat(), "no-such-file.toml"),
        ([&service[..], &rate, &["--instance-type", "c99.huge"]].concat(), "no price of instance type \"c99.huge\""),
        ([&rate[..], &["--from-loadgen", &report]].concat(), "closed loop"),
        ([&rate[..], &["--from-loadgen", &prices]].concat(), "not a report of `imgcls loadgen --json`"),
        ([&service[..], &rate, &["--plot", &nowhere]].concat(), "cannot write the plot"),
        ([&service[..], &rate, &["--csv", &nowhere]].concat(), "cannot write the timeline"),
        ([&service[..], &["--rate", "0.001", "--duration", "1s"]].concat(), "no request starts within"),
        ([&service[..], &["--rate", "1000000", "--duration", "1h"]].concat(), "more than 20000000 requests"),
    ] {
        let stderr = refusal(&arguments, 1);
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }

    for (arguments, expected) in [
        ([&service[..], &rate, &["--min", "5", "--max", "4"]].concat(), "--min and --max"),
        ([&service[..], &rate, &["--policy", "target:min=5"]].concat(), "--min and --max"),
        ([&service[..], &rate, &["--policy", "fancy"]].concat(), "`step` or `target`"),
        ([&service[..], &rate, &["--policy", "step:colour=red"]].concat(), "no setting \"colour\""),
        ([&service[..], &rate, &["--policy", "target:slo=soon"]].concat(), "slo=soon"),
        ([&service[..], &rate, &["--plot", "plot.gif"]].concat(), "file.svg or a file.png"),
        ([&service[..], &rate, &["--metric-period", "1ms"]].concat(), "--metric-period"),
        ([&service[..], &rate, &["--service-time-p99", "1m"]].concat(), "14.9 times"),
        (service.to_vec(), "--rate"),
        (rate.to_vec(), "--service-time"),
        ([&service[..], &["--arrivals", "burst", "--rate", "1"]].concat(), "--burst-rate"),
        ([&service[..], &["--arrivals", "day"]].concat(), "--rate"),
        ([&service[..], &["--arrivals", "trace"]].concat(), "--trace FILE"),
    ] {
        let stderr = refusal(&arguments, 2);
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}
