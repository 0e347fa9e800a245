//! Answers that are kept.

use std::path::PathBuf;

use clap::Args;

use crate::config;
use crate::result_cache::CacheConfig;

/// The least that answers may take: the tables alone take some pages.
const LEAST_BYTES: u64 = 1 << 20;

/// The choice to keep answers, and the limit on them.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Keep answers in --cache-dir: an image whose bytes were classified before, by the same model with the same options, is
    /// not classified again, whatever its name
    #[arg(long, env = "IMGCLS_CACHE")]
    pub cache: bool,
    /// Most bytes of the answers that --cache keeps; the least recently used are deleted
    #[arg(long, env = "IMGCLS_CACHE_BYTES", value_name = "BYTES", default_value = "256MiB", value_parser = cache_bytes)]
    pub cache_bytes: u64,
}

impl CacheArgs {
    /// `folder` is the cache directory.
    pub(super) fn config(&self, folder: Option<&PathBuf>) -> Option<CacheConfig> {
        self.cache.then(|| CacheConfig { folder: folder.cloned(), max_bytes: self.cache_bytes })
    }
}

fn cache_bytes(text: &str) -> Result<u64, String> {
    let bytes = config::bytes(text)?;
    if bytes < LEAST_BYTES { Err("give at least 1MiB".to_owned()) } else { Ok(bytes) }
}
