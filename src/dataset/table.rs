//! A CSV table of labelled images.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::labelled::{Dataset, LabelledImage, folded};

/// Reads a table with a header that has the columns `path` (or `file`) and `label` (or `class`). Relative paths begin at
/// the folder of the table. Labels that differ only in case are one class.
///
/// # Errors
/// If the table cannot be read, lacks a column, or has no line.
pub(super) fn read(path: &Path) -> anyhow::Result<Dataset> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read {}: give a folder with one folder of images per class, or a CSV table", path.display())
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, folder).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str, folder: &Path) -> anyhow::Result<Dataset> {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().context("this is not a table")?.clone();
    let column = |names: [&str; 2]| {
        names.iter().find_map(|name| header.iter().position(|column| column.eq_ignore_ascii_case(name)))
    };
    let (Some(path), Some(label)) = (column(["path", "file"]), column(["label", "class"])) else {
        let found: Vec<_> = header.iter().map(|column| format!("{column:?}")).collect();
        bail!("the first line must name the columns `path` and `label`, it has {}", found.join(", "));
    };
    let mut labelled: BTreeMap<String, (String, Vec<std::path::PathBuf>)> = BTreeMap::new();
    for record in reader.records() {
        let record = record.context("this is not a table")?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: usize, name: &str| {
            record.get(at).filter(|text| !text.is_empty()).with_context(|| format!("line {line} has no {name}"))
        };
        let (path, label) = (field(path, "path")?, field(label, "label")?);
        ensure!(!label.contains(char::is_control), "line {line}: the label {label:?} has a control character");
        let entry = labelled.entry(folded(label)).or_insert_with(|| (label.to_owned(), Vec::new()));
        entry.1.push(folder.join(path));
    }
    ensure!(!labelled.is_empty(), "the table has no line after its header");
    let mut dataset = Dataset::default();
    for (class, (name, mut paths)) in labelled.into_values().enumerate() {
        dataset.classes.push(name);
        paths.sort_unstable();
        dataset.images.extend(paths.into_iter().map(|path| LabelledImage { path, class }));
    }
    Ok(dataset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_may_have_any_order_and_labels_any_case() {
        let table = "\u{feff}Label,note,FILE\r\nTench,,b.jpg\r\n\"tabby, cat\",x,a.jpg\r\ntench,,/abs/a.jpg\r\n";
        let dataset = parse(table, Path::new("set")).unwrap();
        assert_eq!(dataset.classes, ["tabby, cat", "Tench"]);
        let paths: Vec<_> = dataset.images.iter().map(|image| (image.class, image.path.to_str().unwrap())).collect();
        assert_eq!(paths, [(0, "set/a.jpg"), (1, "/abs/a.jpg"), (1, "set/b.jpg")]);
    }

    #[test]
    fn error_in_a_table_names_the_line_or_the_missing_column() {
        let refused = |text: &str| format!("{:#}", parse(text, Path::new("")).unwrap_err());
        assert!(refused("name,label\na,b\n").contains("it has \"name\", \"label\""));
        assert!(refused("path,label\na.jpg,\n").contains("line 2 has no label"));
        assert!(refused("path,label\n").contains("no line after its header"));
    }
}
