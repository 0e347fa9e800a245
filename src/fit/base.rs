//! The base network: its package as it is on disk, and packages that are made from it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use super::graph::Trunk;
use super::head::Head;
use crate::model::{self, ModelChoice, ModelPackage, ModelRef, OnnxFile};

const DESCRIPTION: &str = "model.toml";
const LABELS: &str = "labels.txt";

/// The package of the base network.
pub(super) struct Base {
    choice: ModelChoice,
    folder: PathBuf,
    /// Its `model.toml`, of which preprocessing and requirements are taken over as they are.
    description: Table,
    pub model: ModelRef,
    /// The variant that this CPU runs best, whose features the head is trained on.
    pub variant: String,
    /// All variants that this CPU runs, `variant` first.
    pub variants: Vec<String>,
}

/// A variant of the base with its graph cut.
pub(super) struct CutVariant {
    pub name: String,
    pub trunk: Trunk,
}

impl Base {
    /// Reads and verifies the package.
    ///
    /// # Errors
    /// If it cannot be read, or has no variant for this CPU.
    pub(super) fn read(choice: &ModelChoice) -> anyhow::Result<Base> {
        let package = ModelPackage::load(choice)?;
        let folder = model::model_folder(choice)?;
        let path = folder.join(DESCRIPTION);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let description: Table = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        let variants = match &choice.variant {
            Some(variant) => vec![variant.clone()],
            None => ModelPackage::variants(choice)?,
        };
        let variant = variants.first().cloned().context("the base has no variant for this CPU")?;
        Ok(Base { choice: choice.clone(), folder, description, model: package.model_ref(), variant, variants })
    }

    /// Cuts the graph of a variant.
    ///
    /// # Errors
    /// If the file cannot be read or is not that of the package, or has no features that a head could read.
    pub(super) fn cut(&self, variant: &str) -> anyhow::Result<CutVariant> {
        // This verifies the files of the variant.
        ModelPackage::load(&choice_of(&self.folder, variant, &self.choice)?)?;
        let path = self.folder.join(self.file_of(variant)?);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let output = self.description.get("output").and_then(|output| output.get("name")?.as_str());
        let trunk = Trunk::cut(&Bytes::from(bytes), output)
            .with_context(|| format!("{} {variant} ({}) cannot be a base", self.model.name, path.display()))?;
        Ok(CutVariant { name: variant.to_owned(), trunk })
    }

    /// Writes a package into an empty folder whose outputs are the features of an image.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write_feature_package(&self, folder: &Path, cut: &CutVariant) -> anyhow::Result<()> {
        let labels = numbered((0..cut.trunk.width).map(|index| format!("feature {index}")));
        let mut package = self.begin(folder, &labels)?;
        package.insert("name".to_owned(), format!("the features of {}", self.model.name).into());
        package.insert("version".to_owned(), self.model.version.clone().into());
        // An output of this name is taken for the scores only if it is named.
        let mut output = Table::new();
        output.insert("name".to_owned(), cut.trunk.features.clone().into());
        output.insert("activation".to_owned(), "none".into());
        package.insert("output".to_owned(), output.into());
        let mut files = Table::new();
        files.insert(cut.name.clone(), self.write_file(folder, &cut.name, &cut.trunk.feature_model())?);
        package.insert("files".to_owned(), files.into());
        write_description(folder, &package)
    }

    /// Writes a package with another head into an empty folder. Returns its version, which follows from its content.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write_package(
        &self,
        folder: &Path,
        name: &str,
        classes: &[String],
        variants: &[CutVariant],
        head: &Head,
        provenance: Table,
    ) -> anyhow::Result<String> {
        let mut package = self.begin(folder, &numbered(classes.iter().cloned()))?;
        package.insert("name".to_owned(), name.into());
        package.insert("task".to_owned(), "image-classification".into());
        // Softmax is applied by the program.
        package.insert("output".to_owned(), "logits".into());
        let mut files = Table::new();
        for CutVariant { name, trunk } in variants {
            files.insert(name.clone(), self.write_file(folder, name, &trunk.with_head(head))?);
        }
        package.insert("files".to_owned(), files.into());
        package.insert("provenance".to_owned(), provenance.into());
        package.insert("version".to_owned(), String::new().into());
        let version = model::content_version(&toml::to_string(&package)?)?;
        package.insert("version".to_owned(), version.clone().into());
        write_description(folder, &package)?;
        Ok(version)
    }

    /// Writes the labels, and begins a `model.toml` with what does not depend on the head.
    fn begin(&self, folder: &Path, labels: &str) -> anyhow::Result<Table> {
        let mut package = Table::new();
        let input = self.description.get("input").context("the model.toml of the base has no [input]")?;
        package.insert("input".to_owned(), input.clone());
        package.insert("labels".to_owned(), LABELS.into());
        let mut labels_file = Table::new();
        labels_file.insert("sha256".to_owned(), write_new(&folder.join(LABELS), labels.as_bytes())?.into());
        package.insert("labels_file".to_owned(), labels_file.into());
        Ok(package)
    }

    /// Writes the file of a variant with the files of its external data. Returns its table in `model.toml`.
    fn write_file(&self, folder: &Path, variant: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        let old = self.entry(variant)?;
        ensure!(is_file_name(variant), "the base has a variant called {variant:?}, which cannot be the name of a file");
        let external: BTreeSet<String> =
            OnnxFile::parse(&Bytes::copy_from_slice(bytes))?.external.into_iter().collect();
        // Two variants may keep different weights in files of one name, so each has a folder.
        let prefix = if external.is_empty() { String::new() } else { format!("{variant}/") };
        let path = format!("{prefix}{variant}.onnx");
        let beside = folder.join(&prefix);
        fs::create_dir_all(&beside).with_context(|| format!("cannot write {}", beside.display()))?;
        let mut entry = Table::new();
        for key in ["requires", "input"] {
            entry.extend(old.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        entry.insert("sha256".to_owned(), write_new(&folder.join(&path), bytes)?.into());
        entry.insert("path".to_owned(), path.into());
        let mut copied = Vec::new();
        for location in external {
            let mut file = Table::new();
            file.insert("sha256".to_owned(), self.copy_beside(variant, &location, &beside)?.into());
            file.insert("path".to_owned(), format!("{prefix}{location}").into());
            copied.push(Value::from(file));
        }
        if !copied.is_empty() {
            entry.insert("external".to_owned(), copied.into());
        }
        Ok(entry.into())
    }

    /// Copies a file of external data, whose location is relative to the file of the variant.
    fn copy_beside(&self, variant: &str, location: &str, folder: &Path) -> anyhow::Result<String> {
        let model = self.folder.join(self.file_of(variant)?);
        let source = model.parent().unwrap_or(&self.folder).join(location);
        let target = folder.join(location);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot write {}", parent.display()))?;
        }
        fs::copy(&source, &target)
            .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))?;
        let mut hash = Sha256::new();
        fs::File::open(&target)
            .and_then(|mut file| std::io::copy(&mut file, &mut hash))
            .with_context(|| format!("cannot read {}", target.display()))?;
        Ok(model::hex(&hash.finalize()))
    }

    fn entry(&self, variant: &str) -> anyhow::Result<&Table> {
        let entry = self.description.get("files").and_then(|files| files.get(variant)?.as_table());
        entry.with_context(|| format!("the model.toml of the base has no [files.{variant}]"))
    }

    fn file_of(&self, variant: &str) -> anyhow::Result<&str> {
        match self.entry(variant)?.get("path").and_then(Value::as_str) {
            Some(path) => Ok(path),
            None => bail!("the model.toml of the base names no path in [files.{variant}]"),
        }
    }
}

/// A variant becomes part of paths, and a package of others may call it anything.
fn is_file_name(variant: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    variant.bytes().all(is_allowed) && variant.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// The choice of a package in a folder.
///
/// # Errors
/// If the path is not UTF-8.
pub(super) fn choice_of(folder: &Path, variant: &str, base: &ModelChoice) -> anyhow::Result<ModelChoice> {
    let folder = fs::canonicalize(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let path = folder.to_str().with_context(|| format!("the path {} is not UTF-8", folder.display()))?;
    Ok(ModelChoice {
        model: Some(path.to_owned()),
        models_dir: None,
        label_set: None,
        variant: Some(variant.to_owned()),
        ..base.clone()
    })
}

/// Lines of `index name`, so that a name may begin with anything.
fn numbered(names: impl Iterator<Item = String>) -> String {
    names.enumerate().map(|(index, name)| format!("{index} {name}\n")).collect()
}

fn write_description(folder: &Path, package: &Table) -> anyhow::Result<()> {
    ensure!(package.contains_key("version"), "a package needs a version; this is a bug");
    let text = format!("# Written by `imgcls model fit`.\n{}", toml::to_string(package)?);
    write_new(&folder.join(DESCRIPTION), text.as_bytes()).map(drop)
}

/// Writes a file and returns its SHA-256.
fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<String> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(model::hex(&Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_that_could_be_paths_are_refused() {
        assert!(is_file_name("int8") && is_file_name("fp16_v2.1"));
        for path in ["", "..", "../x", "a/b", "/x", ".x", "a b"] {
            assert!(!is_file_name(path), "{path:?}");
        }
    }
}
