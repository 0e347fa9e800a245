//! When a photograph was taken, by its metadata.

use std::io::Cursor;
use std::panic::catch_unwind;

use exif::{DateTime, Exif, In, Reader, Tag, Value};
use jiff::civil;

/// The time in EXIF's `DateTimeOriginal`, such as `2024-05-31T08:15:00+02:00`; without the offset if the camera did not
/// write it. `None` if there is no such time, or the metadata cannot be read.
pub(super) fn datetime_original(image: &[u8]) -> Option<String> {
    // A panic of the reader must not take the session along.
    catch_unwind(|| read(image)).ok().flatten()
}

fn read(image: &[u8]) -> Option<String> {
    let exif = Reader::new().read_from_container(&mut Cursor::new(image)).ok()?;
    let mut time = DateTime::from_ascii(text(&exif, Tag::DateTimeOriginal)?).ok()?;
    // Cameras whose clock was never set write zeros, which is no time.
    let parts = [time.month, time.day, time.hour, time.minute, time.second].map(i8::try_from);
    let [Ok(month), Ok(day), Ok(hour), Ok(minute), Ok(second)] = parts else { return None };
    let local = civil::DateTime::new(i16::try_from(time.year).ok()?, month, day, hour, minute, second, 0).ok()?;
    let offset = text(&exif, Tag::OffsetTimeOriginal).and_then(|offset| time.parse_offset(offset).ok());
    let minutes = offset.and(time.offset).filter(|minutes| minutes.abs() <= 18 * 60);
    Some(match minutes {
        Some(minutes) => {
            let sign = if minutes < 0 { '-' } else { '+' };
            let minutes = minutes.abs();
            format!("{local}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
        None => local.to_string(),
    })
}

fn text(exif: &Exif, tag: Tag) -> Option<&[u8]> {
    match &exif.get_field(tag, In::PRIMARY)?.value {
        Value::Ascii(texts) => texts.first().map(Vec::as_slice),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF header with a directory that refers to an EXIF directory of text fields.
    fn exif_block(fields: &[(u16, &str)]) -> Vec<u8> {
        let entry = |tag: u16, kind: u16, count: u32, value: u32| {
            let mut entry = Vec::new();
            entry.extend(tag.to_le_bytes());
            entry.extend(kind.to_le_bytes());
            entry.extend(count.to_le_bytes());
            entry.extend(value.to_le_bytes());
            entry
        };
        let mut block = b"II*\0\x08\0\0\0".to_vec();
        block.extend(1u16.to_le_bytes());
        block.extend(entry(0x8769, 4, 1, 26));
        block.extend(0u32.to_le_bytes());
        block.extend((fields.len() as u16).to_le_bytes());
        let mut at = 26 + 2 + 12 * fields.len() as u32 + 4;
        let mut texts = Vec::new();
        for (tag, text) in fields {
            let length = text.len() as u32 + 1;
            block.extend(entry(*tag, 2, length, at));
            texts.extend(text.as_bytes());
            texts.push(0);
            at += length;
        }
        block.extend(0u32.to_le_bytes());
        block.extend(texts);
        block
    }

    fn jpeg(block: &[u8]) -> Vec<u8> {
        let length = (block.len() + 8) as u16;
        [b"\xff\xd8\xff\xe1".as_slice(), &length.to_be_bytes(), b"Exif\0\0", block, b"\xff\xd9"].concat()
    }

    #[test]
    fn time_is_read_with_its_offset_if_there_is_one() {
        const TIME: (u16, &str) = (0x9003, "2024:05:31 08:15:07");
        let taken = |fields: &[(u16, &str)]| datetime_original(&jpeg(&exif_block(fields)));
        assert_eq!(taken(&[TIME]).as_deref(), Some("2024-05-31T08:15:07"));
        assert_eq!(taken(&[TIME, (0x9011, "-03:30")]).as_deref(), Some("2024-05-31T08:15:07-03:30"));
        assert_eq!(taken(&[(0x9003, "0000:00:00 00:00:00")]), None);
        assert_eq!(taken(&[(0x9003, "    :  :     :  :  ")]), None);
        assert_eq!(taken(&[(0x9004, "2024:05:31 08:15:07")]), None);
        assert_eq!(datetime_original(b"\xff\xd8 no JPEG"), None);
    }
}
