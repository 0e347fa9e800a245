//! The metrics of a worker.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, exponential_buckets, register_histogram,
    register_histogram_vec, register_int_counter, register_int_counter_vec, register_int_gauge_vec,
};

use crate::model::ModelRef;
use crate::telemetry::exemplars;
use crate::telemetry::trace::Span;

/// The name of the histogram of stages.
const STAGE_SECONDS: &str = "imgcls_worker_stage_seconds";

pub(crate) struct Metrics {
    pub received: IntCounter,
    pub redelivered: IntCounter,
    pub outcomes: IntCounterVec,
    pub replies: IntCounterVec,
    pub faults: IntCounterVec,
    pub batch_size: Histogram,
    pub cache_lookups: IntCounterVec,
    pub swaps: IntCounterVec,
    pub shadow_compared: IntCounter,
    pub shadow_agreeing: IntCounter,
    pub shadow_skipped: IntCounter,
    stages: HistogramVec,
    models: IntGaugeVec,
}

impl Metrics {
    /// Seconds in one stage: `fetched`, `decoded`, `inferred`, `published`.
    pub(crate) fn stage(&self, stage: &str) -> Histogram {
        self.stages.with_label_values(&[stage])
    }

    /// Ends a stage of a job: a span below its own, and an exemplar of the histogram of stages.
    pub(crate) fn trace_stage(span: &Span, stage: &'static str, took: Duration) {
        span.stage(stage, took);
        exemplars::record(STAGE_SECONDS, &[("stage", stage)], took.as_secs_f64(), span.ids());
    }

    /// Reports a version of a model as in use, or no longer.
    pub(crate) fn model_in_use(&self, model: &ModelRef, is_in_use: bool) {
        let labels = [model.name.as_str(), model.version.as_str()];
        if is_in_use {
            self.models.with_label_values(&labels).set(1);
        } else {
            // Fails only if the version was not reported, and then there is nothing to remove.
            let _ = self.models.remove_label_values(&labels);
        }
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
        cache_lookups: register_int_counter_vec!(
            "imgcls_worker_cache_lookups_total",
            "Images that were looked up among the answers that are kept (--cache)",
            &["outcome"]
        )
        .expect(registered),
        swaps: register_int_counter_vec!(
            "imgcls_worker_model_swaps_total",
            "Other versions of a model that were switched to, or could not be",
            &["outcome"]
        )
        .expect(registered),
        shadow_compared: register_int_counter!(
            "imgcls_worker_shadow_compared_total",
            "Images that the shadow model classified too"
        )
        .expect(registered),
        shadow_agreeing: register_int_counter!(
            "imgcls_worker_shadow_agreeing_total",
            "Images for which the shadow model has the same first label"
        )
        .expect(registered),
        shadow_skipped: register_int_counter!(
            "imgcls_worker_shadow_skipped_total",
            "Images of the shadow model's share that it did not classify, because it was busy or failed"
        )
        .expect(registered),
        models: register_int_gauge_vec!(
            "imgcls_worker_model",
            "1 for each version of a model that is in use",
            &["name", "version"]
        )
        .expect(registered),
        stages: register_histogram_vec!(STAGE_SECONDS, "Seconds in a stage", &["stage"], seconds).expect(registered),
    }
});
