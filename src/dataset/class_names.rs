//! The classes of a model that names of folders and labels of tables mean.

use std::collections::HashMap;

use anyhow::{bail, ensure};

use super::labelled::folded;
use crate::model::ModelPackage;

/// So many names of the model are shown for a name that is unknown.
const NEAREST: usize = 3;

/// The class index that each name means: the label or the id of a class, without regard to case and with underscores
/// for spaces, or its index.
///
/// # Errors
/// One line that lists the names that are not of this model, each with the nearest labels, or a name of several classes.
pub(crate) fn resolve(package: &ModelPackage, names: &[String]) -> anyhow::Result<Vec<u32>> {
    let classes: Vec<(&str, Option<&str>)> =
        (0..package.classes() as u32).map(|class| (package.label(class), package.class_id(class))).collect();
    resolve_among(&classes, names, &package.model_ref().name)
}

fn resolve_among(classes: &[(&str, Option<&str>)], names: &[String], model: &str) -> anyhow::Result<Vec<u32>> {
    let mut by_name: HashMap<String, Vec<u32>> = HashMap::new();
    for (index, (label, id)) in (0u32..).zip(classes) {
        let both = id.map(|id| format!("{id} {label}"));
        for name in [Some(*label), *id, both.as_deref()].into_iter().flatten() {
            let indexes = by_name.entry(folded(name)).or_default();
            if !indexes.contains(&index) {
                indexes.push(index);
            }
        }
    }
    let mut found = Vec::with_capacity(names.len());
    let mut unknown = Vec::new();
    for name in names {
        match by_name.get(&folded(name)).map(Vec::as_slice) {
            Some(&[index]) => found.push(index),
            Some(several) => {
                let listed: Vec<String> = several.iter().map(|index| shown(*index, classes)).collect();
                bail!("{name:?} is the name of several classes of {model}; write one of: {}", listed.join(", "));
            }
            None => match name.trim().parse::<u32>() {
                Ok(index) if (index as usize) < classes.len() => found.push(index),
                _ => unknown.push(name),
            },
        }
    }
    ensure!(
        unknown.is_empty(),
        "{} of {} class names are not classes of {model}: {}",
        unknown.len(),
        names.len(),
        described(&unknown, classes)
    );
    Ok(found)
}

/// A name that means one class only.
fn shown(index: u32, classes: &[(&str, Option<&str>)]) -> String {
    let (label, id) = classes[index as usize];
    match id {
        Some(id) => format!("{id} ({label})"),
        None => index.to_string(),
    }
}

/// The first unknown names with the labels of the model that are most like them.
fn described(unknown: &[&String], classes: &[(&str, Option<&str>)]) -> String {
    let one = |name: &String| {
        let wanted = folded(name);
        let mut labels: Vec<(usize, &str)> =
            classes.iter().map(|(label, _)| (strsim::levenshtein(&wanted, &folded(label)), *label)).collect();
        labels.sort_unstable();
        labels.dedup();
        let nearest: Vec<String> = labels.iter().take(NEAREST).map(|(_, label)| format!("{label:?}")).collect();
        format!("{name:?} (nearest: {})", nearest.join(", "))
    };
    let mut text: Vec<String> = unknown.iter().take(NEAREST).map(|name| one(name)).collect();
    if unknown.len() > NEAREST {
        text.push(format!("and {} more", unknown.len() - NEAREST));
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [(&str, Option<&str>); 5] = [
        ("tench", Some("n01440764")),
        ("great white shark", Some("n01484850")),
        ("crane", Some("n02012849")),
        ("crane", Some("n03126707")),
        ("cock", None),
    ];

    fn resolved(names: &[&str]) -> anyhow::Result<Vec<u32>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve_among(&CLASSES, &names, "test")
    }

    #[test]
    fn names_are_labels_ids_or_indexes_without_regard_to_case() {
        let found = resolved(&["Tench", "N01440764", "great_white_SHARK", "n03126707 crane", "4", "cock"]).unwrap();
        assert_eq!(found, [0, 0, 1, 3, 4, 4]);
    }

    #[test]
    fn unknown_and_ambiguous_names_are_refused_with_the_way_out() {
        let error = resolved(&["tenche", "cock", "7"]).unwrap_err().to_string();
        assert!(
            error.starts_with("2 of 3 class names are not classes of test: \"tenche\" (nearest: \"tench\""),
            "{error}"
        );
        let error = resolved(&["crane"]).unwrap_err().to_string();
        assert!(error.ends_with("write one of: n02012849 (crane), n03126707 (crane)"), "{error}");
    }
}
