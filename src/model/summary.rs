//! The summary of a model package that a listing shows. It reads `model.toml` and the labels and verifies no file: what runs
//! a model is [`super::package`].

use anyhow::Context as _;

use super::choice::ModelChoice;
use super::description::{Description, file_in};
use super::file;
use super::find;
use super::input::Geometry;
use super::labels::Labels;

/// A model package, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSummary {
    /// The name of the package, by which requests choose it.
    pub name: String,
    /// The version of the package.
    pub version: String,
    /// The number of classes.
    pub classes: usize,
    /// Height and width of the input in pixels. `None` if they depend on the image.
    pub input_size: Option<[u32; 2]>,
    /// The model files, ordered by their variants.
    pub files: Vec<FileSummary>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// The variant, as model.toml names it.
    pub variant: String,
    /// `sha256:<hex>`, as results name it.
    pub digest: String,
    /// The size of the file.
    pub bytes: u64,
}

impl ModelSummary {
    /// Reads the package that is current for `choice`. This reads two small files, so that it can be done often.
    ///
    /// # Errors
    /// If there is no such package, or its description cannot be read.
    pub fn read(choice: &ModelChoice) -> anyhow::Result<ModelSummary> {
        let folder = find::model_folder(choice)?;
        let path = folder.join(find::DESCRIPTION);
        let description = Description::read(&path)?;
        let geometry = Geometry::new(&description.input).with_context(|| format!("{}", path.display()))?;
        let labels = file_in(&folder, &description.labels)?;
        let classes = Labels::parse(&file::read(&labels)?).with_context(|| format!("{}", labels.display()))?.len();
        let files = description.files.into_iter().map(|(variant, file)| {
            let path = file_in(&folder, &file.path)?;
            let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
            Ok(FileSummary { variant, digest: format!("sha256:{}", file.sha256), bytes: metadata.len() })
        });
        Ok(ModelSummary {
            files: files.collect::<anyhow::Result<_>>()?,
            name: description.name,
            version: description.version,
            classes,
            input_size: geometry.output().map(|extent| [extent.height, extent.width]),
        })
    }
}

/// The name by which requests choose the model of `choice`: that of the package if it exists on this machine, otherwise
/// the last part of what the setting says, without a version.
pub fn model_name(choice: &ModelChoice) -> String {
    let packaged = find::model_folder(choice).and_then(|folder| Description::read(&folder.join(find::DESCRIPTION)));
    packaged.map_or_else(|_| name_of_setting(choice.model.as_deref()), |description| description.name)
}

fn name_of_setting(model: Option<&str>) -> String {
    let model = model.unwrap_or(find::DEFAULT_MODEL);
    let last = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
    last.split('@').next().unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_without_files_has_the_name_of_its_setting() {
        for (model, name) in [
            (None, "efficientnet-lite0"),
            (Some("no-such-model"), "no-such-model"),
            (Some("no-such-model@3f2a9c01b7de"), "no-such-model"),
            (Some("/no/such/folder/birds/"), "birds"),
        ] {
            let choice = ModelChoice { model: model.map(str::to_owned), ..ModelChoice::default() };
            assert_eq!(model_name(&choice), name);
            assert_eq!(name_of_setting(model), name);
        }
    }

    #[test]
    fn summary_of_the_shipped_model_has_its_classes_and_files() {
        let summary = ModelSummary::read(&ModelChoice::default()).unwrap();
        assert_eq!((summary.name.as_str(), summary.classes), ("efficientnet-lite0", 1000));
        assert_eq!(summary.input_size, Some([224, 224]));
        let is_complete = |file: &FileSummary| file.digest.len() == "sha256:".len() + 64 && file.bytes > 1_000_000;
        assert!(!summary.files.is_empty() && summary.files.iter().all(is_complete), "{summary:?}");
    }
}
