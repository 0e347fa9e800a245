//! The flags of a command that are settings.

use clap::{Arg, ArgAction, Command};

use super::environment::value;

/// The settings of a command: flags that also have a variable, except for the one that names the file.
pub(super) fn settings_of(command: &Command) -> impl Iterator<Item = &Arg> {
    let arguments = command.get_arguments();
    arguments.filter(|arg| arg.get_env().is_some() && arg.get_long().is_some_and(|long| long != "config"))
}

/// The flag of a key that was checked.
pub(super) fn find_setting<'a>(command: &'a Command, name: &str) -> &'a Arg {
    settings_of(command).find(|arg| arg.get_long() == Some(name)).expect("the keys were checked; this is a bug")
}

pub(super) fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Returns true if the environment variable of the flag is set.
pub(super) fn is_set(arg: &Arg) -> bool {
    arg.get_env().is_some_and(|name| value(name).is_some())
}
