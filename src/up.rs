//! Room: up.
