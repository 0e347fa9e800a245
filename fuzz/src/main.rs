//! All fuzz targets in one executable. `IMGCLS_FUZZ_TARGET` selects the target; `scripts/fuzz` runs it.
//!
//! Overflows, aborts, timeouts and exceeded memory limits are failures, as panics are.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use targets::{TARGETS, Target, Verdict};

fuzz_target!(|input: &[u8]| -> Corpus {
    static TARGET: OnceLock<Target> = OnceLock::new();
    match TARGET.get_or_init(target)(input) {
        Verdict::Keep => Corpus::Keep,
        Verdict::Reject => Corpus::Reject,
    }
});

fn target() -> Target {
    let wanted = std::env::var("IMGCLS_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    let names = TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.unwrap_or_else(|| panic!("set IMGCLS_FUZZ_TARGET to one of: {names}")).1
}
