//! Settings from flags, variables and the file that `--config` names, generically over the clap types.
//!
//! clap reads flags, variables and defaults. The values of the file become the defaults of the command that runs, before
//! the command line is parsed a second time: so flags and variables take precedence, the file takes precedence over
//! built-in defaults, and every value passes the same parser. The sources of all values are collected into a
//! [`Document`].

mod environment;
mod error;
mod fault;
mod file;
mod flags;
mod tables;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use self::file::{Entry, File};
use self::flags::{find_setting, is_set, is_switch, settings_of};
use super::parse::switch;
use super::shared::LEGACY_VARIABLES;
use super::units;
use crate::config::{Document, Machines, Setting, Source};

pub(super) use self::environment::aws_variables;
pub use self::error::SettingsError;

/// The result of [`read`].
pub(super) struct Read {
    pub matches: ArgMatches,
    pub document: Document,
    pub machines: Machines,
    /// How values without a unit were read.
    pub warnings: Vec<String>,
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// A [`clap::Error`] if a flag is wrong or help is asked for; a [`SettingsError`] if a variable or the file is.
pub(super) fn read(cli: Command, arguments: &[OsString]) -> anyhow::Result<Read> {
    let cli = prepared(cli);
    let matches = parse(&cli, arguments)?;
    let path = command_path(&matches);
    let command = find(&cli, &path);
    let leaf = leaf(&matches);
    let Some(file) = named_file(command, leaf) else {
        let document = document(command, leaf, &path, None, &[]);
        let warnings = warnings(command, &document);
        return Ok(Read { matches, document, machines: Machines::default(), warnings });
    };

    let file = File::read(&file)?;
    let tables = tables::Tables::of(&cli);
    tables.check_keys(&file)?;
    let entries = tables.entries_for(&path[0], &file);
    for entry in &entries {
        fault::check_value(&file, entry, find_setting(command, &entry.key), &path.join(" "))?;
    }
    let machines = if path[0] == tables::PROVISION { tables.machines(&cli, &file)? } else { Machines::default() };
    let cli = with_defaults(cli, &path, &entries);
    let matches = parse(&cli, arguments)?;
    let command = find(&cli, &path);
    let document = document(command, self::leaf(&matches), &path, Some(&file), &entries);
    let warnings = warnings(command, &document);
    Ok(Read { matches, document, machines, warnings })
}

/// Every switch accepts the same words in a variable, and the variables of the legacy system are read where the flag's
/// own variable is not set.
fn prepared(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let arg = if is_switch(&arg) { arg.value_parser(switch) } else { arg };
        let legacy = LEGACY_VARIABLES.iter().find(|(flag, _)| arg.get_long() == Some(flag));
        match legacy {
            Some((_, variable))
                if !is_set(&arg) && environment::value(variable).is_some_and(|value| !value.is_empty()) =>
            {
                arg.env(*variable)
            }
            _ => arg,
        }
    });
    command.mut_subcommands(prepared)
}

fn parse(cli: &Command, arguments: &[OsString]) -> anyhow::Result<ArgMatches> {
    let matches = cli.clone().try_get_matches_from(arguments);
    matches
        .map_err(|error| fault::of_variable(cli, arguments, &error).map_or_else(|| error.into(), anyhow::Error::from))
}

/// The words that lead to the command that runs.
fn command_path(matches: &ArgMatches) -> Vec<String> {
    let mut path = Vec::new();
    let mut matches = matches;
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = inner;
    }
    path
}

fn leaf(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| leaf(inner))
}

fn find<'a>(cli: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(cli, |command, name| command.find_subcommand(name).unwrap_or(command))
}

fn named_file(command: &Command, leaf: &ArgMatches) -> Option<PathBuf> {
    command.get_arguments().find(|arg| arg.get_long() == Some("config"))?;
    leaf.get_one::<PathBuf>("config").cloned()
}

/// The command line with the values of the file as defaults of the command that runs.
fn with_defaults(command: Command, path: &[String], entries: &[&Entry]) -> Command {
    if let Some((name, rest)) = path.split_first() {
        return command.mut_subcommand(name, |command| with_defaults(command, rest, entries));
    }
    command.mut_args(|arg| {
        let entry = entries.iter().find(|entry| arg.get_long() == Some(&entry.key));
        match entry {
            Some(entry) if arg.get_env().is_some() && !entry.values.is_empty() => {
                arg.default_values(entry.values.clone())
            }
            _ => arg,
        }
    })
}

/// The settings of a command that was parsed.
fn document(
    command: &Command,
    matches: &ArgMatches,
    path: &[String],
    file: Option<&File>,
    entries: &[&Entry],
) -> Document {
    let settings = settings_of(command).map(|arg| {
        let id = arg.get_id().as_str();
        let name = arg.get_long().unwrap_or(id).to_owned();
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => {
                Source::Variable(arg.get_env().unwrap_or_default().to_string_lossy().into_owned())
            }
            _ => match (file, entries.iter().find(|entry| entry.key == name && !entry.values.is_empty())) {
                (Some(file), Some(entry)) => Source::File { path: file.path.clone(), line: entry.line },
                _ => Source::Default,
            },
        };
        let values = if is_switch(arg) {
            vec![matches.get_flag(id).to_string().into()]
        } else {
            matches.get_raw(id).into_iter().flatten().map(OsString::from).collect()
        };
        Setting { name, values, source, default_text: default_text(arg), is_secret: arg.is_hide_env_values_set() }
    });
    Document { command: path.join(" "), settings: settings.collect() }
}

/// A supervisor passes values on as it was given them, and has warned about them itself.
fn warnings(command: &Command, document: &Document) -> Vec<String> {
    let is_supervised = document.get("drain-on-stdin-close").is_some_and(|setting| setting.values == ["true"]);
    if is_supervised {
        return Vec::new();
    }
    let settings = settings_of(command).filter_map(|arg| Some((arg, document.get(arg.get_long()?)?)));
    settings.filter_map(|(arg, setting)| units::warning(arg, setting)).collect()
}

/// The default that the help describes in words, for a setting whose default is found at run time.
fn default_text(arg: &Arg) -> Option<String> {
    let help = arg.get_help()?.to_string();
    let start = help.find("[default: ")?;
    let text = help[start..].strip_prefix("[default: ")?;
    Some(text.split(']').next()?.to_owned())
}
