//! GIF and WebP files that every viewer shows and the decoders do not take as they are.

use std::borrow::Cow;

use super::exif::webp_chunks;

/// A GIF whose screen has room for its first frame, as Pillow makes it: some writers leave the screen empty.
pub fn gif(bytes: &[u8]) -> Cow<'_, [u8]> {
    const SCREEN: std::ops::Range<usize> = 6..10;
    let Some((screen, [left, top, width, height])) = bytes.get(SCREEN).zip(first_gif_frame(bytes)) else {
        return Cow::Borrowed(bytes);
    };
    let screen = [0, 2].map(|at| u16::from_le_bytes([screen[at], screen[at + 1]]));
    let needed = [screen[0].max(left.saturating_add(width)), screen[1].max(top.saturating_add(height))];
    if screen == needed {
        return Cow::Borrowed(bytes);
    }
    let mut repaired = bytes.to_vec();
    repaired[SCREEN].copy_from_slice(&needed.map(u16::to_le_bytes).concat());
    Cow::Owned(repaired)
}

/// Left, top, width and height of the first frame.
fn first_gif_frame(bytes: &[u8]) -> Option<[u16; 4]> {
    const EXTENSION: u8 = 0x21;
    const FRAME: u8 = 0x2c;
    let mut rest = bytes.get(13..)?;
    if bytes[10] & 0x80 != 0 {
        rest = rest.get(3 << ((bytes[10] & 7) + 1)..)?;
    }
    loop {
        let (&kind, after) = rest.split_first()?;
        match kind {
            FRAME => {
                let numbers = after.first_chunk::<8>()?.as_chunks::<2>().0;
                return Some(std::array::from_fn(|index| u16::from_le_bytes(numbers[index])));
            }
            EXTENSION => {
                // A label, then blocks that each say their length, up to an empty one.
                rest = after.get(1..)?;
                while let (&length @ 1.., blocks) = rest.split_first()? {
                    rest = blocks.get(usize::from(length)..)?;
                }
                rest = &rest[1..];
            }
            _ => return None,
        }
    }
}

/// A WebP whose header announces only what the file holds: an alpha channel or metadata that is missing is no damage.
pub fn webp(bytes: &[u8]) -> Cow<'_, [u8]> {
    const FLAGS: usize = 20;
    const ALPHA: u8 = 0x10;
    const EXIF: u8 = 0x08;
    const XMP: u8 = 0x04;
    const ANIMATION: u8 = 0x02;
    let mut chunks = webp_chunks(bytes);
    let Some((b"VP8X", &[flags, ..])) = chunks.next() else { return Cow::Borrowed(bytes) };
    let mut held = ANIMATION;
    let mut is_lossy = false;
    for (kind, _) in chunks {
        match kind {
            b"ALPH" => held |= ALPHA,
            b"EXIF" => held |= EXIF,
            b"XMP " => held |= XMP,
            b"VP8 " => is_lossy = true,
            _ => {}
        }
    }
    // Frames of an animation and lossless images say themselves what alpha they have.
    if flags & ANIMATION != 0 || !is_lossy {
        held |= ALPHA;
    }
    let real = flags & (held | !(ALPHA | EXIF | XMP));
    if real == flags {
        return Cow::Borrowed(bytes);
    }
    let mut repaired = bytes.to_vec();
    repaired[FLAGS] = real;
    Cow::Owned(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIF: &[u8] =
        b"GIF89a\x02\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\x21\xf9\x04\0\0\0\0\0\x2c\x01\0\0\0\x03\0\x02\0\0";

    #[test]
    fn the_screen_of_a_gif_has_room_for_its_frame() {
        let repaired = gif(GIF);
        assert_eq!(repaired[6..10], [4, 0, 2, 0]);
        assert_eq!(repaired[10..], GIF[10..]);
        assert!(matches!(gif(&repaired), Cow::Borrowed(_)));
        for length in 0..GIF.len() - 1 {
            assert!(matches!(gif(&GIF[..length]), Cow::Borrowed(_)), "{length}");
        }
    }

    fn webp_file(flags: u8, kinds: &[&[u8; 4]]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0".to_vec();
        file.extend_from_slice(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for kind in kinds {
            file.extend_from_slice(*kind);
            file.extend_from_slice(&[1, 0, 0, 0, 7, 0]);
        }
        file
    }

    #[test]
    fn a_webp_announces_only_what_it_holds() {
        let flags = |flags, kinds: &[&[u8; 4]]| webp(&webp_file(flags, kinds))[20];
        assert_eq!(flags(0x10, &[b"VP8 "]), 0);
        assert_eq!(flags(0x10, &[b"ALPH", b"VP8 "]), 0x10);
        assert_eq!(flags(0x10, &[b"VP8L"]), 0x10);
        assert_eq!(flags(0x12, &[b"ANMF"]), 0x12);
        assert_eq!(flags(0x2c, &[b"VP8 ", b"EXIF"]), 0x28);
    }
}
