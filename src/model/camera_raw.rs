//! Camera raw images that do not begin like a TIFF: those of Panasonic, Olympus, Fujifilm and Canon's CR3. Of each, the largest
//! JPEG preview is decoded. Those that begin like a TIFF are recognised there.

use super::budget::Budget;
use super::error::PrepareError;
use super::format::Format;
use super::input::Geometry;
use super::orientation::Orientation;
use super::pixels::Pixels;
use super::tiff::raw::{FUJIFILM, OLYMPUS, fujifilm_preview};
use super::{heif, jpeg, tiff};
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "camera raw",
    media_type: "image/x-raw",
    extensions: &[
        "rw2", "dng", "nef", "nrw", "cr2", "cr3", "arw", "sr2", "srw", "pef", "raf", "3fr", "iiq", "erf", "mos", "orf",
    ],
    has_signature: |bytes| {
        let is_tiff = bytes.starts_with(b"IIU\0") || OLYMPUS.iter().any(|signature| bytes.starts_with(signature));
        is_tiff || bytes.starts_with(FUJIFILM) || heif::is_canon_raw(bytes)
    },
    decode,
};

fn decode(bytes: &[u8], limits: &Limits, geometry: Geometry, budget: &Budget) -> Result<Pixels, PrepareError> {
    let found = if bytes.starts_with(FUJIFILM) {
        fujifilm_preview(bytes).map(|preview| (preview, Orientation::default()))
    } else if heif::is_canon_raw(bytes) {
        heif::canon_preview(bytes)
    } else {
        return tiff::decode(bytes, limits, geometry, budget);
    };
    let (preview, orientation) = found.ok_or_else(tiff::no_preview)?;
    jpeg::decode_turned(preview, orientation, limits, geometry, budget)
}
