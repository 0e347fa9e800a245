//! `imgcls eval` with the shipped model: its measures, its files and its errors.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::harness::{imgcls, label_of};

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures");

fn eval(arguments: &[&str]) -> Output {
    imgcls().arg("eval").args(arguments).output().unwrap()
}

fn report(arguments: &[&str], code: i32) -> Value {
    let output = eval(&[&["--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The line of an error. On a slow machine lines of progress come before it.
fn refused(arguments: &[&str]) -> String {
    let output = eval(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(output.stdout.is_empty(), "{output:?}");
    error.lines().last().unwrap().to_owned()
}

/// A table of three images, of which the last has the label of another image, and a broken one.
fn table(folder: &Path) -> String {
    let row = |file: &str, label: &str| format!("{IMAGES}/{file},\"{label}\"\n");
    let rows = [
        row("cat.jpg", &label_of("cat.jpg")),
        row("cup.jpg", &label_of("cup.jpg").to_uppercase()),
        row("rocket.jpg", &label_of("cup.jpg")),
        row("hostile/half.jpg", &label_of("cup.jpg")),
    ];
    let path = folder.join("labels.csv");
    fs::write(&path, format!("path,label\n{}", rows.concat())).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn table_is_measured_the_same_way_each_time_and_broken_images_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    let first = report(&[&table], 0);
    let model = &first["models"][0];
    assert_eq!((&model["images"], &first["classes"]), (&3.into(), &2.into()), "{first}");
    assert!((model["top1"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{first}");
    assert_eq!(model["mistakes"][0]["actual"], label_of("cup.jpg").as_str(), "{first}");
    assert_eq!(model["mistakes"][0]["predicted"], label_of("rocket.jpg").as_str(), "{first}");
    let broken = model["broken"].as_array().unwrap();
    assert!(broken.len() == 1 && broken[0]["file"].as_str().unwrap().ends_with("hostile/half.jpg"), "{first}");
    assert!((0.0..=1.0).contains(&model["ece"].as_f64().unwrap()), "{first}");

    let measures = |report: &Value| {
        let mut model = report["models"][0].clone();
        model["images_per_second"] = Value::Null;
        model
    };
    assert_eq!(measures(&report(&[&table], 0)), measures(&first));
    let text = String::from_utf8(eval(&[&table]).stdout).unwrap();
    assert!(text.contains("66.7 %") && text.contains("1 broken image is left out"), "{text}");
}

#[test]
fn missed_threshold_gives_exit_code_99() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    let checked = report(&[&table, "--threshold", "top1>=60%", "--threshold", "top5<=1"], 0);
    assert!(checked["thresholds"].as_array().unwrap().iter().all(|checked| checked["passed"] == true), "{checked}");
    let missed = report(&[&table, "--threshold", "top1>=0.8", "--threshold", "macro_f1>0"], 99);
    let passed: Vec<bool> =
        missed["thresholds"].as_array().unwrap().iter().map(|it| it["passed"].as_bool().unwrap()).collect();
    assert_eq!(passed, [false, true], "{missed}");
    assert_eq!(eval(&[&table, "--threshold", "speed>1"]).status.code(), Some(2));
}

#[test]
fn folders_are_named_by_label_or_id_and_links_to_files_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let classes = folder.path().join("classes");
    let cup = label_of("cup.jpg").replace(' ', "_").to_uppercase();
    // The WordNet id of the missile that the rocket is taken for is in the labels of the shipped model.
    let labels = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/efficientnet-lite0/labels.txt"));
    let rocket = label_of("rocket.jpg");
    let labels = labels.unwrap();
    let id = labels.lines().find_map(|line| line.strip_suffix(&format!(" {rocket}"))).unwrap();
    for (class, file) in [(cup.as_str(), "cup.jpg"), (id, "rocket.jpg")] {
        fs::create_dir_all(classes.join(class)).unwrap();
        symlink(format!("{IMAGES}/{file}"), classes.join(class).join(file)).unwrap();
        fs::write(classes.join(class).join("notes.txt"), "not an image").unwrap();
    }
    let confusion = folder.path().join("confusion.csv");
    let plot = folder.path().join("confusion.svg");
    let data = classes.to_str().unwrap();
    let found = report(&[data, "--confusion", confusion.to_str().unwrap()], 0);
    assert_eq!((&found["models"][0]["top1"], &found["models"][0]["not_images"]), (&1.0.into(), &2.into()), "{found}");
    let rows = fs::read_to_string(&confusion).unwrap();
    assert!(rows.starts_with("actual,") && rows.lines().count() == 3, "{rows}");
    report(&[data, "--confusion", plot.to_str().unwrap()], 0);
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains(&rocket), "{svg}");

    // The same model twice: as often right.
    let twice = ["--model", "efficientnet-lite0", "--model", "efficientnet-lite0"];
    let compared = report(&[&[data, "--confusion", confusion.to_str().unwrap()], &twice[..]].concat(), 0);
    assert_eq!((&compared["comparison"]["both_right"], &compared["comparison"]["p_value"]), (&2.into(), &1.0.into()));
    assert!(folder.path().join("confusion-2.csv").is_file());
    let text = String::from_utf8(eval(&[&[data], &twice[..]].concat()).stdout).unwrap();
    assert!(text.contains("The models are equally often right."), "{text}");
}

#[test]
fn wrong_input_is_refused_in_one_line_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap().to_owned();
    assert!(refused(&[&root]).contains("one folder of images for each class"));
    assert!(refused(&[&format!("{root}/none.csv")]).contains("none.csv"));
    fs::create_dir(folder.path().join("tensch")).unwrap();
    fs::write(folder.path().join("tensch/a.jpg"), b"").unwrap();
    let error = refused(&[&root]);
    assert!(error.contains("\"tensch\" (nearest: \"tench\""), "{error}");
    fs::rename(folder.path().join("tensch"), folder.path().join("tench")).unwrap();
    let error = refused(&[&root]);
    assert!(error.contains("no image can be classified") && error.contains("a.jpg"), "{error}");
    let three = ["--model", "a", "--model", "b", "--model", "c"];
    assert_eq!(eval(&[&[root.as_str()], &three[..]].concat()).status.code(), Some(2));
}
