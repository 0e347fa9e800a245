//! The configuration of the output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::outbound::Allowed;
use crate::pile::boxes::Boxes;

/// The configuration of [`super::Output`].
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct OutputConfig {
    /// The target of the rows.
    pub target: Target,
    /// Replaces a finished file that exists.
    pub overwrite: bool,
    /// Says if the log of an earlier run is continued.
    pub resume: Resume,
    /// Writes a row for each prediction instead of a row for each image.
    pub is_long: bool,
    /// Number of predictions that each image has in the table, at least 1.
    pub top_k: u32,
    /// The file for the rows of failed images.
    pub errors: Option<PathBuf>,
    /// Runs images again that failed in an earlier run.
    pub retry_errors: bool,
    /// The number of failed images beyond which the run stops.
    pub max_failures: Option<MaxFailures>,
    /// A folder with a folder for each class.
    pub sort_into: Option<SortInto>,
    /// A file beside each image.
    pub sidecar: Option<SidecarFormat>,
    /// The classes of the model by index, for class ids and names of folders.
    pub classes: Vec<ClassName>,
    /// True if the model gives an image several labels: there is a column for them.
    pub has_labels: bool,
    /// The options that the rows depend on, by the name that a person knows: the digest of the model, limits, pages. A
    /// log that was made with other values is refused. `top_k` is added to them.
    pub options: BTreeMap<String, String>,
    /// The boxes whose rows these are, if boxes are classified instead of whole images.
    pub boxes: Option<Boxes>,
    /// The file has each row about as soon as it is durable, and the pile has no end.
    pub grows: bool,
    /// A receiver that is called for each row. It needs a file that grows.
    pub webhook: Option<WebhookConfig>,
}

/// The receiver of a table that grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Its address.
    pub url: String,
    /// The file with the secret that signs the calls, which is made if it does not exist.
    pub secret: PathBuf,
    /// The places that may be called although they are not public.
    pub allowed: Allowed,
}

/// The target of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file, made when the pile is done.
    File(OutFile),
    /// A table on the terminal.
    Terminal,
    /// CSV on standard output.
    Csv,
    /// No table. Links and sidecars are made all the same.
    Nothing,
}

/// A file whose extension gives its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutFile {
    /// The path of the file.
    pub path: PathBuf,
    /// The format of the file.
    pub format: TableFormat,
}

/// The format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Comma-separated values.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
    /// The detector's file with the classes of its boxes.
    MegaDetector,
    /// The observations of a Camera Trap Data Package.
    CamtrapDp,
}

/// Says if the log of an earlier run is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// It is continued if there is one.
    #[default]
    IfPossible,
    /// It is continued; without one, the run is refused.
    Required,
    /// It is deleted, and the run begins with the first image.
    Restart,
}

/// The number of failed images beyond which the run stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxFailures {
    /// So many images.
    Count(u64),
    /// A share of all images, 0 to 1.
    Share(f64),
}

/// A folder with a folder for each class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortInto {
    /// The folder.
    pub folder: PathBuf,
    /// The kind of its entries.
    pub entry: SortEntry,
}

/// The entry for an image in the folder of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortEntry {
    /// A hard link, or a copy on file systems where that is impossible.
    #[default]
    HardLink,
    /// A symbolic link to the absolute path.
    Symlink,
    /// A copy.
    Copy,
}

/// The format of the file beside each image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarFormat {
    /// The row as a JSON object.
    Json,
    /// One class a line.
    Text,
    /// XMP with the labels as keywords.
    Xmp,
}

/// The names of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassName {
    /// The label.
    pub label: String,
    /// The id, such as a WordNet id.
    pub id: Option<String>,
}

impl Target {
    /// The target when there is no `--out` and no `--json`.
    pub fn of_stdout() -> Target {
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) { Target::Terminal } else { Target::Csv }
    }
}

impl FromStr for OutFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "csv" => TableFormat::Csv,
            "tsv" => TableFormat::Tsv,
            "jsonl" | "ndjson" => TableFormat::Jsonl,
            "parquet" => TableFormat::Parquet,
            "json" => TableFormat::MegaDetector,
            _ => {
                let message = "the output must be a file.csv, file.tsv, file.jsonl or file.parquet, or with --boxes a \
                               file.json";
                return Err(message.to_owned());
            }
        };
        Ok(OutFile { path, format })
    }
}

impl OutFile {
    /// The log beside the file: its path with `.part` appended.
    pub fn log_path(&self) -> PathBuf {
        appended(&self.path, ".part")
    }
}

impl FromStr for MaxFailures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let message = || "give a number of images such as 100, or a percentage such as 1%".to_owned();
        match text.strip_suffix('%') {
            None => text.parse().map(MaxFailures::Count).map_err(|_| message()),
            Some(percent) => match percent.trim().parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(MaxFailures::Share(percent / 100.0)),
                _ => Err(message()),
            },
        }
    }
}

/// The path with `suffix` after its last component.
pub(super) fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_gives_the_format_of_the_output() {
        let format = |name: &str| name.parse::<OutFile>().map(|file| file.format);
        assert_eq!(format("a.csv"), Ok(TableFormat::Csv));
        assert_eq!(format("b/c.TSV"), Ok(TableFormat::Tsv));
        assert_eq!(format("a.csv.jsonl"), Ok(TableFormat::Jsonl));
        assert_eq!(format("a.parquet"), Ok(TableFormat::Parquet));
        assert!(format("a").is_err() && format("a.txt").is_err() && format("csv").is_err());
        assert_eq!("a/b.csv".parse::<OutFile>().unwrap().log_path(), Path::new("a/b.csv.part"));
    }

    #[test]
    fn failures_are_limited_by_number_or_share() {
        assert_eq!("100".parse(), Ok(MaxFailures::Count(100)));
        assert_eq!("0".parse(), Ok(MaxFailures::Count(0)));
        assert_eq!("1%".parse(), Ok(MaxFailures::Share(0.01)));
        assert_eq!("0.5 %".parse(), Ok(MaxFailures::Share(0.005)));
        for wrong in ["", "%", "-1", "101%", "x", "NaN%", "1.5"] {
            assert!(wrong.parse::<MaxFailures>().is_err(), "{wrong}");
        }
    }
}
