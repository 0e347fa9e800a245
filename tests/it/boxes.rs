//! `imgcls classify --boxes`: the boxes of a detector's file are classified, through the real binary with a small model.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::Stdio;

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::harness::until;
use crate::image_files::{encode, exif_orientation, exif_segment, jpeg, with_segments};
use crate::pile_folder::Pile;

const RED: Rgb<u8> = Rgb([250, 10, 10]);
const GREEN: Rgb<u8> = Rgb([10, 250, 10]);
const BLUE: Rgb<u8> = Rgb([10, 10, 250]);
const GREY: Rgb<u8> = Rgb([120, 120, 120]);

/// A folder with a model, images and a detector's file.
struct Trap(Pile);

impl Deref for Trap {
    type Target = Pile;

    fn deref(&self) -> &Pile {
        &self.0
    }
}

impl Trap {
    fn new() -> Trap {
        // With these weights the four colours below are four classes.
        Trap(Pile::with_model(5))
    }

    fn write_boxes(&self, name: &str, images: &Value) {
        let file = json!({
            "info": {
                "format_version": "1.5",
                "detector": "md_v5a.0.0.pt",
                "classifier": "another one",
                "classifier_metadata": {"typical_classification_threshold": 0.75},
                "detector_metadata": {"typical_detection_threshold": 0.2},
            },
            "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
            "classification_categories": {"0": "fox"},
            "classification_category_descriptions": {"0": "animalia"},
            "images": images,
            "made_by": {"tests": true},
        });
        self.write(name, file.to_string().as_bytes());
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// Runs the command, which ends with this code.
    fn run_to(&self, code: i32, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
        ended.stderr
    }

    /// The class of an image that has one colour.
    fn class_of(&self, colour: Rgb<u8>) -> String {
        self.write("one-colour.png", &encode(&RgbImage::from_pixel(16, 16, colour), ImageFormat::Png));
        let ended = self.run(&["--json", "one-colour.png"]);
        let line: Value = serde_json::from_str(&ended.stdout).unwrap();
        line["predictions"][0]["class_index"].to_string()
    }
}

/// Three colours side by side, each in a part of 40 × 40 pixels, before a grey background.
fn scene() -> RgbImage {
    RgbImage::from_fn(200, 100, |x, y| match (x, y) {
        (10..50, 30..70) => RED,
        (80..120, 30..70) => GREEN,
        (150..190, 30..70) => BLUE,
        _ => GREY,
    })
}

fn detection(category: &str, conf: f64, bbox: [f64; 4]) -> Value {
    json!({ "category": category, "conf": conf, "bbox": bbox })
}

const LEFT: [f64; 4] = [0.05, 0.3, 0.2, 0.4];
const MIDDLE: [f64; 4] = [0.4, 0.3, 0.2, 0.4];
const RIGHT: [f64; 4] = [0.75, 0.3, 0.2, 0.4];

/// The best class of each detection of an image. `-` stands for one that was not classified.
fn classes(file: &Value, image: usize) -> Vec<&str> {
    let detections = file["images"][image]["detections"].as_array().unwrap();
    detections.iter().map(|detection| detection["classifications"][0][0].as_str().unwrap_or("-")).collect()
}

/// A block of EXIF that says when a photograph was taken.
fn exif_time(time: &str, offset: &str) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: usize, value: usize| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &(count as u32).to_le_bytes(), &(value as u32).to_le_bytes()]
            .concat()
    };
    let texts = format!("{time}\0{offset}\0");
    // The only field of the first directory leads to the directory of EXIF at byte 26, whose texts are at byte 56.
    [
        b"II*\0\x08\0\0\0\x01\0".to_vec(),
        entry(0x8769, 4, 1, 26),
        vec![0; 4],
        vec![2, 0],
        entry(0x9003, 2, time.len() + 1, 56),
        entry(0x9011, 2, offset.len() + 1, 56 + time.len() + 1),
        vec![0; 4],
        texts.into_bytes(),
    ]
    .concat()
}

/// Compares a text with the golden file of this name. IMGCLS_GOLDEN=write writes the golden file.
fn assert_golden(written: &str, name: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pile").join(name);
    if std::env::var("IMGCLS_GOLDEN").is_ok_and(|value| value == "write") {
        fs::write(&golden, written).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
    assert_eq!(written, expected, "{name}");
}

/// The text without what the clock says: `2026-11-30 10:00:00`, also with a T.
fn without_clock(text: &str) -> String {
    let year = jiff::Timestamp::now().strftime("%Y-").to_string();
    let mut parts = text.split(&year);
    let mut without = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        without += "NOW";
        without += &part["11-30 10:00:00".len()..];
    }
    without
}

#[test]
fn boxes_are_classified_and_all_else_is_kept() {
    let trap = Trap::new();
    let scene = scene();
    trap.write("images/night/scene.png", &encode(&scene, ImageFormat::Png));
    // The same image as it lies in a camera that is held upright, with its rotation in EXIF.
    let turned = image::imageops::rotate270(&scene);
    let turned = with_segments(&jpeg(&turned), &[exif_segment(&exif_orientation(6))]);
    trap.write("images/turned.jpg", &turned);
    trap.write("images/empty.png", b"no image, but not read either");
    trap.write("images/broken.png", b"no image");
    let mut classified_earlier = detection("1", 0.05, MIDDLE);
    classified_earlier["classifications"] = json!([["0", 0.99]]);
    let all = [detection("1", 0.9, LEFT), detection("2", 0.8, MIDDLE), classified_earlier, detection("1", 0.2, RIGHT)];
    trap.write_boxes(
        "images/boxes.json",
        &json!([
            { "file": "night\\scene.png", "detections": all, "max_detection_conf": 0.9 },
            { "file": "turned.jpg", "detections": all },
            { "file": "empty.png", "detections": [] },
            { "file": "unreadable.jpg", "failure": "Failure image access", "detections": null },
            { "file": "film.mp4", "frame_rate": 20, "frames_processed": [0],
              "detections": [{ "category": "1", "conf": 0.9, "bbox": LEFT, "frame_number": 0 }] },
            { "file": "broken.png", "detections": [detection("1", 0.9, LEFT)] },
        ]),
    );
    let [red, green, blue] = [RED, GREEN, BLUE].map(|colour| trap.class_of(colour));
    assert!(red != green && green != blue && red != blue, "the model tells the colours apart");

    let arguments = ["--boxes", "images/boxes.json", "--box-padding", "0%", "--top-k", "2"];
    let stderr = trap.run_to(1, &[&arguments[..], &["--out", "out.json", "--errors", "errors.csv"]].concat());
    assert!(stderr.contains("out.json: 7 rows, 1 failed"), "{stderr}");
    let file = trap.json("out.json");
    assert_eq!(classes(&file, 0), [&red, &green, "-", &blue]);
    assert_eq!(classes(&file, 1), [&red, &green, "-", &blue]);
    assert_eq!(classes(&file, 5), ["-"]);
    assert!(trap.read("errors.csv").contains("broken.png#0,failed,unsupported_type,"), "{}", trap.read("errors.csv"));
    assert_golden(&without_clock(&trap.read("out.json")), "boxes.json");
    // Another program relies on this: every class has a name, and the best one comes first.
    let categories = file["classification_categories"].as_object().unwrap();
    for image in file["images"].as_array().unwrap() {
        for detection in image["detections"].as_array().into_iter().flatten() {
            let classes = detection["classifications"].as_array().into_iter().flatten();
            let scores: Vec<f64> = classes
                .map(|class| {
                    assert!(categories.contains_key(class[0].as_str().unwrap()));
                    class[1].as_f64().unwrap()
                })
                .collect();
            assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        }
    }
    // A table has a row for each box.
    trap.run_to(1, &[&arguments[..], &["--out", "out.csv", "--sort-into", "sorted"]].concat());
    let mut reader = csv::Reader::from_path(trap.path("out.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let paths: Vec<&str> = rows.iter().map(|row| &row[0]).collect();
    let expected = ["night\\scene.png#0", "night\\scene.png#1", "night\\scene.png#3", "turned.jpg#0", "turned.jpg#1"];
    assert_eq!(paths[..5], expected);
    assert_eq!((&rows[4][2], paths[6]), (&green[..], "broken.png#0"));
    assert!(trap.path(&format!("sorted/colour {green}/turned.jpg")).exists());
}

#[test]
fn flags_choose_boxes_and_the_part_around_them() {
    let trap = Trap::new();
    trap.write("images/scene.png", &encode(&scene(), ImageFormat::Png));
    // A flat box inside of the red part: the square around it is all red, and with padding mostly grey.
    let flat = [0.05, 0.45, 0.2, 0.1];
    let all = [detection("1", 0.9, flat), detection("2", 0.5, MIDDLE), detection("3", 0.1, RIGHT)];
    trap.write_boxes("boxes.json", &json!([{ "file": "scene.png", "detections": all }]));
    let [red, green, blue, grey] = [RED, GREEN, BLUE, GREY].map(|colour| trap.class_of(colour));
    let outcome = |flags: &[&str]| {
        let arguments = ["images", "--boxes", "boxes.json", "--out", "out.json", "--overwrite", "--top-k", "1"];
        trap.run_to(0, &[&arguments[..], flags].concat());
        classes(&trap.json("out.json"), 0).join(" ")
    };
    assert_eq!(outcome(&["--box-padding", "0%"]), format!("{red} {green} -"));
    assert_eq!(outcome(&["--box-padding", "0%", "--box-shape", "exact"]), format!("{red} {green} -"));
    assert_eq!(
        outcome(&["--min-confidence", "0.1", "--box-category", "vehicle", "--box-padding", "0%"]),
        format!("- - {blue}")
    );
    assert_eq!(
        outcome(&["--min-confidence", "0", "--box-category", "1", "--box-padding", "400%"]),
        format!("{grey} - -")
    );
}

#[test]
fn detectors_file_is_replaced_only_if_that_is_asked_for() {
    let trap = Trap::new();
    trap.write("scene.png", &encode(&scene(), ImageFormat::Png));
    trap.write_boxes("boxes.json", &json!([{ "file": "scene.png", "detections": [detection("1", 0.9, LEFT)] }]));
    let before = trap.read("boxes.json");
    let stderr = trap.run_to(1, &["--boxes", "boxes.json", "--out", "boxes.json"]);
    assert!(stderr.contains("boxes.json exists: --overwrite replaces it"), "{stderr}");
    assert_eq!(trap.read("boxes.json"), before);
    trap.run_to(0, &["--boxes", "boxes.json", "--out", "boxes.json", "--overwrite"]);
    assert_eq!(trap.json("boxes.json")["images"][0]["detections"][0]["classifications"].as_array().unwrap().len(), 5);
    for (arguments, named) in [
        (&["scene.png", "--out", "x.json"][..], "--boxes"),
        (&["--boxes", "boxes.json", "--out", "x.jsonl", "--format", "camtrap-dp"], "FILE.csv"),
        (&["--boxes", "boxes.json", "--out", "x.json", "a", "b"], "one PATH"),
        (&["--boxes", "boxes.json"], "--out"),
    ] {
        let stderr = trap.run_to(2, arguments);
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
    trap.write("list.json", b"[1, 2]");
    let stderr = trap.run_to(1, &["--boxes", "list.json", "--out", "x.json"]);
    assert!(stderr.contains("list.json"), "{stderr}");
}

#[test]
fn observations_have_the_columns_of_camtrap_dp() {
    let trap = Trap::new();
    let timed =
        |offset: &str| with_segments(&jpeg(&scene()), &[exif_segment(&exif_time("2024:05:01 12:34:56", offset))]);
    trap.write("images/north/1.jpg", &timed("+02:00"));
    trap.write("images/north/2.jpg", &timed(""));
    trap.write("images/=south.jpg", &timed(""));
    trap.write("images/broken.jpg", b"no image");
    trap.write_boxes(
        "boxes.json",
        &json!([
            { "file": "north/1.jpg", "detections": [detection("1", 0.9, LEFT), detection("2", 0.8, MIDDLE)] },
            { "file": "north/2.jpg", "detections": [detection("1", 0.1, LEFT)] },
            { "file": "=south.jpg", "detections": [detection("3", 0.7, RIGHT)] },
            { "file": "broken.jpg", "detections": [detection("1", 0.7, RIGHT)] },
            { "file": "unreadable.jpg", "failure": "Failure image access" },
        ]),
    );
    let arguments = ["images", "--boxes", "boxes.json", "--format", "camtrap-dp", "--utc-offset", "-03:00"];
    let stderr = trap.run_to(1, &[&arguments[..], &["--out", "observations.csv"]].concat());
    assert!(stderr.contains("eventStart"), "one image has no time: {stderr}");
    assert_golden(&without_clock(&trap.read("observations.csv")), "observations.csv");
    trap.run_to(1, &[&arguments[..], &["--out", "one.csv", "--deployment", "hill"]].concat());
    let mut reader = csv::Reader::from_path(trap.path("one.csv")).unwrap();
    assert!(reader.records().all(|row| &row.unwrap()[1] == "hill"));
}

#[test]
fn run_over_boxes_that_is_killed_continues_and_is_complete() {
    let trap = Trap::new();
    let colours = [RED, GREEN, BLUE, GREY];
    let mut images = Vec::new();
    for number in 0..1_500 {
        let name = format!("{number:04}.png");
        let size = 10 + number as u32 % 3;
        trap.write(
            &format!("images/{name}"),
            &encode(&RgbImage::from_pixel(size, 12, colours[number % 4]), ImageFormat::Png),
        );
        let boxes: Vec<Value> = (0..number % 4).map(|_| detection("1", 0.9, MIDDLE)).collect();
        images.push(json!({ "file": name, "detections": boxes }));
    }
    trap.write("images/0777.png", b"no image");
    trap.write_boxes("boxes.json", &Value::Array(images));
    let run = ["images", "--boxes", "boxes.json", "--out"];
    trap.run_to(1, &[&run[..], &["undisturbed.json"]].concat());
    let arguments = [&run[..], &["out.json"]].concat();
    let length = |name: &str| fs::metadata(trap.path(name)).map_or(0, |metadata| metadata.len());
    let mut kills = 0;
    loop {
        let mut child = trap.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        let before = length("out.json.part");
        // Each run adds something before it is killed, so that the last one comes to an end.
        until("progress", || {
            (length("out.json.part") > before + 60_000 || child.try_wait().unwrap().is_some()).then_some(())
        });
        child.kill().unwrap();
        if child.wait().unwrap().code() == Some(1) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 2, "killed {kills} times");
    assert_eq!(without_clock(&trap.read("out.json")), without_clock(&trap.read("undisturbed.json")));
    // The same command with other boxes is refused.
    trap.write_boxes("boxes.json", &json!([]));
    let stderr = trap.run_to(1, &arguments);
    assert!(stderr.contains("other options (--boxes was "), "{stderr}");
}
