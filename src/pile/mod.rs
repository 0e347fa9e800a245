//! A pile of images.

pub mod output;
