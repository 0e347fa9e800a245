//! The confusion matrix as a file: CSV for programs, SVG or PNG to look at.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;

use super::evaluation::Evaluation;
use super::heat_map::HeatMap;
use crate::dataset::Matrix;
use crate::plot::{self, PlotFile};

/// A file whose extension gives its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfusionFile {
    /// A row per actual class, a column per predicted class.
    Csv(PathBuf),
    /// A heat map.
    Plot(PlotFile),
}

impl FromStr for ConfusionFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
            return Ok(ConfusionFile::Csv(path));
        }
        let plot = text.parse().map_err(|_| "the confusion matrix must be a file.csv, a file.svg or a file.png")?;
        Ok(ConfusionFile::Plot(plot))
    }
}

impl ConfusionFile {
    /// The file of one of several models: `name-1.csv`, `name-2.csv`. A single model keeps the name.
    pub(super) fn numbered(&self, index: usize, models: usize) -> ConfusionFile {
        let numbered = |path: &Path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{stem}-{}.{extension}", index + 1))
        };
        match self {
            _ if models < 2 => self.clone(),
            ConfusionFile::Csv(path) => ConfusionFile::Csv(numbered(path)),
            ConfusionFile::Plot(file) => ConfusionFile::Plot(file.renamed(numbered)),
        }
    }

    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, evaluation: &Evaluation) -> anyhow::Result<()> {
        match self {
            ConfusionFile::Csv(path) => {
                let table = csv_table(&evaluation.confusion.matrix(), |class| evaluation.class_name(class));
                std::fs::write(path, table).with_context(|| format!("cannot write {}", path.display()))
            }
            ConfusionFile::Plot(file) => {
                let title = format!(
                    "{}: {} of {} images are right (rows: actual, columns: predicted)",
                    evaluation.package.model_ref().name,
                    evaluation.confusion.correct(),
                    evaluation.confusion.images()
                );
                let chart = HeatMap::new(title, &evaluation.confusion, |class| evaluation.class_name(class));
                plot::write(file, &chart)
            }
        }
    }
}

fn csv_table(matrix: &Matrix, name: impl Fn(u32) -> String) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = std::iter::once("actual".to_owned()).chain(matrix.columns.iter().map(|class| name(*class)));
    let rows = matrix.rows.iter().zip(&matrix.counts).map(|(class, counts)| {
        std::iter::once(name(*class)).chain(counts.iter().map(u64::to_string)).collect::<Vec<_>>()
    });
    for record in std::iter::once(header.collect()).chain(rows) {
        writer.write_record(record).expect("a table in memory with equal rows; this is a bug");
    }
    writer.into_inner().expect("a table in memory; this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_row_per_actual_and_a_column_per_predicted_class() {
        let matrix = Matrix { rows: vec![0, 2], columns: vec![0, 2, 1], counts: vec![vec![3, 1, 0], vec![0, 4, 2]] };
        let names = ["cat", "dog, wild", "cow"];
        let table = csv_table(&matrix, |class| names[class as usize].to_owned());
        let expected = "actual,cat,cow,\"dog, wild\"\ncat,3,1,0\ncow,0,4,2\n";
        assert_eq!(String::from_utf8(table).unwrap(), expected);
    }

    #[test]
    fn extension_gives_the_format_and_two_models_get_two_files() {
        let file: ConfusionFile = "out/a.CSV".parse().unwrap();
        assert_eq!(file.numbered(0, 1), file);
        assert_eq!(file.numbered(1, 2), ConfusionFile::Csv("out/a-2.CSV".into()));
        let plot: ConfusionFile = "a.svg".parse().unwrap();
        assert_eq!(plot.numbered(0, 2), "a-1.svg".parse().unwrap());
        assert!("a.txt".parse::<ConfusionFile>().is_err());
    }
}
