//! When a photograph was taken, by its EXIF.

use std::io::Cursor;
use std::panic::catch_unwind;

use exif::{DateTime, Error, Exif, In, Reader, Tag, Value};
use jiff::civil;

/// Returns when a photograph was taken, by the fields `DateTimeOriginal` and `OffsetTimeOriginal` of the EXIF in a JPEG,
/// PNG, WebP, TIFF or HEIF file: `2024-05-01T12:34:56`, with `+02:00` if the camera stored the offset from UTC. `None`
/// without such a time, if it is not a time, and if the metadata cannot be read.
pub fn datetime_original(image: &[u8]) -> Option<String> {
    // A panic of the reader must not take the caller along.
    catch_unwind(|| read(image)).ok().flatten()
}

fn read(image: &[u8]) -> Option<String> {
    // A damaged field, such as the notes of a camera that a program moved, must not hide the others.
    let mut reader = Reader::new();
    let exif = match reader.continue_on_error(true).read_from_container(&mut Cursor::new(image)) {
        Ok(exif) => exif,
        Err(Error::PartialResult(partial)) => partial.into_inner().0,
        Err(_) => return None,
    };
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

    /// A block of EXIF with a time and, unless it is empty, an offset.
    fn exif(is_big_endian: bool, time: &str, offset: &str) -> Vec<u8> {
        let short = |number: u16| if is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
        let long = |number: u32| if is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
        let mut block = if is_big_endian { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        let entry = |tag: u16, kind: u16, count: usize, value: usize| {
            [&short(tag)[..], &short(kind), &long(count as u32), &long(value as u32)].concat()
        };
        block.extend(long(8));
        block.extend(short(1));
        // The field of the first directory that leads to the directory of EXIF.
        block.extend(entry(0x8769, 4, 1, 26));
        block.extend(long(0));
        let count = 2 + usize::from(!offset.is_empty());
        let texts_at = 26 + 2 + 12 * count + 4;
        block.extend(short(count as u16));
        block.extend(entry(0x9003, 2, time.len() + 1, texts_at));
        if !offset.is_empty() {
            block.extend(entry(0x9011, 2, offset.len() + 1, texts_at + time.len() + 1));
        }
        // The notes of the camera lie outside the file.
        block.extend(entry(0x927c, 7, 1_000, 1_000_000));
        block.extend(long(0));
        block.extend_from_slice(format!("{time}\0{offset}\0").as_bytes());
        block
    }

    fn jpeg(block: &[u8]) -> Vec<u8> {
        let segment = [b"Exif\0\0", block].concat();
        let mut file = b"\xff\xd8\xff\xe0\x00\x04xx\xff\xe1".to_vec();
        file.extend_from_slice(&(segment.len() as u16 + 2).to_be_bytes());
        file.extend_from_slice(&segment);
        file.extend_from_slice(b"\xff\xda\x00\x02\xff\xd9");
        file
    }

    fn png(block: &[u8]) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, data) in [(b"IHDR", &[0; 13][..]), (b"eXIf", block), (b"IEND", &[])] {
            file.extend_from_slice(&(data.len() as u32).to_be_bytes());
            file.extend_from_slice(kind);
            file.extend_from_slice(data);
            file.extend_from_slice(&[0; 4]);
        }
        file
    }

    fn webp(block: &[u8]) -> Vec<u8> {
        let mut chunks = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0\0\0\0\0\0\0EXIF".to_vec();
        chunks.extend_from_slice(&(block.len() as u32).to_le_bytes());
        chunks.extend_from_slice(block);
        chunks.resize(chunks.len().next_multiple_of(2), 0);
        [&b"RIFF"[..], &(chunks.len() as u32).to_le_bytes(), &chunks].concat()
    }

    #[test]
    fn time_is_read_from_every_container_past_a_damaged_field() {
        for is_big_endian in [false, true] {
            let block = exif(is_big_endian, "2024:05:01 12:34:56", "+02:00");
            for (name, file) in [("JPEG", jpeg(&block)), ("PNG", png(&block)), ("WebP", webp(&block)), ("TIFF", block)]
            {
                assert_eq!(datetime_original(&file).as_deref(), Some("2024-05-01T12:34:56+02:00"), "{name}");
            }
        }
        assert_eq!(datetime_original(b"BM"), None);
        assert_eq!(datetime_original(b"\xff\xd8\xff\xd9"), None);
    }

    #[test]
    fn text_that_is_no_time_is_left_out() {
        let read = |text, offset| datetime_original(&jpeg(&exif(false, text, offset)));
        for text in [
            "",
            "0000:00:00 00:00:00",
            "    :  :     :  :  ",
            "2024:13:01 12:34:56",
            "2024:02:30 12:34:56",
            "2024:05:01 24:00:00",
            "2024:05:01",
            "=cmd|'/c calc'!A1 00:00:00",
            "2024:05:01 12:34:5é",
        ] {
            assert_eq!(read(text, "+02:00"), None, "{text:?}");
        }
        assert_eq!(read("2024:05:01 12:34:56", "-03:30").as_deref(), Some("2024-05-01T12:34:56-03:30"));
        for offset in ["", "2:00", "+19:00", "=12345"] {
            assert_eq!(read("2024:05:01 12:34:56", offset).as_deref(), Some("2024-05-01T12:34:56"), "{offset}");
        }
    }

    #[test]
    fn truncated_files_are_read_without_a_panic() {
        let block = exif(false, "2024:05:01 12:34:56", "+02:00");
        for file in [jpeg(&block), png(&block), webp(&block), block.clone()] {
            for length in 0..file.len() {
                let _ = datetime_original(&file[..length]);
            }
            for at in 0..file.len() {
                let mut changed = file.clone();
                changed[at] = 0xff;
                let _ = datetime_original(&changed);
            }
        }
    }
}
