//! The report, as JSON for programs or as text for people. The fields are those of the JSON output.

use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use uuid::Uuid;

use crate::telemetry::text::{age, printable, size};

/// The state of a service.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The web tier; `None` if no address was given.
    pub service: Option<Service>,
    /// The backend, and where it is.
    pub backend: String,
    /// The workers that `up` started; `None` if the service has others, or its metrics cannot be read.
    pub workers: Option<Workers>,
    /// `None` if the metrics cannot be read.
    pub throughput: Option<Throughput>,
    /// The request queues and the dead letters, or why they cannot be read.
    #[serde(serialize_with = "list_or_error")]
    pub queues: Result<Vec<Queue>, String>,
    /// The data directory; `None` if the data is elsewhere.
    pub disk: Option<Disk>,
    /// The newest failed jobs; `None` if the data is elsewhere.
    pub last_errors: Option<Vec<LastError>>,
}

/// A web tier.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    /// Its address.
    pub url: String,
    /// True if it is to be given work.
    pub is_ready: bool,
    /// `ready`, or why it is not.
    pub state: String,
    /// Faults that operators should know of although it is ready.
    pub warnings: Vec<String>,
    /// The version of its program.
    pub version: Option<String>,
}

/// The worker processes of `up`.
#[derive(Debug, Clone, Serialize)]
pub struct Workers {
    /// How many the policy wants.
    pub wanted: u64,
    /// How many receive messages.
    pub ready: u64,
    /// How many were started again because they ended.
    pub restarts: u64,
    /// The resident memory of all of them.
    pub resident_bytes: Option<u64>,
}

/// The changes between two readings.
#[derive(Debug, Clone, Serialize)]
pub struct Throughput {
    /// The time between the readings.
    pub seconds: f64,
    /// Classified images.
    pub images_per_second: f64,
    /// HTTP requests of any kind.
    pub requests_per_second: f64,
    /// Answers with a status of 500 or above.
    pub server_errors_per_second: f64,
    /// Requests that were refused by load shedding, keys or limits.
    pub refused_per_second: f64,
    /// The mean time of a POST request; `None` if there was none.
    pub mean_post_ms: Option<f64>,
    /// Images classified by the workers of `up` since it was started.
    pub images_total: Option<f64>,
}

/// A queue.
#[derive(Debug, Clone, Serialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// `requests`, `batches` or `dead letters`.
    pub role: &'static str,
    /// Messages that can be received.
    pub visible: u64,
    /// Messages that workers hold.
    pub in_flight: u64,
    /// Messages that can be received later.
    pub delayed: u64,
    /// `None` if there is no message, or the backend does not know it.
    pub oldest_age_seconds: Option<f64>,
}

/// The space of the data directory.
#[derive(Debug, Clone, Serialize)]
pub struct Disk {
    /// Bytes that count against the limit.
    pub used_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// Bytes free on the file system.
    pub free_bytes: u64,
}

/// A job that failed.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// The job.
    pub id: Uuid,
    /// How long ago its result was written.
    pub age_seconds: f64,
    /// The kind of failure.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Report {
    /// Returns true if the service is ready, or no address was given.
    pub fn is_ready(&self) -> bool {
        self.service.as_ref().is_none_or(|service| service.is_ready) && self.queues.is_ok()
    }
}

fn list_or_error<S: Serializer>(queues: &Result<Vec<Queue>, String>, serializer: S) -> Result<S::Ok, S::Error> {
    match queues {
        Ok(queues) => queues.serialize(serializer),
        Err(reason) => {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("error", reason)?;
            map.end()
        }
    }
}

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {}", printable(value));
    };
    if let Some(service) = &report.service {
        let version = service.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
        line("service", &format!("{} {}{version}", service.url, service.state));
        service.warnings.iter().for_each(|warning| line("warning", warning));
    }
    line("backend", &report.backend);
    if let Some(Workers { wanted, ready, restarts, resident_bytes }) = &report.workers {
        let memory = resident_bytes.map(|bytes| format!(", {} of memory", size(bytes))).unwrap_or_default();
        line("workers", &format!("{ready} ready of {wanted} wanted, {restarts} restarts{memory}"));
    }
    if let Some(throughput) = &report.throughput {
        line("throughput", &rates(throughput));
    }
    match &report.queues {
        Ok(queues) => queues.iter().for_each(|queue| line(queue.role, &messages(queue))),
        Err(reason) => line("queues", &format!("cannot be read: {reason}")),
    }
    if let Some(Disk { used_bytes, limit_bytes, free_bytes }) = &report.disk {
        let (used, limit, free) = (size(*used_bytes), size(*limit_bytes), size(*free_bytes));
        line("disk", &format!("{used} of {limit} used, {free} free on the file system"));
    }
    if let Some(errors) = &report.last_errors {
        if errors.is_empty() {
            line("last errors", "none among the last thousand jobs");
        }
        for (LastError { id, age_seconds, code, message }, number) in errors.iter().zip(0..) {
            let name = if number == 0 { "last errors" } else { "" };
            line(name, &format!("{} ago  {id}  {code}: {message}", age(*age_seconds)));
        }
    }
    text
}

fn rates(throughput: &Throughput) -> String {
    let Throughput { images_per_second, requests_per_second, server_errors_per_second, refused_per_second, .. } =
        throughput;
    let mut text = format!(
        "{images_per_second:.1} images/s, {requests_per_second:.1} requests/s, {server_errors_per_second:.1} server \
         errors/s, {refused_per_second:.1} refused/s"
    );
    if let Some(mean_ms) = throughput.mean_post_ms {
        let _ = write!(text, ", {mean_ms:.0} ms a POST");
    }
    if let Some(total) = throughput.images_total {
        let _ = write!(text, ", {total:.0} images in all");
    }
    text
}

fn messages(queue: &Queue) -> String {
    let Queue { visible, in_flight, delayed, oldest_age_seconds, .. } = queue;
    let oldest = oldest_age_seconds.map(|seconds| format!(", the oldest for {}", age(seconds))).unwrap_or_default();
    let delayed = if *delayed > 0 { format!(", {delayed} delayed") } else { String::new() };
    format!("{visible} waiting, {in_flight} in flight{delayed}{oldest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!([0, 1_023, 1_536, 5 << 30].map(size), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([0.4, 61.0, 7_260.0, 180_000.0].map(age), ["0s", "1m 1s", "2h 1m", "2d 2h"]);
    }

    #[test]
    fn part_that_cannot_be_read_is_named_and_the_rest_is_shown() {
        let report = Report {
            service: None,
            backend: "local in /x".to_owned(),
            workers: None,
            throughput: None,
            queues: Err("the disk\x1b[2J is gone".to_owned()),
            disk: Some(Disk { used_bytes: 1, limit_bytes: 2_048, free_bytes: 1 << 30 }),
            last_errors: Some(Vec::new()),
        };
        assert!(!report.is_ready());
        let text = render(&report);
        assert!(text.contains("queues       cannot be read: the disk\\u{1b}[2J is gone\n"), "{text}");
        assert!(text.contains("disk         1 B of 2.0 KiB used, 1.0 GiB free"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["queues"]["error"], "the disk\x1b[2J is gone");
    }
}
