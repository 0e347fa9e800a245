//! Names of folders for classes.

use std::collections::HashMap;

use super::config::ClassName;

/// Longer names are cut. File systems allow 255 bytes.
const MAX_BYTES: usize = 120;
/// Names of devices on Windows, where folders may be copied to.
const DEVICES: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// The name of the folder of each class: its label as a safe name. Classes whose names would be the same, without regard
/// to case, have their id or index too.
pub(super) fn folders(classes: &[ClassName]) -> Vec<String> {
    let names: Vec<String> = classes.iter().map(|class| safe(&class.label)).collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for name in &names {
        *counts.entry(name.to_lowercase()).or_default() += 1;
    }
    names
        .into_iter()
        .enumerate()
        .map(|(index, name)| match counts[&name.to_lowercase()] {
            1 => name,
            // An index is unique. Ids are unique too, but not necessarily as safe names.
            _ => match &classes[index].id {
                Some(id) if safe(id) == *id => format!("{name} ({id})"),
                _ => format!("{name} ({index})"),
            },
        })
        .collect()
}

/// The text as a name that every file system accepts and that leads nowhere else.
pub(super) fn safe(text: &str) -> String {
    let is_unsafe = |character: char| character.is_control() || "/\\<>:\"|?*".contains(character);
    let mut name: String = text.chars().map(|character| if is_unsafe(character) { '_' } else { character }).collect();
    let end = (0..=MAX_BYTES.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or_default();
    name.truncate(end);
    // Windows removes dots and spaces at the end, and a dot at the beginning hides a folder.
    let mut name = name.trim().trim_end_matches(['.', ' ']).to_owned();
    if name.starts_with('.') || name.is_empty() {
        name.insert(0, '_');
    }
    if DEVICES.contains(&name.to_lowercase().as_str()) {
        name.push('_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(label: &str, id: Option<&str>) -> ClassName {
        ClassName { label: label.to_owned(), id: id.map(str::to_owned) }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for (label, name) in [
            ("tabby, tabby cat", "tabby, tabby cat"),
            ("../../etc", "_.._.._etc"),
            ("..", "_"),
            (".", "_"),
            ("", "_"),
            ("a/b\\c:d", "a_b_c_d"),
            ("tab\there\0", "tab_here_"),
            ("CON", "CON_"),
            (" dots. . ", "dots"),
            (".hidden", "_.hidden"),
            ("日本", "日本"),
        ] {
            assert_eq!(safe(label), name, "{label:?}");
        }
        assert_eq!(safe(&"ä".repeat(100)), "ä".repeat(60));
    }

    #[test]
    fn each_class_has_a_folder_of_its_own() {
        let classes = [
            class("crane", Some("n02012849")),
            class("Crane", Some("n03126707")),
            class("a/b", None),
            class("a:b", None),
            class("tench", Some("n01440764")),
        ];
        assert_eq!(folders(&classes), ["crane (n02012849)", "Crane (n03126707)", "a_b (2)", "a_b (3)", "tench"]);
    }
}
