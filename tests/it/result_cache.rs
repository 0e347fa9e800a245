//! `--cache`: an image whose bytes were classified before is answered without the model, with exactly the same answer.

#![allow(clippy::float_cmp, reason = "counts, which are exact")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::harness::{metrics, request, until};
use crate::metrics::start_up;
use crate::pile_folder::{Ended, Pile};
use crate::tiny_model::write_package;

/// The number of images that a run took from the cache.
fn answered(run: &Ended) -> u64 {
    let line = run.stderr.lines().find_map(|line| line.strip_suffix(" images were answered from the cache"));
    let number = line.and_then(|line| line.strip_prefix("classify: "));
    number.unwrap_or_else(|| panic!("no line about the cache: {}", run.stderr)).parse().unwrap()
}

/// How often images were looked up with this outcome, in the workers of `up` together.
fn lookups(address: SocketAddr, outcome: &str) -> f64 {
    let series = format!("{{outcome=\"{outcome}\"}}");
    let found = metrics(address, "imgcls_worker_cache_lookups_total");
    found.iter().filter(|(labels, _)| labels.ends_with(&series)).map(|(_, value)| value).sum()
}

#[test]
fn images_with_the_same_bytes_are_classified_once_whatever_their_names() {
    // Seven contents under 138 names, and two broken files.
    let pile = Pile::of(140);
    let alone = pile.run(&["images", "--out", "alone.csv", "--top-k", "3"]);
    assert_eq!(alone.code, Some(1), "{}", alone.stderr);
    let with_cache = |out: &str, more: &[&str]| {
        let arguments = ["images", "--out", out, "--jobs", "3", "--cache", "--cache-dir", "cache"];
        pile.run(&[&arguments[..], more].concat())
    };
    let first = with_cache("first.csv", &["--top-k", "3"]);
    assert_eq!((first.code, answered(&first)), (Some(1), 138 - 7), "{}", first.stderr);
    assert_eq!(pile.read("first.csv"), pile.read("alone.csv"));
    // Another process finds the answers of the first one. A failure is never kept.
    let second = with_cache("second.csv", &["--top-k", "3"]);
    assert_eq!((second.code, answered(&second)), (Some(1), 138), "{}", second.stderr);
    assert_eq!(pile.read("second.csv"), pile.read("alone.csv"));
    // Other options and other models have answers of their own.
    assert_eq!(answered(&with_cache("options.csv", &["--top-k", "2"])), 138 - 7);
    write_package(&pile.path("model"), "tiny", "1", 2);
    assert_eq!(answered(&with_cache("model.csv", &["--top-k", "3"])), 138 - 7);
    assert_ne!(pile.read("model.csv"), pile.read("alone.csv"));
    write_package(&pile.path("model"), "tiny", "1", 1);
    // A name means nothing: a file with other content is another image.
    let (one, other) = (pile.path("images/000/00000.png"), pile.path("images/000/00001.png"));
    fs::copy(&other, &one).unwrap();
    let changed = with_cache("changed.csv", &["--top-k", "3"]);
    assert_eq!(answered(&changed), 138, "{}", changed.stderr);
    pile.run(&["images", "--out", "changed-alone.csv", "--top-k", "3"]);
    assert_eq!(pile.read("changed.csv"), pile.read("changed-alone.csv"));
    // Without the flag nothing is kept.
    assert!(!alone.stderr.contains("cache") && fs::read_dir(pile.path("cache")).unwrap().count() > 0);
}

#[test]
fn limit_on_pixels_holds_for_images_that_were_classified_before() {
    let pile = Pile::of(3);
    let run = |out: &str, pixels: &str| {
        let flags = ["images", "--out", out, "--cache", "--cache-dir", "cache", "--max-pixels", pixels];
        pile.run(&flags)
    };
    assert_eq!(run("large.csv", "1000").code, Some(0));
    let refused = run("small.csv", "100");
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(pile.read("small.csv").matches("too_many_pixels").count(), 3);
}

#[test]
fn flags_that_contradict_the_cache_are_refused() {
    let pile = Pile::of(1);
    for (flags, reason) in [
        (&["images", "--cache", "--through", "queue"][..], "the workers keep answers"),
        (&["--boxes", "boxes.json", "--cache", "--out", "x.json"][..], "whole images"),
        (&["images", "--cache", "--cache-bytes", "4KiB"][..], "at least 1MiB"),
    ] {
        let run = pile.run(flags);
        assert!(run.code == Some(2) && run.stderr.contains(reason), "{flags:?}: {}", run.stderr);
    }
}

/// Sends an image, and returns its result.
fn classified(address: SocketAddr, image: &[u8], query: &str) -> Value {
    let path = format!("/v1/classify?wait=60{query}");
    let answer = request(address, "POST", &path, &[("Content-Type", "image/png")], image).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn workers_of_a_service_share_answers_and_every_job_has_its_own_result() {
    let pile = Pile::of(7);
    let image = |number: usize| fs::read(pile.path(&format!("images/000/{number:05}.png"))).unwrap();
    let model = pile.path("model");
    let (directory, cache) = (tempfile::tempdir().unwrap(), pile.path("cache"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (model, cache) = (text(&model), text(&cache));
    let workers = ["--min-workers", "2", "--max-workers", "2"];
    let flags = [&workers[..], &["--model", &model, "--cache", "--cache-dir", &cache]].concat();
    let (mut up, address) = start_up(directory.path(), &flags);
    until("both workers", || {
        let models = metrics(address, "imgcls_worker_model{");
        (models.iter().map(|(_, workers)| workers).sum::<f64>() == 2.0).then_some(())
    });

    let first = classified(address, &image(0), "");
    let mut ids = vec![first["id"].clone()];
    for _ in 0..19 {
        let next = classified(address, &image(0), "");
        assert_eq!((&next["predictions"], &next["model"]), (&first["predictions"], &first["model"]));
        assert!(!ids.contains(&next["id"]), "each job has its own id");
        ids.push(next["id"].clone());
    }
    until("the counts of the workers", || {
        (lookups(address, "hit") == 19.0 && lookups(address, "miss") == 1.0).then_some(())
    });
    // Other options are other answers, and each job can be asked for later.
    let two = classified(address, &image(0), "&top_k=2");
    assert_eq!(two["predictions"].as_array().unwrap()[..], first["predictions"].as_array().unwrap()[..2]);
    let last = ids.last().unwrap().as_str().unwrap();
    let job = request(address, "GET", &format!("/v1/jobs/{last}"), &[], b"").unwrap().json();
    assert_eq!((&job["status"], &job["predictions"]), (&Value::from("succeeded"), &first["predictions"]));

    // Identical images at the same time are classified once by each worker at most.
    let known = || ["hit", "joined", "miss"].iter().map(|outcome| lookups(address, outcome)).sum::<f64>();
    until("the counts of the workers", || (known() == 20.0 + 1.0).then_some(()));
    let other = image(1);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let sending: Vec<_> = (0..16).map(|_| scope.spawn(|| classified(address, &other, ""))).collect();
        sending.into_iter().map(|sent| sent.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer["predictions"] == answers[0]["predictions"]));
    until("the counts of the workers", || (known() == 20.0 + 1.0 + 16.0).then_some(()));
    let misses = lookups(address, "miss") - 2.0;
    assert!((1.0..=2.0).contains(&misses), "{misses} of 16 images were classified");

    // A broken image fails each time, and is not kept.
    for _ in 0..2 {
        let answer = request(address, "POST", "/v1/classify?wait=60", &[], &other[..40]).unwrap();
        assert_eq!(answer.status, 422, "{}", answer.text());
    }
    up.signal("TERM");
    assert_eq!(up.wait(), Some(0));
    // The answers outlive the service.
    let run = pile.run(&["images/000/00000.png", "images", "--json", "--cache", "--cache-dir", &cache, "--top-k", "5"]);
    assert_eq!((run.code, answered(&run)), (Some(0), 1 + 2), "{}", run.stderr);
    let line: Value = serde_json::from_str(run.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(line["predictions"], first["predictions"]);
}
