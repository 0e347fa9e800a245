//! `imgcls status` and `imgcls top`.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{imgcls, request, test_image, until};
use crate::metrics::start_up;

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn status_shows_service_workers_queues_disk_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (mut up, address) = start_up(dir.path(), &["--max-workers", "1"]);
    let answer = request(address, "POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let broken = request(address, "POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg")[..300]).unwrap();
    assert_eq!(broken.status, 422, "{}", broken.text());
    let url = format!("http://{address}");
    let command = |name: &str| {
        let mut command = imgcls();
        command.args([name, "--url", &url, "--refresh", "100ms", "--data-dir"]).arg(dir.path().join("data"));
        command
    };
    let report: Value = until("the report of the worker", || {
        let output = run(command("status").arg("--json"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["throughput"]["images_total"] == 1.0).then_some(report)
    });
    assert_eq!((&report["service"]["is_ready"], &report["service"]["state"]), (&true.into(), &"ready".into()));
    assert_eq!(report["service"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&report["workers"]["ready"], &report["workers"]["wanted"]), (&1.into(), &1.into()));
    assert_eq!((&report["queues"][0]["role"], &report["queues"][0]["visible"]), (&"requests".into(), &0.into()));
    assert_eq!(report["queues"].as_array().unwrap().len(), 4, "{report}");
    assert!(report["disk"]["used_bytes"].as_u64() > Some(0), "{report}");
    assert_eq!(report["last_errors"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["last_errors"][0]["code"], "undecodable");

    let shown = text(&run(&mut command("status")));
    for part in
        ["ready, version", "1 ready of 1 wanted", "images/s", "dead letters 0 waiting", "used,", "undecodable: "]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    // Output that is not a terminal has no escape sequences.
    let output = run(command("top").args(["--count", "2"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output).matches("\nbackend ").count(), 2, "{output:?}");
    assert!(!text(&output).contains('\x1b') && text(&output).contains("images/s     ▁"), "{output:?}");

    up.signal("TERM");
    assert_eq!(up.wait(), Some(0));
    let output = run(&mut command("status"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output).contains("does not answer: ") && text(&output).contains("requests     0 waiting"),
        "{output:?}"
    );
}

#[test]
fn status_creates_no_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    for name in ["status", "top"] {
        let output = run(imgcls().args([name, "--data-dir"]).arg(&missing));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("there is no data directory"), "{output:?}");
    }
    assert!(!missing.exists());
}

#[test]
fn command_that_a_variable_sends_to_aws_names_the_service_that_runs_here() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, _) = start_up(dir.path(), &["--max-workers", "1"]);
    let depth = |environment: &[(&str, &str)], flags: &[&str]| {
        let mut command = imgcls();
        command.args(["queue", "depth", "--data-dir"]).arg(dir.path().join("data")).args(flags);
        run(command.envs(environment.iter().copied()))
    };
    let aws = [("AWS_REGION", "us-east-1"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let output = until("the lock of the service", || {
        Some(depth(&aws, &[])).filter(|output| stderr(output).contains("--backend local reaches"))
    });
    let hint = stderr(&output).lines().next().unwrap().to_owned();
    assert!(hint.starts_with("imgcls: AWS_REGION selects AWS; a local service runs on "), "{hint}");
    assert_eq!(output.status.code(), Some(1), "AWS is used, and has no credentials: {output:?}");
    let output = depth(&aws, &["--backend", "local"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(depth(&[], &[]).stderr.is_empty());
}
