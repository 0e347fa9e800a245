//! Logs, metrics and traces of every process: one line an event on standard error, counters behind `/metrics`, spans to
//! an OTLP endpoint where one is named.

mod lines;
pub mod output;
pub mod trace;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use lines::{Descriptor, LineWriter, Lost};

/// What the SDK warns of while it looks for region and credentials is an error in the end, or nothing.
const DEFAULT_FILTER: &str = "info,ort=warn,aws_config=error,opentelemetry=warn";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("the log format is `text` or `json`".to_owned()),
        }
    }
}

impl LogFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// How long a process that ends waits for its last log lines to be written.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static LOG: OnceLock<LineWriter> = OnceLock::new();
/// Set by [`init`].
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Starts logging to standard error, panics included. `IMGCLS_LOG` filters (`info` by default; `debug`,
/// `imgcls::worker=trace`, …). A log line never blocks, fails or panics: one that cannot be written is dropped, and the
/// number of dropped lines is logged once standard error can be written again.
///
/// Called once a process; a second call changes nothing.
pub fn init(format: LogFormat) {
    use std::io::IsTerminal as _;
    let _ = FORMAT.set(format);
    let filter = EnvFilter::try_from_env("IMGCLS_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // The subscriber would report its own failures with `eprintln!`, which panics where standard error is broken.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogLine).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
        return;
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Writes one line for a person to standard error, in order with the log and as safely as it.
pub fn stderr_line(line: &str) {
    log().write_line(format!("{line}\n").as_bytes());
}

/// Waits until every line that was logged or told is written, at most `limit`. Call it before the process ends.
pub fn flush(limit: Duration) {
    let began = Instant::now();
    if let Some(log) = LOG.get() {
        log.flush(limit);
    }
    output::flush(limit.saturating_sub(began.elapsed()));
}

fn log() -> &'static LineWriter {
    LOG.get_or_init(|| LineWriter::start("log", Descriptor(io::stderr()), Some(report_loss)))
}

/// Where the subscriber writes an event to: the whole line at once.
struct LogLine;

impl io::Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        log().write_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Made by hand, since no filter may hide it and it must not go through the queue that it tells about.
fn report_loss(lost: &Lost) -> String {
    let Lost { lines, reason } = lost;
    let now = jiff::Timestamp::now();
    match FORMAT.get() {
        Some(LogFormat::Json) => {
            let message = format!("{lines} log lines were lost: {reason}");
            let line = serde_json::json!({
                "timestamp": now.to_string(), "level": "WARN", "message": message, "lost_lines": lines,
                "target": "imgcls::telemetry",
            });
            format!("{line}\n")
        }
        _ => format!("{now:.6}  WARN {lines} log lines were lost: {reason}\n"),
    }
}

/// The standard hook would write to standard error itself, and so block where nobody reads.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    // Nothing but a status where RUST_BACKTRACE does not ask for one.
    let backtrace = Backtrace::capture();
    if !tracing::enabled!(tracing::Level::ERROR) {
        stderr_line(&format!("thread {thread:?} panicked at {location}: {message}"));
    } else if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, location, %backtrace, "a thread panicked: {message}");
    } else {
        tracing::error!(thread, location, "a thread panicked: {message}");
    }
    // It ends the process, and nobody comes by who would flush.
    if thread == "main" {
        flush(FLUSH_LIMIT);
    }
}

/// Everything that the rooms of this process count, in Prometheus' text format.
pub fn metrics_text() -> String {
    let families = prometheus::gather();
    prometheus::TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// Media type of [`metrics_text`].
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4";
