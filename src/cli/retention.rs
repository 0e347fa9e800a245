//! How long and how much data is kept.

use std::time::Duration;

use clap::Args;

use crate::config::{self, Backend, Names};
use crate::retention::{self, Keep};

/// How long data is kept, locally and on AWS, where the lifecycle rules of the buckets count in whole days.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// How long images are kept after they were stored; those of waiting jobs and of dead letters are kept longer
    #[arg(long, env = "IMGCLS_KEEP_IMAGES", default_value = "7d", value_parser = config::keep)]
    pub keep_images: Duration,
    /// How long results are kept after they were stored, and at least as long as their images
    #[arg(long, env = "IMGCLS_KEEP_RESULTS", default_value = "30d", value_parser = config::keep)]
    pub keep_results: Duration,
}

#[derive(Debug, Args)]
pub struct RetentionArgs {
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Local backend: most bytes of stored data; the oldest images of finished jobs are deleted first, then results. If
    /// waiting jobs alone take more, images are refused [default: the used space and half of the free space at start]
    #[arg(long, env = "IMGCLS_MAX_DATA_BYTES", value_parser = config::data_bytes)]
    pub max_data_bytes: Option<u64>,
}

impl KeepArgs {
    pub fn keep(&self) -> Keep {
        Keep { images: self.keep_images, results: self.keep_results }
    }
}

impl RetentionArgs {
    pub fn config(&self, backend: Backend, names: Names) -> retention::Config {
        retention::Config { backend, names, keep: self.keep.keep(), max_data_bytes: self.max_data_bytes }
    }
}
