//! Parse → telemetry → runtime → one match → exit code.

fn main() {}
