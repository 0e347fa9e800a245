//! Names of classes, several for each, so that an expected name and an answer that mean the same class agree.
//!
//! The file has one class after the other, in the order of their indices: as JSON, a list whose items are a name or a list of
//! names, or an object from index to such an item; as text, a line for each class. Names within a text are separated by
//! commas, as the names of ImageNet's classes are.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    /// The classes that have a name. Several classes may share one: two of ImageNet are called crane.
    classes: HashMap<String, Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    List(Vec<Item>),
    ByIndex(BTreeMap<String, Item>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    One(String),
    Several(Vec<String>),
}

impl Names {
    /// # Errors
    /// If the file cannot be read, or is not a list of names.
    pub(super) fn read(path: &Path) -> anyhow::Result<Names> {
        let context = || format!("cannot read the names in {} (--names)", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        parse(text.trim_start_matches('\u{feff}')).with_context(context)
    }

    /// The classes with this name. A name of several parts, such as `tench, Tinca tinca`, is that of all classes which have
    /// one of the parts, unless a class has the whole.
    pub(super) fn classes(&self, name: &str) -> Vec<u32> {
        if let Some(classes) = self.classes.get(&folded(name)) {
            return classes.clone();
        }
        let parts = name.split(',').filter_map(|part| self.classes.get(&folded(part)));
        parts.flatten().copied().collect()
    }

    fn add(&mut self, index: u32, name: &str) {
        for name in std::iter::once(name).chain(name.split(',')) {
            let folded = folded(name);
            if folded.is_empty() {
                continue;
            }
            let classes = self.classes.entry(folded).or_default();
            if !classes.contains(&index) {
                classes.push(index);
            }
        }
    }
}

/// A name as it is compared: without regard to case, and to how its words are separated.
pub(super) fn folded(name: &str) -> String {
    let words = name.split(|c: char| c.is_whitespace() || c == '_' || c == '-').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").to_lowercase()
}

fn parse(text: &str) -> anyhow::Result<Names> {
    let mut names = Names::default();
    let mut add = |index: u32, item: &Item| match item {
        Item::One(name) => names.add(index, name),
        Item::Several(several) => several.iter().for_each(|name| names.add(index, name)),
    };
    if text.trim_start().starts_with(['[', '{']) {
        match serde_json::from_str(text).context("this is not a list of names in JSON")? {
            Document::List(items) => items.iter().zip(0..).for_each(|(item, index)| add(index, item)),
            Document::ByIndex(items) => {
                for (index, item) in &items {
                    add(index.parse().with_context(|| format!("{index:?} is not a class index"))?, item);
                }
            }
        }
    } else {
        text.lines().zip(0..).for_each(|(line, index)| names.add(index, line));
    }
    ensure!(!names.classes.is_empty(), "there is no name in it");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_all_names_of_its_line_or_item() {
        for text in [
            "tench, Tinca tinca\ntabby, tabby cat\ncrane\ncrane\n",
            r#"["tench, Tinca tinca", ["tabby", "tabby cat"], "crane", "crane"]"#,
            r#"{"1": ["n02123045", "tabby", "tabby cat"], "0": "tench, Tinca tinca", "2": "crane", "3": "crane"}"#,
        ] {
            let names = parse(text).unwrap();
            let classes = |name: &str| names.classes(name);
            assert_eq!((classes("Tinca_Tinca"), classes("tench, tinca  tinca")), (vec![0], vec![0]), "{text}");
            assert_eq!(
                (classes("TABBY-cat"), classes("crane"), classes("dog")),
                (vec![1], vec![2, 3], vec![]),
                "{text}"
            );
            assert_eq!(classes("tabby, domestic cat"), [1], "{text}");
        }
    }

    #[test]
    fn file_that_has_no_names_is_refused() {
        for (text, expected) in
            [("", "no name"), ("[1]", "not a list of names"), (r#"{"a": "b"}"#, "not a class index")]
        {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
