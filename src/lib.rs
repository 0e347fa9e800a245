//! imgcls classifies images through a queue: on one machine with nothing else installed, and on AWS.
//!
//! The modules are listed in reading order, from pure functions to commands. A module uses modules of lower floors only,
//! never one of its own floor or of a higher one. `tests/it/floors.rs` checks this, and `docs/architecture.md` gives the
//! reasons.
//!
//! # Floor 0: the model, a crate of its own
//!
//! - [`model`]: image bytes to pixels, to a tensor, to predictions. It knows nothing of the service.
//!
//! # Floor 1: pure functions without I/O
//!
//! - [`clock`]: the monotonic time that decisions use, which no change of the wall clock moves.
//! - [`protocol`]: the wire contract, with requests, results and names.
//! - [`retry`]: delays between the tries of an operation that failed.
//! - [`scaling_policy`]: the number of workers for an observation, its simulation on a virtual clock, and its cost.
//! - [`spreadsheet`]: texts in CSV that no spreadsheet runs.
//! - [`stats`]: latency histograms, quantiles and summaries.
//! - [`threshold`]: conditions on measured values.
//! - [`workload`]: arrival processes with a random seed.
//!
//! # Floor 2: the base of every process
//!
//! - [`aws`]: the configuration of the SDK, and the meaning of its errors.
//! - [`config`]: validated names and the choice of the backend.
//! - [`http_client`]: what the clients of HTTP/1 share.
//! - [`keys`]: the keys of clients, what is stored of them, and which jobs belong to them.
//! - [`plot`]: charts in SVG and PNG files.
//! - [`readiness`]: whether the dependencies of a process answer.
//! - [`service_manager`]: reports to systemd that the process is ready, alive or stopping.
//! - [`shutdown`]: the first signal drains the process, the second ends it.
//! - [`sqlite`]: the file of the local backend, with its transactions, group commit and notifications.
//! - [`telemetry`]: logs, metrics, traces and standard output.
//!
//! # Floor 3: the transport and the machine
//!
//! - [`instance`]: this EC2 instance, which is protected while it works and drained before it ends.
//! - [`names`]: names of queues and buckets; the defaults on AWS contain the account.
//! - [`outbound`]: calls to addresses that clients name, and the guard that decides which of them are allowed.
//! - [`result_cache`]: answers about images that were classified before, by the content of the image.
//! - [`transport`]: the port that carries jobs to workers and results back, with its backends.
//!
//! # Floor 4: the tiers
//!
//! - [`autoscaler`]: observes the queue, decides, and resizes worker processes or an Auto Scaling group.
//! - [`dataset`]: labelled images, classified on all cores, and what was taken for what.
//! - [`loadgen`]: sends load, measures it, checks the answers and reports.
//! - [`model_sync`]: downloads the models of a stack to a machine, and follows their current versions.
//! - [`provision`]: compares the AWS resources of a stack with the wanted ones, and applies the difference.
//! - [`retention`]: how much the local backend keeps, and for how long.
//! - [`web`]: the HTTP API and the page.
//! - [`worker`]: receives jobs, classifies their images and completes them.
//!
//! # Floor 5: the commands
//!
//! - [`batch_command`]: lists batches, shows how far they are, prints their results, cancels and retries them.
//! - [`data`]: reports how much is stored, and deletes what is no longer needed.
//! - [`eval`]: measures how often a model is right, and compares two models.
//! - [`fit`]: trains a model of own classes on the features of another.
//! - [`keys_command`]: creates, lists and revokes keys of clients.
//! - [`model_command`]: adds models, lists and checks them, and chooses the versions in use.
//! - [`pile`]: classifies any number of images from any source, also those that come into a folder, and writes a table.
//! - [`queue_command`]: shows depths and dead letters, sends dead letters again and purges queues.
//! - [`simulate`]: runs scaling policies on a virtual clock, and reports latency and cost.
//! - [`status`]: shows the state of a service, once or live.
//! - [`thumbnail`]: makes a small copy of one image in a process of its own.
//! - [`tune`]: finds the fastest settings of the model on this machine.
//! - [`up`]: runs a whole service on this machine.
//! - [`version_command`]: what exactly runs here.
//!
//! # Floor 6: the command line
//!
//! - [`cli`]: every flag and environment variable, and the configuration of each command.

pub use imgcls_model as model;

pub mod clock;
pub mod protocol;
pub mod retry;
pub mod scaling_policy;
pub(crate) mod spreadsheet;
pub mod stats;
pub mod threshold;
pub mod workload;

pub mod aws;
pub mod config;
pub(crate) mod http_client;
pub mod keys;
pub mod plot;
pub mod readiness;
pub mod service_manager;
pub mod shutdown;
pub mod sqlite;
pub mod telemetry;

pub mod instance;
pub mod names;
pub mod outbound;
pub mod result_cache;
pub mod transport;

pub mod autoscaler;
pub(crate) mod dataset;
pub mod loadgen;
pub mod model_sync;
pub mod provision;
pub mod retention;
pub mod web;
pub mod worker;

pub mod batch_command;
pub mod data;
pub mod eval;
pub mod fit;
pub mod keys_command;
pub mod model_command;
pub mod pile;
pub mod queue_command;
pub mod simulate;
pub mod status;
pub mod thumbnail;
pub mod tune;
pub mod up;
pub mod version_command;

pub mod cli;
