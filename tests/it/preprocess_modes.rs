//! Every way to resize and normalise gives the pixels of the reference, which `scripts/make_golden_modes.py` computes with
//! Pillow, torchvision's arithmetic and OpenCV.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use imgcls::model::{Limits, ModelChoice, ModelPackage, Tensor, Values, prepare, prepare_unscaled};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Keys of `[input]` in `model.toml`.
type Keys = Map<String, Value>;

#[derive(Deserialize)]
struct Case {
    image: String,
    input: Keys,
    /// A PNG of the expected pixels.
    expected: String,
}

#[derive(Deserialize)]
struct Tensors {
    image: String,
    input: Keys,
    #[serde(rename = "tensors")]
    expected: Vec<GoldenTensor>,
}

#[derive(Deserialize)]
struct GoldenTensor {
    #[serde(rename = "type")]
    element: String,
    layout: String,
    channels: String,
    values: Vec<f32>,
}

/// The share of values that may differ from the reference by more than one 8-bit step.
const MAX_OUTLIERS: f64 = 0.001;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn golden<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(repository().join("tests/golden/modes").join(name)).unwrap()).unwrap()
}

/// A package with these keys of `[input]`. Its model file is never run.
fn package(keys: &Keys, further: &[(&str, &str)]) -> ModelPackage {
    let folder = tempfile::tempdir().unwrap();
    let mut description = format!(
        "name = \"modes\"\nversion = \"1\"\nlabels = \"labels.txt\"\noutput = \"logits\"\n[files.fp32]\n\
         path = \"model.onnx\"\nsha256 = \"{}\"\n[input]\nname = \"input\"\n",
        digest(b"no model")
    );
    for (key, value) in keys {
        writeln!(description, "{key} = {value}").unwrap();
    }
    for (key, value) in further {
        writeln!(description, "{key} = \"{value}\"").unwrap();
    }
    std::fs::write(folder.path().join("model.onnx"), "no model").unwrap();
    std::fs::write(folder.path().join("labels.txt"), "a\nb\n").unwrap();
    std::fs::write(folder.path().join("model.toml"), description).unwrap();
    load(folder.path())
}

fn load(folder: &Path) -> ModelPackage {
    let model = Some(folder.to_str().unwrap().to_owned());
    ModelPackage::load(&ModelChoice { model, ..ModelChoice::default() }).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

const BYTES: [(&str, &str); 3] = [("type", "uint8"), ("layout", "NHWC"), ("channels", "RGB")];

fn bytes(tensor: &Tensor) -> &[u8] {
    let Values::Pixels(bytes) = &tensor.values else { panic!("the package takes bytes") };
    bytes
}

fn steps(one: &[u8], other: &[u8]) -> Vec<u8> {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| one.abs_diff(*other)).collect()
}

#[test]
fn every_mode_equals_the_reference_within_one_step() {
    let mut failures = Vec::new();
    for case in golden::<Vec<Case>>("modes.json") {
        let expected = image::open(repository().join("tests/golden/modes").join(&case.expected)).unwrap().into_rgb8();
        let image = std::fs::read(repository().join(&case.image)).unwrap();
        let tensor = prepare_unscaled(&image, &package(&case.input, &BYTES), &Limits::default()).unwrap();
        let size = (tensor.width, tensor.height);
        assert_eq!(size, (expected.width() as usize, expected.height() as usize), "{}", case.expected);
        let steps = steps(bytes(&tensor), expected.as_raw());
        let outliers = steps.iter().filter(|&&step| step > 1).count() as f64 / steps.len() as f64;
        let average = steps.iter().map(|&step| f64::from(step)).sum::<f64>() / steps.len() as f64;
        let largest = steps.iter().max().unwrap();
        println!("{} of {}: {outliers:.4} {average:.3} {largest}", case.expected, case.image);
        if outliers > MAX_OUTLIERS {
            failures.push(case.expected);
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

/// Images without loss are resized exactly as the reference does it, except by packages that ask for the faster way. That
/// has to hold also when only the part inside the crop is decoded.
#[test]
fn images_without_loss_equal_the_reference_exactly() {
    let cases = golden::<Vec<Case>>("modes.json");
    let text = |case: &Case, key| case.input.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_exact = |case: &&Case| text(case, "resize") != "short-side" && !case.image.ends_with(".jpg");
    let mut filters = BTreeSet::new();
    for case in cases.iter().filter(is_exact) {
        let expected = image::open(repository().join("tests/golden/modes").join(&case.expected)).unwrap().into_rgb8();
        let image = std::fs::read(repository().join(&case.image)).unwrap();
        for function in [prepare, prepare_unscaled] {
            let tensor = function(&image, &package(&case.input, &BYTES), &Limits::default()).unwrap();
            assert!(bytes(&tensor) == expected.as_raw().as_slice(), "{}", case.expected);
        }
        filters.insert(text(case, "filter"));
    }
    let all = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "opencv-bilinear"];
    assert!(all.iter().all(|filter| filters.contains(*filter)), "{filters:?}");
}

/// These photographs are too small to be decoded at a fraction of their size.
#[test]
fn part_of_a_jpeg_gives_the_same_pixels_as_all_of_it() {
    let cases = golden::<Vec<Case>>("modes.json");
    let turned: Vec<&Case> = cases.iter().filter(|case| case.image.contains("orientation-")).collect();
    assert!(turned.len() >= 14);
    for case in turned {
        let package = package(&case.input, &BYTES);
        let image = std::fs::read(repository().join(&case.image)).unwrap();
        let [part, all] =
            [prepare, prepare_unscaled].map(|function| function(&image, &package, &Limits::default()).unwrap());
        assert!(part == all, "{}", case.expected);
    }
}

#[test]
fn every_type_layout_and_channel_order_has_the_values_of_the_reference() {
    let Tensors { image, input, expected } = golden("tensors.json");
    let image = std::fs::read(repository().join(image)).unwrap();
    // One step of a pixel value, which the resize may differ by.
    let step = 1.0 / 255.0 / 0.224;
    for GoldenTensor { element, layout, channels, values } in expected {
        let form = [("type", &*element), ("layout", &layout), ("channels", &channels)];
        let tensor = prepare(&image, &package(&input, &form), &Limits::default()).unwrap();
        let (found, tolerance): (Vec<f32>, f32) = match tensor.values {
            Values::Floats(floats) => (floats, step * 1.01),
            Values::Halves(halves) => (halves.into_iter().map(f32::from).collect(), step * 1.1),
            Values::Pixels(bytes) => (bytes.into_iter().map(f32::from).collect(), 1.0),
        };
        assert_eq!(found.len(), values.len());
        for (found, expected) in found.iter().zip(&values) {
            assert!((found - expected).abs() <= tolerance, "{form:?}: {found}, not {expected}");
        }
    }
}

/// A crop that a careless description asks for must not take unlimited memory.
#[test]
fn input_without_a_size_is_bounded_by_the_limit_of_pixels() {
    let keys: Keys =
        serde_json::from_str(r#"{"resize": "shortest-edge", "size": 4000, "filter": "bilinear"}"#).unwrap();
    let image = std::fs::read(repository().join("tests/pictures/one-by-3000.png")).unwrap();
    let error = prepare(&image, &package(&keys, &BYTES), &Limits::default()).unwrap_err();
    assert_eq!(error.fault, imgcls::model::ImageFault::TooManyPixels);
}
