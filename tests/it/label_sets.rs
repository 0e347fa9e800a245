//! The labels that clients see: those of a set that the settings choose, and several for one image.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Service, form};
use crate::heads::{LABELS, SOFTMAX, TWO_LABELS, add_label_set, orange, write};
use crate::onnx_graph::Network;

/// A service with the model of a folder.
fn service(folder: &Path, further: &[&str]) -> Service {
    let flags = [&["--model", folder.to_str().unwrap()], further].concat();
    Service::start(1, &flags, &flags)
}

#[test]
fn text_answer_to_a_form_has_the_label_of_the_chosen_set() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Network::default(), SOFTMAX, LABELS);
    add_label_set(folder.path(), "original", "rot\ngrün\nblau\n");
    let (content_type, body) = form("myfile", "orange.png", &orange());
    for (flags, label) in [(&["--label-set", "original"][..], "rot"), (&[], "red")] {
        let service = service(folder.path(), flags);
        let answer = service.request("POST", "/", &[("Content-Type", content_type.as_str())], &body);
        assert_eq!((answer.status, answer.text().trim_end()), (200, label), "{flags:?}");
        let result = service.request("POST", "/v1/classify", &[], &orange()).json();
        assert_eq!(result["predictions"][0]["label"], label, "{result}");
        let listed = service.request("GET", "/v1/models/colours?labels=true", &[], b"").json();
        assert_eq!(listed["labels"][0]["label"], label, "{listed}");
    }
}

#[test]
fn result_has_every_label_of_an_image_beside_the_best_predictions() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Network::default(), TWO_LABELS, LABELS);
    let service = service(folder.path(), &[]);
    let result = service.request("POST", "/v1/classify?top_k=2", &[], &orange()).json();
    let names = |member: &str| -> Vec<String> {
        let found = result[member].as_array().unwrap_or_else(|| panic!("{result}"));
        found.iter().map(|found: &Value| found["label"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("labels"), ["red", "blue"]);
    assert_eq!(names("predictions"), ["red", "green"]);
}
