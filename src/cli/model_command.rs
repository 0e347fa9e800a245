//! `imgcls model`.

use clap::{Args, Subcommand};

use super::fit::FitArgs;

#[derive(Debug, Args)]
pub struct ModelCommandArgs {
    #[command(subcommand)]
    pub command: ModelCommand,
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Train a model of own classes on the features of another
    Fit(FitArgs),
}
