//! `imgcls tune`, and the workers that use its result.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Process, imgcls};

/// Runs `tune`. Returns its report and the path of the stored result.
fn tune(cache: &Path) -> (Value, PathBuf) {
    let output = imgcls().args(["tune", "--json", "--seconds", "0.5", "--cache-dir"]).arg(cache).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept = PathBuf::from(report["kept"].as_str().unwrap());
    (report, kept)
}

/// The log of a worker from its start until it is ready.
fn worker_log(dir: &Path, cache: &Path, flags: &[&str]) -> String {
    log_of(imgcls(), dir, cache, flags)
}

fn log_of(mut command: Command, dir: &Path, cache: &Path, flags: &[&str]) -> String {
    command.args(["worker", "--backend", "local", "--data-dir"]).arg(dir.join("data"));
    command.arg("--cache-dir").arg(cache).args(flags);
    let log = dir.join("worker.log");
    let _ = std::fs::remove_file(&log);
    let worker = Process::start(command, &log);
    worker.wait_for_log(" ready ");
    worker.log()
}

#[test]
fn worker_uses_the_result_of_tune_unless_a_flag_overrides_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let (report, kept) = tune(&cache);
    let trials = report["trials"].as_array().unwrap();
    assert!(trials.iter().all(|trial| trial["images_per_second"].as_f64().unwrap() > 0.0), "{report}");
    assert!(trials.iter().any(|trial| trial["batch_size"].as_u64() > Some(1)), "{report}");
    let found: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!(found, report["found"]);

    // These numbers are neither measured nor defaults.
    let found = json!({"variant": "fp16", "intra_threads": 2, "sessions": 3, "max_batch_size": null});
    std::fs::write(&kept, found.to_string()).unwrap();
    let log = worker_log(dir.path(), &cache, &[]);
    assert!(log.contains("imgcls tune") && log.contains("variant fp16") && log.contains("sessions=3"), "{log}");
    let log = worker_log(dir.path(), &cache, &["--sessions", "1"]);
    assert!(log.contains("variant fp16") && log.contains("sessions=1"), "{log}");

    std::fs::write(&kept, &found.to_string()[..20]).unwrap();
    let log = worker_log(dir.path(), &cache, &["--sessions", "1", "--variant", "fp16"]);
    assert!(log.contains("is ignored"), "{log}");
}

/// On a shared machine a worker uses only the cores of its CPU affinity.
#[test]
fn worker_opens_one_session_for_each_core_it_may_use() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let cores = std::thread::available_parallelism().unwrap();
    let log = worker_log(dir.path(), &cache, &[]);
    assert!(log.contains(&format!("sessions={cores} ")), "{log}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let one: String = allowed.chars().take_while(char::is_ascii_digit).collect();
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", &one, env!("CARGO_BIN_EXE_imgcls")]);
    let log = log_of(pinned, dir.path(), &cache, &[]);
    assert!(log.contains("sessions=1 "), "{log}");
}

#[test]
fn result_that_cannot_be_stored_is_printed_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let output = imgcls()
        .args(["tune", "--seconds", "0.2", "--variant", "fp16", "--cache-dir"])
        .arg(file.join("cache"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (table, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("images/s") && table.contains('←'), "{table}");
    assert!(error.lines().last().unwrap().contains("--cache-dir"), "{error}");
}
