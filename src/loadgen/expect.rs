//! Compares answers with the expected ones.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::dialect::Predicted;
use super::failure::printable;
use super::names::{Names, folded};

/// The expected answer of each image, by the index of the image; `None` if no expectations were given.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    of_images: Option<Vec<Option<Expected>>>,
    /// Further names of the classes.
    names: Names,
}

/// A class by its index, its label or both. The index is preferred if the answer has one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    class_index: Option<u32>,
    /// The label as it is shown.
    label: Option<String>,
    /// The label as it is compared.
    folded: Option<String>,
    /// The classes that it may be, by the list of names.
    classes: Vec<u32>,
}

#[derive(Debug)]
pub(super) enum Verdict {
    /// No expectations were given.
    NoExpectations,
    WithoutExpectation,
    /// The answer was compared; `wrong` is `None` if the first prediction is the expected one.
    Judged {
        top5: bool,
        wrong: Option<Mismatch>,
    },
}

/// A first prediction that is not the expected one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mismatch {
    pub expected: String,
    pub got: String,
    pub score: Option<f32>,
}

impl Expectations {
    /// Reads a CSV file with a header that has `file` and `class_index` or `label` (or both).
    ///
    /// # Errors
    /// If the file cannot be read, lacks columns, contradicts itself, or names none of the images.
    pub(super) fn read<'a>(path: &Path, images: impl Iterator<Item = &'a str>, names: Names) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let by_name = parse(&text, &names).with_context(|| format!("in {}", path.display()))?;
        let expected: Vec<_> = images.map(|name| by_name.get(base_name(name)).cloned()).collect();
        ensure!(
            expected.iter().any(Option::is_some),
            "{} names none of the images that are sent; its column `file` must hold their file names",
            path.display()
        );
        Ok(Expectations { of_images: Some(expected), names })
    }

    /// Returns true if a label is missing, so that answers without a class index cannot be judged.
    pub(super) fn lack_labels(&self) -> bool {
        self.of_images.iter().flatten().flatten().any(|expected| expected.label.is_none())
    }

    pub(super) fn judge(&self, image: usize, predictions: &[Predicted<'_>]) -> Verdict {
        let Some(expected) = &self.of_images else { return Verdict::NoExpectations };
        let Some(expected) = &expected[image] else { return Verdict::WithoutExpectation };
        let is = |predicted: &Predicted<'_>| expected.is(predicted, &self.names);
        let top1 = predictions.first().is_some_and(is);
        Verdict::Judged {
            top5: top1 || predictions.iter().take(5).any(is),
            wrong: (!top1).then(|| expected.mismatch(predictions.first())),
        }
    }
}

impl Expectations {
    /// The expected answer of an image as it is shown.
    pub(super) fn shown(&self, image: usize) -> Option<String> {
        self.of_images.as_ref()?.get(image)?.as_ref().map(Expected::shown)
    }
}

impl Expected {
    /// An index beats a name: with two indices the labels do not count.
    fn is(&self, predicted: &Predicted<'_>, names: &Names) -> bool {
        if let (Some(expected), Some(got)) = (self.class_index, predicted.class_index) {
            return expected == got;
        }
        if self.folded.as_ref().is_some_and(|expected| *expected == folded(&predicted.label)) {
            return true;
        }
        match predicted.class_index {
            Some(got) => self.classes.contains(&got),
            None => names.classes(&predicted.label).iter().any(|got| self.classes.contains(got)),
        }
    }

    fn shown(&self) -> String {
        match (&self.label, self.class_index) {
            (Some(label), _) => printable(label),
            (None, Some(class_index)) => format!("class {class_index}"),
            (None, None) => String::new(),
        }
    }

    fn mismatch(&self, best: Option<&Predicted<'_>>) -> Mismatch {
        let expected = self.shown();
        let got = best.map_or_else(String::new, |best| match (&self.label, best.class_index) {
            (None, Some(class_index)) => format!("class {class_index}, {}", printable(&best.label)),
            _ => printable(&best.label),
        });
        Mismatch { expected, got, score: best.and_then(|best| best.score) }
    }
}

fn parse(text: &str, names: &Names) -> anyhow::Result<HashMap<String, Expected>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let header = reader.headers()?.clone();
    let column = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    let (file, class_index, label) = (column("file"), column("class_index"), column("label"));
    let Some(file) = file.filter(|_| class_index.or(label).is_some()) else {
        let found: Vec<_> = header.iter().map(printable).collect();
        bail!("the header must have the columns `file` and `class_index` or `label`, it has `{}`", found.join("`, `"));
    };
    let mut by_name = HashMap::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: Option<usize>| at.and_then(|at| record.get(at)).filter(|text| !text.is_empty());
        let name = base_name(field(Some(file)).with_context(|| format!("line {line}: no file"))?);
        let class_index = field(class_index)
            .map(|text| text.parse().with_context(|| format!("line {line}: {text:?} is not a class index")))
            .transpose()?;
        let label = field(label).map(str::to_owned);
        ensure!(class_index.is_some() || label.is_some(), "line {line}: neither class_index nor label");
        let classes = match (class_index, &label) {
            (Some(class_index), _) => vec![class_index],
            (None, Some(label)) => names.classes(label),
            (None, None) => Vec::new(),
        };
        let expected = Expected { class_index, folded: label.as_deref().map(folded), label, classes };
        let before = by_name.insert(name.to_owned(), expected.clone());
        ensure!(
            before.is_none_or(|before| before == expected),
            "line {line}: a second, different answer for {name:?}; files are matched by base name"
        );
    }
    Ok(by_name)
}

/// The last path component. Both separators are accepted, because CSV files come from every operating system.
fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn predicted(class_index: Option<u32>, label: &'static str) -> Predicted<'static> {
        Predicted { class_index, label: Cow::Borrowed(label), score: Some(0.5) }
    }

    fn expectations(csv: &str, names: &[&str]) -> Expectations {
        let by_name = parse(csv, &Names::default()).expect("valid");
        let of_images = names.iter().map(|name| by_name.get(*name).cloned()).collect();
        Expectations { of_images: Some(of_images), names: Names::default() }
    }

    #[test]
    fn columns_may_have_any_order_and_files_may_have_folders() {
        let csv = "\u{feff}Label, file ,note\r\n\"tabby, tabby cat\",data/set/a.jpg,x\r\nTench,\"b\"\"1.jpg\",\r\n";
        let expected = expectations(csv, &["a.jpg", "b\"1.jpg", "c.jpg"]);
        let judged = |image, label| match expected.judge(image, &[predicted(Some(1), label)]) {
            Verdict::Judged { wrong, .. } => Some(wrong.is_none()),
            _ => None,
        };
        assert_eq!(judged(0, " Tabby, TABBY cat"), Some(true));
        assert_eq!(judged(1, "tench"), Some(true));
        assert_eq!(judged(1, "goldfish"), Some(false));
        assert_eq!(judged(2, "tench"), None);
    }

    #[test]
    fn index_is_preferred_to_label_and_first_five_predictions_count() {
        let expected = expectations("file,class_index,label\na.jpg,134,crane\n", &["a.jpg"]);
        let judge = |predictions: &[Predicted<'_>]| match expected.judge(0, predictions) {
            Verdict::Judged { top5, wrong } => (wrong, top5),
            other => panic!("{other:?}"),
        };
        // Two ImageNet classes are called crane: the bird and the machine.
        let (wrong, top5) = judge(&[predicted(Some(517), "crane"), predicted(Some(134), "crane")]);
        assert!(top5);
        let wrong = wrong.expect("the machine first");
        assert_eq!((wrong.expected.as_str(), wrong.got.as_str(), wrong.score), ("crane", "crane", Some(0.5)));
        assert!(judge(&[predicted(None, "Crane")]).0.is_none());
        let mut sixth: Vec<_> = (0..5).map(|class_index| predicted(Some(class_index), "x")).collect();
        sixth.push(predicted(Some(134), "crane"));
        assert!(!judge(&sixth).1);
    }

    #[test]
    fn error_in_a_file_names_its_line() {
        let wrong = |csv: &str| format!("{:#}", parse(csv, &Names::default()).expect_err(csv));
        assert!(wrong("name,label\n").contains("it has `name`, `label`"));
        assert!(wrong("file,label\na.jpg,x\na.jpg,y\n").contains("line 3: a second"));
        assert!(wrong("file,class_index\na.jpg,many\n").contains("line 2: \"many\""));
        assert!(wrong("file,label\na.jpg\n").contains("line 2: neither"));
        assert!(parse("file,label\nx/a.jpg,x\na.jpg,x\n", &Names::default()).is_ok());
    }
}
