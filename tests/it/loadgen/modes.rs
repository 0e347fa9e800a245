//! Other shapes of load, the search for the highest rate, and the reports.

use std::collections::VecDeque;

use super::*;
use crate::json_schema;

fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/loadgen-report.schema.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the schema")).expect("JSON")
}

#[test]
fn reports_fit_the_published_schema() {
    let folder = folder(&["a.jpg", "b.jpg"]);
    let csv = folder.path().join("expected.csv");
    fs::write(&csv, "file,label\na.jpg,tabby\nb.jpg,tench\n").expect("written");
    let flaky = Server::start(|seen| match seen.number % 3 {
        0 => Answer::json(503, &json!({"title": "full"})),
        _ => result(&[(281, "tabby")]),
    });
    let schema = schema();
    for args in [
        &["-n", "5"][..],
        &["-n", "30", "--threshold", "p99<1h", "--threshold", "failed==0"],
        &["-n", "9", "--rate", "1000", "--arrivals", "constant"],
        &["-n", "4", "--image-folder", path(folder.path()), "--expect", path(&csv)],
        &["--stage", "200ms:100/s"],
    ] {
        let report = report(&loadgen(&flaky, &[args, &["--json"]].concat()));
        assert_eq!(json_schema::faults(&schema, &schema, &report), [""; 0], "{args:?}: {report}");
        let slots = report["timeline"].as_array().expect("a list");
        let sum = |name: &str| slots.iter().map(|slot| slot[name].as_u64().expect("a count")).sum::<u64>();
        assert_eq!(
            (&json!(sum("ok")), &json!(sum("failed"))),
            (&report["requests"]["ok"], &report["requests"]["failed"])
        );
    }
}

#[test]
fn duration_ends_a_closed_loop_and_every_started_request_is_answered() {
    let server = always_cat();
    let output = loadgen(&server, &["--duration", "300ms", "-c", "4", "--json"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    let requests = &report["requests"];
    assert!(requests["ok"].as_u64() > Some(4), "{report}");
    assert_eq!(
        (&requests["planned"], &requests["started"], &requests["failed"]),
        (&requests["ok"], &requests["ok"], &json!(0))
    );
    assert_eq!((&report["loop"], &report["interrupted"]), (&json!("closed"), &json!(false)));
    assert_eq!(requests["ok"], json!(server.requests()));

    // The number of requests still limits it.
    let output = loadgen(&server, &["--duration", "1h", "-n", "7", "--json"]);
    assert_eq!(super::report(&output)["requests"]["ok"], 7);
}

#[test]
fn address_is_an_argument_or_a_flag() {
    let (wanted, other) = (always_cat(), always_cat());
    let output = command(&other.url(), &["-n", "3", &wanted.url()]).output().expect("it starts");
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!((wanted.requests(), other.requests()), (3, 0));
}

#[test]
fn given_headers_are_sent_and_replace_those_of_the_api() {
    let server = Server::start(|seen| {
        let is_right = seen.header("x-client") == "a, b"
            && seen.header("accept") == "application/vnd.test+json"
            && seen.headers.iter().filter(|(name, _)| name == "accept").count() == 1;
        if is_right { result(&[(1, "goldfish")]) } else { Answer::text(400, "not the headers") }
    });
    let headers = ["-H", "X-Client: a, b", "--header", "Accept:application/vnd.test+json"];
    let output = loadgen(&server, &[&["-n", "2"][..], &headers].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    for wrong in ["no colon", "a b: c", ": x", "a: b\nc: d"] {
        assert_eq!(code(&loadgen(&server, &["-n", "1", "-H", wrong])), Some(2), "{wrong}");
    }
}

#[test]
fn stages_send_what_their_rates_say() {
    let server = always_cat();
    let args = ["--stage", "500ms:400/s", "--stage", "300ms:0/s,500ms:0..400/s", "--json"];
    let report = report(&loadgen(&server, &args));
    assert_eq!((&report["loop"], &report["arrivals"]), (&json!("open"), &json!("stages")));
    let planned = report["requests"]["planned"].as_u64().expect("a number");
    // 200 in the first stage and 100 in the ramp, with a standard deviation of 17.
    assert!((200..=400).contains(&planned), "{report}");
    assert_eq!(report["requests"]["ok"], planned);
    for wrong in ["30s", "30s:fast", "0s:1/s", "30s:-1/s", "30s:1..x/s", "x:1/s"] {
        assert_eq!(code(&loadgen(&server, &["--stage", wrong])), Some(2), "{wrong}");
    }
    for (flag, value) in [("--rate", "5"), ("--arrivals", "constant")] {
        assert_eq!(code(&loadgen(&server, &["--stage", "1s:5/s", flag, value])), Some(2), "{flag}");
    }
}

/// A server that refuses what comes too fast: it shows a limit that does not depend on the speed of this machine.
fn limited(most: usize, window: Duration) -> Server {
    let recent: Mutex<VecDeque<Instant>> = Mutex::default();
    Server::start(move |_| {
        let (mut recent, now) = (recent.lock().expect("unpoisoned"), Instant::now());
        while recent.front().is_some_and(|at| now - *at > window) {
            recent.pop_front();
        }
        if recent.len() >= most {
            return Answer::json(503, &json!({"title": "full"}));
        }
        recent.push_back(now);
        result(&[(1, "goldfish")])
    })
}

#[test]
fn search_finds_the_highest_rate_that_keeps_the_condition() {
    // At most 400/s, in bursts of at most 100.
    let server = limited(100, Duration::from_millis(250));
    let args = ["--find-rate", "p50<1h", "--rate", "150", "--duration", "500ms", "--no-tui"];
    let output = loadgen(&server, &[&args[..], &["--json"]].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    let schema = schema();
    assert_eq!(json_schema::faults(&schema, &schema["$defs"]["search"], &report), [""; 0], "{report}");
    let rate = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    let found = rate("rate_per_second");
    assert!((150.0..=410.0).contains(&found), "{report}");
    assert!(rate("fails_at_per_second") > found && rate("fails_at_per_second") <= found * 1.06, "{report}");
    let trials = report["trials"].as_array().expect("a list");
    let passes = trials.iter().filter(|trial| trial["rate_per_second"] == report["rate_per_second"]);
    assert!(passes.filter(|trial| trial["passed"] == true).count() >= 2, "{report}");

    let nothing = Server::start(|_| Answer::json(503, &json!({"title": "full"})));
    let args = ["--find-rate", "p50<1h", "--rate", "500", "--duration", "100ms", "--no-tui"];
    let output = command(&nothing.url(), &args).env("IMGCLS_TIMEOUT", "5s").output().expect("it starts");
    assert_eq!(code(&output), Some(99), "{output:?}");
    assert!(stdout(&output).contains("none was found"), "{output:?}");
}

#[test]
fn page_has_all_charts_and_nothing_from_outside_in_its_markup() {
    let server = Server::start(|seen| match seen.number {
        0 => Answer::json(422, &json!({"title": "<script>alert(1)</script>"})),
        _ => result(&[(1, "goldfish")]),
    });
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("report.html");
    let output = loadgen(&server, &["-n", "50", "--html", path(&file), "--threshold", "failed==0"]);
    assert_eq!(code(&output), Some(99), "{output:?}");
    let page = fs::read_to_string(&file).expect("the page");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    assert!(!page.contains("<script") && !page.contains("<link") && !page.contains(" src="), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    for text in ["49 ok, 1 failed, of 50", "failed==0: missed, measured 1", "closed loop"] {
        assert!(page.contains(text), "no {text:?} in {page}");
    }
    let charts: Vec<&str> =
        page.split("<svg").skip(1).map(|rest| rest.split_once("</svg>").expect("an end").0).collect();
    assert_eq!(charts.len(), 4, "{page}");
    for chart in charts {
        let svg = format!("<svg{chart}</svg>");
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error}: {svg}"));
        let drawn = document
            .descendants()
            .filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("line") || class == "s0"));
        assert!(drawn.count() > 0, "an empty chart: {svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    let output = loadgen(&server, &["-n", "1", "--html", "/nowhere/at/all.html"]);
    assert_eq!(code(&output), Some(1));
    assert!(stderr(&output).contains("cannot write /nowhere/at/all.html"), "{output:?}");
}
