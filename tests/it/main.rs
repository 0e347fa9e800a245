//! Every test that runs the program or reads the repository, in one binary that is linked once.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests have no public API, and print what they measured or skipped"
)]

mod cloud;
mod cloudwatch;
mod conformance;
mod emulators;
mod exported_model;
mod fault_proxy;
mod harness;
mod heif_file;
mod http_server;
mod image_files;
mod json_schema;
mod labelled;
mod nats_server;
mod onnx_graph;
mod rust_tokens;
mod shim;
mod tiff_file;
mod tiny_model;
mod webdriver;

mod api;
mod aws;
mod aws_calls;
mod bad_messages;
mod batches;
mod batching;
mod bombs;
mod boxes;
mod callbacks;
mod children;
mod cli;
mod clients;
mod closed_loop;
mod compatible_store;
mod dialects;
mod drop_folder;
mod elastic;
mod english;
mod eval;
mod faults;
mod fit;
mod fleet;
mod floors;
mod formats;
mod fuzz_seeds;
mod heads;
mod image_urls;
mod install;
mod isolation;
mod key_refusals;
mod keys;
mod label_sets;
mod legacy_tiers;
mod legacy_wire;
mod loadgen;
mod local_datagrams;
mod local_faults;
mod local_migration;
mod local_queue;
mod local_store;
mod local_transport;
mod log_faults;
mod log_lines;
mod message_size;
mod messages;
mod metrics;
mod mistakes;
mod model;
mod model_command;
mod model_requests;
mod models;
mod nats;
mod object_events;
mod odd_images;
mod overload;
mod page;
mod page_files;
mod pile;
mod pile_output;
mod pile_queue;
mod pile_runs;
mod plan;
mod preprocess_modes;
mod progress;
mod provision;
mod queue_command;
mod queue_conformance;
mod readme;
mod requests;
mod result_cache;
mod retention;
mod serve;
mod service_manager;
mod settings;
mod shared_replies;
mod simulate;
mod status;
mod store_conformance;
mod storm;
mod tiff;
mod toy_backend;
mod traces;
mod tune;
mod up;
mod wire;
mod workers;
