//! When a photograph was taken, by its EXIF.

use jiff::civil::DateTime;

use super::exif::Metadata;
use super::{decode, png, webp};

/// The field of the first directory that leads to the directory of EXIF.
const EXIF_DIRECTORY: u16 = 0x8769;
const DATETIME_ORIGINAL: u16 = 0x9003;
const OFFSET_TIME_ORIGINAL: u16 = 0x9011;

/// Returns when a photograph was taken, by the fields `DateTimeOriginal` and `OffsetTimeOriginal` of the EXIF in a JPEG,
/// PNG, WebP or TIFF file: `2024-05-01T12:34:56`, with `+02:00` if the camera stored the offset from UTC. `None` without
/// such a time, and if it is not a time.
pub fn datetime_original(bytes: &[u8]) -> Option<String> {
    let metadata = match decode::sniff(bytes)? {
        "image/jpeg" => of_jpeg(bytes),
        "image/png" => png::metadata(bytes),
        "image/webp" => webp::metadata(bytes),
        "image/tiff" => Metadata::of_tiff(bytes),
        _ => return None,
    };
    let exif = metadata.exif()?;
    let time = iso_time(exif.text_in(EXIF_DIRECTORY, DATETIME_ORIGINAL)?)?;
    let offset = exif.text_in(EXIF_DIRECTORY, OFFSET_TIME_ORIGINAL).and_then(iso_offset);
    Some(time + &offset.unwrap_or_default())
}

/// The metadata of a JPEG, in the segments before the first scan.
fn of_jpeg(bytes: &[u8]) -> Metadata<'_> {
    const APPLICATION_1: u8 = 0xe1;
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(offset) = memchr::memchr(0xff, rest) {
        match rest.get(offset + 1..) {
            // A byte that fills, and markers without content.
            Some(after @ [0xff, ..] | [0x00 | 0x01 | 0xd0..=0xd8, after @ ..]) => rest = after,
            Some([marker, high, low, after @ ..]) if ![START_OF_SCAN, END_OF_IMAGE].contains(marker) => {
                let length = usize::from(u16::from_be_bytes([*high, *low])).saturating_sub(2);
                let Some((content, behind)) = after.split_at_checked(length) else { break };
                if *marker == APPLICATION_1 {
                    metadata.add_jpeg_segment(content);
                }
                rest = behind;
            }
            _ => break,
        }
    }
    metadata
}

/// The time in the form of ISO 8601. EXIF writes `2024:05:01 12:34:56`; some programs write the date with hyphens.
fn iso_time(text: &str) -> Option<String> {
    let text = text.trim();
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.split([':', '-']);
    let mut time = time.trim().split(':');
    let mut next_date = |digits| number(date.next()?, digits);
    let (year, month, day) = (next_date(4)?, next_date(2)?, next_date(2)?);
    let mut next_time = || number(time.next()?, 2);
    let (hour, minute, second) = (next_time()?, next_time()?, next_time()?);
    if date.next().is_some() || time.next().is_some() || year == 0 {
        return None;
    }
    let small = |number: i16| i8::try_from(number).ok();
    let time = DateTime::new(year, small(month)?, small(day)?, small(hour)?, small(minute)?, small(second)?, 0).ok()?;
    Some(time.to_string())
}

/// A number of so many digits.
fn number(text: &str, digits: usize) -> Option<i16> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The offset from UTC, `+02:00` or `Z`.
fn iso_offset(text: &str) -> Option<String> {
    let text = text.trim();
    if text == "Z" {
        return Some("Z".to_owned());
    }
    let (hours, minutes) = text.strip_prefix(['+', '-'])?.split_once(':')?;
    let is_valid = number(hours, 2)? <= 14 && number(minutes, 2)? <= 59;
    is_valid.then(|| text.to_owned())
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
        block.extend(entry(EXIF_DIRECTORY, 4, 1, 26));
        block.extend(long(0));
        let count = 1 + usize::from(!offset.is_empty());
        let texts_at = 26 + 2 + 12 * count + 4;
        block.extend(short(count as u16));
        block.extend(entry(DATETIME_ORIGINAL, 2, time.len() + 1, texts_at));
        if !offset.is_empty() {
            block.extend(entry(OFFSET_TIME_ORIGINAL, 2, offset.len() + 1, texts_at + time.len() + 1));
        }
        block.extend(long(0));
        block.extend_from_slice(format!("{time}\0{offset}\0").as_bytes());
        block
    }

    fn jpeg(block: &[u8]) -> Vec<u8> {
        let segment = [b"Exif\0\0", block].concat();
        let mut file = b"\xff\xd8\xff\xe0\x00\x04xx\xff\xff\xe1".to_vec();
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
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\0\0\0\0\0\0EXIF".to_vec();
        file.extend_from_slice(&(block.len() as u32).to_le_bytes());
        file.extend_from_slice(block);
        file
    }

    #[test]
    fn time_is_read_from_every_container() {
        for is_big_endian in [false, true] {
            let block = exif(is_big_endian, "2024:05:01 12:34:56", "+02:00");
            for file in [jpeg(&block), png(&block), webp(&block), block.clone()] {
                assert_eq!(datetime_original(&file).as_deref(), Some("2024-05-01T12:34:56+02:00"));
            }
            let block = exif(is_big_endian, "2024:05:01 12:34:56", "");
            assert_eq!(datetime_original(&jpeg(&block)).as_deref(), Some("2024-05-01T12:34:56"));
        }
        assert_eq!(datetime_original(b"BM"), None);
        assert_eq!(datetime_original(b"\xff\xd8\xff\xd9"), None);
    }

    #[test]
    fn what_is_not_a_time_is_left_out() {
        for text in [
            "",
            "0000:00:00 00:00:00",
            "    :  :     :  :  ",
            "2024:13:01 12:34:56",
            "2024:02:30 12:34:56",
            "2024:05:01 24:00:00",
            "2024:05:01",
            "2024:05:01 12:34:56:00",
            "=cmd|'/c calc'!A1 00:00:00",
            "2024:05:01 12:34:5é",
        ] {
            assert_eq!(datetime_original(&exif(false, text, "+02:00")), None, "{text:?}");
        }
        let read = |text, offset| datetime_original(&exif(false, text, offset));
        assert_eq!(read("2024-05-01T12:34:56 ", "Z").as_deref(), Some("2024-05-01T12:34:56Z"));
        for offset in ["2:00", "+15:00", "+02:60", "=1", "+0200"] {
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
