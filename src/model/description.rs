//! `model.toml`: the text of a model package as it is written. Keys that are not listed here are informational
//! (`task`, `[provenance]`), except in `[input]` and `[output]`, where an unknown key is refused: a misspelt key there
//! would change predictions without a message.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::file;
use super::words::{Channels, Element, Filter, Layout, Position, Rounding};

/// The contents of `model.toml`.
#[derive(Deserialize)]
pub(super) struct Description {
    pub name: String,
    pub version: String,
    pub labels: String,
    pub output: OutputDescription,
    pub files: BTreeMap<String, FileEntry>,
    pub labels_file: Option<LabelsDigest>,
    /// Further sets of names, by the value of `--label-set`.
    #[serde(default)]
    pub label_sets: BTreeMap<String, LabelSet>,
    pub input: InputDescription,
}

/// One variant of the model.
#[derive(Deserialize)]
pub(super) struct FileEntry {
    pub path: String,
    pub sha256: String,
    /// Which CPUs this file is for; see `variant`. Absent: all.
    pub requires: Option<String>,
    /// The input of this file where it differs from `[input]`.
    pub input: Option<FileInput>,
    /// Files that contain the weights, if they are not in the model file.
    #[serde(default)]
    pub external: Vec<ExternalFile>,
}

#[derive(Deserialize)]
pub(super) struct ExternalFile {
    pub path: String,
    pub sha256: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct FileInput {
    #[serde(rename = "type")]
    pub element: Option<Element>,
    pub layout: Option<Layout>,
    pub channels: Option<Channels>,
}

#[derive(Deserialize)]
pub(super) struct LabelsDigest {
    pub sha256: String,
}

#[derive(Deserialize)]
pub(super) struct LabelSet {
    pub path: String,
    pub sha256: String,
}

/// `output = "logits"`, the short form, or the table `[output]`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "output must be \"logits\", \"probabilities\", or a table of activation (\"softmax\", \"sigmoid\" or \
                 \"none\"), name, multi_label, threshold and thresholds"
)]
pub(super) enum OutputDescription {
    Short(ShortOutput),
    Table(OutputTable),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShortOutput {
    Logits,
    Probabilities,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputTable {
    pub activation: Activation,
    /// The ONNX output. Absent: the first one that is not `features`.
    pub name: Option<String>,
    #[serde(default)]
    pub multi_label: bool,
    pub threshold: Option<f32>,
    /// By class id or label.
    #[serde(default)]
    pub thresholds: BTreeMap<String, f32>,
}

/// The function that turns the model's outputs into scores from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The scores of all classes sum to 1.
    #[default]
    Softmax,
    /// Each class has its own score.
    Sigmoid,
    /// The outputs already are scores.
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InputDescription {
    pub name: String,
    #[serde(rename = "type")]
    pub element: Option<Element>,
    pub layout: Layout,
    pub channels: Channels,
    pub resize: String,
    #[serde(alias = "short_side")]
    pub size: Option<Size>,
    pub filter: Option<Filter>,
    pub crop: Option<Size>,
    pub fill: Option<[u8; 3]>,
    pub position: Option<Position>,
    pub rounding: Option<Rounding>,
    pub rescale: Option<f64>,
    pub mean: Option<[f64; 3]>,
    pub std: Option<[f64; 3]>,
}

/// A number of pixels.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(untagged, expecting = "a size must be a number of pixels, or [height, width]")]
pub(super) enum Size {
    /// The length of both sides, or of the shortest one.
    One(u32),
    /// Height and width.
    Both([u32; 2]),
}

impl Description {
    /// Reads `model.toml`.
    ///
    /// # Errors
    /// A message of one line with the file and the line in it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Description> {
        Description::read_with_text(path).map(|(description, _)| description)
    }

    /// The same, and the text itself.
    pub(super) fn read_with_text(path: &Path) -> anyhow::Result<(Description, String)> {
        let text =
            String::from_utf8(file::read(path)?).ok().with_context(|| format!("{} is not text", path.display()))?;
        // The error's own text spans several lines.
        let description = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}, line {line}: {}", path.display(), error.message().replace('\n', " "))
        })?;
        Ok((description, text))
    }
}

impl OutputDescription {
    /// The table that the short form stands for, or the table itself.
    pub(super) fn into_table(self) -> OutputTable {
        match self {
            OutputDescription::Short(ShortOutput::Logits) => OutputTable::default(),
            OutputDescription::Short(ShortOutput::Probabilities) => {
                OutputTable { activation: Activation::None, ..OutputTable::default() }
            }
            OutputDescription::Table(table) => table,
        }
    }
}

/// The path of a file that `model.toml` names. It must lie in the folder of the package: a package is data, and may not
/// make the program read anything else.
///
/// # Errors
/// If the name leads out of the folder.
pub(super) fn file_in(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let is_inside = Path::new(name).components().all(|component| matches!(component, Component::Normal(_)));
    ensure!(
        is_inside && !name.is_empty(),
        "{}/model.toml names the file {name:?}, which is not in that folder; give a relative path without \"..\"",
        folder.display()
    );
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_a_word_or_a_table() {
        #[derive(Deserialize)]
        struct Text {
            output: OutputDescription,
        }
        let parse = |text: &str| toml::from_str::<Text>(text).map(|text| text.output.into_table());
        assert_eq!(parse("output = \"logits\"").unwrap().activation, Activation::Softmax);
        assert_eq!(parse("output = \"probabilities\"").unwrap().activation, Activation::None);
        let table =
            parse("[output]\nactivation = \"sigmoid\"\nmulti_label = true\nthresholds = { cat = 0.3 }").unwrap();
        assert!(table.multi_label && table.activation == Activation::Sigmoid && table.name.is_none());
        assert_eq!(table.thresholds["cat"].to_bits(), 0.3_f32.to_bits());
        for wrong in ["output = \"softmax\"", "[output]\nactivation = \"relu\"", "[output]\nname = \"x\""] {
            let error = parse(wrong).err().expect(wrong);
            assert!(error.message().contains("activation"), "{}", error.message());
        }
    }

    #[test]
    fn files_outside_the_package_are_refused() {
        let folder = Path::new("models/m");
        assert_eq!(file_in(folder, "model.onnx").unwrap(), Path::new("models/m/model.onnx"));
        assert_eq!(file_in(folder, "onnx/model.onnx").unwrap(), Path::new("models/m/onnx/model.onnx"));
        for outside in ["../other.onnx", "/etc/passwd", "a/../../b", ""] {
            assert!(file_in(folder, outside).is_err(), "{outside}");
        }
    }
}
