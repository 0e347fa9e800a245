//! A file of settings: TOML, with the line of every key.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::SettingsError;

pub(super) struct File {
    pub path: PathBuf,
    /// The settings, in the order of the file.
    pub entries: Vec<Entry>,
}

pub(super) struct Entry {
    /// The table that the key is in; `None` at the top level.
    pub table: Option<String>,
    /// Spelled as the flag, whether the file has `max-pixels` or `max_pixels`.
    pub key: String,
    pub values: Vec<OsString>,
    pub is_list: bool,
    pub line: usize,
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<File, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            SettingsError(format!("cannot read the settings in {}: {error}; see --config", path.display()))
        })?;
        let mut file = File { path: path.to_owned(), entries: Vec::new() };
        let line_at = |offset: usize| 1 + text.get(..offset).unwrap_or(&text).matches('\n').count();
        let document = DeTable::parse(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            file.error(line, &format!("this is not TOML: {}", error.message().lines().next().unwrap_or_default()))
        })?;
        for (key, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(table) => {
                    for (inner, value) in table {
                        file.add(Some(key.get_ref()), inner, value, &line_at)?;
                    }
                }
                _ => file.add(None, key, value, &line_at)?,
            }
        }
        file.entries.sort_by_key(|entry| entry.line);
        Ok(file)
    }

    /// An error that names the line.
    pub(crate) fn error(&self, line: usize, message: &str) -> SettingsError {
        SettingsError(format!("{}:{line}: {message}", self.path.display()))
    }

    fn add(
        &mut self,
        table: Option<&str>,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        line_at: &impl Fn(usize) -> usize,
    ) -> Result<(), SettingsError> {
        let line = line_at(key.span().start);
        let key = key.get_ref().replace('_', "-");
        let is_list = matches!(value.get_ref(), DeValue::Array(_));
        let values = match value.get_ref() {
            DeValue::Array(values) => values.iter().map(|value| scalar(value.get_ref())).collect(),
            value => scalar(value).map(|value| vec![value]),
        };
        let Some(values) = values else {
            let message = format!("{key}: give a string, a number, true or false, or a list of them");
            return Err(self.error(line, &message));
        };
        let table = table.map(|table| table.replace('_', "-"));
        if let Some(other) = self.entries.iter().find(|entry| entry.table == table && entry.key == key) {
            return Err(self.error(line, &format!("{key} is given twice, also in line {}: keep one", other.line)));
        }
        self.entries.push(Entry { table, key, values, is_list, line });
        Ok(())
    }
}

/// The text that the same value has on the command line. Returns `None` for what no flag takes.
fn scalar(value: &DeValue<'_>) -> Option<OsString> {
    Some(OsString::from(match value {
        DeValue::String(text) => text.clone().into_owned(),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok()?.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => return None,
    }))
}
