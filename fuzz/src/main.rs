//! Fuzz targets, one program: `IMGCLS_FUZZ_TARGET` names the target, `scripts/fuzz` runs it.
//!
//! A target calls what the program itself calls and panics where a rule of it is broken; so do overflows, aborts, time
//! and memory limits. What a target must never do is judge the answer to hostile bytes: a refusal is a good answer.

#![no_main]

mod http;
mod parsers;
mod pictures;

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};

type Target = fn(&[u8]) -> Corpus;

const TARGETS: [(&str, Target); 11] = [
    ("decode_jpeg", pictures::jpeg),
    ("decode_png", pictures::png),
    ("decode_webp", pictures::webp),
    ("decode_gif", pictures::gif),
    ("decode_bmp", pictures::bmp),
    ("decode_tiff", pictures::tiff),
    ("exif", pictures::exif),
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
