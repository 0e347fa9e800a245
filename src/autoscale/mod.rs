//! Room: autoscale.
