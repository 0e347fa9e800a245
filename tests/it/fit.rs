//! `imgcls model fit`: a model of own classes, trained on the features of the shipped one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::harness::{Process, imgcls, request, test_image, until};
use crate::labelled::{TEXTURES, texture_image, write_textures};

fn fit(data: &Path, models_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = imgcls();
    command.args(["model", "fit", "--name", "textures", "--models-dir"]).arg(models_dir).arg(data);
    command.args(arguments).output().unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The line of an error. On a slow machine lines of progress come before it.
fn refused(data: &Path, models_dir: &Path, arguments: &[&str]) -> String {
    let output = fit(data, models_dir, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    error.lines().last().unwrap().to_owned()
}

/// The label that the model gives an image, through a web tier, a queue and a worker.
fn label_through_the_queue(folder: &Path, models_dir: &Path, image: &[u8]) -> String {
    let mut command = imgcls();
    command.args(["up", "--listen", "127.0.0.1:0", "--max-workers", "1", "--model", "textures", "--models-dir"]);
    command.arg(models_dir).arg("--data-dir").arg(folder.join("data"));
    let up = Process::start(command, &folder.join("up.log"));
    let address: std::net::SocketAddr = until("the address of `up`", || {
        let log = up.log();
        let line = log.lines().find(|line| line.contains(" up backend="))?;
        line.rsplit("address=").next()?.trim().parse().ok()
    });
    let answer = until("an answer", || request(address, "POST", "/v1/classify?wait=60", &[], image).ok()).json();
    assert_eq!(answer["model"]["name"], "textures", "{answer}");
    answer["predictions"][0]["label"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn fitted_model_is_the_same_each_time_and_classifies_through_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let (data, models) = (folder.path().join("data set"), folder.path().join("models"));
    write_textures(&data, 15);
    let first = report(&fit(&data, &models, &["--json"]));
    let held_out = &first["held_out"];
    assert_eq!((&first["images"], &held_out["images"]), (&45.into(), &9.into()), "{first}");
    assert!(held_out["accuracy"].as_f64().unwrap() >= 0.8, "{first}");
    assert!(first["variants"].as_array().unwrap().iter().any(|variant| variant["is_kept"] == true), "{first}");

    let again = report(&fit(&data, &folder.path().join("other"), &["--json"]));
    assert_eq!((&again["held_out"], &again["version"]), (&first["held_out"], &first["version"]));
    let output = fit(&data, &models, &["--seed", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("held out (seed 2)") && text.contains("actual, predicted:"), "{text}");

    // Images that were not in the folder.
    for texture in TEXTURES {
        let label = label_through_the_queue(folder.path(), &models, &texture_image(texture, 101));
        assert_eq!(label, texture);
        fs::remove_dir_all(folder.path().join("data")).unwrap();
        fs::remove_file(folder.path().join("up.log")).unwrap();
    }
    let mut eval = imgcls();
    eval.arg("eval").arg(&data).args(["--json", "--model", "textures", "--models-dir"]).arg(&models);
    let measured = report(&eval.output().unwrap());
    assert!(measured["models"][0]["top1"].as_f64().unwrap() >= 0.95, "{measured}");

    // A fitted model can be a base.
    let base = ["--json", "--base", "textures"];
    let second = report(&fit(&data, &models, &base));
    assert!(second["held_out"]["accuracy"].as_f64().unwrap() >= 0.8, "{second}");
    assert_eq!(second["base"]["name"], "textures");
}

#[test]
fn broken_images_copies_and_contradictions_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_textures(&data, 5);
    fs::write(data.join("dots/broken.png"), test_image("hostile/half.png")).unwrap();
    fs::write(data.join("dots/readme.txt"), "not an image").unwrap();
    fs::write(data.join("labels.txt"), "in no class").unwrap();
    symlink(data.join("dots/000.png"), data.join("dots/link.png")).unwrap();
    symlink(data.join("dots/001.png"), data.join("stripes/link.png")).unwrap();
    let found = report(&fit(&data, &folder.path().join("models"), &["--json", "--variant", "fp16"]));
    assert_eq!(
        (&found["not_images"], &found["loose_files"], &found["copies"]),
        (&1.into(), &1.into(), &1.into()),
        "{found}"
    );
    let [broken] = found["broken"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert!(broken["file"].as_str().unwrap().ends_with("dots/broken.png"), "{found}");
    assert_eq!(found["contradictions"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["images"], 14, "{found}");
}

#[test]
fn wrong_input_is_refused_in_one_line_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let (data, models) = (folder.path().join("data"), folder.path().join("models"));
    let refused = |arguments: &[&str]| refused(&data, &models, arguments);
    let write = |name: &str, number: u32| {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, texture_image("dots", number)).unwrap();
    };
    fs::create_dir(&data).unwrap();
    assert!(refused(&[]).contains("has no folders"));
    fs::create_dir(data.join("cat")).unwrap();
    assert!(refused(&[]).contains("have no files"));
    write("cat/1.png", 1);
    write("cat/2.png", 2);
    assert!(refused(&[]).contains("one class, \"cat\""));
    write("dog/1.png", 3);
    assert!(refused(&[]).contains("\"dog\" has 1"));
    fs::write(data.join("dog/2.png"), test_image("hostile/half.png")).unwrap();
    let error = refused(&[]);
    assert!(error.contains("1 broken images") && error.contains("\"dog\" has 1"), "{error}");
    write("dog/2.png", 4);
    assert!(refused(&["--base", "no-such-model"]).contains("no-such-model"));
    fs::rename(data.join("dog"), data.join("CAT")).unwrap();
    assert!(refused(&[]).contains("\"CAT\" and \"cat\""));
    assert!(!models.join("textures").exists());
}
