//! `imgcls tune`, and the workers that use its result.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Process, imgcls, test_image};

/// Runs `tune` on a machine that other tests use. Returns its report and the path of the stored result.
fn tune(cache: &Path, flags: &[&str]) -> (Value, PathBuf) {
    let mut command = imgcls();
    command.args(["tune", "--busy-ok", "--json", "--seconds", "0.5", "--cache-dir"]).arg(cache).args(flags);
    let output = command.output().unwrap();
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
    let (report, kept) = tune(&cache, &[]);
    let trials = report["trials"].as_array().unwrap();
    assert!(trials.iter().all(|trial| trial["images_per_second"].as_f64().unwrap() > 0.0), "{report}");
    assert!(trials.iter().any(|trial| trial["batch_size"].as_u64() > Some(1)), "{report}");
    let found: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!(found, report["found"]);
    let batches = found["batches"].as_array().unwrap();
    let sizes: Vec<_> = batches.iter().map(|batch| batch["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 2, 4, 8]);
    for batch in batches {
        let (inference, whole) = (batch["infer_ms"].as_f64().unwrap(), batch["batch_ms"].as_f64().unwrap());
        assert!(0.0 < inference && inference < whole && batch["gain"].as_f64().unwrap() < 1.0, "{batch}");
    }

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
        .args(["tune", "--busy-ok", "--seconds", "0.2", "--variant", "fp16", "--cache-dir"])
        .arg(file.join("cache"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (table, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("images/s") && table.contains('←'), "{table}");
    assert!(error.lines().last().unwrap().contains("--cache-dir"), "{error}");
}

#[test]
fn tune_compares_the_answers_of_each_variant_with_the_widest() {
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = tune(&dir.path().join("cache"), &[]);
    let agreement = &report["agreement"];
    assert_eq!((&agreement["reference"], &agreement["images"]), (&json!("fp16"), &json!(6)), "{report}");
    let int8 = agreement["variants"].as_array().unwrap().iter().find(|compared| compared["variant"] == "int8");
    if let Some(share) = int8.map(|int8| int8["agreement"].as_f64().unwrap()) {
        let is_left_out = report["left_out"].as_array().unwrap().contains(&json!("int8"));
        assert_eq!(is_left_out, share < 0.95, "{report}");
    } else {
        println!("this CPU has no 8-bit dot products, so the int8 file is not compared");
    }
}

/// A package of the shipped network whose default file answers at random.
fn package_with_a_wrong_file(dir: &Path) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/efficientnet-lite0");
    let package = dir.join("package");
    std::fs::create_dir(&package).unwrap();
    let mut right = std::fs::read(shipped.join("efficientnet-lite0-fp16.onnx")).unwrap();
    // The weights of the classifier are near the end of the file. In reverse order they mean nothing.
    let (mut wrong, end) = (right.clone(), right.len() - 100_000);
    let weights = &mut wrong[end - 2_300_000..end];
    let reversed: Vec<u8> = weights.chunks_exact(2).rev().flatten().copied().collect();
    weights.copy_from_slice(&reversed);
    // A description (`doc_string`) of 100 bytes makes the right file the widest.
    right.extend([0x32, 100].into_iter().chain([b' '; 100]));
    let digest = |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let description = std::fs::read_to_string(shipped.join("model.toml")).unwrap();
    let (before, rest) = description.split_once("[files.int8]").unwrap();
    let (_, rest) = rest.split_once("[labels_file]").unwrap();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(package.join(name), bytes).unwrap();
        format!("[files.{name}]\npath = \"{name}\"\nsha256 = \"{}\"\n", digest(bytes))
    };
    let files = file("a-wrong", &wrong) + &file("right", &right);
    std::fs::write(package.join("model.toml"), format!("{before}{files}[labels_file]{rest}")).unwrap();
    std::fs::copy(shipped.join("labels.txt"), package.join("labels.txt")).unwrap();
    package
}

#[test]
fn file_that_disagrees_is_chosen_only_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (package, cache) = (package_with_a_wrong_file(dir.path()), dir.path().join("cache"));
    let model = ["--model", package.to_str().unwrap()];
    let (report, _) = tune(&cache, &model);
    assert_eq!(report["agreement"]["reference"], "right", "{report}");
    assert_eq!((&report["left_out"], &report["found"]["variant"]), (&json!(["a-wrong"]), &json!("right")), "{report}");
    let (report, _) = tune(&cache, &[&model[..], &["--variant", "a-wrong"]].concat());
    assert_eq!((&report["left_out"], &report["found"]["variant"]), (&json!([]), &json!("a-wrong")), "{report}");
    assert!(report["agreement"]["variants"][0]["agreement"].as_f64().unwrap() < 0.95, "{report}");
}

#[test]
fn answers_are_compared_on_the_images_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let package = package_with_a_wrong_file(dir.path());
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let run = || {
        let mut command = imgcls();
        command.args(["tune", "--busy-ok", "--json", "--seconds", "0.2", "--model"]).arg(&package);
        command.arg("--cache-dir").arg(dir.path().join("cache")).arg("--images").arg(&images).output().unwrap()
    };
    let output = run();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("has no image"), "{error}");
    for name in ["cat.jpg", "cup.jpg"] {
        std::fs::write(images.join(name), test_image(name)).unwrap();
    }
    std::fs::write(images.join("notes.txt"), "not an image").unwrap();
    let output = run();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["agreement"]["images"], 2, "{report}");
}

#[test]
fn busy_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let output = imgcls().args(["tune", "--seconds", "0.2", "--cache-dir"]).arg(dir.path()).output();
        stop.store(true, Ordering::Relaxed);
        output.unwrap()
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("% of this machine") && error.contains("--busy-ok"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is stored");
}
