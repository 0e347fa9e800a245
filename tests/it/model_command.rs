//! `imgcls model …` through the real binary: every kind of export, wrong ones, and the versions of a model.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::exported_model::Exported;
use crate::harness::imgcls;

/// A models directory and a folder for exports.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    /// Writes the files of an export into a folder, and returns the folder.
    fn export(&self, name: &str, model: &Exported, files: &[(&str, String)]) -> String {
        let folder = self.dir.path().join("exports").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.onnx"), model.onnx()).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = imgcls();
        command.args(arguments).arg("--models-dir").arg(self.models());
        command.output().unwrap()
    }

    /// The standard output of a command that succeeds.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The single line of the error of a command that fails.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
        assert!(error.starts_with("imgcls: ") && !error.contains('\n'), "{error}");
        error
    }

    /// The description that would be written.
    fn described(&self, arguments: &[&str]) -> toml::Table {
        toml::from_str(&self.text(&[&["model", "add"], arguments, &["--dry-run"]].concat())).unwrap()
    }

    /// Classifies an image of one colour. Returns the label and the version of the model.
    fn classify(&self, model: &str, colour: [u8; 3]) -> (String, String) {
        let path = self.dir.path().join("image.png");
        image::RgbImage::from_pixel(20, 16, image::Rgb(colour)).save(&path).unwrap();
        let answer = self.json(&["classify", "--model", model, path.to_str().unwrap()]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&answer["predictions"][0]["label"]), text(&answer["model"]["version"]))
    }
}

const GREEN: [u8; 3] = [0, 255, 0];

fn labels() -> String {
    "red\ngreen\nblue\n".to_owned()
}

/// The configuration of transformers.
fn config(more: &Value) -> String {
    let mut config = json!({"model_type": "vit", "id2label": {"0": "red", "1": "green", "2": "blue"}});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

fn preprocessor() -> String {
    json!({"image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 8, "width": 8}, "resample": 2,
        "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5]})
    .to_string()
}

/// Flags for a network about which nothing else is known.
const FLAGS: [&str; 10] =
    ["--resize", "squash", "--filter", "bilinear", "--mean", "0", "--std", "1", "--activation", "softmax"];

#[test]
fn folder_of_transformers_is_added_listed_and_classifies() {
    let fixture = Fixture::new();
    let files = [("config.json", config(&json!({}))), ("preprocessor_config.json", preprocessor())];
    let folder = fixture.export("colours", &Exported::default(), &files);
    let text = fixture.text(&["model", "add", &folder]);
    for expected in [
        "config.json, id2label",
        "preprocessor_config.json, image_mean",
        "squash",
        "1/255",
        "added colours@",
        "chelsea.jpg",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let listed = fixture.json(&["model", "list"]);
    let model = &listed[0];
    assert_eq!((&model["name"], &model["is_current"], &model["classes"]), (&json!("colours"), &json!(true), &json!(3)));
    assert_eq!(model["input_size"], json!([8, 8]));
    assert!(model["memory_bytes"].as_u64().unwrap() > 0 && model["disk_bytes"].as_u64().unwrap() > 0, "{model}");
    assert!(listed.as_array().unwrap().iter().any(|model| model["origin"] == "shipped"), "{listed}");
    let (label, version) = fixture.classify("colours", GREEN);
    assert_eq!((label.as_str(), version.as_str()), ("green", model["version"].as_str().unwrap()));
    assert_eq!(fixture.classify(&format!("colours@{version}"), GREEN).0, "green");
    assert!(fixture.text(&["model", "show", "colours"]).contains("preprocessor_config.json, image_std"));
    assert_eq!(fixture.json(&["model", "show", "colours"])["description"]["input"]["size"], 8);
    let checked = fixture.json(&["model", "check", "colours"]);
    assert_eq!(checked[0]["is_good"], true, "{checked}");
    // The same export is the same version.
    let again = fixture.json(&["model", "add", &folder]);
    assert_eq!((again["version"].as_str(), &again["is_current"]), (Some(version.as_str()), &json!(true)));
}

#[test]
fn multi_label_head_of_transformers_gets_a_threshold() {
    let fixture = Fixture::new();
    let files = [
        ("config.json", config(&json!({"problem_type": "multi_label_classification"}))),
        ("preprocessor_config.json", preprocessor()),
    ];
    let folder = fixture.export("tags", &Exported::default(), &files);
    let output = fixture.described(&[&folder])["output"].clone();
    assert_eq!((output["activation"].as_str(), output["multi_label"].as_bool()), (Some("sigmoid"), Some(true)));
    assert_eq!(output["threshold"].as_float(), Some(0.5));
    let given = fixture.described(&[&folder, "--threshold", "0.25"]);
    assert_eq!(given["output"]["threshold"].as_float(), Some(0.25));
    assert!(!fixture.models().exists(), "a dry run writes nothing");
}

#[test]
fn exports_of_other_frameworks_say_how_they_see_images() {
    let fixture = Fixture::new();
    let nhwc = || Exported { is_nhwc: true, shape: vec![None, Some(8), Some(8), Some(3)], ..Exported::default() };
    let input = |table: &toml::Table, key: &str| table["input"].get(key).map(ToString::to_string).unwrap_or_default();

    let timm = json!({"architecture": "resnet18", "num_classes": 3, "label_names": ["red", "green", "blue"],
        "pretrained_cfg": {"input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 0.8, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}});
    let folder = fixture.export("timm", &Exported::default(), &[("config.json", timm.to_string())]);
    let table = fixture.described(&[&folder]);
    assert_eq!([input(&table, "size"), input(&table, "crop"), input(&table, "filter")], ["10", "8", "\"bicubic\""]);
    assert_eq!(table["output"]["activation"].as_str(), Some("softmax"));

    let metadata = vec![
        ("task", "classify".to_owned()),
        ("names", "{0: 'red', 1: 'green', 2: \"blue's\"}".to_owned()),
        ("imgsz", "[8, 8]".to_owned()),
    ];
    let yolo = Exported { metadata, head: vec!["Softmax"], ..Exported::default() };
    let file = format!("{}/model.onnx", fixture.export("yolo", &yolo, &[]));
    let table = fixture.described(&[&file]);
    assert_eq!([input(&table, "resize"), input(&table, "crop")], ["\"shortest-edge\"", "8"]);
    assert_eq!((table["name"].as_str(), table["output"]["activation"].as_str()), (Some("yolo"), Some("none")));

    let plain = fixture.export(
        "plain",
        &Exported { shape: vec![None, Some(3), None, None], ..Exported::default() },
        &[("labels.txt", labels())],
    );
    let table = fixture.described(&[&plain, "--preset", "torchvision-resnet50-v2"]);
    assert_eq!([input(&table, "size"), input(&table, "crop"), input(&table, "filter")], ["232", "224", "\"bilinear\""]);

    let softmax = Exported { head: vec!["Softmax"], ..nhwc() };
    let keras = fixture.export("keras", &softmax, &[("labels.txt", "0 red\n1 green\n2 blue\n".to_owned())]);
    let table = fixture.described(&[&keras, "--preset", "keras-caffe"]);
    assert_eq!([input(&table, "layout"), input(&table, "channels")], ["\"NHWC\"", "\"BGR\""]);
    assert_eq!([input(&table, "size"), input(&table, "rescale")], ["8", "1.0"]);

    let square = Exported { shape: vec![None, Some(224), Some(224), Some(3)], ..softmax };
    let files = [("labels.txt", "0 red\n1 green\n2 blue\n".to_owned()), ("keras_model.h5", "not read".to_owned())];
    let machine = fixture.export("machine", &square, &files);
    let table = fixture.described(&[&machine]);
    assert_eq!([input(&table, "resize"), input(&table, "filter")], ["\"cover\"", "\"lanczos\""]);
    let added = fixture.json(&["model", "add", &machine]);
    assert_eq!(fixture.classify(added["name"].as_str().unwrap(), GREEN).0, "green", "the index is no part of the name");
}

#[test]
fn flags_take_precedence_and_describe_any_network() {
    let fixture = Fixture::new();
    let folder = fixture.export("net", &Exported::default(), &[("labels.txt", labels())]);
    let added = fixture.json(&[&["model", "add", &folder, "--name", "mine"], &FLAGS[..]].concat());
    let source = |key: &str| {
        let settings = added["settings"].as_array().unwrap();
        settings
            .iter()
            .find(|setting| setting["key"] == key)
            .map(|setting| setting["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(source("mean").as_deref(), Some("--mean"));
    assert_eq!(source("size").as_deref(), Some("the size of the input"));
    assert!(source("rescale").unwrap().contains("default") && source("channels").unwrap().contains("default"));
    assert_eq!(fixture.classify("mine", GREEN).0, "green");
    let letterbox =
        ["--resize", "letterbox", "--position", "top-left", "--fill", "114", "--rounding", "up", "--channels", "bgr"];
    let table = fixture.described(&[&[&folder[..]], &letterbox[..], &FLAGS[2..]].concat());
    let input = &table["input"];
    assert_eq!((input["position"].as_str(), input["rounding"].as_str()), (Some("top-left"), Some("up")));
    assert_eq!(input["fill"].to_string(), "[114, 114, 114]");
}

#[test]
fn half_precision_bytes_and_external_weights_are_kept() {
    let fixture = Fixture::new();
    let model = Exported { external: Some("weights.bin"), ..Exported::default() };
    let folder = fixture.export("external", &model, &[("labels.txt", labels()), ("LICENSE.txt", "free".to_owned())]);
    let error = fixture.refused(&[&["model", "add", &folder], &FLAGS[..]].concat());
    assert!(error.contains("weights.bin") && error.contains("one folder"), "{error}");
    std::fs::write(Path::new(&folder).join("weights.bin"), model.weights()).unwrap();
    let added = fixture.json(&[&["model", "add", &folder], &FLAGS[..]].concat());
    let package = PathBuf::from(added["folder"].as_str().unwrap());
    assert!(package.join("weights.bin").is_file() && package.join("LICENSE.txt").is_file());
    assert_eq!(fixture.classify("external", GREEN).0, "green");
    for (name, element) in [("half", 10), ("bytes", 2)] {
        // Bytes are not rescaled, so that the gain is that for values from 0 to 255.
        let gain = if element == 2 { 0.05 } else { 8.0 };
        let folder =
            fixture.export(name, &Exported { element, gain, ..Exported::default() }, &[("labels.txt", labels())]);
        fixture.text(&[&["model", "add", &folder], &FLAGS[..]].concat());
        assert_eq!(fixture.classify(name, GREEN).0, "green");
    }
}

/// A name, an export, further files, and a part of the refusal.
type Case<'a> = (&'a str, &'a Exported, &'a [(&'a str, String)], &'a str);

#[test]
fn scores_that_are_normalised_already_are_not_normalised_again() {
    let fixture = Fixture::new();
    let files = [("config.json", config(&json!({}))), ("preprocessor_config.json", preprocessor())];
    let ends_in_softmax = fixture.export("ends", &Exported { head: vec!["Softmax"], ..Exported::default() }, &files);
    let table = fixture.described(&[&ends_in_softmax]);
    assert_eq!(table["output"]["activation"].as_str(), Some("none"));
    // The last operator hides the softmax, so that only the outputs show it.
    let hidden = fixture.export("hidden", &Exported { head: vec!["Softmax", "Abs"], ..Exported::default() }, &files);
    let text = fixture.text(&["model", "add", &hidden]);
    assert!(text.contains("already sum to 1"), "{text}");
    for folder in [&ends_in_softmax, &hidden] {
        let error = fixture.refused(&["model", "add", folder, "--activation", "softmax"]);
        assert!(error.contains("twice") && error.contains("--activation none"), "{error}");
    }
}

#[test]
fn wrong_exports_are_refused_in_one_line_and_leave_nothing() {
    let fixture = Fixture::new();
    let add = |name: &str, model: &Exported, files: &[(&str, String)], flags: &[&str]| {
        let folder = fixture.export(name, model, files);
        fixture.refused(&[&["model", "add", &folder], flags].concat())
    };
    let plain = Exported::default();
    let named = [("labels.txt", labels())];
    let error = add("nothing", &plain, &named, &[]);
    for flag in ["--resize", "--filter", "--mean", "--std"] {
        assert!(error.contains(flag), "{error}");
    }
    let labelled = |text: &str| [("labels.txt", text.to_owned())];
    let vector = Exported { shape: vec![None, Some(10)], ..plain.clone() };
    let cases: [Case; 9] = [
        ("more", &plain, &labelled("red\ngreen\nblue\nblack\n"), "4 labels, but the network has 3 outputs"),
        ("twice", &plain, &labelled("red\ngreen\nred\n"), "classes 0 and 2 are both called \"red\""),
        ("empty", &plain, &labelled(""), "labels.txt"),
        ("vector", &vector, &named, "is no image"),
        ("two", &Exported { has_second_input: true, ..plain.clone() }, &named, "2 inputs"),
        ("nan", &Exported { gain: f32::NAN, ..plain.clone() }, &named, "NaN"),
        ("operator", &Exported { head: vec!["NoSuchOperator"], ..plain.clone() }, &named, "does not have"),
        ("opset", &Exported { opset: 99, ..plain.clone() }, &named, "opset_version"),
        ("escape", &Exported { external: Some("../../secret"), ..plain.clone() }, &named, "is not inside its folder"),
    ];
    for (name, model, files, expected) in cases {
        let error = add(name, model, files, &FLAGS);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let labels = [("config.json", config(&json!({"problem_type": "regression"})))];
    assert!(add("regression", &plain, &labels, &[]).contains("only classifiers"));
    let detect = Exported { metadata: vec![("task", "detect".to_owned()), ("names", "{0: 'a'}".to_owned())], ..plain };
    assert!(add("detect", &detect, &[], &[]).contains("-cls"));

    let file = |name: &str, bytes: &[u8]| {
        let path = fixture.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        fixture.refused(&["model", "add", path.to_str().unwrap()])
    };
    assert!(file("net.pkl", b"\x80\x04\x95\x00").contains("pickle"));
    assert!(file("net.pth", b"PK\x03\x04\x00\x00\x08\x08").contains("torch.onnx.export"));
    assert!(file("net.h5", b"\x89HDF\r\n\x1a\n").contains("tf2onnx"));
    assert!(file("net.onnx", b"nonsense").contains("is not an ONNX file"));
    let large = fixture.dir.path().join("large.onnx");
    std::fs::File::create(&large).unwrap().set_len((2 << 30) + 1).unwrap();
    assert!(fixture.refused(&["model", "add", large.to_str().unwrap()]).contains("external data"));
    let nothing = fixture.dir.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    assert!(fixture.refused(&["model", "add", nothing.to_str().unwrap()]).contains("contains no ONNX file"));
    assert!(fixture.refused(&["model", "add", "/no/such/folder"]).contains("cannot read"));
    let left: Vec<_> = std::fs::read_dir(fixture.models()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn versions_are_used_rolled_back_and_removed() {
    let fixture = Fixture::new();
    let add = |gain: f32, more: &[&str]| {
        let folder = fixture.export("net", &Exported { gain, ..Exported::default() }, &[("labels.txt", labels())]);
        let added = fixture.json(&[&["model", "add", &folder], &FLAGS[..], more].concat());
        (added["version"].as_str().unwrap().to_owned(), added["is_current"].as_bool().unwrap())
    };
    let (first, is_first_used) = add(8.0, &[]);
    let (second, is_second_used) = add(9.0, &[]);
    assert!(is_first_used && !is_second_used && first != second);
    assert_eq!(fixture.classify("net", GREEN).1, first);
    let second_name = format!("net@{second}");
    assert_eq!(fixture.classify(&second_name, GREEN).1, second);
    assert_eq!(fixture.json(&["model", "use", &second_name])["before"], first.as_str());
    assert_eq!(fixture.classify("net", GREEN).1, second);
    assert!(fixture.text(&["model", "rollback", "net"]).contains(&format!("net@{first} is in use again")));
    assert!(fixture.refused(&["model", "rollback", "net"]).contains("no earlier version"));
    let (third, is_third_used) = add(10.0, &["--use"]);
    assert!(is_third_used);
    assert!(fixture.refused(&["model", "remove", &format!("net@{third}")]).contains("is in use"));
    fixture.text(&["model", "remove", &second_name]);
    assert!(fixture.refused(&["model", "use", &second_name]).contains(&"it has: ".to_string()));
    assert!(fixture.refused(&["classify", "--model", &second_name, "x.png"]).contains("has no version"));
    assert!(fixture.refused(&["model", "use", "net"]).contains("say which version"));
    let removed = fixture.json(&["model", "remove", "net"]);
    assert_eq!(removed["versions"].as_array().unwrap().len(), 2);
    assert!(fixture.refused(&["model", "show", "net"]).contains("is not found"));
    for wrong in ["../net", "a/b", "net@..", "net@"] {
        assert_eq!(fixture.run(&["model", "show", wrong]).status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn damaged_package_fails_its_check() {
    let fixture = Fixture::new();
    let folder = fixture.export("net", &Exported::default(), &[("labels.txt", labels())]);
    let added = fixture.json(&[&["model", "add", &folder], &FLAGS[..]].concat());
    let labels = PathBuf::from(added["folder"].as_str().unwrap()).join("labels.txt");
    std::fs::write(&labels, "red\ngreen\nother\n").unwrap();
    let output = fixture.run(&["model", "check", "--json"]);
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{checked}");
    assert!(checked[0]["error"].as_str().unwrap().contains("sha256"), "{checked}");
    assert!(checked.as_array().unwrap().iter().skip(1).all(|model| model["is_good"] == true), "{checked}");
    assert!(fixture.refused(&["classify", "--model", "net", "x.png"]).contains("sha256"));
}

#[test]
fn package_with_a_description_is_added_as_it_is() {
    let fixture = Fixture::new();
    let folder = fixture.export("net", &Exported::default(), &[("labels.txt", labels())]);
    let added = fixture.json(&[&["model", "add", &folder], &FLAGS[..]].concat());
    let package = added["folder"].as_str().unwrap();
    std::fs::write(Path::new(package).join("NOTICE"), "keep this").unwrap();
    let again = fixture.json(&["model", "add", package, "--name", "other"]);
    assert_eq!(again["name"], "other");
    assert!(PathBuf::from(again["folder"].as_str().unwrap()).join("NOTICE").is_file());
    assert_eq!(fixture.classify("other", GREEN).0, "green");
    assert!(fixture.refused(&["model", "add", package, "--mean", "0"]).contains("only --name"));
}
