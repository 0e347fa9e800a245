//! The metrics of the pool of worker processes.

use std::sync::LazyLock;

use prometheus::{IntCounterVec, IntGauge, register_int_counter_vec, register_int_gauge};

pub(super) struct Metrics {
    pub wanted: IntGauge,
    pub ready: IntGauge,
    /// By cause: `died` (a worker that was ready) or `failed_start`.
    pub restarts: IntCounterVec,
}

pub(super) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registered = "each name is registered once; this is a bug";
    let metrics = Metrics {
        wanted: register_int_gauge!("imgcls_workers_wanted", "Worker processes that the scaling policy wants")
            .expect(registered),
        ready: register_int_gauge!("imgcls_workers_ready", "Worker processes that receive messages").expect(registered),
        restarts: register_int_counter_vec!(
            "imgcls_workers_restarts_total",
            "Worker processes that were started again, by cause",
            &["cause"]
        )
        .expect(registered),
    };
    // A counter that appears with its first increment has no rate at that time.
    for cause in ["died", "failed_start"] {
        metrics.restarts.with_label_values(&[cause]);
    }
    metrics
});
