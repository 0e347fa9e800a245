//! The pages of a TIFF: its directories in their order, without smaller versions of other pages.

use std::collections::BTreeSet;

use super::directory::Directory;
use super::tag;

/// More pages are not listed, so that a hostile file of small directories costs little.
const MAX_PAGES: usize = 10_000;
/// The bit that says that a page is a smaller version of another one.
const REDUCED_RESOLUTION: u64 = 1;

/// The offsets of the directories of all pages. Empty if the file is no TIFF. A page that cannot be read is the last one:
/// what follows it is unknown.
pub fn tiff_pages(file: &[u8]) -> Vec<u64> {
    if !(super::FORMAT.has_signature)(file) {
        return Vec::new();
    }
    let Ok(first) = Directory::read(file) else { return Vec::new() };
    let Some(mut offset) = first_directory(file, &first) else { return Vec::new() };
    let (mut pages, mut seen) = (Vec::new(), BTreeSet::new());
    // A chain that leads back ends there.
    while pages.len() < MAX_PAGES && seen.len() < 2 * MAX_PAGES && seen.insert(offset) {
        let directory = first.other(offset).ok();
        let kind = directory.as_ref().and_then(|directory| directory.number(tag::NEW_SUBFILE_TYPE)).unwrap_or(0);
        if kind & REDUCED_RESOLUTION == 0 {
            pages.push(offset);
        }
        let Some(next) = directory.and_then(|directory| directory.next) else { break };
        offset = next;
    }
    pages
}

/// The file with another page as its first one.
pub fn tiff_page(file: &[u8], directory: u64) -> Vec<u8> {
    let mut page = file.to_vec();
    let (is_little, is_big_tiff) = (file.starts_with(b"II"), is_big_tiff(file));
    let (at, bytes) = if is_big_tiff { (8, 8) } else { (4, 4) };
    let number = if is_little { directory.to_le_bytes() } else { directory.to_be_bytes() };
    let number = if is_little { &number[..bytes] } else { &number[8 - bytes..] };
    if let Some(place) = page.get_mut(at..at + bytes) {
        place.copy_from_slice(number);
    }
    page
}

fn is_big_tiff(file: &[u8]) -> bool {
    file.get(2..4).is_some_and(|version| version.contains(&43))
}

fn first_directory(file: &[u8], any: &Directory<'_>) -> Option<u64> {
    if is_big_tiff(file) {
        return Some(any.order.u64(file.get(8..16)?.try_into().ok()?));
    }
    Some(any.order.u32(file.get(4..8)?.try_into().ok()?).into())
}
