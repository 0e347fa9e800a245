//! The models of a stack: packages and pointers in the bucket, and workers that follow them.

use std::path::Path;

use serde_json::Value;

use super::Stack;
use crate::harness::{Process, free_port, imgcls, label_of, request, test_image, until};
use crate::model_requests::second_model;

/// Gives the package another version.
fn change(folder: &Path, version: &str) {
    let path = folder.join("model.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| {
        if line.starts_with("version = ") { format!("version = \"{version}\"\n") } else { format!("{line}\n") }
    });
    std::fs::write(&path, lines.collect::<String>()).unwrap();
}

#[test]
fn swap_of_a_model_reaches_running_workers_and_changes_no_machines() {
    let folder = tempfile::tempdir().unwrap();
    let package = second_model(folder.path());
    let stack = Stack::at_plain_http_endpoint("swap");
    let with_model = |command: &str| {
        let model = package.to_str().unwrap();
        let flags = ["--model", model, "--model", "efficientnet-lite0", "--web-instances", "0"];
        stack.run(&[&[command][..], &flags].concat())
    };
    let succeeds = |command: &str| {
        let ran = with_model(command);
        assert_eq!(ran.code, Some(0), "{command}: {}\n{}", ran.stderr, ran.stdout);
        ran.stdout
    };
    let applied = succeeds("apply");
    assert!(applied.contains("+ model package      models/capitals/1/"), "{applied}");
    assert!(applied.contains("+ current model      models/efficientnet-lite0/current"), "{applied}");
    assert!(succeeds("plan").contains("nothing to do"));

    // A machine: it has no model of these names but those that it downloads.
    let models_dir = folder.path().join("models");
    let start = |tier: &str, flags: &[&str]| {
        let mut command = imgcls();
        command.args([tier, "--stack", "swap", "--sync-models", "--model", "capitals,efficientnet-lite0"]).args(flags);
        command.arg("--models-dir").arg(&models_dir).envs(stack.environment.clone());
        Process::start(command, &folder.path().join(format!("{tier}.log")))
    };
    let worker = start("worker", &["--sessions", "1"]);
    worker.wait_for_log("ready");
    let address = format!("127.0.0.1:{}", free_port());
    let _web = start("serve-web", &["--listen", &address]);
    let address = address.parse().unwrap();
    until("the web tier", || request(address, "GET", "/readyz", &[], b"").ok().filter(|answer| answer.status == 200));
    let classify = |query: &str| -> Value {
        let path = format!("/v1/classify?wait=50{query}");
        request(address, "POST", &path, &[], &test_image("cup.jpg")).unwrap().json()
    };
    let label = label_of("cup.jpg");
    let answer = classify("");
    assert_eq!((&answer["model"]["name"], &answer["model"]["version"]), (&"capitals".into(), &"1".into()), "{answer}");
    assert_eq!(answer["predictions"][0]["label"], label.to_uppercase().as_str());
    assert_eq!(classify("&model=efficientnet-lite0")["predictions"][0]["label"], label.as_str());

    change(&package, "2");
    let swapped = succeeds("apply");
    assert!(swapped.contains("1 to create, 1 to update, 0 to delete"), "{swapped}");
    until("the new version on the machine", || {
        let current = std::fs::read_to_string(models_dir.join("capitals/current")).ok()?;
        (current.lines().next() == Some("2")).then_some(())
    });
    until("an answer of the new version", || (classify("")["model"]["version"] == "2").then_some(()));
    let listed = request(address, "GET", "/v1/models/capitals", &[], b"").unwrap().json();
    assert_eq!((&listed["version"], &listed["classes"]), (&"2".into(), &1000.into()), "{listed}");

    // Back, without an upload.
    change(&package, "1");
    let back = succeeds("apply");
    assert!(back.contains("0 to create, 1 to update, 0 to delete"), "{back}");
    until("an answer of the old version", || (classify("")["model"]["version"] == "1").then_some(()));

    let labels = package.join("labels.txt");
    std::fs::write(&labels, std::fs::read_to_string(&labels).unwrap().replace("TENCH", "FISH")).unwrap();
    let refused = with_model("plan");
    assert!(refused.stderr.contains("version \"1\" of model \"capitals\" is in the bucket"), "{}", refused.stderr);
    drop(worker);
    stack.destroy();
}

#[test]
fn worker_does_not_start_without_a_model_that_it_should_download() {
    let stack = Stack::at_plain_http_endpoint("unmodelled");
    stack.succeeds(&["apply", "--web-instances", "0"]);
    let folder = tempfile::tempdir().unwrap();
    for (model, says) in [
        ("birds", "has no model \"birds\"; `imgcls provision --model birds` uploads it"),
        ("birds@1", "give each --model as a name, without a version"),
    ] {
        let mut worker = imgcls();
        worker.args(["worker", "--stack", "unmodelled", "--sync-models", "--model", model, "--models-dir"]);
        let output = worker.arg(folder.path()).envs(stack.environment.clone()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{model}: {error}");
    }
    stack.destroy();
}
