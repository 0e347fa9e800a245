//! All integration tests in one binary: it links once.

mod cli;
mod floors;
mod up;
mod workers;
