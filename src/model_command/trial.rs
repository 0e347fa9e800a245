//! Runs a package on photographs that are built in, before it is installed and when it is checked.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::draft::{Head, Sourced};
use crate::model::{self, Limits, ModelChoice, ModelPackage, Prediction, Session, Tensor};

/// Photographs in the public domain. Several are needed to tell probabilities from logits.
const PHOTOGRAPHS: [(&str, &[u8]); 6] = [
    ("chelsea.jpg", include_bytes!("../loadgen/samples/chelsea.jpg")),
    ("coffee.jpg", include_bytes!("../loadgen/samples/coffee.jpg")),
    ("astronaut.jpg", include_bytes!("../loadgen/samples/astronaut.jpg")),
    ("rocket.jpg", include_bytes!("../loadgen/samples/rocket.jpg")),
    ("camera.jpg", include_bytes!("../loadgen/samples/camera.jpg")),
    ("clock_motion.jpg", include_bytes!("../loadgen/samples/clock_motion.jpg")),
];

/// The number of predictions that are shown.
const SHOWN: u32 = 3;

/// The longest message of ONNX Runtime that is printed.
const MAX_MESSAGE: usize = 400;

/// The raw outputs of a package, and the memory that its session takes.
pub(super) struct Outputs {
    pub values: Vec<Vec<f32>>,
    pub memory_bytes: u64,
}

/// Opens the package in a folder and runs it on every photograph.
///
/// # Errors
/// If it cannot be loaded or run, or does not fit its labels. The message is one line.
pub(super) fn outputs(choice: &ModelChoice, expected_classes: Option<u64>) -> anyhow::Result<Outputs> {
    let before = model::resident_bytes();
    let package = ModelPackage::load(choice)?;
    check_labels(&package, expected_classes)?;
    let mut session = open(&package, choice)?;
    let mut values = Vec::new();
    for (name, bytes) in PHOTOGRAPHS {
        let tensor = prepare(name, bytes, &package)?;
        values.extend(session.outputs(&[&tensor]).map_err(|error| one_line(&error))?);
    }
    let memory_bytes = model::resident_bytes().saturating_sub(before).max(package.file_bytes());
    Ok(Outputs { values, memory_bytes })
}

/// Classifies one image with the package in a folder: the given file, or the first photograph.
///
/// # Errors
/// If the package or the image cannot be used.
pub(super) fn classify(choice: &ModelChoice, image: Option<&Path>) -> anyhow::Result<Sample> {
    let package = ModelPackage::load(choice)?;
    let mut session = open(&package, choice)?;
    let (name, bytes) = match image {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), bytes)
        }
        None => (PHOTOGRAPHS[0].0.to_owned(), PHOTOGRAPHS[0].1.to_vec()),
    };
    let tensor = prepare(&name, &bytes, &package)?;
    let scores = session
        .infer(&[&tensor])
        .map_err(|error| one_line(&error))?
        .pop()
        .context("infer returns one list per tensor")?;
    ensure!(scores.iter().all(|score| score.is_finite()), "the network returns values that are not finite");
    Ok(Sample {
        image: name,
        predictions: model::top_k(&package, &scores, SHOWN),
        classes: package.classes(),
        first_labels: package.labels().iter().take(SHOWN as usize).cloned().collect(),
    })
}

/// The answer for one image.
pub(super) struct Sample {
    pub image: String,
    pub predictions: Vec<Prediction>,
    pub classes: usize,
    /// The names of the first classes.
    pub first_labels: Vec<String>,
}

/// Decides how outputs become scores: by what is known, checked against what the photographs gave.
///
/// # Errors
/// If nothing says it, or what is said would normalise twice or not at all.
pub(super) fn head(known: Option<Sourced<Head>>, outputs: &[Vec<f32>]) -> anyhow::Result<Sourced<Head>> {
    let Some(seen) = model::head_of(outputs) else {
        bail!(
            "the network returns values that are not finite (NaN or infinity) for photographs; check the export, for example \
             without half precision, and --mean, --std and --rescale"
        );
    };
    let is_flag = known.as_ref().is_some_and(|known| known.source.starts_with("--"));
    match (known, seen) {
        (Some(Sourced { value: Head::Softmax, source }), model::Head::Probabilities) if is_flag => bail!(
            "{source} softmax would normalise the scores twice: the outputs for {} photographs already sum to 1; leave it out or \
             give --activation none",
            outputs.len()
        ),
        (Some(Sourced { value: Head::Softmax, .. }) | None, model::Head::Probabilities) => Ok(Sourced::new(
            Head::None,
            format!("the outputs for {} photographs already sum to 1, so nothing is applied again", outputs.len()),
        )),
        (Some(Sourced { value: Head::Sigmoid, .. }), model::Head::Independent) if !is_flag => Ok(Sourced::new(
            Head::MultiLabel,
            format!("the outputs for {} photographs are all from 0 to 1, so nothing is applied again", outputs.len()),
        )),
        (Some(Sourced { value: Head::None, source }), model::Head::Logits) if !is_flag => bail!(
            "{source}, but the outputs for photographs are not probabilities; give --activation softmax or --activation sigmoid"
        ),
        (Some(known), _) => Ok(known),
        (None, _) => bail!(
            "nothing says how the outputs become scores; give --activation softmax if one class is right, --activation sigmoid if \
             each class is right or not, or --activation none if they are scores already"
        ),
    }
}

/// Checks that there is one label for each output, and that no class is there twice.
fn check_labels(package: &ModelPackage, expected: Option<u64>) -> anyhow::Result<()> {
    let labels = package.labels();
    if let Some(expected) = expected.filter(|expected| *expected != labels.len() as u64) {
        bail!(
            "there are {} labels, but the network has {expected} outputs; give --labels FILE with one line for each output, in \
             their order",
            labels.len()
        );
    }
    Ok(())
}

/// A name that two classes have, if any.
pub(super) fn repeated_label(choice: &ModelChoice) -> anyhow::Result<Option<String>> {
    let package = ModelPackage::load(choice)?;
    let mut seen = std::collections::BTreeMap::new();
    for (index, label) in package.labels().iter().enumerate() {
        let id = package.class_id(index as u32);
        if let Some(earlier) = seen.insert(label, (index, id))
            && (id.is_none() || earlier.1 == id)
        {
            return Ok(Some(format!("classes {} and {index} are both called {label:?}", earlier.0)));
        }
    }
    Ok(None)
}

fn open(package: &ModelPackage, choice: &ModelChoice) -> anyhow::Result<Session> {
    Session::open(package, choice).map_err(|error| one_line(&error))
}

fn prepare(name: &str, bytes: &[u8], package: &ModelPackage) -> anyhow::Result<Tensor> {
    model::prepare(bytes, package, &Limits::default()).map_err(|error| anyhow::anyhow!("{name}: {}", error.message))
}

/// The error as one short line, with the way out that its words suggest. ONNX Runtime's messages have several lines.
fn one_line(error: &anyhow::Error) -> anyhow::Error {
    let message = format!("{error:#}");
    let mut line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_MESSAGE) {
        line.truncate(end);
        line.push('…');
    }
    let lower = message.to_lowercase();
    let hint = if lower.contains("not finite") {
        " (NaN or infinity); check the export, for example without half precision"
    } else if lower.contains("not a registered function") || lower.contains("no op registered") {
        "; the network uses an operator that ONNX Runtime does not have: export it with operators of ONNX alone"
    } else if lower.contains("opset") || lower.contains("ir version") || lower.contains("ir_version") {
        "; export the network again with an older operator set, such as opset_version=17"
    } else {
        ""
    };
    anyhow::anyhow!("{line}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(head: Head) -> Sourced<Head> {
        Sourced::new(head, "config.json")
    }

    fn flag(head: Head) -> Sourced<Head> {
        Sourced::new(head, "--activation")
    }

    #[test]
    fn outputs_decide_whether_softmax_is_applied() {
        let probabilities = vec![vec![0.25, 0.75], vec![0.5, 0.5]];
        let logits = vec![vec![-3.0, 5.0], vec![0.5, 0.5]];
        let decide = |known, outputs: &[Vec<f32>]| head(known, outputs).map(|head| head.value);
        assert_eq!(decide(Some(said(Head::Softmax)), &probabilities).unwrap(), Head::None);
        assert_eq!(decide(None, &probabilities).unwrap(), Head::None);
        assert_eq!(decide(Some(said(Head::Softmax)), &logits).unwrap(), Head::Softmax);
        assert_eq!(decide(Some(flag(Head::None)), &logits).unwrap(), Head::None);
        let independent = vec![vec![0.9, 0.75], vec![0.5, 0.1]];
        assert_eq!(decide(Some(said(Head::Sigmoid)), &independent).unwrap(), Head::MultiLabel);
        assert_eq!(decide(Some(flag(Head::Sigmoid)), &independent).unwrap(), Head::Sigmoid);
        for (known, outputs, expected) in [
            (Some(flag(Head::Softmax)), &probabilities, "twice"),
            (None, &logits, "--activation"),
            (Some(said(Head::None)), &logits, "not probabilities"),
            (Some(said(Head::Softmax)), &vec![vec![f32::NAN]], "NaN"),
        ] {
            let error = decide(known, outputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn messages_of_the_runtime_become_one_line_with_a_way_out() {
        let error = one_line(&anyhow::anyhow!("Fatal error:\n  foo:Bar(-1) is not a registered function/op\n"));
        let text = error.to_string();
        assert!(!text.contains('\n') && text.contains("does not have"), "{text}");
        let error =
            one_line(&anyhow::anyhow!("ONNX Runtime only guarantees support for opset 25\n{}", "x".repeat(1000)));
        assert!(error.to_string().len() < 600 && error.to_string().contains("opset_version"));
    }
}
