//! A model package: a folder with `model.toml`, whose files and labels are verified by their digests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, bail, ensure};

use super::choice::ModelChoice;
use super::description::{Activation, Description, FileEntry, LabelSet, OutputTable, file_in};
use super::file;
use super::find;
use super::input::Input;
use super::labels::Labels;
use super::variant;
use crate::prediction::ModelRef;

/// The threshold of multi-label classes for which none is given.
const DEFAULT_THRESHOLD: f32 = 0.5;

/// A model whose description, file and labels were read and verified.
pub struct ModelPackage {
    name: String,
    version: String,
    variant: String,
    reason: String,
    file: PathBuf,
    /// The digest of `file` in hexadecimal.
    sha256: String,
    /// Further files that contain weights, with their digests.
    external: Vec<(PathBuf, String)>,
    /// The length of all files of the variant.
    file_bytes: u64,
    labels: Labels,
    output: Output,
    input: Input,
    /// Written once, by `answer_digest`.
    pub(super) answer_digest: OnceLock<[u8; 32]>,
}

/// The output of the model, and its meaning.
#[derive(Debug)]
pub(super) struct Output {
    /// The ONNX output. `None` means the first one that is not `features`.
    pub name: Option<String>,
    pub activation: Activation,
    /// The threshold of each class, in a multi-label model.
    pub thresholds: Option<Vec<f32>>,
}

impl ModelPackage {
    /// Reads the description, picks a variant and verifies its files.
    ///
    /// # Errors
    /// A message of one line that says what is wrong, with which file, and what to do.
    pub fn load(choice: &ModelChoice) -> anyhow::Result<ModelPackage> {
        let folder = find::model_folder(choice)?;
        let Description { name, version, labels, output, files, labels_file, label_sets, input } =
            Description::read(&description_file(choice)?)?;
        let in_description = || format!("{}/model.toml", folder.display());
        let (variant, reason) = variant::pick(&files, choice.variant.as_deref(), variant::cpu_has_int8_dot_product())
            .with_context(|| format!("model {name}"))?;
        let entry = &files[&variant];
        let file = file_in(&folder, &entry.path)?;
        file::check_model_size(&file)?;
        let external =
            entry.external.iter().map(|external| Ok((file_in(&folder, &external.path)?, external.sha256.clone())));
        let external = external.collect::<anyhow::Result<Vec<_>>>()?;
        let file_bytes = check_files(&file, &entry.sha256, &external)?;
        let digest = labels_file.as_ref().map(|file| file.sha256.as_str());
        let mut labels = read_labels(&folder, &labels, digest)?;
        if let Some(wanted) = &choice.label_set {
            let (set, path) = label_set(wanted, &label_sets, &folder).with_context(|| format!("model {name}"))?;
            labels = labels.renamed(set).with_context(|| path.display().to_string())?;
        }
        Ok(ModelPackage {
            input: Input::new(&input, entry.input.as_ref()).with_context(in_description)?,
            output: Output::new(output.into_table(), &labels).with_context(in_description)?,
            name,
            version,
            variant,
            reason,
            file,
            sha256: entry.sha256.clone(),
            external,
            file_bytes,
            labels,
            answer_digest: OnceLock::new(),
        })
    }

    /// The variants that run correctly on this CPU, the default one first.
    ///
    /// # Errors
    /// The errors of [`ModelPackage::load`].
    pub fn variants(choice: &ModelChoice) -> anyhow::Result<Vec<String>> {
        let files = Description::read(&description_file(choice)?)?.files;
        let int8_dot_product = variant::cpu_has_int8_dot_product();
        let (first, _) = variant::pick(&files, None, int8_dot_product)?;
        let is_other =
            |name: &String, entry: &FileEntry| *name != first && variant::is_supported(entry, int8_dot_product);
        let others = files.iter().filter(|(name, entry)| is_other(name, entry)).map(|(name, _)| name.clone());
        Ok(std::iter::once(first.clone()).chain(others).collect())
    }

    /// Name, version and digest, as results report them.
    pub fn model_ref(&self) -> ModelRef {
        ModelRef { name: self.name.clone(), version: self.version.clone(), digest: self.digest() }
    }

    /// Everything in the package that an answer depends on, as text.
    pub(super) fn answers_depend_on(&self) -> String {
        let ModelPackage { name, version, sha256, external, labels, output, input, .. } = self;
        let external: Vec<&str> = external.iter().map(|(_, sha256)| sha256.as_str()).collect();
        format!("{name:?} {version:?} {sha256} {external:?} {labels:?} {output:?} {input:?}")
    }

    /// The variant, the reason for it, and its file; for the log.
    pub fn summary(&self) -> String {
        let (name, version, variant, reason) = (&self.name, &self.version, &self.variant, &self.reason);
        format!("{name} {version}, variant {variant} ({reason}), {}", self.file.display())
    }

    /// The label of a class, without its id. Empty if there is no such class.
    pub fn label(&self, class_index: u32) -> &str {
        self.labels.names().get(class_index as usize).map_or("", String::as_str)
    }

    /// The id of a class: a WordNet id, or that of a taxonomy. `None` if the labels file has no ids.
    pub fn class_id(&self, class_index: u32) -> Option<&str> {
        self.labels.ids().get(class_index as usize).map(String::as_str)
    }

    /// The labels of all classes, without ids.
    pub fn labels(&self) -> &[String] {
        self.labels.names()
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.labels.len()
    }

    /// Reports whether an image may have several labels: all classes whose score reaches their threshold.
    pub fn is_multi_label(&self) -> bool {
        self.output.thresholds.is_some()
    }

    /// The variant that was picked.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// The length of the files of the variant in bytes, weights included.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Height and width of the input, if they do not depend on the image.
    pub fn input_size(&self) -> Option<(u32, u32)> {
        self.input.geometry.output().map(|extent| (extent.height, extent.width))
    }

    /// The function that makes scores of the model's outputs.
    pub fn activation(&self) -> Activation {
        self.output.activation
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Returns whether the model gives an image each label whose score reaches its threshold.
    pub fn has_thresholds(&self) -> bool {
        self.output().thresholds.is_some()
    }

    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Reads the model file and verifies it again, because it may have changed since it was loaded. It is not kept in
    /// memory: most sessions are built from a cached graph and do not need it.
    ///
    /// # Errors
    /// If it cannot be read or has changed.
    pub(super) fn read(&self) -> anyhow::Result<Vec<u8>> {
        file::read_checked(&self.file, &self.sha256)
    }

    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Reports whether the session must be built from the file, because its weights are in other files beside it.
    pub(super) fn has_external_data(&self) -> bool {
        !self.external.is_empty()
    }

    /// Verifies all files of the variant again.
    ///
    /// # Errors
    /// If one cannot be read or has changed.
    pub(super) fn verify(&self) -> anyhow::Result<()> {
        check_files(&self.file, &self.sha256, &self.external).map(drop)
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
            external: Vec::new(),
            file_bytes: 0,
            labels: Labels::for_tests(labels),
            output: Output { name: None, activation: Activation::Softmax, thresholds: None },
            input: Input::for_tests(),
            answer_digest: OnceLock::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_thresholds(self, thresholds: &[f32]) -> ModelPackage {
        let output = Output { thresholds: Some(thresholds.to_vec()), ..self.output };
        ModelPackage { output, ..self }
    }
}

impl Output {
    fn new(table: OutputTable, labels: &Labels) -> anyhow::Result<Output> {
        let OutputTable { activation, name, multi_label, threshold, thresholds } = table;
        ensure!(
            multi_label || (threshold.is_none() && thresholds.is_empty()),
            "[output] has thresholds, which have a meaning only with multi_label = true"
        );
        let default = threshold.unwrap_or(DEFAULT_THRESHOLD);
        ensure!((0.0..=1.0).contains(&default), "the threshold is {default}, not between 0 and 1");
        let thresholds = multi_label.then(|| labels.thresholds(default, &thresholds)).transpose()?;
        Ok(Output { name, activation, thresholds })
    }
}

/// The path of the `model.toml` of the chosen model.
///
/// # Errors
/// If there is no such model.
pub(super) fn description_file(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    Ok(find::model_folder(choice)?.join("model.toml"))
}

/// Verifies the files of a variant. Returns the length of all of them in bytes.
fn check_files(file: &Path, sha256: &str, external: &[(PathBuf, String)]) -> anyhow::Result<u64> {
    let mut bytes = file::check(file, sha256)?;
    for (path, sha256) in external {
        bytes += file::check(path, sha256)?;
    }
    Ok(bytes)
}

/// Reads a set of labels of the package, or a file of one's own. Returns it and its path.
fn label_set(wanted: &str, sets: &BTreeMap<String, LabelSet>, folder: &Path) -> anyhow::Result<(Labels, PathBuf)> {
    if let Some(set) = sets.get(wanted) {
        return Ok((read_labels(folder, &set.path, Some(&set.sha256))?, folder.join(&set.path)));
    }
    let path = Path::new(wanted);
    if !path.is_file() {
        let names = sets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let names = if names.is_empty() { "none".to_owned() } else { names };
        bail!("there is no label set and no file {wanted:?}; the label sets of the model are: {names}");
    }
    let labels = Labels::parse(&file::read(path)?).with_context(|| wanted.to_owned())?;
    Ok((labels, path.to_owned()))
}

fn read_labels(folder: &Path, name: &str, sha256: Option<&str>) -> anyhow::Result<Labels> {
    let path = file_in(folder, name)?;
    let bytes = match sha256 {
        Some(expected) => file::read_checked(&path, expected)?,
        None => file::read(&path)?,
    };
    Labels::parse(&bytes).with_context(|| format!("{}", path.display()))
}
