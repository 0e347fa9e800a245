//! Parse → telemetry → runtime → one match → exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::{classify, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init(cli.command.log_format());
    let done = match &cli.command {
        Command::Classify(args) => classify::run(&args.config()),
        _ => Err(anyhow::anyhow!("this command is not in this version")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("imgcls: {error:#}");
            ExitCode::FAILURE
        }
    }
}
