//! Room: scaling.
