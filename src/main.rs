//! Parse → telemetry → runtime → one match → exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use imgcls::cli::{Cli, Command};
use imgcls::config::Backend;
use imgcls::{
    autoscale, classify, data, loadgen, model, provision, queue_command, shutdown, simulate, telemetry, tune, up, web,
    worker,
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let ending = Cli::read().and_then(|cli| {
        telemetry::init(cli.command.log_format());
        run(&cli.command)
    });
    let code = match ending {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(wrong_usage) => {
                telemetry::flush(telemetry::FLUSH_LIMIT);
                wrong_usage.exit()
            }
            Err(error) => {
                telemetry::stderr_line(&format!("imgcls: {error:#}"));
                ExitCode::FAILURE
            }
        },
    };
    telemetry::flush(telemetry::FLUSH_LIMIT);
    code
}

/// The token that the first signal cancels. Who sends a second one does not want to wait for a log that nobody reads.
fn on_signals() -> std::io::Result<shutdown::CancellationToken> {
    shutdown::on_signals(|| telemetry::flush(std::time::Duration::from_millis(200)))
}

/// A drain ends within this time, and the delay before it, whatever hangs. What is not finished then is durable.
const MAX_DRAIN: Duration = Duration::from_secs(10);
/// Of `provision plan --detailed-exitcode`.
const CHANGES: u8 = 3;

/// Runs a command to its end. What it has started it has waited for; but a name that is being looked up, whoever gave up
/// on it, cannot be stopped, and keeps no process from ending.
fn block_on<T>(runtime: Runtime, command: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(command);
    runtime.shutdown_background();
    ended
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => {
            block_on(many_threads()?, async {
                let config = args.config().await?;
                let shutdown = on_signals()?;
                shutdown::end_within(&shutdown, args.http.drain_delay + MAX_DRAIN);
                let listener = bind(args.http.listen)?;
                Box::pin(traced("imgcls-web", up::run(listener, config, shutdown))).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ServeWeb(args) => {
            let (backend, said_by) = args.shared.backend();
            tracing::info!(?backend, said_by, "serve-web");
            block_on(many_threads()?, async {
                let names = args.shared.names(&backend).await?;
                let retention = args.retention.config(backend.clone(), names.clone());
                let config = args.config(backend, names)?;
                let shutdown = on_signals()?;
                shutdown::end_within(&shutdown, args.http.drain_delay + MAX_DRAIN);
                let listener = bind(args.http.listen)?;
                traced("imgcls-web", up::serve_web(listener, config, retention, None, shutdown)).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(args) => {
            let (backend, said_by) = args.shared.backend();
            tracing::info!(?backend, said_by, "worker");
            block_on(one_thread()?, async {
                let names = args.shared.names(&backend).await?;
                let config = args.config(backend, names);
                Box::pin(traced("imgcls-worker", worker::run(config, on_signals()?))).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Autoscale(args) => {
            block_on(one_thread()?, async {
                let (backend, said_by) = args.shared.backend();
                tracing::info!(?backend, said_by, "autoscale");
                let shutdown = on_signals()?;
                match backend {
                    Backend::Local { .. } | Backend::Named { .. } => {
                        up::run_workers(args.of_processes().await?, shutdown).await
                    }
                    Backend::Aws { .. } => autoscale::aws::run(args.of_group(backend)?, shutdown).await,
                }
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Queue(args) => {
            let is_done = block_on(one_thread()?, async {
                let config = args.config().await?;
                queue_command::run(config, on_signals()?).await
            })?;
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Data(args) => {
            block_on(one_thread()?, async {
                let config = args.config().await?;
                data::run(config, on_signals()?).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Provision(args) => {
            let ending = block_on(one_thread()?, async {
                let config = Box::pin(args.config()).await?;
                Box::pin(provision::run(config, on_signals()?)).await
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
        Command::Tune(args) => {
            tune::run(&args.config())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(args) => {
            simulate::run(&args.config()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Loadgen(args) => {
            let config = args.config()?;
            let outcome = block_on(many_threads()?, async { loadgen::run(config, on_signals()?).await })?;
            Ok(outcome.exit_code().into())
        }
    }
}

/// Runs a tier; its spans are exported where the environment asks for it, to the last one.
async fn traced(service: &'static str, tier: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let export = telemetry::trace::start(service)?;
    let outcome = tier.await;
    export.finish().await;
    outcome
}

fn bind(address: std::net::SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    web::listen(address)
        .with_context(|| format!("cannot listen on {address}; stop what listens there or choose another --listen"))
}

/// For the tiers that serve many clients. Half the cores: handlers only pass bytes on, and threads that wake each other
/// take the cores from decoding and inference (on two cores, nine images in a hundred).
fn many_threads() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(model::cores().div_ceil(2))
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// For the worker, whose threads are busy elsewhere: decoding and inferring.
fn one_thread() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
