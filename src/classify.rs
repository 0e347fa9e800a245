//! `imgcls classify FILE…`: the model alone, no queue.

use std::path::PathBuf;

use crate::config::Limits;

#[derive(Debug, Clone)]
pub struct Config {
    pub files: Vec<PathBuf>,
    pub model: ModelChoice,
    pub limits: Limits,
    pub top_k: u32,
    pub json: bool,
}

pub use crate::model::ModelChoice;
