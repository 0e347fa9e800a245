//! Every test that runs the program or reads the repository: one binary, linked once.

mod conformance;
mod emulators;
mod harness;

mod aws;
mod children;
mod cli;
mod floors;
mod loadgen;
mod local_queue;
mod local_store;
mod messages;
mod model;
mod page;
mod queue_conformance;
mod serve;
mod store_conformance;
mod storm;
mod up;
mod wire;
mod workers;
