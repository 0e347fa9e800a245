//! A model package: reads `model.toml`, picks the variant for this CPU, and verifies its file and the labels by their
//! digests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::choice::ModelChoice;
use super::file::{hex, read_large, sha256_hex};
use super::find;
use crate::protocol::ModelRef;

/// A model whose description, file and labels were read and verified.
pub struct ModelPackage {
    name: String,
    version: String,
    variant: String,
    reason: String,
    file: PathBuf,
    /// The digest of `file` in hexadecimal.
    sha256: String,
    labels: Vec<String>,
    /// The ids of the classes. Empty if the labels have none.
    ids: Vec<String>,
    output: Output,
    input: Input,
}

impl ModelPackage {
    /// Reads the description, picks a variant and verifies its files.
    ///
    /// # Errors
    /// A message of one line that says what is wrong, with which file, and what to do.
    pub fn load(choice: &ModelChoice) -> anyhow::Result<ModelPackage> {
        let folder = find::model_folder(choice)?;
        let description = Description::read(&description_file(choice)?)?;
        let wanted = choice.variant.as_deref();
        let (variant, reason) = pick_variant(&description.files, wanted, cpu_has_int8_dot_product())
            .with_context(|| format!("model {}", description.name))?;
        let entry = &description.files[&variant];
        let file = folder.join(&entry.path);
        check(&file, &entry.sha256)?;
        let labels_file = folder.join(&description.labels);
        let labels = match &description.labels_file {
            Some(expected) => read_checked(&labels_file, &expected.sha256)?,
            None => read(&labels_file)?,
        };
        let ids = Description::parse_ids(&labels);
        let labels = parse_labels(&labels).with_context(|| format!("{}", labels_file.display()))?;
        Ok(ModelPackage {
            name: description.name,
            version: description.version,
            variant,
            reason,
            file,
            sha256: entry.sha256.clone(),
            labels,
            ids,
            output: description.output,
            input: Input::new(&description.input, entry.input.as_ref())
                .with_context(|| format!("{}/model.toml", folder.display()))?,
        })
    }

    /// The variants that run correctly on this CPU, the default one first.
    ///
    /// # Errors
    /// The errors of [`ModelPackage::load`].
    pub fn variants(choice: &ModelChoice) -> anyhow::Result<Vec<String>> {
        let files = Description::read(&description_file(choice)?)?.files;
        let int8_dot_product = cpu_has_int8_dot_product();
        let (first, _) = pick_variant(&files, None, int8_dot_product)?;
        let is_supported = |entry: &FileEntry| match entry.requires.as_deref() {
            None => true,
            Some(requirement) => requirement == INT8_DOT_PRODUCT && int8_dot_product,
        };
        let others =
            files.iter().filter(|(name, entry)| **name != first && is_supported(entry)).map(|(name, _)| name.clone());
        Ok(std::iter::once(first.clone()).chain(others).collect())
    }

    /// Name, version and digest, as results report them.
    pub fn model_ref(&self) -> ModelRef {
        ModelRef { name: self.name.clone(), version: self.version.clone(), digest: self.digest() }
    }

    /// The variant, the reason for it, and its file; for the log.
    pub fn summary(&self) -> String {
        let (name, version, variant, reason) = (&self.name, &self.version, &self.variant, &self.reason);
        format!("{name} {version}, variant {variant} ({reason}), {}", self.file.display())
    }

    /// The label of a class, without its WordNet id. Empty if there is no such class.
    pub fn label(&self, class_index: u32) -> &str {
        self.labels.get(class_index as usize).map_or("", String::as_str)
    }

    /// The id of a class, such as its WordNet id. `None` if the labels have no ids.
    pub fn class_id(&self, class_index: u32) -> Option<&str> {
        self.ids.get(class_index as usize).map(String::as_str)
    }

    /// Returns true if an image may have several labels.
    pub fn is_multi_label(&self) -> bool {
        false
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// Reads the model file and verifies it again, because it may have changed since it was loaded. It is not kept in
    /// memory: most sessions are built from a cached graph and do not need it.
    ///
    /// # Errors
    /// If it cannot be read or has changed.
    pub(super) fn read(&self) -> anyhow::Result<Vec<u8>> {
        read_checked(&self.file, &self.sha256)
    }

    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    #[cfg(test)]
    pub(super) fn for_tests(labels: &[&str]) -> ModelPackage {
        ModelPackage {
            name: "test".to_owned(),
            version: "1".to_owned(),
            variant: "fp32".to_owned(),
            reason: "test".to_owned(),
            file: PathBuf::new(),
            sha256: "0".to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            ids: Vec::new(),
            output: Output::Logits,
            input: Input {
                name: "input".to_owned(),
                form: Form::Floats,
                geometry: Geometry::Native,
                normalised: normalisation_table([0.0; 3], [255.0; 3]),
            },
        }
    }
}

/// The meaning of the model's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Output {
    /// Softmax has to be applied.
    Logits,
    Probabilities,
}

/// The input that the model takes.
pub(super) struct Input {
    pub name: String,
    pub form: Form,
    pub geometry: Geometry,
    /// `(x - mean) / std` of every 8-bit value, one table per channel.
    pub normalised: [[f32; 256]; 3],
}

/// The type and layout of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// float32, NCHW, RGB, normalised by `preprocess`.
    Floats,
    /// uint8, NHWC, RGBX. The scale of the model's first layer includes mean and std.
    Pixels,
}

/// The size of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Geometry {
    /// The short side is resized to `short_side`, then `crop` × `crop` pixels are cut from the centre.
    ShortSide { short_side: u32, crop: u32 },
    /// The image keeps its size.
    Native,
}

impl Input {
    fn new(description: &InputDescription, file_input: Option<&FileInput>) -> anyhow::Result<Input> {
        let InputDescription { name, layout, channels, resize, short_side, filter, crop, mean, std } = description;
        ensure!(layout == "NCHW", "layout {layout:?} is not supported; NCHW is");
        ensure!(channels == "RGB", "channels {channels:?} are not supported; RGB is");
        ensure!(std.iter().all(|&std| std.is_finite() && std > 0.0), "std must be above 0");
        let geometry = match resize.as_str() {
            "none" => Geometry::Native,
            "short-side" => {
                let filter = filter.as_deref().unwrap_or("bicubic");
                ensure!(filter == "bicubic", "filter {filter:?} is not supported; bicubic is");
                let (Some(short_side), Some(crop)) = (*short_side, *crop) else {
                    bail!("resize = \"short-side\" needs short_side and crop");
                };
                ensure!(
                    (1..=short_side).contains(&crop) && short_side <= 4096,
                    "1 ≤ crop ≤ short_side ≤ 4096 must hold"
                );
                Geometry::ShortSide { short_side, crop }
            }
            other => bail!("resize {other:?} is not supported; \"short-side\" and \"none\" are"),
        };
        let form = file_input.map_or(Ok(Form::Floats), FileInput::form)?;
        Ok(Input { name: name.clone(), form, geometry, normalised: normalisation_table(*mean, *std) })
    }
}

fn normalisation_table(mean: [f32; 3], std: [f32; 3]) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| std::array::from_fn(|value| (value as f32 - mean[channel]) / std[channel]))
}

/// `model.toml`. Keys that are not listed here are informational (`task`, `[provenance]`).
#[derive(Deserialize)]
struct Description {
    name: String,
    version: String,
    labels: String,
    output: Output,
    files: BTreeMap<String, FileEntry>,
    labels_file: Option<LabelsFile>,
    input: InputDescription,
}

#[derive(Deserialize)]
struct FileEntry {
    path: String,
    sha256: String,
    /// The CPU feature that this file needs to be correct and fast.
    requires: Option<String>,
    /// The input of this file if it differs from `[input]`.
    input: Option<FileInput>,
}

#[derive(Deserialize)]
struct FileInput {
    #[serde(rename = "type")]
    element: String,
    layout: String,
    channels: String,
}

impl FileInput {
    fn form(&self) -> anyhow::Result<Form> {
        match (self.element.as_str(), self.layout.as_str(), self.channels.as_str()) {
            ("float32", "NCHW", "RGB") => Ok(Form::Floats),
            ("uint8", "NHWC", "RGBX") => Ok(Form::Pixels),
            (element, layout, channels) => bail!(
                "a file's input of {element}, {layout}, {channels} is not supported; float32, NCHW, RGB and uint8, \
                 NHWC, RGBX are"
            ),
        }
    }
}

#[derive(Deserialize)]
struct LabelsFile {
    sha256: String,
}

#[derive(Deserialize)]
struct InputDescription {
    name: String,
    layout: String,
    channels: String,
    resize: String,
    short_side: Option<u32>,
    filter: Option<String>,
    crop: Option<u32>,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Description {
    /// The WordNet ids at the beginning of the lines, if all lines have one.
    fn parse_ids(bytes: &[u8]) -> Vec<String> {
        let id = |line: &str| {
            let id = line.split(' ').next()?;
            let number = id.strip_prefix('n').filter(|number| !number.is_empty())?;
            number.bytes().all(|byte| byte.is_ascii_digit()).then(|| id.to_owned())
        };
        let ids: Option<Vec<String>> = String::from_utf8_lossy(bytes).lines().map(id).collect();
        ids.unwrap_or_default()
    }

    fn read(path: &Path) -> anyhow::Result<Description> {
        let text = String::from_utf8(read(path)?).ok().with_context(|| format!("{} is not text", path.display()))?;
        // The error's own text spans several lines.
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}, line {line}: {}", path.display(), error.message().replace('\n', " "))
        })
    }
}

/// The path of the `model.toml` of the chosen model.
///
/// # Errors
/// If there is no such model.
pub(super) fn description_file(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    Ok(find::model_folder(choice)?.join("model.toml"))
}

const INT8_DOT_PRODUCT: &str = "int8-dot-product";

/// Picks the variant to run. Returns its name and the reason.
fn pick_variant(
    files: &BTreeMap<String, FileEntry>,
    wanted: Option<&str>,
    int8_dot_product: bool,
) -> anyhow::Result<(String, String)> {
    let names = || files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = wanted {
        ensure!(files.contains_key(wanted), "no variant {wanted:?}; there are: {}", names());
        return Ok((wanted.to_owned(), "as requested".to_owned()));
    }
    let requiring = |requirement: Option<&str>| {
        files.iter().find(|(_, entry)| entry.requires.as_deref() == requirement).map(|(name, _)| name.clone())
    };
    if int8_dot_product && let Some(name) = requiring(Some(INT8_DOT_PRODUCT)) {
        return Ok((name, "this CPU has 8-bit dot products".to_owned()));
    }
    let reason = if int8_dot_product { "it runs on every CPU" } else { "this CPU has no 8-bit dot products" };
    match requiring(None) {
        Some(name) => Ok((name, reason.to_owned())),
        None => bail!(
            "the model has no variant for this CPU, which has no 8-bit dot products; choose one with --variant: {}",
            names()
        ),
    }
}

/// Without these instructions 8-bit sums are slow and can saturate.
fn cpu_has_int8_dot_product() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Reads lines of `wnid name` in class order. The name is the label.
fn parse_labels(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).ok().context("is not text")?;
    let labels = text
        .lines()
        .enumerate()
        .map(|(index, line)| match line.split_once(' ') {
            Some((_, name)) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
            _ => bail!("line {} is not `wnid name`", index + 1),
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!labels.is_empty(), "is empty");
    Ok(labels)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_checked(path: &Path, expected_sha256: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = std::fs::File::open(path).and_then(|file| read_large(file, &mut bytes));
    result.with_context(|| format!("cannot read {}", path.display()))?;
    expect(path, &sha256_hex(&bytes), expected_sha256)?;
    Ok(bytes)
}

/// Verifies a file without keeping it in memory.
fn check(path: &Path, expected_sha256: &str) -> anyhow::Result<()> {
    let mut hash = Sha256::new();
    std::fs::File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    expect(path, &hex(&hash.finalize()), expected_sha256)
}

fn expect(path: &Path, actual: &str, expected_sha256: &str) -> anyhow::Result<()> {
    ensure!(
        actual == expected_sha256,
        "{} is not the file that model.toml describes: its sha256 is {actual}, not {expected_sha256}; restore it",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, Option<&str>)]) -> BTreeMap<String, FileEntry> {
        let entry = |requires: Option<&str>| FileEntry {
            path: String::new(),
            sha256: String::new(),
            requires: requires.map(str::to_owned),
            input: None,
        };
        entries.iter().map(|(name, requires)| ((*name).to_owned(), entry(*requires))).collect()
    }

    #[test]
    fn cpu_determines_the_variant_unless_one_is_requested() {
        let both = files(&[("int8", Some(INT8_DOT_PRODUCT)), ("fp16", None)]);
        assert_eq!(pick_variant(&both, None, true).unwrap().0, "int8");
        assert_eq!(pick_variant(&both, None, false).unwrap().0, "fp16");
        assert_eq!(pick_variant(&both, Some("int8"), false).unwrap().0, "int8");
        let error = pick_variant(&both, Some("fp8"), true).unwrap_err().to_string();
        assert_eq!(error, "no variant \"fp8\"; there are: fp16, int8");
        let only_int8 = files(&[("int8", Some(INT8_DOT_PRODUCT))]);
        assert!(pick_variant(&only_int8, None, false).unwrap_err().to_string().contains("--variant"));
    }

    #[test]
    fn label_is_the_name_without_its_wordnet_id() {
        let labels = parse_labels(b"n01440764 tench\nn01484850 great white shark\n").unwrap();
        assert_eq!(labels, ["tench", "great white shark"]);
        assert!(parse_labels(b"").is_err());
        assert_eq!(parse_labels(b"n1 a\nn2\n").unwrap_err().to_string(), "line 2 is not `wnid name`");
    }

    #[test]
    fn unsupported_preprocessing_is_refused() {
        let good = r#"name = "x"
            layout = "NCHW"
            channels = "RGB"
            resize = "short-side"
            short_side = 256
            crop = 224
            mean = [127, 127, 127]
            std = [128, 128, 128]"#;
        let parse = |text: &str| Input::new(&toml::from_str(text).unwrap(), None);
        assert_eq!(parse(good).unwrap().geometry, Geometry::ShortSide { short_side: 256, crop: 224 });
        assert!((parse(good).unwrap().normalised[2][255] - 1.0).abs() < f32::EPSILON);
        for (from, to) in
            [("NCHW", "NHWC"), ("RGB", "BGR"), ("short-side", "pad"), ("128, 128]", "128, 0]"), ("224", "300")]
        {
            assert!(parse(&good.replace(from, to)).is_err(), "{to}");
        }
        let file_input = |element: &str, layout: &str| FileInput {
            element: element.to_owned(),
            layout: layout.to_owned(),
            channels: "RGBX".to_owned(),
        };
        assert_eq!(file_input("uint8", "NHWC").form().unwrap(), Form::Pixels);
        assert!(file_input("uint8", "NCHW").form().unwrap_err().to_string().contains("uint8, NCHW, RGBX"));
        assert!(file_input("float32", "NHWC").form().is_err());
    }
}
