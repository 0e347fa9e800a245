//! What the web tier counts.

use std::sync::LazyLock;

use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, exponential_buckets, register_gauge,
    register_histogram_vec, register_int_counter, register_int_counter_vec, register_int_gauge,
};

pub struct Metrics {
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub accepted: IntCounter,
    pub upload_bytes: IntCounter,
    pub upload_memory: IntGauge,
    pub read_memory: IntGauge,
    pub replies: IntCounterVec,
    pub waiting: IntGauge,
    pub connections: IntGauge,
    pub closed: IntCounterVec,
    pub shed: IntCounterVec,
    pub withdrawals: IntCounterVec,
    pub expected_wait: Gauge,
    stages: HistogramVec,
}

impl Metrics {
    /// Seconds in one stage of a job: `uploaded`, `stored`, `sent`, `waited`.
    pub fn stage(&self, stage: &str) -> Histogram {
        self.stages.with_label_values(&[stage])
    }
}

pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registered = "names are given once, here; this is a bug";
    let seconds = exponential_buckets(0.001, 2.0, 20).expect(registered);
    Metrics {
        requests: register_int_counter_vec!("imgcls_web_requests_total", "HTTP requests", &["route", "status"])
            .expect(registered),
        request_seconds: register_histogram_vec!(
            "imgcls_web_request_seconds",
            "Seconds a request",
            &["route"],
            seconds.clone()
        )
        .expect(registered),
        accepted: register_int_counter!("imgcls_web_accepted_total", "Images accepted").expect(registered),
        upload_bytes: register_int_counter!("imgcls_web_upload_bytes_total", "Bytes of accepted images")
            .expect(registered),
        upload_memory: register_int_gauge!(
            "imgcls_web_upload_memory_bytes",
            "Memory that uploads take of --max-buffered-bytes"
        )
        .expect(registered),
        read_memory: register_int_gauge!("imgcls_web_read_memory_bytes", "Memory for images that are being sent")
            .expect(registered),
        replies: register_int_counter_vec!("imgcls_web_replies_total", "Replies from workers", &["outcome"])
            .expect(registered),
        waiting: register_int_gauge!("imgcls_web_waiting", "Jobs that a caller waits for").expect(registered),
        connections: register_int_gauge!("imgcls_web_connections", "Open connections").expect(registered),
        closed: register_int_counter_vec!(
            "imgcls_web_connections_closed_total",
            "Connections that were closed on purpose, by reason",
            &["reason"]
        )
        .expect(registered),
        shed: register_int_counter_vec!("imgcls_web_shed_total", "Requests refused under load, by reason", &["reason"])
            .expect(registered),
        withdrawals: register_int_counter_vec!(
            "imgcls_web_withdrawals_total",
            "Jobs whose client left before it was told the id, by what became of them",
            &["outcome"]
        )
        .expect(registered),
        expected_wait: register_gauge!(
            "imgcls_web_expected_wait_seconds",
            "Seconds that a new job is expected to wait for a worker; 0 while that is not known"
        )
        .expect(registered),
        stages: register_histogram_vec!("imgcls_web_stage_seconds", "Seconds in a stage of a job", &["stage"], seconds)
            .expect(registered),
    }
});
