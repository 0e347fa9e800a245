//! `imgcls completions` and `imgcls man`: what shells and `man` know about the command line, from its declarations.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, ValueEnum};
use clap_complete::{generate, shells};

use super::help;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that reads the script
    pub shell: ShellArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory to write the pages to, one for each command; created if it does not exist
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

impl CompletionsArgs {
    /// The script that completes the commands and flags of `cli`.
    pub(super) fn script(&self, cli: Command) -> String {
        let mut cli = help::arranged(cli).disable_help_subcommand(true);
        let (name, mut script) = (cli.get_name().to_owned(), Vec::new());
        match self.shell {
            ShellArg::Bash => generate(shells::Bash, &mut cli, name, &mut script),
            ShellArg::Zsh => generate(shells::Zsh, &mut cli, name, &mut script),
            ShellArg::Fish => generate(shells::Fish, &mut cli, name, &mut script),
        }
        String::from_utf8_lossy(&script).into_owned()
    }
}

impl ManArgs {
    /// Writes a page for `cli` and for each of its commands.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(super) fn write(&self, cli: Command) -> anyhow::Result<()> {
        let write = || {
            std::fs::create_dir_all(&self.folder)?;
            clap_mangen::generate_to(with_all_flags(help::arranged(cli)), &self.folder)
        };
        write().with_context(|| format!("cannot write the man pages to {}", self.folder.display()))
    }
}

/// Pages show the flags that `--help` shows. The generator would leave out the text of those that `-h` hides.
fn with_all_flags(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_short_help(false)).mut_subcommands(with_all_flags)
}
