//! The labels file of a model: one line for each class, in class order, or one list of strings in JSON.
//!
//! The first line decides which of these forms the lines have, and all must have it:
//! - `n01440764 tench`: a WordNet id and the name;
//! - `0 tench`: the index of the class and the name, as Teachable Machine writes it;
//! - `guid;class;order;family;genus;species;name`: an id, the taxonomy, and the name. If the name is empty, the most
//!   specific level that is given is the name;
//! - `tench`: the name.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};

/// Number of fields of a line with a taxonomy.
const TAXONOMY_FIELDS: usize = 7;

/// The names and ids of the classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    names: Vec<String>,
    /// Empty if the file has none, else one for each class.
    ids: Vec<String>,
}

impl Labels {
    /// Parses a labels file.
    ///
    /// # Errors
    /// A message of one line that names the first wrong line. It does not name the file.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Labels> {
        let text = std::str::from_utf8(bytes).ok().context("is not UTF-8 text")?.trim_start_matches('\u{feff}');
        if text.trim_start().starts_with('[') {
            return Labels::from_json(text);
        }
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim).collect();
        let Some(first) = lines.first().filter(|line| !line.is_empty()) else { bail!("has no label in line 1") };
        let form = Form::of(first);
        let mut labels = Labels { names: Vec::with_capacity(lines.len()), ids: Vec::new() };
        for (index, line) in lines.iter().enumerate() {
            let Some((id, name)) = form.split(line, index).filter(|(_, name)| !name.is_empty()) else {
                bail!("line {} is not {}, unlike line 1", index + 1, form.describe());
            };
            labels.ids.extend(id.map(str::to_owned));
            labels.names.push(name.to_owned());
        }
        labels.check_ids()?;
        Ok(labels)
    }

    /// The names are taken as they are: in JSON, ids have no place.
    fn from_json(text: &str) -> anyhow::Result<Labels> {
        let names: Vec<String> = serde_json::from_str(text).context("is not a list of strings in JSON")?;
        ensure!(!names.is_empty(), "has no label");
        if let Some(index) = names.iter().position(|name| name.trim().is_empty() || name.contains(['\n', '\r'])) {
            bail!("entry {} is not a name of one line", index + 1);
        }
        Ok(Labels { names: names.iter().map(|name| name.trim().to_owned()).collect(), ids: Vec::new() })
    }

    /// The same classes with other names. They keep their ids if `set` has none.
    ///
    /// # Errors
    /// If the number of classes differs.
    pub(super) fn renamed(self, set: Labels) -> anyhow::Result<Labels> {
        let (found, classes) = (set.len(), self.len());
        ensure!(found == classes, "has {found} labels, but the model has {classes} classes");
        let ids = if set.ids.is_empty() { self.ids } else { set.ids };
        Ok(Labels { names: set.names, ids })
    }

    #[cfg(test)]
    pub(super) fn for_tests(names: &[&str]) -> Labels {
        Labels { names: names.iter().map(|&name| name.to_owned()).collect(), ids: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The name of each class.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The id of each class, or nothing if the classes have none.
    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The threshold of each class: that of its id, else that of its name, else `default`.
    ///
    /// # Errors
    /// If a threshold belongs to no class, or is not between 0 and 1.
    pub(super) fn thresholds(&self, default: f32, given: &BTreeMap<String, f32>) -> anyhow::Result<Vec<f32>> {
        for (key, threshold) in given {
            ensure!((0.0..=1.0).contains(threshold), "the threshold of {key:?} is {threshold}, not between 0 and 1");
            ensure!(
                self.names.contains(key) || self.ids.contains(key),
                "there is a threshold for {key:?}, which is neither the label nor the id of a class"
            );
        }
        let of = |index: usize| {
            let by_id = self.ids.get(index).and_then(|id| given.get(id));
            by_id.or_else(|| given.get(&self.names[index])).copied().unwrap_or(default)
        };
        Ok((0..self.names.len()).map(of).collect())
    }

    /// An id is the same class twice; two classes may have the same name, as two do in ImageNet.
    fn check_ids(&self) -> anyhow::Result<()> {
        let mut lines = BTreeMap::new();
        for (index, id) in self.ids.iter().enumerate() {
            if let Some(earlier) = lines.insert(id, index + 1) {
                bail!("lines {earlier} and {} have the same id, {id:?}", index + 1);
            }
        }
        Ok(())
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    WordNet,
    Index,
    Taxonomy,
    Name,
}

impl Form {
    fn of(line: &str) -> Form {
        let forms = [Form::Taxonomy, Form::WordNet, Form::Index];
        forms.into_iter().find(|form| form.split(line, 0).is_some()).unwrap_or(Form::Name)
    }

    /// Id and name of the line of a class, or `None` if the line does not have this form.
    fn split(self, line: &str, index: usize) -> Option<(Option<&str>, &str)> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let words = line.split_once([' ', '\t']).map(|(first, rest)| (first, rest.trim()));
        match self {
            Form::Name => Some((None, line)),
            Form::WordNet => {
                let (id, name) = words?;
                is_number(id.strip_prefix('n')?).then_some((Some(id), name))
            }
            Form::Index => {
                let (number, name) = words?;
                (is_number(number) && number.parse() == Ok(index)).then_some((None, name))
            }
            Form::Taxonomy => {
                let fields: Vec<&str> = line.split(';').map(str::trim).collect();
                let (&id, levels) = fields.split_first().filter(|_| fields.len() == TAXONOMY_FIELDS)?;
                let name = levels.iter().rev().find(|level| !level.is_empty())?;
                (!id.is_empty()).then_some((Some(id), *name))
            }
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Form::WordNet => "an id and a name",
            Form::Index => "the index of the class and a name",
            Form::Taxonomy => "an id, five levels of a taxonomy and a name, separated by semicolons",
            Form::Name => "a name",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_kept_apart_in_every_form() {
        let parse = |text: &str| {
            let labels = Labels::parse(text.as_bytes()).unwrap();
            (labels.names, labels.ids)
        };
        let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            parse("n01440764 tench\nn01484850 great white shark\n"),
            (strings(&["tench", "great white shark"]), strings(&["n01440764", "n01484850"]))
        );
        assert_eq!(parse("0 my cat\r\n1 dog\r\n"), (strings(&["my cat", "dog"]), Vec::new()));
        assert_eq!(parse("\u{feff}hot dog\n0\n\n\n"), (strings(&["hot dog", "0"]), Vec::new()));
        assert_eq!(parse("0\n1\n"), (strings(&["0", "1"]), Vec::new()));
        assert_eq!(
            parse("a1;mammalia;carnivora;felidae;panthera;leo;lion\nb2;aves;;;;;\n"),
            (strings(&["lion", "aves"]), strings(&["a1", "b2"]))
        );
    }

    #[test]
    fn damaged_labels_are_refused_with_the_line() {
        let error = |text: &str| Labels::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error(""), "has no label in line 1");
        assert_eq!(error("n1 a\nn2\n"), "line 2 is not an id and a name, unlike line 1");
        assert_eq!(error("0 a\n2 b\n"), "line 2 is not the index of the class and a name, unlike line 1");
        assert_eq!(error("a\n\nb\n"), "line 2 is not a name, unlike line 1");
        assert_eq!(error("n1 a\nn1 b\n"), "lines 1 and 2 have the same id, \"n1\"");
        assert!(Labels::parse(b"\xff\xfe").unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn list_in_json_is_read() {
        let parse = |text: &str| Labels::parse(text.as_bytes());
        assert_eq!(parse("[\"crane (bird)\",\n \"0 a \"]\n").unwrap().names, ["crane (bird)", "0 a"]);
        for text in ["[]", "[\"a\", \"\"]", "[\"a\", 1]", "[\"a\"", "[\"a\\nb\"]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_names_keep_the_ids() {
        let labels = Labels::parse(b"n1 cat\nn2 dog\n").unwrap();
        let renamed = labels.clone().renamed(Labels::for_tests(&["Katze", "Hund"])).unwrap();
        assert_eq!((renamed.names, renamed.ids), (vec!["Katze".into(), "Hund".into()], vec!["n1".into(), "n2".into()]));
        assert!(labels.renamed(Labels::for_tests(&["Katze"])).is_err());
    }

    #[test]
    fn threshold_is_given_by_id_or_name_else_the_default() {
        let labels = Labels::parse(b"n1 cat\nn2 dog\nn3 cow\n").unwrap();
        let given = |pairs: &[(&str, f32)]| pairs.iter().map(|&(key, value)| (key.to_owned(), value)).collect();
        let thresholds = labels.thresholds(0.5, &given(&[("n1", 0.3), ("cow", 0.9)])).unwrap();
        assert_eq!(thresholds, [0.3, 0.5, 0.9]);
        assert!(labels.thresholds(0.5, &given(&[("horse", 0.3)])).is_err());
        assert!(labels.thresholds(0.5, &given(&[("cat", 3.0)])).is_err());
    }
}
