//! Images that are coded by AV1, decoded by `rav1d`.

use re_rav1d::{Decoder, Error, Picture, PixelLayout, PlanarImageComponent, Settings, pixel};

use super::boxes::Reader;
use super::frame::{ColourCoding, Frame, Plane, Samples};

/// Maximum number of frames in one still image. One is usual; layered images have up to four.
const MAX_FRAMES: usize = 8;

/// Decodes one item and passes its frame to `take`. `coding` is what the container says about the colours.
///
/// Returns `None` when the item is damaged, or has more than `max_pixels` or more frames than a still image.
pub(super) fn decode<T>(
    coding: Option<ColourCoding>,
    data: &[u8],
    max_pixels: u64,
    take: impl FnOnce(&Frame) -> Option<T>,
) -> Option<T> {
    if frames(data)? > MAX_FRAMES {
        return None;
    }
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_all_layers(false);
    settings.set_frame_size_limit(u32::try_from(max_pixels).unwrap_or(u32::MAX));
    let decoded = first_frame(&mut Decoder::with_settings(&settings).ok()?, data)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let bits = u32::try_from(decoded.bits_per_component()?.0).ok()?;
    let (chroma_width, chroma_height) = match decoded.pixel_layout() {
        PixelLayout::I400 => (0, 0),
        PixelLayout::I420 => (width.div_ceil(2), height.div_ceil(2)),
        PixelLayout::I422 => (width.div_ceil(2), height),
        PixelLayout::I444 => (width, height),
    };
    let planes = [PlanarImageComponent::Y, PlanarImageComponent::U, PlanarImageComponent::V];
    let planes = planes.map(|component| (decoded.plane(component), decoded.stride(component) as usize));
    let plane = |index: usize, width, height| {
        let (bytes, stride) = &planes[index];
        let (samples, stride) =
            if bits == 8 { (Samples::Bytes(bytes), *stride) } else { (Samples::BytePairs(bytes), stride / 2) };
        Plane { samples, width, height, stride }
    };
    let chroma = |index| plane(index, chroma_width, chroma_height);
    take(&Frame {
        luma: plane(0, width, height),
        chroma: (chroma_width > 0).then(|| [chroma(1), chroma(2)]),
        bits: [bits; 2],
        colours: coding.unwrap_or_else(|| coding_of(&decoded)),
    })
}

/// Decodes the first frame that is shown.
fn first_frame(decoder: &mut Decoder, data: &[u8]) -> Option<Picture> {
    let mut sent = decoder.send_data(data.to_vec(), None, None, None);
    // Each turn sends data or drains the decoder, which holds at most one result for each frame.
    for _ in 0..=2 * MAX_FRAMES {
        match decoder.get_picture() {
            Ok(decoded) => return Some(decoded),
            Err(Error::Again) if matches!(sent, Ok(()) | Err(Error::Again)) => {}
            Err(_) => return None,
        }
        sent = decoder.send_pending_data();
    }
    None
}

fn coding_of(decoded: &Picture) -> ColourCoding {
    let is_full_range = matches!(decoded.color_range(), pixel::YUVRange::Full);
    ColourCoding { matrix: decoded.matrix_coefficients() as u16, is_full_range }
}

/// Counts the frames of a stream by the headers of its units. Returns `None` when a unit is truncated.
fn frames(data: &[u8]) -> Option<usize> {
    const FRAME_HEADER: u8 = 3;
    const FRAME: u8 = 6;
    let (mut units, mut frames) = (Reader(data), 0);
    while !units.0.is_empty() {
        let header = units.u8()?;
        if header & 0b100 != 0 {
            units.u8()?;
        }
        let length = if header & 0b10 != 0 { variable_length(&mut units)? } else { units.0.len() };
        units.bytes(length)?;
        frames += usize::from(matches!(header >> 3 & 15, FRAME_HEADER | FRAME));
    }
    Some(frames)
}

/// A number of 7 bits a byte, the lowest first.
fn variable_length(units: &mut Reader) -> Option<usize> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let byte = units.u8()?;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_their_headers() {
        let delimiter = [0b0001_0010, 0];
        let frame = [0b0011_0010, 3, 1, 2, 3];
        let header_with_extension = [0b0001_1110, 0, 0x81, 0x00, 7];
        assert_eq!(frames(&[&delimiter[..], &frame, &header_with_extension].concat()), Some(2));
        assert_eq!(frames(&[0b0011_0000, 1, 2, 3]), Some(1), "without a length, to the end");
        assert_eq!(frames(&frame[..4]), None);
        assert_eq!(frames(&[0b0011_0010, 0x80, 0x80, 0x80, 0x80, 0x80, 1]), None);
        assert_eq!(frames(b""), Some(0));
    }
}
