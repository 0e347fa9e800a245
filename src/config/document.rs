//! The settings of a command, each with the place where its value was given.
//!
//! Values are kept as the text that was given. The parsers of the command line interpret them, so that a new setting
//! needs no code here.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Every setting of one command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// The words of the command, such as `serve-web`.
    pub command: String,
    /// Its settings, in the order of the help text.
    pub settings: Vec<Setting>,
}

/// Settings of the processes on the machines of a stack, as far as a file gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machines {
    /// Settings of `serve-web`.
    pub web: Document,
    /// Settings of `worker`.
    pub worker: Document,
    /// Settings of `autoscale`.
    pub autoscale: Document,
}

/// One setting of a command, with its value and where the value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The name of the flag without its dashes; also the key in a file.
    pub name: String,
    /// More than one for a flag that may be repeated; none if the setting has no value.
    pub values: Vec<OsString>,
    /// The place that set the value.
    pub source: Source,
    /// The default in words, for a setting whose default is found at run time.
    pub default_text: Option<String>,
    /// The value is never printed.
    pub is_secret: bool,
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// An environment variable, by its name.
    Variable(String),
    /// A file of settings, at a line of it.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// Nowhere: the value is the default.
    Default,
}

const SECRET: &str = "(secret)";

impl Document {
    /// Returns the setting with this name, if the command has it.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// A table for a person: name, value, source. The settings of `machines` follow, if there are any.
    pub fn to_text(&self, machines: &Machines) -> String {
        let mut text = self.table(&self.command);
        for (name, document) in machines.tables() {
            text.push('\n');
            text.push_str(&document.table(&format!("{name} on the machines of the stack")));
        }
        text
    }

    /// The same as an object for programs.
    pub fn to_json(&self, machines: &Machines) -> Value {
        let mut object = json!({"command": self.command, "settings": self.settings_json()});
        let tables = machines.tables().map(|(name, document)| (name.to_owned(), document.settings_json()));
        let tables: serde_json::Map<String, Value> = tables.collect();
        if !tables.is_empty() {
            object["machines"] = Value::Object(tables);
        }
        object
    }

    fn table(&self, title: &str) -> String {
        let rows = self.settings.iter().map(|setting| (&setting.name, setting.value_text(), setting.source_text()));
        let rows: Vec<_> = rows.collect();
        let width = |longest: Option<usize>| longest.unwrap_or_default();
        let names = width(rows.iter().map(|(name, ..)| name.chars().count()).max());
        let values = width(rows.iter().map(|(_, value, _)| value.chars().count()).max()).min(40);
        let mut text = format!("{title}\n");
        for (name, value, source) in rows {
            let _ = writeln!(text, "  {name:names$}  {value:values$}  {source}");
        }
        text
    }

    fn settings_json(&self) -> Value {
        self.settings.iter().map(Setting::to_json).collect()
    }
}

impl Machines {
    /// The documents that have settings, by the table of the file that gives them.
    pub fn tables(&self) -> impl Iterator<Item = (&'static str, &Document)> {
        let tables = [("web", &self.web), ("worker", &self.worker), ("autoscale", &self.autoscale)];
        tables.into_iter().filter(|(_, document)| !document.settings.is_empty())
    }
}

impl Setting {
    /// The value of a flag that is given once. `None` if it has none, or one that is no text.
    pub fn text(&self) -> Option<&str> {
        self.values.last()?.to_str()
    }

    /// The place where the value was given, as a person finds it: `--listen`, `IMGCLS_LISTEN`, `service.toml:3`, `default`.
    pub fn source_text(&self) -> String {
        match &self.source {
            Source::Flag => format!("--{}", self.name),
            Source::Variable(name) => name.clone(),
            Source::File { path, line } => format!("{}:{line}", path.display()),
            Source::Default => "default".to_owned(),
        }
    }

    /// One line of a TOML file that gives this setting.
    pub fn to_toml(&self) -> String {
        let values: Vec<String> = self.values.iter().map(|value| toml_text(&value.to_string_lossy())).collect();
        match &values[..] {
            [value] => format!("{} = {value}", self.name),
            values => format!("{} = [{}]", self.name, values.join(", ")),
        }
    }

    fn value_text(&self) -> String {
        match (&self.values[..], &self.default_text) {
            ([], Some(text)) => text.clone(),
            ([], None) => "-".to_owned(),
            _ if self.is_secret => SECRET.to_owned(),
            (values, _) => {
                let values: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
                values.join(",")
            }
        }
    }

    fn to_json(&self) -> Value {
        let mut values: Vec<String> = self.values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
        if self.is_secret && !values.is_empty() {
            values = vec![SECRET.to_owned()];
        }
        let value = match values.len() {
            0 => Value::Null,
            1 => json!(values[0]),
            _ => json!(values),
        };
        let source = match &self.source {
            Source::Flag => json!({"kind": "flag", "flag": format!("--{}", self.name)}),
            Source::Variable(name) => json!({"kind": "variable", "variable": name}),
            Source::File { path, line } => json!({"kind": "file", "file": path, "line": line}),
            Source::Default => json!({"kind": "default"}),
        };
        json!({"name": self.name, "value": value, "source": source})
    }
}

/// A TOML string on one line. The escapes of JSON are those of TOML, which also wants DEL escaped.
pub fn toml_text(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(values: &[&str]) -> Setting {
        Setting {
            name: "model".to_owned(),
            values: values.iter().map(OsString::from).collect(),
            source: Source::Default,
            default_text: None,
            is_secret: false,
        }
    }

    #[test]
    fn lines_of_toml_give_the_same_values_again() {
        for values in [&["a \"b\" \\ \n CONFIG\n \u{7f} ü"][..], &["a", "b,c"], &[]] {
            let line = setting(values).to_toml();
            assert_eq!(line.lines().count(), 1, "{line}");
            let table: toml::Table = line.parse().expect("valid TOML");
            let read: Vec<&str> = match &table["model"] {
                toml::Value::Array(values) => values.iter().filter_map(toml::Value::as_str).collect(),
                value => value.as_str().into_iter().collect(),
            };
            assert_eq!(read, values);
        }
    }

    #[test]
    fn secret_values_are_never_printed() {
        let document = Document {
            command: "worker".to_owned(),
            settings: vec![Setting { is_secret: true, ..setting(&["hunter2"]) }],
        };
        let printed = document.to_text(&Machines::default()) + &document.to_json(&Machines::default()).to_string();
        assert!(printed.contains(SECRET) && !printed.contains("hunter2"), "{printed}");
    }
}
