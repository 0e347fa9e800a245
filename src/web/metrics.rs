//! The metrics of the web tier.

use std::sync::LazyLock;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, exponential_buckets,
    register_gauge, register_gauge_vec, register_histogram_vec, register_int_counter, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

/// All metrics of the web tier.
pub(super) struct Metrics {
    pub(super) requests: IntCounterVec,
    pub(super) request_seconds: HistogramVec,
    pub(super) accepted: IntCounter,
    pub(super) upload_bytes: IntCounter,
    pub(super) upload_memory: IntGauge,
    pub(super) read_memory: IntGauge,
    pub(super) replies: IntCounterVec,
    pub(super) waiting: IntGauge,
    pub(super) connections: IntGauge,
    pub(super) closed: IntCounterVec,
    pub(super) shed: IntCounterVec,
    pub(super) denied: IntCounterVec,
    pub(super) withdrawals: IntCounterVec,
    pub(super) callbacks: IntCounterVec,
    pub(super) expected_wait: Gauge,
    pub(super) worker_unseen: Gauge,
    /// By queue (`requests`, `dead_letters`) and state of the messages. A value that cannot be read is removed.
    pub(super) queue_messages: IntGaugeVec,
    pub(super) queue_oldest: GaugeVec,
    stages: HistogramVec,
}

impl Metrics {
    /// The histogram of the seconds in one stage of a job: `uploaded`, `stored`, `sent` or `waited`.
    pub(super) fn stage(&self, stage: &str) -> Histogram {
        self.stages.with_label_values(&[stage])
    }
}

pub(super) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registered = "each name is registered once; this is a bug";
    let seconds = exponential_buckets(0.001, 2.0, 20).expect(registered);
    Metrics {
        requests: register_int_counter_vec!(
            "imgcls_web_requests_total",
            "HTTP requests",
            &["method", "route", "status"]
        )
        .expect(registered),
        request_seconds: register_histogram_vec!(
            "imgcls_web_request_seconds",
            "Seconds per request",
            &["method", "route"],
            seconds.clone()
        )
        .expect(registered),
        accepted: register_int_counter!("imgcls_web_accepted_total", "Images accepted").expect(registered),
        upload_bytes: register_int_counter!("imgcls_web_upload_bytes_total", "Bytes of accepted images")
            .expect(registered),
        upload_memory: register_int_gauge!(
            "imgcls_web_upload_memory_bytes",
            "Memory that uploads take, of --max-buffered-bytes"
        )
        .expect(registered),
        read_memory: register_int_gauge!("imgcls_web_read_memory_bytes", "Memory of images that are being sent")
            .expect(registered),
        replies: register_int_counter_vec!("imgcls_web_replies_total", "Replies from workers", &["outcome"])
            .expect(registered),
        waiting: register_int_gauge!("imgcls_web_waiting", "Jobs that a caller waits for").expect(registered),
        connections: register_int_gauge!("imgcls_web_connections", "Open connections").expect(registered),
        closed: register_int_counter_vec!(
            "imgcls_web_connections_closed_total",
            "Connections that the server closed, by reason",
            &["reason"]
        )
        .expect(registered),
        shed: register_int_counter_vec!("imgcls_web_shed_total", "Requests refused under load, by reason", &["reason"])
            .expect(registered),
        denied: register_int_counter_vec!(
            "imgcls_web_denied_total",
            "Requests without a sufficient key, or beyond the limits of their client, by reason",
            &["reason"]
        )
        .expect(registered),
        withdrawals: register_int_counter_vec!(
            "imgcls_web_withdrawals_total",
            "Jobs whose client left before it received the id, by outcome",
            &["outcome"]
        )
        .expect(registered),
        callbacks: register_int_counter_vec!(
            "imgcls_web_callbacks_total",
            "Calls to receivers of clients, by outcome: delivered, failed, given_up",
            &["outcome"]
        )
        .expect(registered),
        expected_wait: register_gauge!(
            "imgcls_web_expected_wait_seconds",
            "Seconds that a new job is expected to wait for a worker; 0 while unknown"
        )
        .expect(registered),
        worker_unseen: register_gauge!(
            "imgcls_web_worker_unseen_seconds",
            "Seconds that images have waited without a sign of a worker; 0 while there is one, or nothing to do"
        )
        .expect(registered),
        queue_messages: register_int_gauge_vec!(
            "imgcls_queue_messages",
            "Messages in a queue of the service, by state: visible, in_flight, delayed",
            &["queue", "state"]
        )
        .expect(registered),
        queue_oldest: register_gauge_vec!(
            "imgcls_queue_oldest_age_seconds",
            "Age of the oldest message of a queue; 0 if it has none, absent if it is unknown",
            &["queue"]
        )
        .expect(registered),
        stages: register_histogram_vec!(
            "imgcls_web_stage_seconds",
            "Seconds in one stage of a job",
            &["stage"],
            seconds
        )
        .expect(registered),
    }
});
