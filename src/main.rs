//! Parse → telemetry → runtime → one match → exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::{shutdown, telemetry, up, web, worker};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init(cli.command.log_format());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signals()?;
    match command {
        Command::Up(args) => up::run(args.config()?, shutdown).await,
        Command::ServeWeb(args) => {
            let (backend, _) = args.shared.backend()?;
            let listener = tokio::net::TcpListener::bind(args.http.listen).await?;
            web::run(listener, args.config(backend)?, None, shutdown).await
        }
        Command::Worker(args) => {
            let (backend, _) = args.shared.backend()?;
            worker::run(args.config(backend)?, shutdown).await
        }
        Command::Loadgen(_) | Command::Classify(_) => anyhow::bail!("not here yet"),
    }
}
