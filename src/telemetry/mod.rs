//! Logs, metrics and traces of every process: one line an event on standard error, counters behind `/metrics`, spans to
//! an OTLP endpoint where one is named.

pub mod trace;

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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

/// Starts logging to standard error. `IMGCLS_LOG` filters (`info` by default; `debug`, `imgcls::worker=trace`, …).
///
/// Called once a process; a second call changes nothing.
pub fn init(format: LogFormat) {
    use std::io::IsTerminal as _;
    let filter = EnvFilter::try_from_env("IMGCLS_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Everything that the rooms of this process count, in Prometheus' text format.
pub fn metrics_text() -> String {
    let families = prometheus::gather();
    prometheus::TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// Media type of [`metrics_text`].
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4";
