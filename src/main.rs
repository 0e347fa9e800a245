//! Parse the command line, start the log and the runtime, run one command, exit.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use imgcls::cli::{
    ArrivalArgs, AutoscaleArgs, BatchCommandArgs, ClassifyArgs, Cli, Command, ConfigCommand, DataArgs, Invocation,
    KeysArgs, ModelGroup, ProvisionArgs, QueueArgs, ServeWebArgs, SettingsError, SharedArgs, StatusArgs, TopArgs,
    UpArgs, UsageError, WorkerArgs,
};
use imgcls::config::{Backend, Document, Machines, Names, Setting, Source};
use imgcls::model::TunedChoice;
use imgcls::model_sync::ModelSync;
use imgcls::telemetry::output;
use imgcls::workload::Trace;
use imgcls::{
    autoscaler, batch_command, cli, data, eval, fit, keys_command, loadgen, model, model_command, model_sync, names,
    pile, provision, queue_command, retention, service_manager, shutdown, simulate, status, telemetry, thumbnail, tune,
    up, version_command, web, worker,
};
use tokio::runtime::Runtime;

/// The variable that turns the reports of ONNX Runtime off.
const RUNTIME_REPORTS: &str = "ORT_DISABLE_TELEMETRY";
/// A drain ends within this time after the drain delay, even if something hangs. All unfinished work is durable.
const MAX_DRAIN: Duration = Duration::from_secs(10);
/// How long a second signal waits for the log, which may have no reader.
const FLUSH_LIMIT_ON_SECOND_SIGNAL: Duration = Duration::from_millis(200);
/// The exit code of `provision plan --detailed-exitcode` if there are changes.
const EXIT_CHANGES: u8 = 3;
/// The exit code of `plan` if no fleet meets the goal.
const EXIT_THRESHOLD: u8 = 99;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    turn_off_runtime_reports();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let outcome = Cli::read(&arguments).and_then(|invocation| {
        telemetry::set_color(invocation.color);
        telemetry::init(invocation.command.log_format());
        for warning in &invocation.warnings {
            tracing::warn!("{warning}");
        }
        run(invocation)
    });
    let code = outcome.unwrap_or_else(|error| report(&error, cli::wants_json(&arguments)));
    telemetry::flush(telemetry::FLUSH_LIMIT);
    code
}

/// ONNX Runtime 1.32 writes an id of the machine into the cache of the user, and collects reports for its maker. It asks the
/// environment whether it may, before its API can turn that off.
#[allow(unsafe_code)]
fn turn_off_runtime_reports() {
    if std::env::var_os(RUNTIME_REPORTS).is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(RUNTIME_REPORTS, "1") };
    }
}

/// Prints an error, and returns the exit code. Wrong usage ends the process here, in the form that clap gives it, unless
/// errors are wanted as JSON. Help and the version are errors to clap, too.
fn report(error: &anyhow::Error, as_json: bool) -> ExitCode {
    let is_help = error.downcast_ref::<clap::Error>().is_some_and(|error| error.exit_code() == 0);
    if as_json && !is_help {
        let is_usage = error.is::<clap::Error>() || error.is::<UsageError>() || error.is::<SettingsError>();
        let code = if is_usage { EXIT_USAGE } else { EXIT_FAILED };
        telemetry::stderr_line(&cli::error_json(error, code));
        return code.into();
    }
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        telemetry::flush(telemetry::FLUSH_LIMIT);
        usage.exit()
    }
    if let Some(usage) = error.downcast_ref::<UsageError>() {
        telemetry::flush(telemetry::FLUSH_LIMIT);
        usage.exit()
    }
    telemetry::stderr_line(&format!("imgcls: {}", cli::error_line(error)));
    if error.is::<SettingsError>() { EXIT_USAGE.into() } else { ExitCode::FAILURE }
}

fn run(invocation: Invocation) -> anyhow::Result<ExitCode> {
    let Invocation { command, settings, machines, .. } = invocation;
    match command {
        Command::Up(args) => run_up(&args, &settings),
        Command::ServeWeb(args) => run_web(&args, &settings),
        Command::Worker(args) => run_worker(&args, &settings),
        Command::Autoscale(args) => run_autoscale(&args, &settings),
        Command::Status(args) => run_status(&args, &settings),
        Command::Top(args) => run_top(&args, &settings),
        Command::Queue(args) => run_queue(&args, &settings),
        Command::Batch(args) => run_batch(&args, &settings),
        Command::Data(args) => run_data(&args, &settings),
        Command::Keys(args) => run_keys(&args, &settings),
        Command::Provision(args) => run_provision(&args, machines),
        Command::Classify(args) => run_classify(&args, &settings),
        Command::Watch(args) => run_pile(args.config()?),
        Command::Eval(args) => Ok(eval::run(&args.config()?)?.exit_code().into()),
        Command::Model(args) => match &args.command {
            ModelGroup::Manage(command) => Ok(code_of(model_command::run(&command.config())?)),
            ModelGroup::Fit(args) => fit::run(&args.config()?).map(|()| ExitCode::SUCCESS),
        },
        Command::Tune(args) => tune::run(&args.config()).map(|()| ExitCode::SUCCESS),
        Command::Simulate(args) => {
            simulate::run(&args.config(trace(&args.arrivals, "simulate")?)?).map(|()| ExitCode::SUCCESS)
        }
        Command::Plan(args) => {
            let is_found = simulate::plan(&args.config(trace(&args.arrivals, "plan")?)?)?;
            Ok(if is_found { ExitCode::SUCCESS } else { EXIT_THRESHOLD.into() })
        }
        Command::Loadgen(args) => {
            let config = args.config(trace(&args.arrivals, "loadgen")?)?;
            let outcome = block_on(many_threads()?, async { loadgen::run(config, on_signals()?).await })?;
            Ok(outcome.exit_code().into())
        }
        Command::Thumbnail(args) => thumbnail::run(&args.config()).map(|()| ExitCode::SUCCESS),
        Command::Config(args) => {
            let ConfigCommand::Show(show) = &args.command;
            output::print(&Cli::show(show)?).context("cannot print the settings")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(args) => {
            output::print(&args.text()).context("cannot print the completions")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version(args) => version_command::run(&args.config()).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => args.write_pages().map(|()| ExitCode::SUCCESS),
    }
}

fn run_up(args: &UpArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    block_on(many_threads()?, async {
        let config = args.config(settings, &TunedChoice::read(args.supervisor.processing.model.choice()))?;
        let shutdown = on_signals()?;
        shutdown::end_within(&shutdown, args.http.drain_delay + MAX_DRAIN);
        let listener = bind(args.http.address(), settings)?;
        Box::pin(traced("imgcls-web", &shutdown, up::run(listener, config, shutdown.clone()))).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_web(args: &ServeWebArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let backend = logged_backend(&args.shared, settings, "serve-web");
    block_on(many_threads()?, async {
        let names = names::resolve(args.shared.names(), &backend).await?;
        let retention = args.retention.config(backend.clone(), names.clone());
        let models = open_models(args.model_sync(&backend, &names)?).await?;
        let config = args.config(backend, names)?;
        let shutdown = on_signals()?;
        shutdown::end_within(&shutdown, args.http.drain_delay + MAX_DRAIN);
        let listener = bind(args.http.address(), settings)?;
        // The tier knows the names of the models before it has their packages.
        let tier = up::serve_web(listener, config, retention, None, shutdown.clone());
        Box::pin(traced("imgcls-web", &shutdown, beside_models(models, tier))).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_worker(args: &WorkerArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let backend = logged_backend(&args.shared, settings, "worker");
    block_on(one_thread()?, async {
        let names = names::resolve(args.shared.names(), &backend).await?;
        let mut models = open_models(args.model_sync(&backend, &names)?).await?;
        if let Some(models) = &mut models {
            models.download().await?;
        }
        let config = args.config(backend, names, TunedChoice::read(args.processing.model.choice()).tuning);
        let shutdown = on_signals()?;
        let tier = worker::run(config, shutdown.clone());
        Box::pin(traced("imgcls-worker", &shutdown, beside_models(models, tier))).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn open_models(config: Option<model_sync::Config>) -> anyhow::Result<Option<ModelSync>> {
    match config {
        Some(config) => Ok(Some(ModelSync::open(config).await?)),
        None => Ok(None),
    }
}

/// Runs a tier, and meanwhile downloads new versions of its models.
async fn beside_models(
    models: Option<ModelSync>,
    tier: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let Some(models) = models else { return tier.await };
    tokio::select! {
        ended = tier => ended,
        never = models.run() => match never {},
    }
}

fn run_autoscale(args: &AutoscaleArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let backend = logged_backend(&args.supervisor.shared, settings, "autoscale");
    block_on(one_thread()?, async {
        let shutdown = on_signals()?;
        if backend.aws().is_some() {
            return autoscaler::aws::run(args.group_config(backend)?, shutdown).await;
        }
        let model = TunedChoice::read(args.supervisor.processing.model.choice());
        Box::pin(up::run_workers(args.process_config(backend, settings, &model)?, shutdown)).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_status(args: &StatusArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let is_ready = block_on(one_thread()?, async {
        let backend = backend_of_operator(&args.shared, settings);
        let names = names::resolve(args.shared.names(), &backend).await?;
        Box::pin(status::run(args.service.config(backend, names), args.output.json, on_signals()?)).await
    })?;
    Ok(code_of(is_ready))
}

fn run_top(args: &TopArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    block_on(one_thread()?, async {
        let backend = backend_of_operator(&args.shared, settings);
        let names = names::resolve(args.shared.names(), &backend).await?;
        Box::pin(status::watch(args.service.config(backend, names), args.count, on_signals()?)).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_queue(args: &QueueArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let is_done = block_on(one_thread()?, async {
        let shared = args.command.shared();
        let backend = backend_of_operator(shared, settings);
        let names = names::resolve(shared.names(), &backend).await?;
        queue_command::run(args.config(backend, names), on_signals()?).await
    })?;
    Ok(code_of(is_done))
}

fn run_batch(args: &BatchCommandArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let is_done = block_on(one_thread()?, async {
        let shared = args.command.shared();
        let (backend, _) = shared.backend(settings);
        let names = names::resolve(shared.names(), &backend).await?;
        batch_command::run(args.config(backend, names)).await
    })?;
    Ok(code_of(is_done))
}

fn run_data(args: &DataArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    block_on(one_thread()?, async {
        let (backend, selected_by) = args.command.shared().backend(settings);
        data::run(args.config(&backend, &selected_by)?, on_signals()?).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_keys(args: &KeysArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    block_on(one_thread()?, async {
        let shared = args.command.shared();
        let (backend, _) = shared.backend(settings);
        let names = names::resolve(shared.names(), &backend).await?;
        keys_command::run(args.config(backend, names)).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_classify(args: &ClassifyArgs, settings: &Document) -> anyhow::Result<ExitCode> {
    let mut service = None;
    if args.through.is_some() {
        let (backend, _) = args.shared.backend(settings);
        let names = block_on(one_thread()?, names::resolve(args.shared.names(), &backend))?;
        service = Some((backend, names));
    }
    run_pile(args.config(service)?)
}

fn run_pile(config: pile::Config) -> anyhow::Result<ExitCode> {
    let is_done = block_on(one_thread()?, async {
        let shutdown = on_signals()?;
        // The threads of the run are its own, and this one only waits for signals.
        tokio::task::spawn_blocking(move || pile::run(&config, &shutdown)).await?
    })?;
    Ok(code_of(is_done))
}

fn run_provision(args: &ProvisionArgs, machines: Machines) -> anyhow::Result<ExitCode> {
    let backend = args.backend()?;
    let outcome = block_on(one_thread()?, async {
        let shared = &args.stack().shared;
        let names = if args.needs_names() {
            Box::pin(names::resolve(shared.names(), &backend)).await?
        } else {
            Names::local(&shared.stack)
        };
        Box::pin(provision::run(args.config(names, machines)?, on_signals()?)).await
    })?;
    Ok(match outcome {
        provision::Outcome::Done => ExitCode::SUCCESS,
        provision::Outcome::Declined | provision::Outcome::Faults => ExitCode::FAILURE,
        provision::Outcome::Changes => EXIT_CHANGES.into(),
    })
}

/// Recorded arrivals, if the command line names a file of them.
fn trace(arrivals: &ArrivalArgs, command: &'static str) -> anyhow::Result<Option<Trace>> {
    arrivals.trace_file(command)?.map(loadgen::read_trace).transpose()
}

/// The backend of a command for operators. A variable may have selected AWS while the service that they mean runs here.
fn backend_of_operator(shared: &SharedArgs, settings: &Document) -> Backend {
    let (backend, selected_by) = shared.backend(settings);
    if backend.aws().is_some() && selected_by.starts_with("AWS_") && retention::is_served(&shared.data_dir) {
        telemetry::stderr_line(&format!(
            "imgcls: {selected_by} selects AWS; a local service runs on {}, which --backend local reaches",
            shared.data_dir.display()
        ));
    }
    backend
}

fn code_of(is_done: bool) -> ExitCode {
    if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The backend of a tier, which is the first line of its log.
fn logged_backend(shared: &SharedArgs, settings: &Document, tier: &str) -> Backend {
    let (backend, said_by) = shared.backend(settings);
    tracing::info!(%backend, said_by, "{tier}");
    backend
}

/// The token that the first signal cancels. The second signal ends the process.
fn on_signals() -> std::io::Result<shutdown::CancellationToken> {
    shutdown::on_signals(|| telemetry::flush(FLUSH_LIMIT_ON_SECOND_SIGNAL))
}

/// Runs a command to its end. The command has waited for everything that it started, except for name look-ups that it
/// gave up on: these cannot be stopped, and must not delay the exit.
fn block_on<T>(runtime: Runtime, command: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

/// Runs a tier, and exports its spans, down to the last one, if the environment names a collector. Reports to systemd, if
/// it started this process.
async fn traced(
    service: &'static str,
    shutdown: &shutdown::CancellationToken,
    tier: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let export = telemetry::trace::start(service)?;
    let outcome = tokio::select! {
        outcome = tier => outcome,
        never = service_manager::follow(shutdown.cancelled()) => match never {},
    };
    export.finish().await;
    outcome
}

fn bind(address: std::net::SocketAddr, settings: &Document) -> anyhow::Result<tokio::net::TcpListener> {
    web::listen(address).with_context(|| {
        let given = |name| settings.get(name).filter(|setting| setting.source != Source::Default);
        // The variable or the line of a file, where that is at fault.
        let source = given("port").or_else(|| given("listen")).map_or("--listen".to_owned(), Setting::source_text);
        format!("cannot listen on {address}; stop what listens there or choose another address with {source}")
    })
}

/// The runtime of tiers with many clients. Half the cores are enough, since handlers only pass bytes on, and threads that
/// wake each other would take cores from decoding and inference (on two cores, nine images in a hundred).
fn many_threads() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(model::cores().div_ceil(2))
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// The runtime of a worker, whose own threads decode and infer, and of short commands.
fn one_thread() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
