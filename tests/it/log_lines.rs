//! The content of log lines: fields with types, requests if that is asked for, and nothing that damaged images would fill
//! a disk with.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Service, imgcls, request, test_image, until};
use crate::metrics::start_up;

fn json_lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn json_log_has_numbers_as_numbers_and_no_debug_text() {
    let dir = tempfile::tempdir().unwrap();
    let (up, address) = start_up(dir.path(), &["--max-workers", "1", "--access-log"]);
    let answer = request(address, "POST", "/v1/classify?wait=60&secret=x", &[], &test_image("cup.jpg")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let broken = request(address, "POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg")[..300]).unwrap();
    assert_eq!(broken.status, 422, "{}", broken.text());
    until("the lines", || (up.log().matches("imgcls::access").count() >= 2).then_some(()));

    let lines = json_lines(&up.log());
    let ready = lines.iter().find(|line| line["message"] == "ready").expect("a ready worker");
    assert!(ready["after_ms"].is_u64() && ready["sessions"].is_u64(), "{ready}");
    for line in &lines {
        for (name, value) in line.as_object().unwrap() {
            let text = value.as_str().unwrap_or_default();
            let is_debug =
                ["Some(", "None", "Local {", "Aws {", "Ok(", "Err("].iter().any(|start| text.starts_with(start));
            assert!(!is_debug, "{name} in {line}");
            assert!(text.parse::<f64>().is_err() || name == "version", "{name} is a number in quotes: {line}");
        }
    }

    let access: Vec<&Value> = lines.iter().filter(|line| line["target"] == "imgcls::access").collect();
    let posted = access.iter().find(|line| line["status"] == 200 && line["method"] == "POST").expect("the request");
    assert_eq!((&posted["path"], &posted["route"]), (&"/v1/classify".into(), &"/v1/classify".into()));
    assert!(posted["client"] == "127.0.0.1" && posted["seconds"].is_f64(), "{posted}");
    assert!(
        posted["request_bytes"].as_u64() > Some(1_000) && posted["response_bytes"].as_u64() > Some(100),
        "{posted}"
    );
    assert!(posted["spans"][0]["request_id"].is_string(), "{posted}");
    assert!(access.iter().any(|line| line["status"] == 422), "{access:?}");
    assert!(!up.log().contains("secret"), "the query of an address is not logged");
}

#[test]
fn requests_are_logged_only_if_asked_for() {
    let service = Service::start(0, &[], &[]);
    let id = service.submit("x.jpg", &test_image("cup.jpg"));
    assert_eq!(service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").status, 200);
    assert!(!service.web.log().contains("/v1/jobs"), "{}", service.web.log());
}

#[test]
fn decoders_of_damaged_images_write_nothing_to_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let image = test_image("formats/photo.jxl");
    // Damage behind the header, of which some is noticed by each part of the decoder.
    let mut files = Vec::new();
    for at in (40..image.len().min(4_000)).step_by(97) {
        let mut damaged = image.clone();
        damaged[at..(at + 8).min(image.len())].fill(0xff);
        let path = dir.path().join(format!("{at}.jxl"));
        fs::write(&path, damaged).unwrap();
        files.push(path);
    }
    let logged = |filter: Option<&str>| {
        let mut command = imgcls();
        command.arg("classify").args(&files).envs(filter.map(|filter| ("IMGCLS_LOG", filter)));
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    let levels = |text: &str| text.lines().filter(|line| line.contains(" ERROR ") || line.contains(" WARN ")).count();
    let everything = logged(Some("info"));
    assert!(levels(&everything) > 0, "no damage was noticed, so this test shows nothing: {everything}");
    assert_eq!(levels(&logged(None)), 0, "{}", logged(None));
}

/// A field with `?` is written as Rust's debug text, which no program reads.
#[test]
fn no_log_line_has_a_field_in_debug_text() {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for start in
                ["tracing::error!(", "tracing::warn!(", "tracing::info!(", "tracing::debug!(", "tracing::trace!("]
            {
                for (at, _) in text.match_indices(start) {
                    let arguments = text[at..].split(");").next().unwrap_or_default();
                    let is_debug = arguments.split(['(', ',']).any(|part| {
                        let part = part.trim_start();
                        part.starts_with('?') || part.contains("= ?")
                    });
                    if is_debug {
                        found.push(format!("{}: {arguments}", path.display()));
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}
