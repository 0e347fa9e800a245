//! imgcls classifies images through a queue: on one machine with nothing else installed, and on AWS.
//!
//! The rooms (top-level modules) are listed in reading order, from pure logic to the command line. A room uses only rooms
//! on lower floors, never one on its own floor or above. `tests/it/floors.rs` checks this, and `docs/architecture.md`
//! gives the reasons.

// Floor 0: data types and pure logic, without I/O, async code, or any clock except `clock`.
pub mod clock; // the service time, which does not follow steps of the wall clock
pub mod protocol; // the wire contract: requests, results, names
pub mod retry; // delays between attempts
pub mod scaling_policy; // how many workers to run: the policies, and a simulation with its costs
pub mod stats; // latency histogram, quantiles, summaries
pub mod workload; // arrival processes

// Floor 1: what every process needs.
pub mod aws; // the configuration of the AWS SDK, and the meaning of its errors
pub mod config; // validated names and limits, and the choice of the backend
pub mod readiness; // whether the dependencies of a process answer
pub mod shutdown; // signals: the first one drains, the second one ends the process
pub mod sqlite; // the database of the local backend: transactions, group commit, notifications
pub mod telemetry; // logs, metrics, traces

// Floor 2: the transport, the model and the machine.
pub mod instance; // protects this EC2 instance while it works, and drains it before it terminates
pub mod model; // from bytes to pixels, tensor and predictions
pub mod names; // names of queues and buckets; the default ones on AWS contain the account
pub mod transport; // jobs to workers and results back: a port, and its backends on SQLite and on SQS with S3

// Floor 3: the tiers.
pub mod autoscaler; // observes the load and resizes worker processes or an Auto Scaling group
pub mod loadgen; // sends load, measures, checks answers
pub mod provision; // plans and applies the AWS resources of a stack
pub mod retention; // limits the age and size of the data of the local backend
pub mod web; // the web tier: HTTP requests and answers
pub mod worker; // the worker tier: from a delivery to a result

// Floor 4: the commands.
pub mod classify; // runs the model alone
pub mod data; // shows how much is stored, and deletes data of finished jobs
pub mod queue_command; // shows depths and dead letters, redrives and purges
pub mod simulate; // simulates policies: latency, cost, charts
pub mod tune; // measures how the model runs fastest on this machine
pub mod up; // runs all tiers on this machine

// Floor 5: the configuration of every command.
pub mod cli; // every flag and environment variable
