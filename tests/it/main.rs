//! Every test that runs the program or reads the repository: one binary, linked once.

mod cli;
mod floors;
mod local_queue;
mod local_store;
mod model;
mod queue_conformance;
mod store_conformance;
mod up;
mod workers;
