//! Parse → telemetry → runtime → one match → exit code.

use std::process::ExitCode;

use anyhow::Context as _;
use imgcls::cli::{Cli, Command};
use imgcls::{classify, loadgen, provision, queues, shutdown, simulate, telemetry, up, web, worker};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let ending = Cli::read().and_then(|cli| {
        telemetry::init(cli.command.log_format());
        run(&cli.command)
    });
    match ending {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(wrong_usage) => wrong_usage.exit(),
            Err(error) => {
                eprintln!("imgcls: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Of `provision plan --detailed-exitcode`.
const CHANGES: u8 = 3;

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => {
            many_threads()?.block_on(async {
                let config = args.config().await?;
                let shutdown = shutdown::on_signals()?;
                let listener = bind(args.http.listen).await?;
                up::run(listener, config, shutdown).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ServeWeb(args) => {
            let (backend, said_by) = args.shared.backend();
            tracing::info!(?backend, said_by, "serve-web");
            many_threads()?.block_on(async {
                let names = args.shared.names(&backend).await?;
                let config = args.config(backend, names)?;
                let shutdown = shutdown::on_signals()?;
                let listener = bind(args.http.listen).await?;
                web::run(listener, config, None, shutdown).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(args) => {
            let (backend, said_by) = args.shared.backend();
            tracing::info!(?backend, said_by, "worker");
            one_thread()?.block_on(async {
                let names = args.shared.names(&backend).await?;
                worker::run(args.config(backend, names), shutdown::on_signals()?).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Queue(args) => {
            let is_done = one_thread()?.block_on(async {
                let config = args.config().await?;
                queues::run(config, shutdown::on_signals()?).await
            })?;
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Provision(args) => {
            let ending = one_thread()?.block_on(async {
                let config = Box::pin(args.config()).await?;
                Box::pin(provision::run(config, shutdown::on_signals()?)).await
            })?;
            Ok(match ending {
                provision::Ending::Done => ExitCode::SUCCESS,
                provision::Ending::Declined | provision::Ending::Faults => ExitCode::FAILURE,
                provision::Ending::Changes => CHANGES.into(),
            })
        }
        Command::Classify(args) => {
            let all_classified = classify::run(&args.config())?;
            Ok(if all_classified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Simulate(args) => {
            simulate::run(&args.config()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Loadgen(args) => {
            let config = args.config()?;
            let outcome = many_threads()?.block_on(async { loadgen::run(config, shutdown::on_signals()?).await })?;
            Ok(outcome.exit_code().into())
        }
    }
}

async fn bind(address: std::net::SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; stop what listens there or choose another --listen"))
}

/// For the tiers that serve many clients. Half the cores: handlers only pass bytes on, and threads that wake each other
/// take the cores from decoding and inference (on two cores, nine images in a hundred).
fn many_threads() -> anyhow::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.div_ceil(2))
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// For the worker, whose threads are busy elsewhere: decoding and inferring.
fn one_thread() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
