//! The metrics of a worker.

use std::sync::LazyLock;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, exponential_buckets, register_histogram,
    register_histogram_vec, register_int_counter, register_int_counter_vec,
};

pub(crate) struct Metrics {
    pub received: IntCounter,
    pub redelivered: IntCounter,
    pub outcomes: IntCounterVec,
    pub replies: IntCounterVec,
    pub faults: IntCounterVec,
    pub batch_size: Histogram,
    stages: HistogramVec,
}

impl Metrics {
    /// Seconds in one stage: `fetched`, `decoded`, `inferred`, `published`.
    pub(crate) fn stage(&self, stage: &str) -> Histogram {
        self.stages.with_label_values(&[stage])
    }
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registered = "names are given once, here; this is a bug";
    let seconds = exponential_buckets(0.000_25, 2.0, 16).expect(registered);
    Metrics {
        received: register_int_counter!("imgcls_worker_received_total", "Messages received").expect(registered),
        redelivered: register_int_counter!("imgcls_worker_redelivered_total", "Messages received again")
            .expect(registered),
        outcomes: register_int_counter_vec!("imgcls_worker_endings_total", "How deliveries ended", &["ending"])
            .expect(registered),
        replies: register_int_counter_vec!("imgcls_worker_replies_total", "What became of replies", &["outcome"])
            .expect(registered),
        faults: register_int_counter_vec!("imgcls_worker_faults_total", "Faults that were waited out", &["what"])
            .expect(registered),
        batch_size: register_histogram!(
            "imgcls_worker_batch_size",
            "Images inferred together",
            vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
        )
        .expect(registered),
        stages: register_histogram_vec!("imgcls_worker_stage_seconds", "Seconds in a stage", &["stage"], seconds)
            .expect(registered),
    }
});
