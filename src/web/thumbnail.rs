//! Small copies of images in JPEG, for browsers that cannot show their format.
//!
//! The image is decoded by a process of its own (`imgcls thumbnail`), because a decoder may be stopped by its limits at any
//! time, and this process serves other clients.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::error::Problem;
use super::jobs;
use crate::model::Limits;
use crate::protocol;
use crate::transport::ObjectReader;

/// How many images are decoded for people at a time.
const MAX_PROCESSES: usize = 2;
/// How long a client waits for one of them.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process may take beside decoding, whose CPU time is limited by itself.
const PROCESS_GRACE: Duration = Duration::from_secs(10);
/// A small copy takes far less.
const MAX_THUMBNAIL_BYTES: u64 = 4 << 20;

/// The limits of small copies.
pub(super) struct Thumbnails {
    permits: Semaphore,
    limits: Limits,
}

impl Thumbnails {
    pub(super) fn new(limits: Limits) -> Thumbnails {
        Thumbnails { permits: Semaphore::new(MAX_PROCESSES), limits }
    }

    /// Waits until one of the processes is free.
    ///
    /// # Errors
    /// 503 if that takes too long.
    pub(super) async fn admit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let permit = tokio::time::timeout(QUEUE_TIMEOUT, self.permits.acquire()).await;
        let too_many = || Problem::full("too many small copies are being made; try again in a moment");
        permit.ok().and_then(Result::ok).ok_or_else(too_many)
    }

    /// Makes the small copy of an image.
    ///
    /// # Errors
    /// 404 for a job that was withdrawn, 422 for an image that cannot be decoded within its limits, and 503.
    pub(super) async fn make(&self, id: Uuid, image: ObjectReader) -> Result<Bytes, Problem> {
        let longest = self.limits.decode_timeout + PROCESS_GRACE;
        let made = tokio::time::timeout(longest, make(self, id, image)).await;
        made.unwrap_or_else(|_elapsed| Err(Problem::no_thumbnail(id)))
    }

    fn start(&self) -> std::io::Result<Child> {
        let Limits { max_upload_bytes, max_pixels, decode_timeout, max_decode_bytes } = self.limits;
        Command::new(std::env::current_exe()?)
            .arg("thumbnail")
            .arg(format!("--max-upload-bytes={max_upload_bytes}"))
            .arg(format!("--max-pixels={max_pixels}"))
            .arg(format!("--decode-timeout={}ms", decode_timeout.as_millis()))
            .arg(format!("--max-decode-bytes={max_decode_bytes}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Passes the image to a process, and reads the small copy. The process is killed when this future is dropped.
async fn make(thumbnails: &Thumbnails, id: Uuid, mut image: ObjectReader) -> Result<Bytes, Problem> {
    let first = image.next().await.transpose().map_err(|error| jobs::read_problem(&error))?.unwrap_or_default();
    if first == protocol::WITHDRAWN_IMAGE {
        return Err(Problem::no_such_job(&id.to_string()));
    }
    let failed = |error: &std::io::Error| {
        tracing::warn!(%error, %id, "cannot run a process for a small copy of an image");
        Problem::unavailable("a small copy cannot be made at the moment; try again shortly")
    };
    let mut process = thumbnails.start().map_err(|error| failed(&error))?;
    let (Some(stdin), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
        return Err(Problem::no_thumbnail(id));
    };
    let mut small = Vec::new();
    let mut stdout = stdout.take(MAX_THUMBNAIL_BYTES);
    let (sent, read) = tokio::join!(send(stdin, first, image), stdout.read_to_end(&mut small));
    sent?;
    read.map_err(|error| failed(&error))?;
    let status = process.wait().await.map_err(|error| failed(&error))?;
    if status.success() && !small.is_empty() { Ok(small.into()) } else { Err(Problem::no_thumbnail(id)) }
}

/// A process that refuses an image closes its end early, which is no error here: its exit code tells it.
async fn send(mut stdin: ChildStdin, first: Bytes, mut image: ObjectReader) -> Result<(), Problem> {
    let mut piece = Some(first);
    while let Some(bytes) = piece {
        if stdin.write_all(&bytes).await.is_err() {
            return Ok(());
        }
        piece = image.next().await.transpose().map_err(|error| jobs::read_problem(&error))?;
    }
    Ok(())
}
