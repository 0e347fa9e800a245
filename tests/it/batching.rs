//! Batches of workers, by what is known of the model.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::harness::{Service, free_port, imgcls, metrics, test_image};

const CLIENTS: usize = 16;
const IMAGES: usize = 48;

/// The times of batches that each take `times` ms, as `imgcls tune` stores them.
fn batches(times: [f64; 4]) -> Value {
    let batch = |(size, ms): (usize, f64)| {
        let gain = 1.0 - ms / size as f64 / times[0];
        json!({"size": size, "batch_ms": ms + size as f64, "infer_ms": ms, "gain": gain})
    };
    [1, 2, 4, 8].into_iter().zip(times).map(batch).collect()
}

/// The file with the result of `imgcls tune`, with these times of batches.
fn tuned(cache: &Path, times: [f64; 4]) -> PathBuf {
    let mut command = imgcls();
    command.args(["tune", "--busy-ok", "--json", "--seconds", "0.1", "--variant", "fp16", "--cache-dir"]).arg(cache);
    let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let kept = PathBuf::from(report["kept"].as_str().unwrap());
    let mut found = report["found"].clone();
    found["batches"] = batches(times);
    std::fs::write(&kept, found.to_string()).unwrap();
    kept
}

/// Images that were inferred by themselves, and all inferences, of a worker with one session under load.
fn single_and_all(cache: &Path, flags: &[&str]) -> (f64, f64) {
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (admin_text, cache) = (admin.to_string(), cache.to_str().unwrap());
    let own = ["--variant", "fp16", "--cache-dir", cache, "--admin-listen", &admin_text];
    let service = Service::start(1, &[], &[&own[..], flags].concat());
    let (image, next) = (test_image("cat.jpg"), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::AcqRel) < IMAGES {
                    assert_eq!(service.request("POST", "/v1/classify?wait=60", &[], &image).status, 200);
                }
            });
        }
    });
    let buckets = metrics(admin, "imgcls_worker_batch_size_bucket");
    let up_to = |labels: &str| buckets.iter().find(|(found, _)| found.contains(labels)).unwrap().1;
    (up_to("le=\"1\""), up_to("le=\"+Inf\""))
}

#[test]
fn model_without_gain_is_run_without_batches() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path(), [200.0, 398.0, 796.0, 1590.0]);
    let (single, all) = single_and_all(dir.path(), &[]);
    assert_eq!((single, all), (IMAGES as f64, IMAGES as f64));
}

#[test]
fn model_whose_batches_save_time_is_run_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path(), [1000.0, 1000.0, 1000.0, 1000.0]);
    let (single, all) = single_and_all(dir.path(), &[]);
    assert!(single < all && all < IMAGES as f64, "{single} of {all} inferences had a single image");
}

#[test]
fn flag_takes_precedence_over_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path(), [1000.0, 1000.0, 1000.0, 1000.0]);
    let (single, all) = single_and_all(dir.path(), &["--max-batch-size", "1"]);
    assert_eq!((single, all), (IMAGES as f64, IMAGES as f64));
}
