//! Images that are coded by HEVC, decoded by `heifer-hevc-dec`.

use heifer_hevc_dec::decoder::{DecodeOptions, decode_picture};

use super::boxes::Reader;
use super::frame::{ColourCoding, Frame, Plane, Samples};

/// Decodes one item and passes its frame to `take`. `configuration` is the content of its property `hvcC`.
///
/// Returns `None` when the item is damaged, or has more than `max_pixels`.
pub(super) fn decode<T>(
    configuration: Reader,
    data: &[u8],
    max_pixels: u64,
    take: impl FnOnce(&Frame) -> Option<T>,
) -> Option<T> {
    let stream = byte_stream(configuration, data)?;
    let decoded = decode_picture(&stream, DecodeOptions { max_pixels, ..DecodeOptions::default() }).ok()?;
    drop(stream);
    let plane = |index: usize| Plane {
        samples: Samples::Words(&decoded.planes[index]),
        width: decoded.widths[index] as usize,
        height: decoded.heights[index] as usize,
        stride: decoded.widths[index] as usize,
    };
    take(&Frame {
        luma: plane(0),
        chroma: (decoded.widths[1] > 0).then(|| [plane(1), plane(2)]),
        bits: decoded.bit_depth.map(u32::from),
        colours: ColourCoding { matrix: u16::from(decoded.matrix_coeffs), is_full_range: decoded.full_range },
    })
}

/// The parameter sets and the item as one stream, whose units begin with a start code instead of their length.
fn byte_stream(mut configuration: Reader, data: &[u8]) -> Option<Vec<u8>> {
    const START_CODE: &[u8] = b"\0\0\0\x01";
    let mut stream = Vec::with_capacity(data.len() + 1024);
    let length_bytes = usize::from(configuration.bytes(22)?[21] & 3) + 1;
    for _ in 0..configuration.u8()? {
        configuration.u8()?;
        for _ in 0..configuration.u16()? {
            let length = configuration.u16()?;
            stream.extend_from_slice(START_CODE);
            stream.extend_from_slice(configuration.bytes(usize::from(length))?);
        }
    }
    let mut units = Reader(data);
    while !units.0.is_empty() {
        let length = units.number(length_bytes)?;
        stream.extend_from_slice(START_CODE);
        stream.extend_from_slice(units.bytes(usize::try_from(length).ok()?)?);
    }
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_replaced_by_start_codes() {
        let configuration = [&[0; 21][..], &[1, 1, 32, 0, 1, 0, 2, 7, 8]].concat();
        let stream = byte_stream(Reader(&configuration), &[0, 3, 1, 2, 3, 0, 1, 9]);
        assert_eq!(stream.unwrap(), [0, 0, 0, 1, 7, 8, 0, 0, 0, 1, 1, 2, 3, 0, 0, 0, 1, 9]);
        assert_eq!(byte_stream(Reader(&configuration), &[0, 3, 1]), None);
        assert_eq!(byte_stream(Reader(&configuration[..29]), &[]), None);
    }
}
