//! Models as they are exported: types, layouts, outputs and heads, run by ONNX Runtime.

use std::path::Path;

use image::{ImageFormat, RgbImage};
use imgcls::model::{Limits, ModelChoice, ModelPackage, Session, labels_above, prepare, top_k};

use crate::onnx_graph::{Kind, Network, SIDE, sha256};

/// An image whose mean colour is (1, 0.5, 0) × 255.
pub fn orange() -> Vec<u8> {
    let mut png = Vec::new();
    let image = RgbImage::from_fn(20, 20, |x, _| image::Rgb([255, if x < 10 { 255 } else { 0 }, 0]));
    image.write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png).unwrap();
    png
}

/// The keys of `[input]` that do not vary.
const INPUT: &str = "resize = \"squash\"\nfilter = \"bilinear\"\nrescale = 0.00392156862745098\n";

/// Writes a package. `output` is the text of `[output]`.
pub fn write(folder: &Path, network: &Network, output: &str, labels: &str) {
    let files = network.write(folder);
    let element = match network.input {
        Kind::Float32 => "float32",
        Kind::Float16 => "float16",
        Kind::Uint8 => "uint8",
    };
    let layout = if network.is_nhwc { "NHWC" } else { "NCHW" };
    let description = format!(
        "name = \"colours\"\nversion = \"1\"\nlabels = \"labels.txt\"\n{files}[labels_file]\nsha256 = \"{}\"\n\
         [output]\n{output}\n[input]\nname = \"{}\"\ntype = \"{element}\"\nlayout = \"{layout}\"\nchannels = \"RGB\"\n\
         size = {SIDE}\n{INPUT}",
        sha256(labels.as_bytes()),
        network.input_name,
    );
    std::fs::write(folder.join("labels.txt"), labels).unwrap();
    std::fs::write(folder.join("model.toml"), description).unwrap();
}

pub const LABELS: &str = "red\ngreen\nblue\n";

/// Adds a set of labels to a package.
pub fn add_label_set(folder: &Path, name: &str, text: &str) {
    let path = format!("labels-{name}.txt");
    std::fs::write(folder.join(&path), text).unwrap();
    let table = format!("[label_sets.{name}]\npath = \"{path}\"\nsha256 = \"{}\"\n", sha256(text.as_bytes()));
    let description = std::fs::read_to_string(folder.join("model.toml")).unwrap();
    std::fs::write(folder.join("model.toml"), description + &table).unwrap();
}

/// The `[output]` of a package whose network gives the orange image two labels, red and blue, of three classes.
pub const TWO_LABELS: &str =
    "activation = \"sigmoid\"\nmulti_label = true\nthreshold = 0.9\nthresholds = { green = 0.99, blue = 0.4 }";

fn choice(folder: &Path) -> ModelChoice {
    ModelChoice { model: Some(folder.to_str().unwrap().to_owned()), ..ModelChoice::default() }
}

/// The scores of the orange image, alone and as the second of a batch.
fn scores(network: &Network, output: &str) -> anyhow::Result<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), network, output, LABELS);
    let choice = choice(folder.path());
    let package = ModelPackage::load(&choice)?;
    let mut session = Session::open(&package, &choice)?;
    let tensor = prepare(&orange(), &package, &Limits::default()).unwrap();
    let alone = session.infer(&[&tensor])?.remove(0);
    let batch = session.infer(&[&tensor, &tensor, &tensor])?;
    assert_eq!(batch.len(), 3);
    assert!(batch.iter().flatten().zip(alone.iter().cycle()).all(|(one, other)| (one - other).abs() < 1e-3));
    Ok(alone)
}

fn error(network: &Network, output: &str) -> String {
    let error = format!("{:#}", scores(network, output).expect_err("the model must be refused"));
    assert!(!error.contains('\n'), "{error}");
    error
}

fn assert_close(found: &[f32], expected: [f32; 3], tolerance: f32) {
    assert_eq!(found.len(), 3);
    let is_close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < tolerance);
    assert!(is_close, "{found:?}, not {expected:?}");
}

const RAW: &str = "activation = \"none\"";
pub const SOFTMAX: &str = "activation = \"softmax\"";
const SIGMOID: &str = "activation = \"sigmoid\"";

#[test]
fn every_form_of_input_and_output_gives_the_same_scores() {
    let kinds = [Kind::Float32, Kind::Float16, Kind::Uint8];
    for input in kinds {
        for output in [Kind::Float32, Kind::Float16] {
            for (is_nhwc, has_pixel_axes, batch) in [
                (false, false, None),
                (true, false, None),
                (false, true, None),
                (true, true, Some(1)),
                (false, false, Some(2)),
            ] {
                let network = Network { input, output, is_nhwc, has_pixel_axes, batch, ..Network::default() };
                // Bytes are not rescaled, so that their logits are 255 times as large; half precision has 11 bits.
                let scale = if input == Kind::Uint8 { 255.0 } else { 1.0 };
                let expected = [8.0, 4.0, 0.0].map(|score| score * scale);
                assert_close(&scores(&network, RAW).unwrap(), expected, 0.02 * scale);
            }
        }
    }
}

#[test]
fn activation_is_applied_to_logits() {
    let network = Network::default();
    let sum = 8_f32.exp() + 4_f32.exp() + 1.0;
    let softmax = [8_f32, 4.0, 0.0].map(|logit| logit.exp() / sum);
    assert_close(&scores(&network, SOFTMAX).unwrap(), softmax, 1e-4);
    let sigmoid = [8_f32, 4.0, 0.0].map(|logit| 1.0 / (1.0 + (-logit).exp()));
    assert_close(&scores(&network, SIGMOID).unwrap(), sigmoid, 1e-4);
}

#[test]
fn outputs_that_are_probabilities_are_never_normalised_again() {
    let network = Network { head: "Softmax", ..Network::default() };
    for output in [SOFTMAX, SIGMOID] {
        let error = error(&network, output);
        assert!(error.contains("--activation none"), "{error}");
    }
    let scores = scores(&network, RAW).unwrap();
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-4 && scores[0] > 0.9, "{scores:?}");
}

#[test]
fn output_is_chosen_by_name_and_never_the_features_by_default() {
    let named = |name: &str| format!("{RAW}\nname = \"{name}\"");
    assert_close(&scores(&Network::default(), &named("features")).unwrap(), [1.0, 0.5, 0.0], 1e-3);
    assert_close(&scores(&Network::default(), RAW).unwrap(), [8.0, 4.0, 0.0], 1e-2);
    let error = error(&Network::default(), &named("logits"));
    assert!(error.contains("\"logits\"") && error.contains("features, scores"), "{error}");
}

#[test]
fn scores_that_are_not_numbers_are_an_error() {
    // The logit of blue is 0, or with half of the rounding below it.
    let network = Network { head: "Log", ..Network::default() };
    assert!(error(&network, RAW).contains("not finite"));
}

#[test]
fn weights_in_another_file_are_verified_and_used() {
    let network = Network { has_external_data: true, ..Network::default() };
    assert_close(&scores(&network, RAW).unwrap(), [8.0, 4.0, 0.0], 1e-2);

    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &network, RAW, LABELS);
    let choice = choice(folder.path());
    let package = ModelPackage::load(&choice).unwrap();
    assert!(package.file_bytes() > 36);
    std::fs::write(folder.path().join("model.onnx.data"), [0; 36]).unwrap();
    let session = format!("{:#}", Session::open(&package, &choice).err().expect("the weights changed"));
    let load = format!("{:#}", ModelPackage::load(&choice).err().expect("the weights changed"));
    for error in [session, load] {
        assert!(error.contains("model.onnx.data") && error.contains("sha256"), "{error}");
    }
}

#[test]
fn multi_label_model_answers_with_every_class_above_its_threshold() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        format!("{SIGMOID}\nmulti_label = true\nthreshold = 0.9\nthresholds = {{ \"g1\" = 0.99, blue = 0.4 }}");
    let labels = "r1;red;;;;;red\ng1;green;;;;;green\nb1;blue;;;;;blue\n";
    write(folder.path(), &Network::default(), &output, labels);
    let choice = choice(folder.path());
    let package = ModelPackage::load(&choice).unwrap();
    assert!(package.is_multi_label());
    assert_eq!((package.label(1), package.class_id(1)), ("green", Some("g1")));
    let mut session = Session::open(&package, &choice).unwrap();
    let tensor = prepare(&orange(), &package, &Limits::default()).unwrap();
    let scores = session.infer(&[&tensor]).unwrap().remove(0);
    let names = |predictions: Vec<imgcls::model::Prediction>| {
        predictions.into_iter().map(|prediction| prediction.label).collect::<Vec<_>>()
    };
    assert_eq!(names(labels_above(&package, &scores)), ["red", "blue"]);
    assert_eq!(names(top_k(&package, &scores, 2)), ["red", "green"]);
}

#[test]
fn second_set_of_labels_is_chosen_by_its_name_or_its_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Network::default(), SOFTMAX, LABELS);
    add_label_set(folder.path(), "german", "rot\ngrün\nblau\n");
    add_label_set(folder.path(), "short", "r\ng\n");
    let load = |label_set: Option<&str>| {
        let label_set = label_set.map(str::to_owned);
        ModelPackage::load(&ModelChoice { label_set, ..choice(folder.path()) }).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(load(None).unwrap().label(1), "green");
    assert_eq!(load(Some("german")).unwrap().labels(), ["rot", "grün", "blau"]);
    assert!(load(Some("short")).err().unwrap().contains("2 labels"));
    assert!(load(Some("french")).err().unwrap().contains("german, short"));
    let file = folder.path().join("own.json");
    std::fs::write(&file, r#"["rouge", "vert", "bleu"]"#).unwrap();
    assert_eq!(load(file.to_str()).unwrap().labels(), ["rouge", "vert", "bleu"]);
    std::fs::write(&file, r#"["rouge"]"#).unwrap();
    let error = load(file.to_str()).err().unwrap();
    assert!(error.contains("own.json") && error.contains("1 labels") && !error.contains('\n'), "{error}");
}

#[test]
fn model_that_does_not_fit_its_package_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |network: &Network, labels: &str, from: &str, to: &str| {
        write(folder.path(), network, SOFTMAX, labels);
        let path = folder.path().join("model.toml");
        let description = std::fs::read_to_string(&path).unwrap();
        assert!(description.contains(from), "{from}");
        std::fs::write(&path, description.replace(from, to)).unwrap();
        let choice = choice(folder.path());
        let opened = ModelPackage::load(&choice).and_then(|package| Session::open(&package, &choice));
        let error = format!("{:#}", opened.err().expect(to));
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let network = Network::default();
    assert!(refusal(&network, "red\ngreen\nblue\nblack\n", "", "").contains("4 labels"));
    assert!(refusal(&network, LABELS, "\"NCHW\"", "\"NHWC\"").contains("channels"));
    assert!(refusal(&network, LABELS, "\"float32\"", "\"float16\"").contains("not a tensor of"));
    assert!(refusal(&network, LABELS, "size = 8", "size = 9").contains("9 × 9"));
    assert!(refusal(&network, LABELS, "name = \"input\"", "name = \"pixels\"").contains("pixels"));
    assert!(refusal(&network, LABELS, "\"model.onnx\"", "\"../model.onnx\"").contains("not in that folder"));
    let path = folder.path().join("model.toml");
    write(folder.path(), &network, SOFTMAX, LABELS);
    let model = std::fs::read(folder.path().join("model.onnx")).unwrap();
    let description = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, description.replace(&sha256(&model), &sha256(b"not a model"))).unwrap();
    std::fs::write(folder.path().join("model.onnx"), "not a model").unwrap();
    let choice = choice(folder.path());
    let package = ModelPackage::load(&choice).unwrap();
    let error = format!("{:#}", Session::open(&package, &choice).err().expect("it is not ONNX"));
    assert!(error.contains("cannot load") && !error.contains('\n'), "{error}");
}
