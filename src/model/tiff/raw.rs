//! Camera raw images that are laid out like TIFF: the largest JPEG preview in them is classified.

use super::directory::{ByteOrder, Directory};
use super::tag;
use crate::jpeg;

/// Maximum number of directories in which previews are searched.
const MAX_DIRECTORIES: usize = 16;

const COLOUR_FILTER_ARRAY: u64 = 32_803;
const LINEAR_RAW: u64 = 34_892;

/// The beginning of a camera raw image of Fujifilm.
pub(crate) const FUJIFILM: &[u8] = b"FUJIFILMCCD-RAW ";

/// The preview in a file of Fujifilm, which states its offset and length.
pub(crate) fn fujifilm_preview(file: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_be_bytes(*file.get(at..)?.first_chunk()?) as usize);
    let (offset, length) = (number(84)?, number(88)?);
    let preview = file.get(offset..)?;
    Some(&preview[..length.min(preview.len())]).filter(|preview| jpeg::is_displayable(preview))
}

/// The beginnings of files of Olympus and OM System, which are a TIFF but for these four bytes.
pub(crate) const OLYMPUS: [&[u8]; 3] = [b"IIRO", b"IIRS", b"MMOR"];

/// The kind of a file with the structure of a TIFF.
pub(super) enum Kind<'a> {
    Image,
    /// A camera raw image, with its largest preview.
    Raw(Option<&'a [u8]>),
}

/// Reads all directories of a file, unless the first one contains an ordinary image.
pub(super) fn kind_of<'a>(file: &'a [u8], first: &Directory<'a>) -> Kind<'a> {
    let is_canon = file.get(8..10) == Some(b"CR");
    let is_panasonic = file.get(2..4) == Some(b"U\0");
    let is_olympus = OLYMPUS.iter().any(|signature| file.starts_with(signature));
    let has_parts = first.count(tag::SUB_DIRECTORIES) > 0 || first.number(tag::DNG_VERSION).is_some();
    if !(is_canon || is_panasonic || is_olympus || has_parts || is_sensor_data(first)) {
        return Kind::Image;
    }
    let mut previews: Vec<&[u8]> = previews_of(first);
    previews.extend(olympus_preview(file, first).filter(|_| is_olympus));
    let mut is_raw = is_canon || is_panasonic || is_olympus || is_sensor_data(first);
    let mut offsets: Vec<u64> = first.numbers(tag::SUB_DIRECTORIES).take(MAX_DIRECTORIES).collect();
    offsets.extend(first.next);
    for index in 0..MAX_DIRECTORIES {
        let Some(&offset) = offsets.get(index) else { break };
        let Ok(directory) = first.other(offset) else { continue };
        is_raw |= is_sensor_data(&directory);
        previews.extend(previews_of(&directory));
        offsets.extend(directory.numbers(tag::SUB_DIRECTORIES).take(MAX_DIRECTORIES));
        offsets.extend(directory.next);
    }
    if !is_raw {
        return Kind::Image;
    }
    Kind::Raw(previews.into_iter().max_by_key(|preview| preview.len()))
}

/// The preview that Olympus names in its maker note. Offsets there count from the note, in the form of older cameras from
/// the beginning of the file.
fn olympus_preview<'a>(file: &'a [u8], first: &Directory<'a>) -> Option<&'a [u8]> {
    let exif = first.other(first.number(tag::EXIF_DIRECTORY)?).ok()?;
    let at = exif.offset(tag::MAKER_NOTE)?;
    let from_note = file.get(usize::try_from(at).ok()?..)?;
    let (data, start, order) = if from_note.starts_with(b"OLYMPUS\0") {
        (from_note, 12, order_of(from_note.get(8..10)?)?)
    } else if from_note.starts_with(b"OM SYSTEM\0") {
        (from_note, 16, order_of(from_note.get(12..14)?)?)
    } else if from_note.starts_with(b"OLYMP\0") {
        (file, at.checked_add(8)?, first.order)
    } else {
        return None;
    };
    let note = Directory::within(data, order, start).ok()?;
    // The directory of the settings lies at an offset, or is itself the value of the tag.
    let settings = match note.count(tag::OLYMPUS_SETTINGS) {
        1 => note.number(tag::OLYMPUS_SETTINGS)?,
        _ => note.offset(tag::OLYMPUS_SETTINGS)?,
    };
    let settings = note.other(settings).ok()?;
    let preview = note.bytes(settings.number(tag::OLYMPUS_PREVIEW)?, settings.number(tag::OLYMPUS_PREVIEW_LENGTH)?);
    jpeg::is_displayable(preview).then_some(preview)
}

fn order_of(mark: &[u8]) -> Option<ByteOrder> {
    match mark {
        b"II" => Some(ByteOrder::Little),
        b"MM" => Some(ByteOrder::Big),
        _ => None,
    }
}

fn is_sensor_data(directory: &Directory) -> bool {
    matches!(directory.number(tag::PHOTOMETRIC), Some(COLOUR_FILTER_ARRAY | LINEAR_RAW))
}

/// The JPEGs in a directory that can be shown. Sensor data may be a lossless JPEG.
fn previews_of<'a>(directory: &Directory<'a>) -> Vec<&'a [u8]> {
    let range = |offset, length| Some(directory.bytes(directory.number(offset)?, directory.number(length)?));
    let strip = || {
        let is_jpeg = matches!(directory.number(tag::COMPRESSION), Some(6 | 7));
        let is_one = directory.count(tag::STRIP_OFFSETS) == 1;
        range(tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS).filter(|_| is_jpeg && is_one)
    };
    let candidates =
        [range(tag::JPEG_INTERCHANGE, tag::JPEG_INTERCHANGE_LENGTH), strip(), directory.raw(tag::PANASONIC_PREVIEW)];
    candidates.into_iter().flatten().filter(|candidate| jpeg::is_displayable(candidate)).collect()
}
