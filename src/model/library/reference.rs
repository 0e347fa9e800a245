//! Names and versions of models as users write them.

use anyhow::ensure;

/// The file that names the current version, which no version can be called.
pub(super) const CURRENT: &str = "current";
/// File systems allow 255 bytes, and a name is part of paths, logs and metrics.
const MAX_NAME: usize = 64;

/// A model by its name, and by its version if one is given: `name` or `name@version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The name of the model.
    pub name: String,
    /// The version, or `None` for the current one.
    pub version: Option<String>,
}

impl Reference {
    /// Parses `name` or `name@version`.
    ///
    /// # Errors
    /// If a part has characters that are not allowed in it.
    pub fn parse(text: &str) -> anyhow::Result<Reference> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        check_part("name of a model", name)?;
        version.map(|version| check_part("version of a model", version)).transpose()?;
        Ok(Reference { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Names and versions become names of folders, so that only a few characters are allowed.
///
/// # Errors
/// A message that says what is allowed.
pub(super) fn check_part(what: &str, text: &str) -> anyhow::Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_valid = text.len() <= MAX_NAME
        && text.bytes().all(is_allowed)
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text != CURRENT;
    ensure!(
        is_valid,
        "{text:?} is no {what}: it has 1 to {MAX_NAME} characters of a-z, A-Z, 0-9, `.`, `_` and `-`, begins with a \
         letter or a digit, and is not {CURRENT:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_that_are_no_folder_names_are_refused() {
        for text in ["", ".", "..", "a/b", "../a", "a@", "@1", "a@../b", ".lock", "current", "a@current", "a b", "a\0"]
        {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(Reference::parse(&"a".repeat(65)).is_err());
        let reference = Reference::parse("cats_2.1-b@3f2a9c01b7de").unwrap();
        assert_eq!((reference.name.as_str(), reference.version.as_deref()), ("cats_2.1-b", Some("3f2a9c01b7de")));
    }
}
