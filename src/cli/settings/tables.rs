//! The tables of a file of settings, and the commands that read them.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Command;

use super::error::SettingsError;
use super::fault;
use super::file::{Entry, File};
use super::flags::{find_setting, settings_of};
use crate::config::{Document, Machines, Setting, Source};

pub(super) const PROVISION: &str = "provision";

/// Tables, by the command that reads them. Every other command with `--config` reads the top level alone.
const TABLES: [(&str, &str); 5] =
    [("up", "up"), ("serve-web", "web"), ("worker", "worker"), ("autoscale", "autoscale"), (PROVISION, "provision")];

/// Settings of a machine that its user data or its unit gives: `provision` has a setting of the same meaning, or the
/// value follows from the stack.
const SET_BY_PROVISION: [&str; 28] = [
    "backend",
    "region",
    "endpoint-url",
    "nats-url",
    "nats-credentials",
    "nats-ca",
    "nats-replicas",
    "data-dir",
    "stack",
    "request-queue",
    "result-queue",
    "input-bucket",
    "output-bucket",
    "read-bucket",
    "visibility-timeout",
    "max-receive-count",
    "listen",
    "port",
    "auth",
    "admin-listen",
    "drain-on-stdin-close",
    "auto-scaling-group",
    "model",
    "models-dir",
    "sync-models",
    "ort-dylib",
    "keep-images",
    "keep-results",
];
/// Settings that `provision` also sets for the autoscaler beside the web tier, whose policy is that of the stack.
const SET_BY_PROVISION_FOR_AUTOSCALE: [&str; 3] = ["policy", "slo", "service-time"];

/// EC2 accepts 16 KiB of user data. The script takes half of that, and the web tier's has two tables.
const MAX_MACHINE_BYTES: usize = 3072;

/// The names of settings by command.
pub(super) struct Tables {
    settings: BTreeMap<String, Vec<String>>,
}

impl Tables {
    pub(crate) fn of(cli: &Command) -> Tables {
        let commands = cli.get_subcommands().map(|command| (command.get_name().to_owned(), names_of(command)));
        Tables { settings: commands.collect() }
    }

    /// # Errors
    /// If the file has a table that no command reads, or a key that its table does not have.
    pub(crate) fn check_keys(&self, file: &File) -> Result<(), SettingsError> {
        file.entries.iter().try_for_each(|entry| match &entry.table {
            None => self.check_top_level(file, entry),
            Some(table) => self.check_table(file, entry, table),
        })
    }

    /// The entries that a command reads: those of its table, and of the top level those that it has and that its table
    /// does not give.
    pub(crate) fn entries_for<'a>(&self, command: &str, file: &'a File) -> Vec<&'a Entry> {
        let table = table_of(command);
        let in_table = |entry: &&Entry| table.is_some() && entry.table.as_deref() == table;
        let mut entries: Vec<&Entry> = file.entries.iter().filter(in_table).collect();
        let given: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let at_top = file.entries.iter().filter(|entry| {
            entry.table.is_none() && self.has(command, &entry.key) && !given.contains(&entry.key.as_str())
        });
        let at_top: Vec<&Entry> = at_top.collect();
        entries.extend(at_top);
        entries
    }

    /// The settings for the machines of a stack.
    ///
    /// # Errors
    /// If a value is wrong, or belongs to `provision`.
    pub(crate) fn machines(&self, cli: &Command, file: &File) -> Result<Machines, SettingsError> {
        let document = |command: &str| self.machine_document(cli, file, command);
        Ok(Machines { web: document("serve-web")?, worker: document("worker")?, autoscale: document("autoscale")? })
    }

    fn machine_document(&self, cli: &Command, file: &File, name: &str) -> Result<Document, SettingsError> {
        let command = cli.find_subcommand(name).expect("a command of this program; this is a bug");
        let (mut settings, mut bytes) = (Vec::new(), 0);
        for entry in self.entries_for(name, file) {
            let key = entry.key.as_str();
            let is_fixed = SET_BY_PROVISION.contains(&key)
                || (name == "autoscale" && SET_BY_PROVISION_FOR_AUTOSCALE.contains(&key));
            match &entry.table {
                Some(table) if is_fixed => {
                    let message = format!(
                        "{key} in [{table}] is set by `imgcls provision` for the machines of a stack: remove it; where \
                         provision has such a setting, give it in [provision]"
                    );
                    return Err(file.error(entry.line, &message));
                }
                // A key at the top level is a setting of `provision` itself.
                None if is_fixed || self.has(PROVISION, key) => continue,
                _ => {}
            }
            let arg = find_setting(command, key);
            fault::check_value(file, entry, arg, name)?;
            if entry.values.is_empty() {
                continue;
            }
            let setting = setting(entry, &file.path);
            bytes += setting.to_toml().len();
            if bytes > MAX_MACHINE_BYTES {
                let table = table_of(name).unwrap_or(name);
                let message = format!(
                    "the settings of [{table}] take more than {MAX_MACHINE_BYTES} bytes, which is what the user data of a \
                     machine has space for: shorten or remove some"
                );
                return Err(file.error(entry.line, &message));
            }
            settings.push(setting);
        }
        Ok(Document { command: name.to_owned(), settings })
    }

    fn check_top_level(&self, file: &File, entry: &Entry) -> Result<(), SettingsError> {
        let readers = TABLES.iter().map(|(command, _)| *command);
        if readers.into_iter().any(|command| self.has(command, &entry.key)) {
            return Ok(());
        }
        Err(file.error(entry.line, &format!("{:?} is not a setting; `imgcls config show` lists them", entry.key)))
    }

    fn check_table(&self, file: &File, entry: &Entry, table: &str) -> Result<(), SettingsError> {
        let Some((command, _)) = TABLES.iter().find(|(_, name)| *name == table) else {
            let tables: Vec<String> = TABLES.iter().map(|(_, name)| format!("[{name}]")).collect();
            return Err(file.error(entry.line, &format!("there is no table [{table}]: give {}", tables.join(", "))));
        };
        if self.has(command, &entry.key) {
            return Ok(());
        }
        let others = TABLES.iter().filter(|(command, _)| self.has(command, &entry.key));
        let others: Vec<String> = others.map(|(_, name)| format!("[{name}]")).collect();
        let help = match others.len() {
            0 => format!("`imgcls config show {command}` lists them"),
            _ => format!("it belongs in {}", others.join(" or ")),
        };
        Err(file.error(entry.line, &format!("{:?} is not a setting of [{table}]; {help}", entry.key)))
    }

    fn has(&self, command: &str, key: &str) -> bool {
        self.settings.get(command).is_some_and(|settings| settings.iter().any(|name| name == key))
    }
}

fn table_of(command: &str) -> Option<&'static str> {
    TABLES.iter().find(|(name, _)| *name == command).map(|(_, table)| *table)
}

/// The settings of a command; of one with subcommands, those that all of them have.
fn names_of(command: &Command) -> Vec<String> {
    let own = |command: &Command| -> Vec<String> {
        settings_of(command).filter_map(|arg| arg.get_long()).map(str::to_owned).collect()
    };
    let mut inner = command.get_subcommands().filter(|inner| inner.get_name() != "help").map(own);
    let Some(first) = inner.next() else { return own(command) };
    inner.fold(first, |common, names| common.into_iter().filter(|name| names.contains(name)).collect())
}

fn setting(entry: &Entry, path: &Path) -> Setting {
    Setting {
        name: entry.key.clone(),
        values: entry.values.clone(),
        source: Source::File { path: path.to_owned(), line: entry.line },
        default_text: None,
        is_secret: false,
    }
}
