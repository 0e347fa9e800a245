//! Errors that name the variable, or the line of the file, that gave a wrong value.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::environment;
use super::error::SettingsError;
use super::file::{Entry, File};

/// clap blames the flag whatever gave the value. Returns the error to report when it was a variable.
pub(super) fn of_variable(cli: &Command, arguments: &[OsString], error: &clap::Error) -> Option<SettingsError> {
    let reason = reason(error)?;
    let Some(ContextValue::String(invalid)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = invalid.strip_prefix("--")?.split([' ', '[', '=']).next()?;
    let (command, words) = command_of(cli, arguments);
    // A flag of all commands belongs to none of them.
    let arg = command.get_arguments().chain(cli.get_arguments()).find(|arg| arg.get_long() == Some(name))?;
    let variable = arg.get_env()?;
    let value = environment::value(variable)?;
    if arguments.iter().any(|argument| gives(argument, arg)) {
        return None;
    }
    let (variable, value) = (variable.to_string_lossy(), value.to_string_lossy().into_owned());
    Some(SettingsError(format!(
        "{variable}={value:?}: {reason}; correct or unset the variable, which is that of --{name} in `imgcls {words} --help`"
    )))
}

/// Checks the value of a file by the parser of its flag.
pub(super) fn check_value(file: &File, entry: &Entry, arg: &Arg, command: &str) -> Result<(), SettingsError> {
    let name = &entry.key;
    if entry.is_list && !matches!(arg.get_action(), ArgAction::Append) {
        return Err(file.error(entry.line, &format!("{name} takes one value, not a list")));
    }
    let values: Vec<OsString> = entry.values.clone();
    if values.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = values.iter().map(|value| format!("{:?}", value.to_string_lossy())).collect();
    let parser = Command::new("settings").no_binary_name(true).disable_help_flag(true);
    let parser = parser.arg(arg.clone().env(clap::builder::Resettable::Reset).default_values(values));
    let Err(error) = parser.try_get_matches_from(std::iter::empty::<OsString>()) else { return Ok(()) };
    let reason = reason(&error).unwrap_or_else(|| error.to_string().lines().next().unwrap_or_default().to_owned());
    let message = format!("{name} = {}: {reason}; see --{name} in `imgcls {command} --help`", shown.join(", "));
    Err(file.error(entry.line, &message))
}

/// Why a value was refused. Returns `None` for an error of another kind.
fn reason(error: &clap::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::ValueValidation => Some(error.source()?.to_string()),
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => Some(format!("give {}", valid.join(" or "))),
            _ => Some("a value is missing".to_owned()),
        },
        _ => None,
    }
}

/// The command that a command line names, and its words.
fn command_of<'a>(cli: &'a Command, arguments: &[OsString]) -> (&'a Command, String) {
    let (mut command, mut words) = (cli, Vec::new());
    for argument in arguments.iter().skip(1) {
        if let Some(inner) = command.find_subcommand(argument) {
            command = inner;
            words.push(inner.get_name());
        }
    }
    (command, words.join(" "))
}

/// Returns true if a word of the command line gives the flag, by its name or by one of its aliases.
fn gives(argument: &OsStr, arg: &Arg) -> bool {
    let argument = argument.to_string_lossy();
    let is_short = arg.get_short().is_some_and(|short| argument.starts_with(&format!("-{short}")));
    let mut names = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    is_short || names.any(|name| argument.strip_prefix("--").is_some_and(|given| given.split('=').next() == Some(name)))
}
