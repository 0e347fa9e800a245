//! All fuzz targets in one executable. `IMGCLS_FUZZ_TARGET` selects the target; `scripts/fuzz` runs it.
//!
//! A target calls the functions that the program calls, and panics if an invariant is violated. Overflows, aborts,
//! timeouts and exceeded memory limits are failures too. A target must not require that hostile bytes are accepted: an
//! error is a correct result.

#![no_main]

mod http;
mod images;
mod parsers;

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};

type Target = fn(&[u8]) -> Corpus;

const TARGETS: [(&str, Target); 16] = [
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
    ("message", parsers::message),
    ("ids", parsers::ids),
    ("config", parsers::config),
];

fuzz_target!(|input: &[u8]| -> Corpus {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(target)(input)
});

fn target() -> Target {
    let wanted = std::env::var("IMGCLS_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    let names = TARGETS.map(|(name, _)| name).join(", ");
    found.unwrap_or_else(|| panic!("set IMGCLS_FUZZ_TARGET to one of: {names}")).1
}
