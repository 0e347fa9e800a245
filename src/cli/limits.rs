//! Limits on images, batches and leases.

use std::time::Duration;

use clap::Args;

use super::parse::{positive, positive_duration};
use crate::config::{self, Backend};
use crate::model::{self, Limits};
use crate::worker::Batching;

/// Limits on what comes from outside.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Largest image file that is accepted
    #[arg(long, env = "IMGCLS_MAX_UPLOAD_BYTES", default_value = "20MiB", value_parser = config::bytes)]
    pub max_upload_bytes: u64,
    /// Most pixels (width × height, as its header says) of an image that is decoded
    #[arg(long, env = "IMGCLS_MAX_PIXELS", default_value_t = 64_000_000)]
    pub max_pixels: u64,
    /// CPU time that decoding one image may take; one that takes more fails as `decode_timeout`
    #[arg(long, env = "IMGCLS_DECODE_TIMEOUT", default_value = "10s", value_parser = positive_duration)]
    pub decode_timeout: Duration,
    /// Memory that one worker may use for decoding, its sessions together; an image that needs more fails as
    /// `too_large_decoded` [default: a quarter of the available memory, shared by the workers that `up` may
    /// start; at least 192MiB]
    #[arg(long, env = "IMGCLS_MAX_DECODE_BYTES", value_parser = config::bytes)]
    pub max_decode_bytes: Option<u64>,
}

/// How long a worker keeps an image.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    /// How long a worker may renew its lease of an image that it has not classified; then another worker gets the image
    #[arg(long, env = "IMGCLS_MAX_LEASE", default_value = "2m", value_parser = positive_duration)]
    pub max_lease: Duration,
}

/// How images are grouped for inference.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Most images inferred together; each session receives as many ahead. Where a batch saves less than 5 % of the time,
    /// it only makes its images wait [default: as measured of the model; on AWS, where calls are billed, at least as
    /// many as take 250 ms, at most 10]
    #[arg(long, env = "IMGCLS_MAX_BATCH_SIZE", value_parser = positive)]
    pub max_batch_size: Option<usize>,
    /// How long a batch that is not full waits for more images once a session is free
    #[arg(long, env = "IMGCLS_MAX_BATCH_DELAY", default_value = "0s", value_parser = config::duration)]
    pub max_batch_delay: Duration,
}

impl LimitArgs {
    /// The limits of one of `workers` processes that share the memory of this machine.
    pub(super) fn limits(&self, workers: u32) -> Limits {
        Limits {
            max_upload_bytes: self.max_upload_bytes,
            max_pixels: self.max_pixels,
            decode_timeout: self.decode_timeout,
            max_decode_bytes: self.max_decode_bytes.unwrap_or_else(|| model::default_decode_bytes(workers)),
        }
    }
}

impl BatchArgs {
    /// The size of the flag, or else what is measured.
    pub(super) fn batching(&self, backend: &Backend) -> Batching {
        let learned = Batching::Learned { calls_are_billed: backend.calls_are_billed() };
        self.max_batch_size.map_or(learned, Batching::Fixed)
    }
}
