//! imgcls classifies images through a queue: on one machine with nothing else installed, and on AWS.
//!
//! The rooms in reading order, from thought to action. A room uses rooms on lower floors, never one beside it on its
//! own floor, never one above (`tests/it/floors.rs` holds it; `docs/architecture.md` says why).

// Floor 0: words and pure thought; no I/O, no async, and no clock but the one.
pub mod clock; // the time that decisions are made by: no step of the wall clock moves it
pub mod protocol; // the wire contract: requests, results, names
pub mod retry; // delays between the tries of something that failed
pub mod scaling_policy; // (policy, observation, now) → how many workers; the same on a virtual clock; what it costs
pub mod stats; // latency histogram, quantiles, summaries
pub mod workload; // arrival processes, seeded

// Floor 1: what every process needs.
pub mod aws; // the SDK's configuration, and what its errors mean
pub mod config; // validated names, limits, the choice of the backend
pub mod readiness; // whether what a process stands on answers
pub mod shutdown; // first signal drains, second ends
pub mod sqlite; // the one file of the local backend: transactions, group commit, doorbells
pub mod telemetry; // logs and metrics

// Floor 2: ports and machines.
pub mod instance; // this EC2 instance: protected while it works, drained before it ends
pub mod model; // bytes → pixels → tensor → predictions
pub mod names; // names of queues and buckets; default ones on AWS contain the account
pub mod transport; // jobs to workers and results back: a port, SQLite and segments, SQS and S3

// Floor 3: the tiers.
pub mod autoscaler; // observe → decide → resize worker processes or an Auto Scaling group
pub mod loadgen; // load, measure, check answers, report
pub mod provision; // the AWS side: wanted, found, the difference
pub mod retention; // what the local backend keeps: how long, how much
pub mod web; // HTTP in, answers out
pub mod worker; // one delivery → one result

// Floor 4: the commands.
pub mod classify; // the model alone
pub mod data; // how much is stored; deleting what has ended
pub mod queue_command; // depths; dead letters listed, shown, sent again
pub mod simulate; // policies against a virtual clock: latency, cost, plots
pub mod tune; // how the model runs fastest on this machine
pub mod up; // everything on this machine

// Floor 5: what makes each command's configuration.
pub mod cli; // every flag and variable
