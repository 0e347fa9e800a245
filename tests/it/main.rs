//! Every test that runs the program or reads the repository: one binary, linked once.

mod conformance;
mod emulators;
mod fault_proxy;
mod harness;
mod http_server;

mod aws;
mod aws_calls;
mod bad_messages;
mod children;
mod cli;
mod elastic;
mod faults;
mod fleet;
mod floors;
mod loadgen;
mod local_queue;
mod local_store;
mod message_size;
mod messages;
mod model;
mod original;
mod page;
mod provision;
mod queue_command;
mod queue_conformance;
mod seed_wire;
mod serve;
mod shared_replies;
mod simulate;
mod store_conformance;
mod storm;
mod traces;
mod up;
mod wire;
mod workers;
