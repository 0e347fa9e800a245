//! The transport: how jobs travel from a web process to a worker, and results back.
//!
//! The tiers know one trait, [`Transport`]. Its calls say what a tier wants: a web process submits a job and waits at its
//! inbox; a worker receives deliveries, and completes or releases them; an operator reads depths and dead letters. How a
//! backend does that, and what makes it fast, is its own matter.
//!
//! **What every backend keeps.** The conformance suite (`tests/it/conformance/`) is the contract:
//!
//! - A job whose submission returned is durable, unless the caller said that it waits for the result. Its message can be
//!   received only when its image can be read. A failed submission leaves no image that somebody was told of.
//! - A message is delivered at least once. While a worker holds a delivery the message is invisible to others, until its
//!   visibility timeout has passed. A receipt belongs to one delivery; a stale one does nothing.
//! - A completion writes the result, then replies, then deletes the message, in that order. A job has one result: the first
//!   that was written, whichever process wrote it. A completion after that reports the stored one and replies with it.
//! - The result is the truth. A reply only wakes a waiter; it may be lost, doubled or cut, except in the legacy form.
//! - A message delivered too often becomes a dead letter. It keeps its text, and a worker says why.
//! - Reads never return bytes other than those that were written; they return `Damaged`.
//!
//! **The backends.** [`local`]: a SQLite file and segments on one machine; submission and completion are one transaction
//! each. [`aws`]: SQS and S3; one step after the other. [`nats`]: streams of NATS JetStream, in the same steps. All are made
//! of queues and buckets, and share what follows from that ([`queued`]). Another backend is a folder here that implements [`Transport`] (or the private steps of [`queued`]), a
//! variant of [`Backend`](crate::config::Backend), and a test that runs the suite. `tests/it/toy_backend.rs` is the smallest.

pub mod aws;
mod completion;
mod error;
mod job;
mod key_documents;
pub mod local;
mod message;
pub mod nats;
mod port;
pub mod queued;
mod reader;
mod registry;
mod space;

pub use self::completion::{
    Completed, Completion, DeadLetter, LegacyOutput, NewObjectResult, NewResult, Reply, ReplyOutcome, ReplyTo,
    ResultWrite,
};
pub use self::error::{CompletionError, TransportError};
pub use self::job::{Acknowledge, JobForm, MessageTooLarge, NewJob, SubmitTimes};
pub use self::key_documents::open_key_documents;
pub use self::message::{Delivery, Depth, MAX_BATCH, Receipt, ReceivingProcess};
pub use self::port::{
    DeadLetterScan, Idle, ImageInfo, Inbox, InboxMode, JobPart, Opener, QueueRole, ReceivedReply, Removal,
    Resubmission, ServiceOptions, Transport, Wanted, Withdrawal, WorkerLoad,
};
pub use self::reader::ObjectReader;
pub use self::registry::{open, open_bucket, open_queues, register};
pub use self::space::{Admitted, Measuring, NoSpace, Space, SpaceState};
