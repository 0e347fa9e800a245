//! The one test binary.

mod loadgen;
