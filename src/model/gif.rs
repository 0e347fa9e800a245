//! GIF, decoded by the crate `image` after a repair.

use std::borrow::Cow;

use image::ImageFormat;

use super::format::Format;
use super::image_crate::ImageCrate;

pub(super) const FORMAT: Format = Format {
    name: "GIF",
    media_type: "image/gif",
    extensions: &["gif"],
    has_signature: |bytes| bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a"),
    decode: |bytes, limits, _, budget| DECODER.decode(&repair(bytes), limits, budget),
};

const DECODER: ImageCrate = ImageCrate {
    name: "GIF",
    format: ImageFormat::Gif,
    // The frame is decoded beside the image, in four bytes per pixel.
    scratch_bytes_per_pixel: 4,
    correct: |_, _| {},
};

/// Enlarges the screen to hold the first frame, as Pillow does: some writers leave its size at zero.
fn repair(bytes: &[u8]) -> Cow<'_, [u8]> {
    const SCREEN: std::ops::Range<usize> = 6..10;
    let Some((screen, [left, top, width, height])) = bytes.get(SCREEN).zip(first_frame(bytes)) else {
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
fn first_frame(bytes: &[u8]) -> Option<[u16; 4]> {
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
                // A label, then blocks that each begin with their length; an empty block ends the extension.
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

#[cfg(test)]
mod tests {
    use super::*;

    const GIF: &[u8] =
        b"GIF89a\x02\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\x21\xf9\x04\0\0\0\0\0\x2c\x01\0\0\0\x03\0\x02\0\0";

    #[test]
    fn screen_is_enlarged_to_hold_the_first_frame() {
        let repaired = repair(GIF);
        assert_eq!(repaired[6..10], [4, 0, 2, 0]);
        assert_eq!(repaired[10..], GIF[10..]);
        assert!(matches!(repair(&repaired), Cow::Borrowed(_)));
        for length in 0..GIF.len() - 1 {
            assert!(matches!(repair(&GIF[..length]), Cow::Borrowed(_)), "{length}");
        }
    }
}
