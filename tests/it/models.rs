//! Several models in one worker, swaps of versions under load, and the shadow model, with real workers and the real
//! runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use imgcls::config::{Backend, Names};
use imgcls::model::{Library, Prediction};
use imgcls::protocol::{ClassifyRequest, ClassifyResult, ErrorCode, Status, WIRE_VERSION};
use imgcls::transport::{self, Acknowledge, JobForm, NewJob, ServiceOptions, Transport};
use serde::Deserialize;
use uuid::Uuid;

use crate::harness::{DEADLINE, Process, imgcls, metric, test_image, until};
use crate::tiny_model::{CLASSES, write_package, write_package_with};

const IMAGES: [&str; 8] =
    ["cat.jpg", "cup.jpg", "rocket.jpg", "grey.jpg", "rgb.png", "lossy.webp", "odd-size.jpg", "palette.png"];

/// Scores may differ in the last digits, because a batch is added up in another order than one image.
const SCORE_TOLERANCE: f32 = 1e-3;

/// The answers of a model to each of [`IMAGES`], as `imgcls classify` prints them.
struct Expected(Vec<Vec<Prediction>>);

impl Expected {
    fn of(model: &str) -> Expected {
        #[derive(Deserialize)]
        struct Line {
            predictions: Vec<Prediction>,
        }
        let mut command = imgcls();
        command.args(["classify", "--json", "--model", model]).args(IMAGES);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
        let output = command.current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        Expected(text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().predictions).collect())
    }

    fn is_answered_by(&self, image: usize, result: &ClassifyResult) -> bool {
        let score = |prediction: &Prediction| prediction.score.unwrap();
        let is_close = |(one, other): (&Prediction, &Prediction)| {
            one.class_index == other.class_index
                && one.label == other.label
                && (score(one) - score(other)).abs() < SCORE_TOLERANCE
        };
        let expected = &self.0[image];
        result.predictions.len() == expected.len() && result.predictions.iter().zip(expected).all(is_close)
    }

    fn label(&self, image: usize) -> &str {
        &self.0[image][0].label
    }
}

/// A worker with its data directory, and the transport of a client.
struct Bench {
    transport: Arc<dyn Transport>,
    worker: Process,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start(flags: &[&str]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::Local { data_dir: dir.path().join("data") };
        let transport = transport::open(&backend, &Names::local("imgcls")).await.unwrap();
        let options = ServiceOptions { visibility_timeout: Duration::from_secs(30), max_receive_count: 5 };
        transport.prepare(options).await.unwrap();
        let worker = Process::start(worker_command(dir.path(), flags), &dir.path().join("worker.log"));
        worker.wait_for_log("ready");
        Bench { transport, worker, _dir: dir }
    }

    async fn submit(&self, image: usize, model: Option<&str>) -> Uuid {
        let (id, now) = (Uuid::now_v7(), jiff::Timestamp::now());
        let request = ClassifyRequest {
            v: WIRE_VERSION,
            id,
            filename: IMAGES[image].to_owned(),
            content_type: None,
            image: None,
            image_data: None,
            top_k: 5,
            model: model.map(str::to_owned),
            batch: None,
            submitted_at: now,
            expires_at: now.saturating_add(Duration::from_secs(3_600)).unwrap(),
            reply_to: None,
            traceparent: None,
        };
        let form = JobForm::Request { request: Box::new(request), inline_bytes: 0 };
        let image = Bytes::from(test_image(IMAGES[image]));
        let acknowledge = Acknowledge::WhenDurable;
        let job = NewJob { id, image: &image, content_type: "image/jpeg", form, acknowledge };
        self.transport.submit(job).await.unwrap();
        id
    }

    async fn result(&self, id: Uuid) -> ClassifyResult {
        let began = Instant::now();
        loop {
            if let Some(text) = self.transport.result(id).await.unwrap() {
                return serde_json::from_slice(&text).unwrap();
            }
            assert!(began.elapsed() < DEADLINE, "no result of {id}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn metric(&self, line: &str) -> u64 {
        metric(self.worker.admin_address(), line) as u64
    }

    /// Returns true if a version of the tiny model is in use.
    fn is_in_use(&self, version: &str) -> bool {
        self.metric(&format!("imgcls_worker_model{{name=\"tiny\",version=\"{version}\"}}")) == 1
    }
}

fn worker_command(dir: &Path, flags: &[&str]) -> std::process::Command {
    let mut command = imgcls();
    command.args(["worker", "--backend", "local", "--admin-listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(dir.join("data")).args(flags);
    command
}

/// Runs a worker that must refuse to start, and returns the last line of its log.
fn refusal(flags: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = Process::start(worker_command(dir.path(), flags), &dir.path().join("worker.log"));
    assert_eq!(worker.wait(), Some(1), "{}", worker.log());
    worker.log().lines().last().unwrap().to_owned()
}

/// A models directory with versions of the model `tiny`.
struct ModelsDir(tempfile::TempDir);

impl ModelsDir {
    fn new(versions: &[(&str, u32)]) -> ModelsDir {
        let dir = ModelsDir(tempfile::tempdir().unwrap());
        for (version, seed) in versions {
            write_package(&dir.package(version), "tiny", version, *seed);
        }
        dir.make_current(versions[0].0);
        dir
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn package(&self, version: &str) -> PathBuf {
        self.0.path().join("tiny").join(version)
    }

    /// Moves the pointer as `imgcls model use` does.
    fn make_current(&self, version: &str) {
        Library::new(self.0.path()).use_version("tiny", version).unwrap();
    }
}

fn tiny_model(seed: u32) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let folder = write_package(&dir.path().join("tiny"), "tiny", "v1", seed).to_str().unwrap().to_owned();
    (dir, folder)
}

#[tokio::test]
async fn each_image_gets_the_answer_of_the_model_that_its_request_names() {
    let (_dir, tiny) = tiny_model(1);
    let expected = [Expected::of("efficientnet-lite0"), Expected::of(&tiny)];
    let flags = ["--sessions", "2", "--max-batch-size", "4", "--max-batch-delay", "20ms"];
    let bench = Bench::start(&[&["--model", "efficientnet-lite0", "--model", &tiny][..], &flags[..]].concat()).await;
    let wanted = [None, Some("tiny"), Some("efficientnet-lite0"), Some("tiny@v1"), Some("tiny")];
    let mut jobs = Vec::new();
    for number in 0..96 {
        let (image, model) = (number % IMAGES.len(), wanted[number % wanted.len()]);
        jobs.push((bench.submit(image, model).await, image, model));
    }
    for (id, image, model) in jobs {
        let result = bench.result(id).await;
        assert_eq!(result.status, Status::Succeeded, "{result:?}");
        let is_tiny = model.is_some_and(|model| model.starts_with("tiny"));
        assert_eq!(result.model.as_ref().unwrap().name, if is_tiny { "tiny" } else { "efficientnet-lite0" });
        assert!(expected[usize::from(is_tiny)].is_answered_by(image, &result), "{result:?}");
        assert!(result.labels.is_empty(), "only heads with several labels have them");
    }
    assert!(bench.metric("imgcls_worker_batch_size_bucket{le=\"1\"}") < 96, "no images were inferred together");
}

#[tokio::test]
async fn model_that_gives_several_labels_names_those_above_its_threshold() {
    let dir = tempfile::tempdir().unwrap();
    let output = "[output]\nactivation = \"sigmoid\"\nmulti_label = true\nthreshold = 0.6\n";
    let tiny = write_package_with(dir.path(), "tiny", "v1", 1, output);
    let bench = Bench::start(&["--model", tiny.to_str().unwrap(), "--sessions", "1"]).await;
    let mut counts = BTreeSet::new();
    for image in 0..IMAGES.len() {
        let result = bench.result(bench.submit(image, None).await).await;
        let above: Vec<Prediction> =
            result.predictions.iter().filter(|prediction| prediction.score.unwrap() >= 0.6).cloned().collect();
        assert_eq!(result.labels, above, "{result:?}");
        counts.insert(result.labels.len());
    }
    assert!(
        counts.iter().all(|count| (1..CLASSES).contains(count)),
        "with {counts:?} labels the threshold shows nothing"
    );
}

#[tokio::test]
async fn request_for_an_unknown_model_fails_at_once() {
    let (_dir, tiny) = tiny_model(1);
    let bench = Bench::start(&["--model", &tiny]).await;
    for wanted in ["efficientnet-lite0", "tiny@v2", "tin", "tiny@", ""] {
        let result = bench.result(bench.submit(0, Some(wanted)).await).await;
        assert_eq!((result.status, result.attempt), (Status::Failed, 1), "{wanted:?}");
        let error = result.error.unwrap();
        assert_eq!(error.code, ErrorCode::UnknownModel, "{wanted:?}");
        assert!(error.message.contains("it has: tiny"), "{}", error.message);
    }
    let long = bench.result(bench.submit(0, Some(&"x".repeat(60_000))).await).await;
    assert!(long.error.unwrap().message.len() < 500);
    assert_eq!(bench.result(bench.submit(0, None).await).await.status, Status::Succeeded);
}

#[test]
fn models_that_do_not_fit_are_refused_at_the_start() {
    let (_dir, tiny) = tiny_model(1);
    let error = refusal(&["--model", "efficientnet-lite0", "--model", &tiny, "--model-memory", "1MiB"]);
    assert!(
        error.contains("more than the 1 MiB of --model-memory") && error.contains("efficientnet-lite0@1"),
        "{error}"
    );
    let error = refusal(&["--model", &tiny, "--model", &tiny]);
    assert!(error.contains("--model lists tiny@v1 twice"), "{error}");
    let error = refusal(&["--model", &tiny, "--shadow", "no-such-model"]);
    assert!(error.contains("--shadow") && error.contains("no-such-model"), "{error}");
}

/// Five swaps while images keep coming. Each result names the version that made it and equals the answer of that version.
#[tokio::test]
async fn swaps_under_load_lose_no_image_and_each_result_names_its_version() {
    let fewest = if std::env::var_os("IMGCLS_TEST_LONG").is_some() { 2_000 } else { 300 };
    let versions = [("v1", 1), ("v2", 2), ("v3", 3)];
    let models = ModelsDir::new(&versions);
    let answers = |version: &str| Expected::of(models.package(version).to_str().unwrap());
    let expected: BTreeMap<&str, Expected> = versions.map(|(version, _)| (version, answers(version))).into();
    let bench = Bench::start(&["--models-dir", models.path(), "--model", "tiny", "--sessions", "2"]).await;
    let plan = ["v2", "v3", "v1", "v3", "v2"];
    let (mut current, mut wanted, mut swaps, mut sent) = ("v1", "v1", 0, 0);
    let mut seen = BTreeSet::new();
    while sent < fewest || swaps < plan.len() || current != wanted {
        if current == wanted && swaps < plan.len() && sent >= fewest * (swaps + 1) / (plan.len() + 1) {
            wanted = plan[swaps];
            models.make_current(wanted);
            swaps += 1;
        }
        let mut jobs = Vec::new();
        for image in 0..IMAGES.len() {
            jobs.push((bench.submit(image, None).await, image));
        }
        sent += jobs.len();
        for (id, image) in jobs {
            let result = bench.result(id).await;
            assert_eq!((result.status, result.attempt), (Status::Succeeded, 1), "{result:?}");
            let version = result.model.as_ref().unwrap().version.as_str();
            assert!(version == current || version == wanted, "{version} is neither {current} nor {wanted}");
            assert!(expected[version].is_answered_by(image, &result), "{result:?}");
            seen.insert(version.to_owned());
        }
        // Images that are submitted from then on get the new version.
        if current != wanted && bench.is_in_use(wanted) {
            current = wanted;
        }
    }
    assert_eq!(seen.len(), versions.len());
    // A swap is counted a moment after the last thread has switched.
    let swaps = "imgcls_worker_model_swaps_total{outcome=\"switched\"}";
    until("five swaps are counted", || (bench.metric(swaps) == 5).then_some(()));
    println!("{sent} images, 5 swaps");
}

#[tokio::test]
async fn version_that_cannot_be_loaded_changes_nothing_and_is_logged_once() {
    let models = ModelsDir::new(&[("v1", 1), ("bad", 2), ("v2", 2)]);
    fs::write(models.package("bad").join("model.onnx"), "no model").unwrap();
    let expected = Expected::of(models.package("v1").to_str().unwrap());
    let bench = Bench::start(&["--models-dir", models.path(), "--model", "tiny", "--sessions", "1"]).await;
    models.make_current("bad");
    bench.worker.wait_for_log("cannot switch model tiny");
    for image in 0..IMAGES.len() {
        let result = bench.result(bench.submit(image, None).await).await;
        assert_eq!(result.model.as_ref().unwrap().version, "v1");
        assert!(expected.is_answered_by(image, &result), "{result:?}");
    }
    models.make_current("v2");
    bench.worker.wait_for_log("switched to another version");
    let log = bench.worker.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("cannot switch model tiny")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("sha256") && lines[0].contains("imgcls model rollback tiny"), "{}", lines[0]);
    assert!(bench.is_in_use("v2") && !bench.is_in_use("v1"));
    let result = bench.result(bench.submit(0, Some("tiny@v2")).await).await;
    assert_eq!(result.model.unwrap().version, "v2");
}

#[tokio::test]
async fn shadow_model_reports_how_often_it_agrees() {
    let (_dir, tiny) = tiny_model(1);
    let other = tempfile::tempdir().unwrap();
    let shadow = write_package(other.path(), "other", "v9", 4);
    let shadow = shadow.to_str().unwrap();
    let (first, second) = (Expected::of(&tiny), Expected::of(shadow));
    let agreeing = (0..IMAGES.len()).filter(|image| first.label(*image) == second.label(*image)).count();
    let flags = ["--model", &tiny, "--shadow", shadow, "--shadow-share", "1", "--sessions", "1"];
    let mut bench = Bench::start(&flags).await;
    for image in 0..IMAGES.len() {
        let result = bench.result(bench.submit(image, None).await).await;
        assert_eq!(result.model.as_ref().unwrap().name, "tiny");
        assert!(first.is_answered_by(image, &result), "{result:?}");
        // The images come one after the other, so that the shadow model is never busy.
        let compared = image as u64 + 1;
        until("the comparison", || (bench.metric("imgcls_worker_shadow_compared_total") == compared).then_some(()));
    }
    assert_eq!(bench.metric("imgcls_worker_shadow_agreeing_total"), agreeing as u64);
    assert_eq!(bench.metric("imgcls_worker_shadow_skipped_total"), 0);
    let unknown = bench.result(bench.submit(0, Some("other")).await).await;
    assert_eq!(unknown.error.unwrap().code, ErrorCode::UnknownModel, "requests cannot name the shadow model");
    bench.worker.signal("TERM");
    assert_eq!(bench.worker.wait(), Some(0));
    let percent = agreeing as f64 * 100.0 / IMAGES.len() as f64;
    let line = format!("the shadow model agrees on {percent:.1} % of the images since the start");
    assert!(bench.worker.log().contains(&line), "{line}\n{}", bench.worker.log());
}

#[tokio::test]
async fn no_image_of_a_share_of_zero_is_compared() {
    let (_dir, tiny) = tiny_model(1);
    let flags = ["--model", &tiny, "--shadow", "efficientnet-lite0", "--shadow-share", "0", "--sessions", "1"];
    let bench = Bench::start(&flags).await;
    for image in 0..IMAGES.len() {
        assert_eq!(bench.result(bench.submit(image, None).await).await.status, Status::Succeeded);
    }
    assert_eq!(bench.metric("imgcls_worker_shadow_compared_total"), 0);
    assert_eq!(bench.metric("imgcls_worker_shadow_skipped_total"), 0);
}
