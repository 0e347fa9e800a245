//! Logs, metrics and traces of every process: one line per event on standard error, metrics for `/metrics`, and both metrics
//! and spans for an OTLP endpoint if one is configured.

pub mod exemplars;
mod families;
pub mod metrics;
mod nonblocking;
mod otlp;
mod otlp_metrics;
pub mod output;
pub(crate) mod text;
pub mod trace;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use nonblocking::{Descriptor, LostLines, NonBlockingWriter};

/// Warnings of the AWS SDK while it searches for region and credentials are hidden: they either end in an error, or do
/// not matter. The crates that decode JPEG XL (`jxl_…`) log an error for every image that is damaged, which is the fault of
/// its client and becomes the reason in the answer.
const DEFAULT_FILTER: &str = "info,ort=warn,aws_config=error,async_nats=off,opentelemetry=warn,jxl=off";

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
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
    /// Returns the name of the format, as the flag takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// When the log is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// On a terminal, unless the environment says otherwise.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Decides for a stream. The variables are those of <https://no-color.org> and <https://bixense.com/clicolors>.
    fn is_used(self, is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        let is_given = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let is_forced = |name: &str| is_given(name) && variable(name).is_none_or(|value| value != "0");
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if is_given("NO_COLOR") => false,
            Color::Auto if is_forced("CLICOLOR_FORCE") => true,
            Color::Auto => is_terminal && !is_dumb(variable("TERM")),
        }
    }
}

/// Returns true if standard error is a terminal on which a progress bar can be drawn.
pub fn can_draw() -> bool {
    io::stderr().is_terminal() && !is_dumb(std::env::var_os("TERM"))
}

/// A dumb terminal knows neither colours nor movements of the cursor.
fn is_dumb(term: Option<OsString>) -> bool {
    term.is_some_and(|term| term == "dumb")
}

/// How long a process waits at its end until its last log lines are written.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static LOG: OnceLock<NonBlockingWriter> = OnceLock::new();
/// Set by [`init`].
static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// Set by [`set_color`].
static COLOR: OnceLock<Color> = OnceLock::new();

/// Chooses when the log is coloured. Call it before [`init`]; without a call the environment decides.
pub fn set_color(color: Color) {
    let _ = COLOR.set(color);
}

/// Starts logging to standard error, including panics. `IMGCLS_LOG` sets the filter (`info` by default; `debug`,
/// `imgcls::worker=trace`, …). Logging never blocks, fails or panics: a line that cannot be written is dropped, and the
/// number of dropped lines is logged once standard error can be written again.
///
/// Call it once per process; a second call has no effect.
pub fn init(format: LogFormat) {
    let _ = FORMAT.set(format);
    metrics::start();
    let color = COLOR.get().copied().unwrap_or_default();
    let is_colored = color.is_used(io::stderr().is_terminal(), |name| std::env::var_os(name));
    let filter = EnvFilter::try_from_env("IMGCLS_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // The subscriber would report its own failures with `eprintln!`, which panics when standard error is broken.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogLine).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(is_colored).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging is already started");
        return;
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Writes one line for people to standard error, in order with the log lines. Never blocks or fails, either.
pub fn stderr_line(line: &str) {
    log().write_line(format!("{line}\n").as_bytes());
}

/// Waits until every line of the log and of [`output::announce`] is written, for at most `limit`. Call it before the
/// process ends.
pub fn flush(limit: Duration) {
    let began = Instant::now();
    if let Some(log) = LOG.get() {
        log.flush(limit);
    }
    output::flush(limit.saturating_sub(began.elapsed()));
}

fn log() -> &'static NonBlockingWriter {
    LOG.get_or_init(|| NonBlockingWriter::start("log", Descriptor(io::stderr()), Some(report_loss)))
}

/// The writer of the subscriber, which writes each event as a whole line.
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

/// Makes the line about lost lines by hand: no filter may hide it, and it must not go through the queue that it
/// describes.
fn report_loss(lost: &LostLines) -> String {
    let LostLines { count: lines, reason } = lost;
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

/// Logs a panic. The standard hook writes to standard error directly, which blocks when nobody reads it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    // Without RUST_BACKTRACE it contains only a status.
    let backtrace = Backtrace::capture();
    if !tracing::enabled!(tracing::Level::ERROR) {
        stderr_line(&format!("thread {thread:?} panicked at {location}: {message}"));
    } else if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, location, %backtrace, "a thread panicked: {message}");
    } else {
        tracing::error!(thread, location, "a thread panicked: {message}");
    }
    // A panic of the main thread ends the process, and nothing else would flush the log.
    if thread == "main" {
        flush(FLUSH_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_decides_about_colours_unless_a_flag_does() {
        let used = |color: Color, is_terminal, variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            color.is_used(is_terminal, find)
        };
        assert!(used(Color::Auto, true, &[]) && !used(Color::Auto, false, &[]));
        assert!(!used(Color::Auto, true, &[("NO_COLOR", "1")]) && used(Color::Auto, true, &[("NO_COLOR", "")]));
        assert!(used(Color::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!used(Color::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!used(Color::Auto, false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(!used(Color::Auto, true, &[("TERM", "dumb")]) && used(Color::Auto, true, &[("TERM", "xterm")]));
        assert!(used(Color::Always, false, &[("NO_COLOR", "1")]));
        assert!(!used(Color::Never, true, &[("CLICOLOR_FORCE", "1")]));
    }
}
