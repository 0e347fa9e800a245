//! `imgcls plan`: the fleet that it finds is the smallest that keeps the goal, its file is what `provision` reads, and its
//! chart shows a measured run over the simulated one.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::imgcls;

/// Four images a second for ten minutes, a second each.
const LOAD: [&str; 8] =
    ["--rate", "4", "--duration", "10m", "--service-time", "1s", "--instance-type", "c7i.large,c6i.large"];

fn run(command: &str, arguments: &[&str]) -> Output {
    imgcls().arg(command).args(arguments).output().expect("it starts")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn plan(arguments: &[&str]) -> Value {
    let output = run("plan", &[&LOAD[..], arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    json_of(&output)
}

fn fleet<'a>(report: &'a Value, policy: &str) -> &'a Value {
    let fleets = report["fleets"].as_array().expect("fleets");
    fleets.iter().find(|fleet| fleet["policy"] == policy).unwrap_or_else(|| panic!("no {policy}: {report}"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn constant_fleet_is_the_smallest_that_keeps_the_goal() {
    let report = plan(&["--goal", "p99<3s", "--compare", "target"]);
    let fixed = fleet(&report, "fixed");
    let count = fixed["max"].as_u64().expect("a number");
    assert_eq!(
        (&fixed["min"], &fixed["meets_goals"], &fixed["sessions_per_worker"]),
        (&json!(count), &json!(true), &json!(2))
    );
    // `simulate` agrees about this fleet and about the next smaller one.
    let p99 = |count: u64| {
        let count = count.to_string();
        let load =
            ["--rate", "4", "--duration", "10m", "--service-time", "1s", "--min", &count, "--max", &count, "--json"];
        json_of(&run("simulate", &load))["runs"][0]["latency_ms"]["p99"].as_f64().expect("a latency")
    };
    assert!(p99(count) < 3000.0 && p99(count - 1) >= 3000.0, "{count}: {} {}", p99(count), p99(count - 1));
    assert_eq!(fixed["latency_ms"]["p99"], p99(count));
}

#[test]
fn fleets_that_meet_the_goal_come_first_and_the_cheapest_of_them_first() {
    let report = plan(&["--goal", "p99<1m", "--goal", "mean<30s"]);
    let fleets = report["fleets"].as_array().expect("fleets");
    // `fixed`, `step` and three targets on two types.
    assert_eq!(fleets.len(), 10, "{report}");
    let order: Vec<(bool, f64)> = fleets
        .iter()
        .map(|fleet| (fleet["meets_goals"] == false, fleet["cost"]["total"].as_f64().expect("money")))
        .collect();
    assert!(order.is_sorted(), "{order:?}");
    let best = &fleets[0];
    let latency = |name: &str| best["latency_ms"][name].as_f64().expect("a latency");
    assert!(best["meets_goals"] == true && latency("p99") < 60_000.0 && latency("mean") < 30_000.0, "{best}");
    let cost = |name: &str| best["cost"][name].as_f64().expect("money");
    assert!((cost("workers") + cost("web") + cost("calls") - cost("total")).abs() < 1e-9, "{best}");
    // Ten minutes are a part of a month of 730 hours.
    assert!((cost("total") * 6.0 * 730.0 / cost("month") - 1.0).abs() < 1e-9, "{best}");
    // The same fleet on the cheaper type costs less.
    assert_eq!(best["instance_type"], "c6i.large", "{best}");
    let output = run("plan", &[&LOAD[..], &["--goal", "p99<1m"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("cheapest: ") && text.contains("× c6i.large under "), "{text}");
}

#[test]
fn faster_machines_need_fewer_workers() {
    let count = |kind: &str| {
        let load = [
            "--rate",
            "20",
            "--duration",
            "5m",
            "--service-time",
            "1s",
            "--goal",
            "p99<3s",
            "--compare",
            "step",
            "--json",
        ];
        let report = json_of(&run("plan", &[&load[..], &["--instance-type", kind]].concat()));
        fleet(&report, "fixed")["max"].as_u64().expect("a number")
    };
    assert!(count("c7i.large=2") < count("c7i.large") && count("c7i.xlarge") < count("c7i.large"));
}

#[test]
fn written_settings_are_those_that_provision_reads() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("stack.toml");
    for (policy, setting) in [("step", "scale-out-above"), ("target:slo=2s", "service-time")] {
        let report = plan(&[
            "--goal",
            "p99<1m",
            "--compare",
            policy,
            "--sessions",
            "2",
            "--spot-share",
            "50",
            "--out",
            path(&file),
        ]);
        let best = &report["fleets"][0];
        let shown = run("config", &["show", "provision", "--config", path(&file), "--json"]);
        assert_eq!(shown.status.code(), Some(0), "{shown:?}");
        let text = fs::read_to_string(&file).expect("written");
        let shown = json_of(&shown);
        let settings = shown["settings"].as_array().unwrap_or_else(|| panic!("{shown}"));
        let value = |name: &str| {
            let setting = settings.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}: {shown}"));
            setting["value"].clone()
        };
        let number = |value: Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        assert_eq!(number(value("min")), best["min"].as_u64(), "{text}");
        assert_eq!(number(value("max")), best["max"].as_u64(), "{text}");
        assert_eq!(number(value("spot-share")), Some(50), "{text}");
        assert!(value("instance-type").to_string().contains(best["instance_type"].as_str().expect("text")), "{text}");
        assert!(text.contains("[worker]\nsessions = 2\n"), "{text}");
        // A constant fleet may be the cheapest, and then has the settings of `step`.
        assert!(best["policy"] == "fixed" || text.contains(setting), "{text}");
    }
}

#[test]
fn goal_that_no_fleet_meets_is_exit_code_99_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("stack.toml");
    let output = run("plan", &[&LOAD[..], &["--goal", "p50<100ms", "--up-to", "5", "--out", path(&file)]].concat());
    assert_eq!(output.status.code(), Some(99), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("MISS") && text.contains("no fleet meets the goal: raise --up-to"), "{text}");
    assert!(!file.exists());
}

#[test]
fn measured_run_is_drawn_over_the_simulated_ones() {
    let folder = tempfile::tempdir().expect("a directory");
    let (svg, report) = (folder.path().join("plan.svg"), folder.path().join("report.json"));
    let row = |second: u32| json!({"from_seconds": second, "seconds": 1.0, "ok": 4, "failed": 0, "p50_ms": 900.0, "p90_ms": 1000.0, "p99_ms": null});
    let measured = json!({
        "loop": "closed", "concurrency": 8, "images_per_second": 2.0, "latency_ms": {"mean": 2050.0},
        "server_timings_ms": {"total": 2000.0}, "timeline": (0..20).map(row).collect::<Vec<_>>()
    });
    fs::write(&report, measured.to_string()).expect("written");
    let load = ["--rate", "4", "--duration", "2m", "--from-loadgen", path(&report), "--measured-sessions", "2"];
    let output = run(
        "plan",
        &[&load[..], &["--goal", "p99<20s", "--plot", path(&svg), "--overlay", path(&report), "--json"]].concat(),
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let plan = json_of(&output);
    assert_eq!((&plan["service_time_seconds"], &plan["overhead_seconds"]), (&json!(1.0), &json!(0.05)));
    let plot = fs::read_to_string(&svg).expect("an SVG");
    // Twenty answers and twenty latencies.
    assert_eq!(plot.matches("<circle").count(), 40, "{plot}");
    assert!(plot.contains("dots: measured answers") && plot.contains("fixed"), "no titles");
    let drawn =
        ["--rate", "4", "--duration", "2m", "--service-time", "1s", "--plot", path(&svg), "--overlay", path(&report)];
    assert_eq!(run("simulate", &drawn).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&svg).expect("an SVG").matches("<circle").count(), 40);
}

#[test]
fn wrong_input_is_refused_in_one_line() {
    let goal = ["--goal", "p99<3s"];
    for (arguments, expected, code) in [
        (&LOAD[..], "--goal", 2),
        (&["--goal", "p99<3s", "--service-time", "1s"][..], "--rate", 2),
        (&["--goal", "p99<3s", "--rate", "1"], "--service-time", 2),
        (&["--goal", "p99<3s", "--rate", "1", "--from-loadgen", "x"], "--measured-sessions", 2),
        (&["--goal", "p99>3s", "--rate", "1", "--service-time", "1s"], "a goal limits a latency", 2),
        (&["--goal", "failed==0", "--rate", "1", "--service-time", "1s"], "a goal limits a latency", 2),
        (
            &["--goal", "p99<3s", "--rate", "1", "--service-time", "1s", "--compare", "step:max=3"],
            "limit it with --up-to",
            2,
        ),
        (
            &["--goal", "p99<3s", "--rate", "1", "--service-time", "1s", "--instance-type", "c7i.large=fast"],
            "not a speed",
            2,
        ),
        (&["--goal", "p99<3s", "--rate", "1", "--service-time", "1s", "--instance-type", "c99.huge"], "no price of", 1),
        (
            &["--goal", "p99<3s", "--rate", "1", "--service-time", "1s", "--min", "5", "--up-to", "4"],
            "--min at most --up-to",
            2,
        ),
    ] {
        let output = run("plan", arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected) && output.stdout.is_empty(), "{arguments:?}: {stderr}");
    }
    let folder = tempfile::tempdir().expect("a directory");
    let nowhere = folder.path().join("none/stack.toml");
    let output = run("plan", &[&LOAD[..], &goal, &["--out", path(&nowhere)]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("none/stack.toml"), "{output:?}");
}
