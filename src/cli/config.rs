//! `imgcls config`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::usage::usage;

/// Commands whose settings can be shown; the first is the default.
const COMMANDS: [&str; 5] = ["up", "serve-web", "worker", "autoscale", "provision"];

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting of a command, its value, and where the value comes from
    #[command(after_help = "Examples:\n  imgcls config show\n  imgcls config show worker --config service.toml\n  \
        imgcls config show --json serve-web --max-pixels 1000000")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Print the settings as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    json: bool,
    /// The command, with any of its flags: up, serve-web, worker, autoscale or provision [default: up]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

impl ShowArgs {
    /// The command line of the command that is shown, the program's name first.
    pub(super) fn command_line(&self) -> anyhow::Result<Vec<OsString>> {
        let mut line = vec![OsString::from("imgcls")];
        let mut words = self.words.iter().filter(|word| !is_json_flag(word)).peekable();
        match words.peek().map(|word| word.to_string_lossy()) {
            Some(word) if COMMANDS.contains(&word.as_ref()) => {}
            Some(word) if !word.starts_with('-') => {
                let message = format!("{word} has no settings to show: give {}", COMMANDS.join(", "));
                return Err(usage("config", message));
            }
            _ => line.push(COMMANDS[0].into()),
        }
        line.extend(words.cloned());
        Ok(line)
    }

    /// Returns true if `--json` is given, before or after the command.
    pub(super) fn is_json(&self) -> bool {
        self.json || self.words.iter().any(is_json_flag)
    }
}

fn is_json_flag(word: &OsString) -> bool {
    word == "--json"
}
