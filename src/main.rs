//! Parse → telemetry → runtime → one match → exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::{loadgen, shutdown, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init(cli.command.log_format());
    let ended =
        tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|it| it.block_on(run(cli.command)));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let shutdown = shutdown::on_signals()?;
    match command {
        Command::Loadgen(args) => Ok(loadgen::run(args.config(), shutdown).await?.exit_code().into()),
        _ => anyhow::bail!("not in this branch"),
    }
}
