//! The fuzz targets, which run in the root of the repository.
//!
//! A target calls the functions that the program calls, and panics if an invariant is violated. A target must not require
//! that hostile bytes are accepted: an error is a correct result.

mod http;
mod images;
mod parsers;

/// Whether an input is worth keeping as the origin of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// It is an input of another target.
    Reject,
}

pub type Target = fn(&[u8]) -> Verdict;

pub const TARGETS: &[(&str, Target)] = &[
    ("decode_jpeg", |input| images::decode(input, "image/jpeg")),
    ("decode_png", images::decode_png),
    ("decode_webp", |input| images::decode(input, "image/webp")),
    ("decode_gif", |input| images::decode(input, "image/gif")),
    ("decode_bmp", |input| images::decode(input, "image/bmp")),
    ("decode_tiff", |input| images::decode(input, "image/tiff")),
    ("decode_heic", |input| images::decode(input, "image/heic")),
    ("decode_avif", |input| images::decode(input, "image/avif")),
    ("decode_jxl", |input| images::decode(input, "image/jxl")),
    ("decode_jp2", |input| images::decode(input, "image/jp2")),
    ("decode_ico", |input| images::decode(input, "image/vnd.microsoft.icon")),
    ("exif", images::exif),
    ("multipart", http::multipart),
    ("dialects", http::dialects),
    ("message", parsers::message),
    ("ids", parsers::ids),
    ("config", parsers::config),
];
