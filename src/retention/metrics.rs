//! Metrics of stored and deleted data.

use std::sync::LazyLock;

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, register_int_counter, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

use crate::transport::local::{Kind, Usage};

/// The metrics of this module.
pub(super) struct Metrics {
    stored: IntGaugeVec,
    limit: IntGauge,
    disk_free: IntGauge,
    deleted: IntCounterVec,
    evicted: IntCounterVec,
    /// Empty segments that this process removed.
    pub removed_segments: IntCounter,
}

impl Metrics {
    /// Publishes a measurement.
    pub(super) fn set_usage(&self, usage: &Usage, limit_bytes: u64) {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (kind, stored) in
            [("segments", usage.segment_bytes), ("database", usage.database_bytes), ("log", usage.log_bytes)]
        {
            self.stored.with_label_values(&[kind]).set(bytes(stored));
        }
        self.limit.set(bytes(limit_bytes));
        self.disk_free.set(bytes(usage.disk_free_bytes));
    }

    /// Counts deleted objects.
    pub(super) fn count_deleted(&self, kind: Kind, objects: u64) {
        self.deleted.with_label_values(&[kind.as_str()]).inc_by(objects);
    }

    /// Counts objects that were deleted to make space, which [`Metrics::count_deleted`] counts too.
    pub(super) fn count_evicted(&self, kind: Kind, objects: u64) {
        self.evicted.with_label_values(&[kind.as_str()]).inc_by(objects);
    }
}

/// The metrics of this process.
pub(super) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registered = "each name is registered once; this is a bug";
    Metrics {
        stored: register_int_gauge_vec!(
            "imgcls_data_bytes",
            "Bytes on disk: segments (images), database in use (results, queues), and its write-ahead log",
            &["kind"]
        )
        .expect(registered),
        limit: register_int_gauge!(
            "imgcls_data_limit_bytes",
            "Limit on the bytes of segments and database together (--max-data-bytes)"
        )
        .expect(registered),
        disk_free: register_int_gauge!("imgcls_disk_free_bytes", "Bytes free on the file system of the data directory")
            .expect(registered),
        deleted: register_int_counter_vec!(
            "imgcls_data_deleted_total",
            "Images and results that this process deleted because they were old or space was needed",
            &["kind"]
        )
        .expect(registered),
        evicted: register_int_counter_vec!(
            "imgcls_data_evicted_total",
            "Images and results that this process deleted before --keep-images and --keep-results, for space",
            &["kind"]
        )
        .expect(registered),
        removed_segments: register_int_counter!(
            "imgcls_data_removed_segments_total",
            "Empty segments that this process removed"
        )
        .expect(registered),
    }
});
