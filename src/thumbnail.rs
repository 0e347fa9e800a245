//! `imgcls thumbnail`: a small copy of one image, in a process of its own.
//!
//! The web tier starts it for images that a browser cannot show. A hostile file can end only this process: the system limits
//! its memory and its CPU time, and the web tier the time that it may take.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, anyhow};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::model::{self, Limits};

/// The longer side in pixels.
const SIDE: usize = 512;
/// Memory of the process besides what decoding may use.
const OTHER_BYTES: u64 = 1 << 30;

/// Settings of a thumbnail.
#[derive(Debug, Clone)]
pub struct Config {
    /// Limits on the image.
    pub limits: Limits,
}

/// Reads an image from standard input, and writes its small copy in JPEG to standard output.
///
/// # Errors
/// If the image cannot be decoded within its limits.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let Config { limits } = config;
    limit(Resource::As, limits.max_decode_bytes.saturating_add(OTHER_BYTES))?;
    limit(Resource::Cpu, limits.decode_timeout.as_secs() + 1)?;
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin.take(limits.max_upload_bytes + 1).read_to_end(&mut bytes).context("cannot read the image")?;
    if bytes.len() as u64 > limits.max_upload_bytes {
        return Err(anyhow!("the image has more than {} bytes", limits.max_upload_bytes));
    }
    let small = model::thumbnail(&bytes, limits, SIDE).map_err(|error| anyhow!("{}", error.message))?;
    std::io::stdout().lock().write_all(&small).context("cannot write the small copy")
}

fn limit(resource: Resource, value: u64) -> anyhow::Result<()> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .with_context(|| format!("cannot set the limit {resource:?} of this process"))
}
