//! The errors of this decoder.

use crate::error::{PrepareError, undecodable};

pub(super) fn damaged() -> PrepareError {
    undecodable("the TIFF is damaged")
}

pub(super) fn truncated() -> PrepareError {
    undecodable("the TIFF is truncated")
}

pub(super) fn unsupported(feature: impl std::fmt::Display) -> PrepareError {
    undecodable(format!("the TIFF uses {feature}, which is not supported"))
}
