//! `imgcls loadgen` as a command, against a scripted server that speaks the documented HTTP API.

mod grades;
mod modes;
mod scripted;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scripted::{Answer, Server};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::children::{self, Worker};
use crate::harness::imgcls;

/// Runs the command without settings from the environment.
fn loadgen(server: &Server, args: &[&str]) -> Output {
    command(&server.url(), args).output().expect("it starts")
}

fn command(url: &str, args: &[&str]) -> Command {
    let mut command = imgcls();
    command.args(["loadgen", "--url", url]).args(args);
    command
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A folder of small images of one colour each; the colour encodes the number of the image.
fn folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    for (number, name) in names.iter().enumerate() {
        fs::write(folder.path().join(name), jpeg(number)).expect("written");
    }
    folder
}

fn jpeg(number: usize) -> Vec<u8> {
    let shade = u8::try_from(number * 40).expect("few images");
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([shade, 255 - shade, 7]));
    image.write_to(&mut bytes, image::ImageFormat::Jpeg).expect("encoded");
    bytes.into_inner()
}

/// A result object with these classes as predictions, best first.
fn result(classes: &[(u32, &str)]) -> Answer {
    let predictions: Vec<_> = classes
        .iter()
        .zip(1u32..)
        .map(|((class_index, label), rank)| {
            json!({"class_index": class_index, "label": label, "score": 0.5 / f64::from(rank)})
        })
        .collect();
    Answer::json(
        200,
        &json!({
            "v": 1, "id": "01970000-0000-7000-8000-000000000000", "filename": "x", "status": "succeeded",
            "predictions": predictions, "model": null, "attempt": 1, "worker": "w",
            "timings_ms": {"queued": 1.0, "fetched": 2.0, "decoded": 3.0, "inferred": 4.0, "total": 10.0}
        }),
    )
}

fn always_cat() -> Server {
    Server::start(|_| result(&[(281, "tabby")]))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn answers_are_counted_and_compared_with_expectations() {
    let folder = folder(&["a.jpg", "b.jpg", "c.jpg", "d.jpg"]);
    fs::write(folder.path().join("notes.txt"), "not an image").expect("written");
    let csv = folder.path().join("expected.csv");
    fs::write(&csv, "file,label\nx/a.jpg,\"Tabby, tabby cat\"\nb.jpg,tench\nc.jpg,goldfish\n").expect("written");
    let images: Vec<_> = (0..4).map(jpeg).collect();
    let server = Server::start(move |seen| {
        let number = images.iter().position(|image| *image == seen.body).expect("one of the images, unchanged");
        match number {
            0 => result(&[(281, "tabby, tabby cat"), (282, "tiger cat")]),
            1 => result(&[(1, "goldfish"), (0, "tench")]),
            2 => result(&[(0, "tench")]),
            _ => result(&[(9, "ostrich")]),
        }
    });
    let args = ["--num-request", "40", "-c", "8", "--image-folder", path(folder.path()), "--expect", path(&csv)];

    let output = loadgen(&server, &[&args[..], &["--json"]].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    assert_eq!(report["requests"]["ok"], 40);
    assert_eq!(report["requests"]["failed"], 0);
    assert_eq!(report["latency_ms"]["count"], 40);
    assert_eq!(report["latency_ms"]["p99_9"], Value::Null);
    assert!(report["latency_ms"]["p50"].as_f64() <= report["latency_ms"]["p99"].as_f64());
    let timings = json!({"queued": 1.0, "fetched": 2.0, "decoded": 3.0, "inferred": 4.0, "total": 10.0});
    assert_eq!(report["server_timings_ms"], timings);
    assert_eq!(
        report["accuracy"],
        json!({
            "top1": 1.0 / 3.0, "top5": 2.0 / 3.0, "judged": 30, "top1_correct": 10, "top5_correct": 20,
            "without_expectation": 10, "wrong_pictures": 2,
            "wrong": [
                {"file": "b.jpg", "expected": "tench", "got": "goldfish", "score": 0.5},
                {"file": "c.jpg", "expected": "goldfish", "got": "tench", "score": 0.5},
            ]
        })
    );
    assert_eq!(stderr(&output).matches("notes.txt").count(), 1, "{}", stderr(&output));

    let text = stdout(&loadgen(&server, &args));
    for line in [
        "40 of 40 requests to",
        "40 ok, 0 failed",
        "queued 1.00 ms  fetched 2.00 ms  decoded 3.00 ms  inferred 4.00 ms  total 10.0 ms",
        "top-1 0.3333 (10 of 30)  top-5 0.6667 (20 of 30)  10 without an expectation",
        "latency histogram",
        "b.jpg: expected tench, got goldfish (0.500)",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
}

#[test]
fn json_report_keys_are_stable() {
    let output =
        loadgen(&always_cat(), &["--json", "--num-request", "3", "--rate", "1000", "--threshold", "failed==0"]);
    let report = report(&output);
    let names = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names(&report),
        "accuracy api arrivals concurrency failures generator grade hints images_per_second intended_rate_per_second \
         interrupted latency_histogram latency_ms latency_percentiles loop requests seed server_timings_ms thresholds \
         timeline url wall_seconds"
    );
    assert_eq!(names(&report["requests"]), "abandoned connections failed ok planned polls retried started");
    assert_eq!(names(&report["latency_ms"]), "count max mean min p50 p90 p99 p99_9");
    assert_eq!(names(&report["generator"]), "late longest_lag_ms waited_for_connection");
    assert_eq!(names(&report["latency_histogram"][0]), "count from_ms to_ms");
    assert_eq!(report["thresholds"], json!([{"threshold": "failed==0", "measured": 0.0, "passed": true}]));
    assert_eq!((&report["loop"], &report["arrivals"]), (&json!("open"), &json!("poisson")));
}

#[test]
fn spelling_and_output_of_the_legacy_system_are_supported() {
    let folder = folder(&["test_0.JPEG", "test_1.JPEG"]);
    let with_slash = format!("{}/", folder.path().display());
    let output = loadgen(
        &always_cat(),
        &["--num_request", "2", "--image_folder", &with_slash, "--concurrency", "1", "--verbose"],
    );
    let expected = "test_0.JPEG uploaded!\nClassification result: tabby\n\
                    test_1.JPEG uploaded!\nClassification result: tabby\n";
    assert!(stdout(&output).starts_with(expected), "{output:?}");

    // With --json, standard output holds only the report.
    let args = ["--num_request", "2", "--image_folder", &with_slash, "--verbose", "--json"];
    let output = loadgen(&always_cat(), &args);
    assert_eq!(report(&output)["requests"]["ok"], 2);
    assert!(stderr(&output).contains("test_1.JPEG uploaded!"), "{output:?}");
}

#[test]
fn legacy_api_sends_the_form_of_the_legacy_system() {
    let folder = folder(&["a\"b.JPEG"]);
    let csv = folder.path().join("expected.csv");
    fs::write(&csv, "file,label\n\"a\"\"b.JPEG\",bathtub\n").expect("written");
    let image = jpeg(0);
    let server = Server::start(move |seen| {
        let form = String::from_utf8_lossy(&seen.body);
        let is_valid = seen.method == "POST"
            && seen.target == "/"
            && seen.header("content-type").starts_with("multipart/form-data; boundary=")
            && form.contains("form-data; name=\"myfile\"; filename=\"a%22b.JPEG\"\r\n")
            && seen.body.windows(image.len()).any(|window| window == image);
        // A label as a legacy worker sends it.
        if is_valid { Answer::text(200, " bathtub)\n") } else { Answer::text(500, &form) }
    });
    let args = ["--api", "original", "--json", "--image-folder", path(folder.path()), "--expect", path(&csv)];
    let output = loadgen(&server, &[&args[..], &["--num-request", "5", "--threshold", "accuracy==1"]].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(report(&output)["accuracy"]["top1"], 1.0);
    assert_eq!(report(&output)["accuracy"]["top5"], Value::Null);

    assert_eq!(code(&loadgen(&server, &[&args[..], &["--threshold", "top5>=0.5"]].concat())), Some(2));
}

#[test]
fn report_suggests_the_legacy_api_if_the_target_lacks_v1() {
    let server = Server::start(|_| Answer::text(404, "<h1>Not Found</h1>"));
    let output = loadgen(&server, &["--num-request", "3"]);
    assert_eq!(code(&output), Some(1));
    assert!(stdout(&output).contains("3 × status 404"), "{output:?}");
    assert!(stdout(&output).contains("--api legacy"), "{output:?}");
}

#[test]
fn hostile_file_names_are_escaped_for_server_and_terminal() {
    let names = ["..%2f\\x.jpg", "a\nX-Evil: 1\r\n.jpg", "c\x1b[2J.jpg", "ü \"q\".jpg"];
    let folder = folder(&names);
    let seen_names = Arc::new(Mutex::new(Vec::new()));
    let record = seen_names.clone();
    let server = Server::start(move |seen| {
        assert!(seen.headers.iter().all(|(name, _)| name != "x-evil"));
        record.lock().expect("unpoisoned").push(seen.header("content-disposition").to_owned());
        result(&[(1, "gold\x1b]0;fish")])
    });
    let args = ["--num-request", "4", "-c", "1", "--verbose", "--image-folder", path(folder.path())];
    let output = loadgen(&server, &args);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let encoded = ["..%252f%5Cx.jpg", "a%0AX-Evil%3A%201%0D%0A.jpg", "c%1B%5B2J.jpg", "%C3%BC%20%22q%22.jpg"];
    let expected: Vec<_> = encoded.iter().map(|name| format!("attachment; filename*=UTF-8''{name}")).collect();
    assert_eq!(*seen_names.lock().expect("unpoisoned"), expected);
    assert!(stdout(&output).chars().all(|c| c == '\n' || !c.is_control()), "{output:?}");
}

#[test]
fn failures_are_grouped_and_change_the_exit_code() {
    let count = AtomicU64::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) % 5 {
        0 => Answer::json(503, &json!({"title": "Too much at once", "detail": "full"})).header("retry-after", "1"),
        1 => Answer::json(422, &json!({"title": "The image cannot be decoded"})),
        2 => Answer::text(200, "<html>"),
        _ => result(&[(1, "goldfish")]),
    });
    let output = loadgen(&server, &["--num-request", "50", "--json", "-c", "4"]);
    assert_eq!(code(&output), Some(1));
    let report = report(&output);
    assert_eq!((&report["requests"]["ok"], &report["requests"]["failed"]), (&json!(20), &json!(30)));
    let mut failures = report["failures"].as_array().expect("a list").clone();
    failures.sort_by_key(|group| group["reason"].to_string());
    assert_eq!(
        failures,
        [
            json!({"reason": "status 422", "count": 10, "example": "The image cannot be decoded"}),
            json!({"reason": "status 503", "count": 10, "example": "full"}),
            json!({"reason": "unreadable answer", "count": 10, "example": "<html>"}),
        ]
    );
    // The exit code of a missed threshold takes precedence over that of a failed request.
    let output = loadgen(&server, &["--num-request", "50", "--threshold", "failed==0"]);
    assert_eq!(code(&output), Some(99));
    assert!(stdout(&output).contains("MISS  failed==0"), "{output:?}");
}

#[test]
fn thresholds_are_compared_with_measured_values() {
    let server = always_cat();
    let output = loadgen(&server, &["--threshold", "p99<1h", "--threshold", "failed==0,rate>0"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(stdout(&output).matches("  pass  ").count(), 3, "{output:?}");
    let output = loadgen(&server, &["--json", "--threshold", "max<1us"]);
    assert_eq!(code(&output), Some(99));
    assert_eq!(report(&output)["thresholds"][0]["passed"], false);
    assert_eq!(report(&output)["thresholds"][0]["measured"], report(&output)["latency_ms"]["max"]);
}

#[test]
fn invalid_flags_are_refused_before_anything_is_sent() {
    let server = always_cat();
    for args in [
        &["--threshold", "p99<500"][..],
        &["--threshold", "speed>1"],
        &["--threshold", "accuracy>=0.8"],
        &["--rate", "0"],
        &["--num-request", "0"],
        &["--concurrency", "0"],
        &["--url", "ftp://web.example/"],
        &["--api", "v7"],
    ] {
        let url = if args.contains(&"--url") { None } else { Some(server.url()) };
        let mut command = imgcls();
        command.arg("loadgen").args(url.iter().flat_map(|url| ["--url", url]));
        let output = command.args(args).output().expect("it starts");
        assert_eq!(code(&output), Some(2), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn run_that_cannot_start_fails_with_one_line() {
    let server = always_cat();
    let empty = tempfile::tempdir().expect("a directory");
    let csv = empty.path().join("expected.csv");
    fs::write(&csv, "file,label\nother.jpg,tench\n").expect("written");
    let refused =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let unreachable = format!("http://{refused}/");
    let url = server.url();
    for (url, args, expected) in [
        (&unreachable, &["--num-request", "1000"][..], "connection refused; is \"imgcls up\" running?"),
        (&url, &["--image-folder", path(empty.path())], "no image file in"),
        (&url, &["--image-folder", "/nowhere/at/all"], "cannot read the image folder /nowhere/at/all"),
        (&url, &["--expect", path(&csv)], "names none of the images"),
        (&url, &["--expect", "/nowhere.csv"], "cannot read /nowhere.csv"),
    ] {
        let output = command(url, args).output().expect("it starts");
        assert_eq!(code(&output), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let last = stderr(&output).lines().last().map(str::to_owned).unwrap_or_default();
        assert!(last.contains(expected), "{last}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn unfinished_job_is_polled_until_it_is_final() {
    let polls = AtomicU64::new(0);
    let server = Server::start(move |seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", "/v1/classify?wait=30") => Answer::json(202, &json!({"id": "0197", "status": "queued"})),
        ("GET", "/v1/jobs/0197?wait=20") => match polls.fetch_add(1, Ordering::Relaxed) % 3 {
            2 => result(&[(1, "goldfish")]),
            _ => Answer::json(200, &json!({"id": "0197", "status": "queued"})),
        },
        _ => Answer::text(400, "unexpected"),
    });
    let output = loadgen(&server, &["--num-request", "2", "-c", "1", "--json"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(report(&output)["requests"]["polls"], 6);

    let server = Server::start(|_| Answer::json(202, &json!({"id": "0197", "status": "queued"})));
    let output = loadgen(&server, &["--num-request", "1", "--timeout", "300ms", "--json"]);
    assert_eq!(code(&output), Some(1));
    assert_eq!(report(&output)["failures"][0]["reason"], "timed out");
}

#[test]
fn late_answer_is_a_failure() {
    let server = Server::start(|seen| result(&[]).after(Duration::from_secs(u64::from(seen.number == 0) * 60)));
    let output = loadgen(&server, &["--num-request", "1", "--timeout", "200ms", "--json"]);
    assert_eq!(code(&output), Some(1));
    assert_eq!(report(&output)["failures"][0]["reason"], "timed out");
}

#[test]
fn open_loop_never_hides_a_stall_of_the_server() {
    const STALL: Duration = Duration::from_secs(1);
    let until: Mutex<Option<Instant>> = Mutex::new(None);
    let server = Server::start(move |seen| {
        let mut until = until.lock().expect("unpoisoned");
        let until = match seen.number {
            0..50 => None,
            _ => Some(*until.get_or_insert_with(|| Instant::now() + STALL)),
        };
        result(&[(1, "goldfish")])
            .after(until.map_or(Duration::ZERO, |it| it.saturating_duration_since(Instant::now())))
    });
    // With two connections, only two requests see the stall itself. The hundreds that should have started meanwhile
    // must count from their intended starts.
    let args = ["--num-request", "600", "--rate", "300", "--arrivals", "constant", "-c", "2", "--json"];
    let output = loadgen(&server, &args);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    let latency = |name: &str| report["latency_ms"][name].as_f64().expect("a number");
    assert!(latency("max") >= 900.0 && latency("p99") >= 900.0, "{report}");
    // A stall of 1 s at 300/s delays half of the 600 starts, by 1 s down to 0.
    assert!(latency("mean") >= 200.0, "{report}");
    assert!(report["generator"]["waited_for_connection"].as_u64() >= Some(100), "{report}");
}

/// The server of the next test, in a process of its own, so that it can be stopped.
#[test]
fn server_in_another_process() {
    if children::data_dir().is_none() {
        return;
    }
    let server = Server::start(|seen| {
        if seen.number == 500 {
            children::say("under load");
        }
        result(&[(1, "goldfish")])
    });
    children::say(&server.url());
    children::wait_for_go();
}

/// With `IMGCLS_TEST_LONG` the load lasts 20 s instead of 5. With fewer requests, fewer of them make up the last
/// thousandth.
#[test]
fn stopped_server_shows_in_the_p99_9() {
    const RATE: u32 = 1_000;
    const STALL: Duration = Duration::from_secs(1);
    let num_request = RATE * if std::env::var_os("IMGCLS_TEST_LONG").is_some() { 20 } else { 5 };
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Worker::start("loadgen::server_in_another_process", directory.path());
    let url = server.line().expect("its address");
    let (rate, count) = (RATE.to_string(), num_request.to_string());
    let load = command(&url, &["--rate", &rate, "--num-request", &count, "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    server.expect_line("under load");
    server.signal("STOP");
    std::thread::sleep(STALL);
    server.signal("CONT");

    let output = load.wait_with_output().expect("it ends");
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    assert_eq!(report["requests"]["ok"], num_request);
    let latency = |name: &str| report["latency_ms"][name].as_f64().expect("a number");
    assert!(latency("p99_9") >= 900.0, "{report}");
    // A thousand starts are delayed by 1 s down to 0, by half a second on average.
    assert!(latency("mean") * f64::from(num_request) >= 0.9 * f64::from(RATE) * 500.0, "{report}");
    // All delayed starts except those that found one of the 100 connections idle.
    assert!(report["generator"]["waited_for_connection"].as_u64() >= Some(800), "{report}");
    server.expect_success();
}

#[test]
fn open_loop_keeps_its_rate_and_closed_loop_its_connections() {
    let output = loadgen(&always_cat(), &["--num-request", "100", "--rate", "200", "--arrivals", "constant", "--json"]);
    let wall = report(&output)["wall_seconds"].as_f64().expect("a number");
    assert!((0.49..2.0).contains(&wall), "{wall}");

    let output = loadgen(&always_cat(), &["--num-request", "200", "-c", "3", "--json"]);
    assert_eq!(report(&output)["requests"]["connections"], 3);
}

#[test]
fn request_on_a_closed_keep_alive_connection_is_retried_once() {
    // Every connection answers one request and drops the next, like a server that closes idle connections.
    let server = Server::start(|seen| match seen.on_connection {
        0 => result(&[(1, "goldfish")]),
        _ => Answer::hang_up(),
    });
    let output = loadgen(&server, &["--num-request", "10", "-c", "1", "--json"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    assert_eq!((&report["requests"]["ok"], &report["requests"]["retried"]), (&json!(10), &json!(9)));

    // A connection that never answered is a failure and is not retried.
    let server = Server::start(|_| Answer::hang_up());
    let output = loadgen(&server, &["--num-request", "4", "-c", "1", "--json"]);
    assert_eq!(code(&output), Some(1));
    assert_eq!(server.requests(), 4);
}

#[test]
fn interrupt_stops_sending_and_reports_partial_results() {
    let server =
        Server::start(|seen| result(&[(1, "x")]).after(Duration::from_secs(if seen.number < 5 { 0 } else { 60 })));
    let child = command(&server.url(), &["--num-request", "1000", "-c", "1", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    server.wait_for_requests(6);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(code(&output), Some(1), "{output:?}");
    let report = report(&output);
    assert_eq!(report["interrupted"], true);
    let requests = &report["requests"];
    assert_eq!((&requests["ok"], &requests["started"], &requests["abandoned"]), (&json!(5), &json!(6), &json!(1)));
}

#[test]
fn loadgen_and_simulate_share_the_arrivals() {
    let folder = tempfile::tempdir().expect("a directory");
    let trace = folder.path().join("trace.csv");
    fs::write(&trace, "second,count\n0,3\n0.3,2\n").expect("written");
    for arrivals in [
        vec!["--arrivals", "trace", "--trace", path(&trace)],
        vec!["--arrivals", "burst", "--burst-rate", "500", "--burst-length", "300ms"],
        vec![
            "--arrivals",
            "burst",
            "--burst-rate",
            "200",
            "--burst-length",
            "300ms",
            "--rate",
            "5",
            "--duration",
            "500ms",
        ],
        vec!["--arrivals", "day", "--rate", "20", "--day-length", "10s", "--duration", "1s", "--seed", "3"],
        vec!["--stage", "200ms:100/s", "--stage", "300ms:100..300/s", "--seed", "5"],
    ] {
        let output = loadgen(&always_cat(), &[&arrivals[..], &["--json"]].concat());
        assert_eq!(code(&output), Some(0), "{output:?}");
        let report = report(&output);
        let simulated =
            imgcls().args(["simulate", "--service-time", "1ms", "--json"]).args(&arrivals).output().expect("it starts");
        let simulated: Value = serde_json::from_slice(&simulated.stdout).expect("JSON");
        assert_eq!(report["requests"]["ok"], simulated["requests"], "{arguments}", arguments = arrivals.join(" "));
        assert_eq!((&report["arrivals"], &report["seed"]), (&simulated["arrivals"], &simulated["seed"]));
    }
}
