//! `imgcls thumbnail`, which only the web tier starts.

use clap::Args;

use super::limits::LimitArgs;
use crate::thumbnail;

#[derive(Debug, Args)]
pub struct ThumbnailArgs {
    #[command(flatten)]
    pub limits: LimitArgs,
}

impl ThumbnailArgs {
    pub fn config(&self) -> thumbnail::Config {
        thumbnail::Config { limits: self.limits.limits(1) }
    }
}
