//! The version of the GNU C library that a program or library needs, read from its ELF file.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Type of the section with the versions that a file needs of other libraries (`SHT_GNU_verneed`).
const VERSIONS_NEEDED: u32 = 0x6fff_fffe;
const SECTION_HEADER_BYTES: usize = 64;
const PREFIX: &str = "GLIBC_";

/// A version of the GNU C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Glibc {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The newest version that a 64-bit little-endian file needs. Returns `None` if it names none, as a static program.
pub(super) fn needed_glibc(file: &[u8]) -> Option<Glibc> {
    let headers = usize::try_from(number(file, 40, 8)?).ok()?;
    let count = usize::try_from(number(file, 60, 2)?).ok()?;
    let header = |index: usize| {
        let start = headers.checked_add(index.checked_mul(SECTION_HEADER_BYTES)?)?;
        file.get(start..start.checked_add(SECTION_HEADER_BYTES)?)
    };
    let needed = (0..count).filter_map(header).find(|section| number(section, 4, 4) == Some(VERSIONS_NEEDED.into()))?;
    let names = section(file, header(usize::try_from(number(needed, 40, 4)?).ok()?)?)?;
    versions(section(file, needed)?, names).into_iter().max()
}

/// The content of a section.
fn section<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let (start, length) =
        (usize::try_from(number(header, 24, 8)?).ok()?, usize::try_from(number(header, 32, 8)?).ok()?);
    file.get(start..start.checked_add(length)?)
}

/// Walks the list of libraries, and the list of versions of each.
fn versions(needed: &[u8], names: &[u8]) -> Vec<Glibc> {
    let mut found = Vec::new();
    let at = |offset: usize, field: usize, bytes: usize| number(needed, offset.checked_add(field)?, bytes);
    let step = |offset: usize, by: Option<u64>| {
        let by = usize::try_from(by?).ok().filter(|by| *by > 0)?;
        offset.checked_add(by)
    };
    let mut library = Some(0);
    while let Some(offset) = library {
        let mut version = step(offset, at(offset, 8, 4));
        while let Some(offset) = version {
            let name = at(offset, 8, 4).and_then(|name| text(names, usize::try_from(name).ok()?));
            found.extend(name.and_then(glibc));
            version = step(offset, at(offset, 12, 4));
        }
        library = step(offset, at(offset, 12, 4));
    }
    found
}

/// Parses `GLIBC_2.34`, or `GLIBC_2.2.5`. Other names are of other libraries.
fn glibc(name: &str) -> Option<Glibc> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.').map(str::parse);
    Some(Glibc { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
}

fn text(names: &[u8], start: usize) -> Option<&str> {
    let rest = names.get(start..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], start: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(start..start.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_program_needs_the_library_that_runs_it() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needed = needed_glibc(&program).expect("it is linked dynamically");
        assert!(needed >= Glibc { major: 2, minor: 17 } && needed < Glibc { major: 3, minor: 0 }, "{needed}");
    }

    #[test]
    fn damaged_files_need_nothing_and_end() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 20, 63, 64, 4_096, program.len() / 2] {
            needed_glibc(&program[..length]);
        }
        assert_eq!((glibc("GLIBC_2.2.5"), glibc("GCC_3.0")), (Some(Glibc { major: 2, minor: 2 }), None));
        assert!(Glibc { major: 2, minor: 9 } < Glibc { major: 2, minor: 36 });
    }
}
