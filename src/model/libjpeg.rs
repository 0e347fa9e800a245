//! libjpeg-turbo's decoder by its own interface, since the crate's safe one cannot leave out what lies beside a region.
//! The only unsafe code of the program; what must hold for it is checked here, on this page.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use turbojpeg::raw;

use super::window::Region;

/// Decodes one picture at a time.
pub struct Decoder(NonNull<c_void>);

/// A JPEG whose header was read. Decoded by the decoder that read it, from the bytes that it was read from.
pub struct Opened<'a> {
    decoder: &'a mut Decoder,
    jpeg: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub is_grey: bool,
    /// A region begins at a multiple of so many pixels of the whole picture. None: no region can be decoded.
    pub column_width: Option<usize>,
}

/// How pixels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Grey,
    Rgb,
    /// And a byte that means nothing.
    Rgbx,
}

impl Layout {
    /// Bytes a pixel.
    pub fn channels(self) -> usize {
        match self {
            Layout::Grey => 1,
            Layout::Rgb => 3,
            Layout::Rgbx => 4,
        }
    }
}

impl Decoder {
    /// None: no memory.
    pub fn new() -> Option<Decoder> {
        // SAFETY: takes no pointer; null is an error.
        NonNull::new(unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS.cast_signed()) }).map(Decoder)
    }

    /// None: damaged, or none of the common kinds (grey, YCbCr or RGB, Huffman coded).
    pub fn open<'a>(&'a mut self, jpeg: &'a [u8]) -> Option<Opened<'a>> {
        // SAFETY: the handle is a decoder's; the bytes are read only during the call.
        let failed = unsafe { raw::tj3DecompressHeader(self.0.as_ptr(), jpeg.as_ptr(), jpeg.len() as raw::size_t) };
        if failed != 0
            || self.parameter(raw::TJPARAM_TJPARAM_LOSSLESS) != 0
            || self.parameter(raw::TJPARAM_TJPARAM_ARITHMETIC) != 0
        {
            return None;
        }
        let is_grey = match self.parameter(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS {
            raw::TJCS_TJCS_GRAY => true,
            raw::TJCS_TJCS_YCbCr | raw::TJCS_TJCS_RGB => false,
            _ => return None,
        };
        let width = usize::try_from(self.parameter(raw::TJPARAM_TJPARAM_JPEGWIDTH)).ok()?;
        let height = usize::try_from(self.parameter(raw::TJPARAM_TJPARAM_JPEGHEIGHT)).ok()?;
        let column_width = match self.parameter(raw::TJPARAM_TJPARAM_SUBSAMP) as raw::TJSAMP {
            raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_GRAY | raw::TJSAMP_TJSAMP_440 | raw::TJSAMP_TJSAMP_441 => {
                Some(8)
            }
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        };
        Some(Opened { decoder: self, jpeg, width, height, is_grey, column_width })
    }

    fn parameter(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is a decoder's; an unknown parameter is answered with -1.
        unsafe { raw::tj3Get(self.0.as_ptr(), parameter.cast_signed()) }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: made by `tj3Init`, and nobody has it any more.
        unsafe { raw::tj3Destroy(self.0.as_ptr()) }
    }
}

impl Opened<'_> {
    /// Decodes a region of the picture at 1 / `reduction` (1, 2, 4, 8) of its size into `pixels`, rows without padding.
    /// False where libjpeg-turbo complains about anything; what it left is then of no use.
    ///
    /// # Panics
    /// Where `region` is empty or leaves the reduced picture, or `pixels` is not of its size.
    pub fn decode(self, reduction: usize, region: Region, layout: Layout, pixels: &mut [u8]) -> bool {
        let Region { left, top, width, height } = region;
        let (all_width, all_height) = (self.width.div_ceil(reduction), self.height.div_ceil(reduction));
        let channels = layout.channels();
        assert!(width > 0 && height > 0 && left + width <= all_width && top + height <= all_height, "{region:?}");
        assert_eq!(pixels.len(), width * height * channels);
        let format = match layout {
            Layout::Grey => raw::TJPF_TJPF_GRAY,
            Layout::Rgb => raw::TJPF_TJPF_RGB,
            Layout::Rgbx => raw::TJPF_TJPF_RGBX,
        };
        let scale = raw::tjscalingfactor { num: 1, denom: int(reduction) };
        let is_all = (width, height) == (all_width, all_height);
        let [x, y, w, h] = if is_all { [0; 4] } else { [left, top, width, height].map(int) };
        let pitch = int(width * channels);
        let handle = self.decoder.0.as_ptr();
        // SAFETY: the handle is a decoder's. `tj3Decompress8` writes `height` rows of `width` pixels, `pitch` bytes
        // apart, and `pixels` has room for just that: the size in the header was read from the same bytes, and the
        // region lies inside it by the assertion above.
        unsafe {
            raw::tj3SetScalingFactor(handle, scale) == 0
                && raw::tj3SetCroppingRegion(handle, raw::tjregion { x, y, w, h }) == 0
                && raw::tj3Decompress8(
                    handle,
                    self.jpeg.as_ptr(),
                    self.jpeg.len() as raw::size_t,
                    pixels.as_mut_ptr(),
                    pitch,
                    format as c_int,
                ) == 0
        }
    }
}

fn int(extent: usize) -> c_int {
    c_int::try_from(extent).expect("a JPEG has at most 65,535 pixels along a side; this is a bug")
}
