//! Camera raw images of Canon (CR3). They have boxes like a HEIF, and several JPEG previews: one in a box of its own, and those
//! that are the samples of a track, of which the largest has the size of the photograph.

use super::boxes::Reader;
use super::brands;
use crate::exif::Metadata;
use crate::jpeg;
use crate::orientation::Orientation;

/// The box of a vendor with the metadata, in the box `moov`.
const METADATA: [u8; 16] = *b"\x85\xc0\xb6\x87\x82\x0f\x11\xe0\x81\x11\xf4\xce\x46\x2b\x6a\x48";
/// The box of a vendor with a preview.
const PREVIEW: [u8; 16] = *b"\xea\xf4\x2b\x5e\x1c\x98\x4b\x88\xb9\xfb\xb7\xdc\x40\x6e\x4d\x16";
/// Cameras write four tracks.
const MAX_TRACKS: usize = 16;

/// Recognises the file by its beginning.
pub(crate) fn is_canon_raw(bytes: &[u8]) -> bool {
    brands(bytes).any(|brand| brand == b"crx ")
}

/// The largest JPEG in the file that can be shown, and how it is turned. Every offset is checked against the file.
pub(crate) fn canon_preview(file: &[u8]) -> Option<(&[u8], Orientation)> {
    let movie = Reader(file).find(*b"moov")?;
    let tracks = movie.boxes().filter(|(kind, _)| kind == b"trak").take(MAX_TRACKS);
    let samples = tracks.filter_map(|(_, track)| sample(file, track));
    let candidates = samples.chain(preview_box(file));
    let preview = candidates.filter(|jpeg| jpeg::is_displayable(jpeg)).max_by_key(|jpeg| jpeg.len())?;
    let metadata = vendor_box(movie, METADATA).and_then(|content| content.find(*b"CMT1"));
    let orientation = metadata.map_or_else(Orientation::default, |tiff| Metadata::of_tiff(tiff.0).orientation());
    Some((preview, orientation))
}

/// The only sample of a track.
fn sample<'a>(file: &'a [u8], track: Reader<'a>) -> Option<&'a [u8]> {
    let table = track.find(*b"mdia")?.find(*b"minf")?.find(*b"stbl")?;
    let mut sizes = table.find(*b"stsz")?;
    sizes.version()?;
    let (size_of_all, count) = (sizes.u32()?, sizes.u32()?);
    let size = if size_of_all > 0 { size_of_all } else { sizes.u32()? };
    let mut offsets = table.find(*b"co64")?;
    offsets.version()?;
    let (offset_count, offset) = (offsets.u32()?, offsets.number(8)?);
    if (count, offset_count) != (1, 1) {
        return None;
    }
    file.get(usize::try_from(offset).ok()?..)?.get(..size as usize)
}

/// The preview in the box of its own: eight bytes, then the box `PRVW` with size and content.
fn preview_box(file: &[u8]) -> Option<&[u8]> {
    let mut content = vendor_box(Reader(file), PREVIEW)?;
    content.bytes(8)?;
    let mut preview = content.find(*b"PRVW")?;
    preview.bytes(12)?;
    let length = preview.u32()?;
    preview.bytes(length as usize)
}

/// The content of the box of a vendor, which begins with its id.
fn vendor_box(boxes: Reader<'_>, id: [u8; 16]) -> Option<Reader<'_>> {
    boxes.boxes().filter(|(kind, _)| kind == b"uuid").find_map(|(_, mut content)| {
        let found = content.bytes(16)?;
        (found == id).then_some(content)
    })
}
