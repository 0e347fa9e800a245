//! The part of a model package that machines of a fleet need: the variants that their CPUs pick, without those that are chosen
//! only by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;

use super::description::{Description, FileEntry};
use super::{find, variant};

/// A part of a package, which is a package of its own.
pub struct UsedPart {
    /// The text of `model.toml` with the variants of this part.
    pub description: String,
    /// Paths in the folder of the package, of files that only other variants have.
    pub left_out: BTreeSet<String>,
}

/// The variant that `wanted` names, or those that machines pick by their CPUs, of the package in a folder.
///
/// # Errors
/// If there is no such variant, or the description cannot be read.
pub fn used_part(folder: &Path, wanted: Option<&str>) -> anyhow::Result<UsedPart> {
    let (Description { files, .. }, text) = Description::read_with_text(&folder.join(find::DESCRIPTION))?;
    let used = used_variants(&files, wanted)?;
    Ok(UsedPart { description: only(&text, &used)?, left_out: left_out(&files, &used) })
}

fn used_variants(files: &BTreeMap<String, FileEntry>, wanted: Option<&str>) -> anyhow::Result<BTreeSet<String>> {
    let [with, without] = [true, false].map(|int8_dot_product| variant::pick(files, wanted, int8_dot_product));
    // A model may have nothing for one of both kinds of CPU. A machine of that kind says so.
    match (with, without) {
        (Err(error), Err(_)) => Err(error),
        (with, without) => Ok([with, without].into_iter().flatten().map(|(name, _)| name).collect()),
    }
}

fn left_out(files: &BTreeMap<String, FileEntry>, used: &BTreeSet<String>) -> BTreeSet<String> {
    let paths = |is_used: bool| {
        let chosen = files.iter().filter(move |(name, _)| used.contains(*name) == is_used);
        chosen.flat_map(|(_, entry)| {
            let external = entry.external.iter().map(|file| file.path.clone());
            external.chain([entry.path.clone()])
        })
    };
    let needed: BTreeSet<String> = paths(true).collect();
    paths(false).filter(|path| !needed.contains(path)).collect()
}

/// The text without the tables of all other variants.
fn only(text: &str, used: &BTreeSet<String>) -> anyhow::Result<String> {
    let mut document: toml::Table = text.parse().context("cannot read model.toml")?;
    if let Some(toml::Value::Table(files)) = document.get_mut("files") {
        files.retain(|name, _| used.contains(name));
    }
    toml::to_string(&document).context("cannot write model.toml")
}

#[cfg(test)]
mod tests {
    use super::super::choice::ModelChoice;
    use super::*;

    fn part(wanted: Option<&str>) -> anyhow::Result<UsedPart> {
        used_part(&find::model_folder(&ModelChoice::default())?, wanted)
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn part_of_the_default_model_has_what_cpus_pick() {
        let part = part(None).unwrap();
        assert_eq!(part.left_out, names(&["efficientnet-lite0-fp16.onnx"]));
        let described: Description = toml::from_str(&part.description).unwrap();
        assert_eq!(described.files.into_keys().collect::<BTreeSet<_>>(), names(&["int7", "int8"]));
    }

    #[test]
    fn variant_that_is_named_is_the_only_one() {
        let left_out = part(Some("fp16")).unwrap().left_out;
        assert_eq!(left_out, names(&["efficientnet-lite0-int7.onnx", "efficientnet-lite0-int8.onnx"]));
        let error = part(Some("fp8")).err().unwrap().to_string();
        assert_eq!(error, "no variant \"fp8\"; there are: fp16, int7, int8");
    }

    #[test]
    fn file_that_several_variants_share_stays() {
        let text = r#"
            name = "m"
            version = "1"
            labels = "labels.txt"
            output = "logits"
            [files.fp32]
            path = "a.onnx"
            sha256 = ""
            external = [{ path = "weights", sha256 = "" }]
            [files.named]
            path = "b.onnx"
            sha256 = ""
            external = [{ path = "weights", sha256 = "" }, { path = "more", sha256 = "" }]
            [input]
            name = "input"
            layout = "NCHW"
            channels = "RGB"
            resize = "short-side"
            short_side = 256
            filter = "bicubic"
            crop = 224
            mean = [0.0, 0.0, 0.0]
            std = [1.0, 1.0, 1.0]
        "#;
        let files = toml::from_str::<Description>(text).unwrap().files;
        let used = used_variants(&files, None).unwrap();
        assert_eq!(left_out(&files, &used), names(&["b.onnx", "more"]));
    }
}
