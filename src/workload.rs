//! Room: workload.
