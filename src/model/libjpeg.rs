//! libjpeg-turbo's decoder through its C interface, because the safe interface of the crate cannot decode a region.
//!
//! This is the only unsafe code of the program. Everything that it relies on is checked in this file.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uchar, c_void};
use std::ptr::NonNull;

use turbojpeg::raw;

use super::crop::PixelRect;

/// A decoder that has read the header of one JPEG.
///
/// Each image gets a new decoder. A used one keeps the quantisation and Huffman tables of its last image, and after an
/// error in a header it stays in the middle of that header, so the next image could be decoded with leftovers of the
/// last one. Creating and destroying one takes 0.4 µs (`tj3Init` to `tj3Destroy`, including the allocations of the
/// first image).
pub(super) struct JpegDecoder<'a> {
    handle: Handle,
    jpeg: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub is_grey: bool,
    /// Bits of a stored sample: 8 or 12, and 2 to 16 in a lossless image.
    pub bits: u32,
    /// A lossless image can only be decoded whole and at full size.
    pub is_lossless: bool,
    /// A region must begin at a multiple of this many pixels of the full-size image. `None` means that no region can be
    /// decoded.
    pub column_width: Option<usize>,
}

/// An owned handle of libjpeg-turbo.
struct Handle(NonNull<c_void>);

/// The layout of the decoded pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Grey,
    Rgb,
    /// RGB and an unused byte.
    Rgbx,
}

impl Layout {
    /// Bytes per pixel.
    pub(super) fn channels(self) -> usize {
        match self {
            Layout::Grey => 1,
            Layout::Rgb => 3,
            Layout::Rgbx => 4,
        }
    }
}

impl JpegDecoder<'_> {
    /// Reads the header. Returns `None` when it is damaged, when the colour space is not grey, YCbCr or RGB, or when
    /// memory is exhausted.
    pub(super) fn new(jpeg: &[u8]) -> Option<JpegDecoder<'_>> {
        let handle = Handle::new()?;
        // SAFETY: the handle is a valid decoder; the bytes are read only during the call.
        let failed = unsafe { raw::tj3DecompressHeader(handle.0.as_ptr(), jpeg.as_ptr(), jpeg.len() as raw::size_t) };
        if failed != 0 {
            return None;
        }
        let is_grey = match handle.parameter(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS {
            raw::TJCS_TJCS_GRAY => true,
            raw::TJCS_TJCS_YCbCr | raw::TJCS_TJCS_RGB => false,
            _ => return None,
        };
        let width = usize::try_from(handle.parameter(raw::TJPARAM_TJPARAM_JPEGWIDTH)).ok()?;
        let height = usize::try_from(handle.parameter(raw::TJPARAM_TJPARAM_JPEGHEIGHT)).ok()?;
        let bits = u32::try_from(handle.parameter(raw::TJPARAM_TJPARAM_PRECISION)).ok()?;
        let is_lossless = handle.parameter(raw::TJPARAM_TJPARAM_LOSSLESS) != 0;
        let column_width = match handle.parameter(raw::TJPARAM_TJPARAM_SUBSAMP) as raw::TJSAMP {
            _ if is_lossless => None,
            raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_GRAY | raw::TJSAMP_TJSAMP_440 | raw::TJSAMP_TJSAMP_441 => {
                Some(8)
            }
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        };
        Some(JpegDecoder { handle, jpeg, width, height, is_grey, bits, is_lossless, column_width })
    }

    /// Decodes a region of the image at 1 / `reduction` (1, 2, 4 or 8) of its size into `pixels`, in rows without
    /// padding and 8 bits per sample. Returns false when libjpeg-turbo reports a warning or an error; `pixels` must
    /// then be discarded.
    ///
    /// # Panics
    /// If `region` is empty or exceeds the reduced image, or `pixels` does not have the size of the region.
    pub(super) fn decode(self, reduction: usize, region: PixelRect, layout: Layout, pixels: &mut [u8]) -> bool {
        self.select(reduction, region)
            && match self.bits {
                8 => self.read(raw::tj3Decompress8, region, layout, pixels),
                ..8 => self.read(raw::tj3Decompress8, region, layout, pixels) && self.widen(pixels),
                9..=12 => self.read_wide::<i16>(raw::tj3Decompress12, region, layout, pixels),
                _ => self.read_wide::<u16>(raw::tj3Decompress16, region, layout, pixels),
            }
    }

    /// Selects the region to decode. Returns false when libjpeg-turbo refuses it.
    fn select(&self, reduction: usize, region: PixelRect) -> bool {
        let PixelRect { left, top, width, height } = region;
        let (all_width, all_height) = (self.width.div_ceil(reduction), self.height.div_ceil(reduction));
        assert!(width > 0 && height > 0 && left + width <= all_width && top + height <= all_height, "{region:?}");
        let is_all = (width, height) == (all_width, all_height);
        assert!(!self.is_lossless || (reduction == 1 && is_all), "a lossless JPEG is decoded whole; this is a bug");
        let scale = raw::tjscalingfactor { num: 1, denom: int(reduction) };
        let [x, y, w, h] = if is_all { [0; 4] } else { [left, top, width, height].map(int) };
        let handle = self.handle.0.as_ptr();
        // SAFETY: the handle is a valid decoder; both calls take their arguments by value.
        unsafe {
            raw::tj3SetScalingFactor(handle, scale) == 0
                && raw::tj3SetCroppingRegion(handle, raw::tjregion { x, y, w, h }) == 0
        }
    }

    /// Decodes the selected region without converting its samples.
    fn read<T>(&self, decompress: Decompress<T>, region: PixelRect, layout: Layout, samples: &mut [T]) -> bool {
        let row = region.width * layout.channels();
        assert_eq!(samples.len(), row * region.height);
        let format = match layout {
            Layout::Grey => raw::TJPF_TJPF_GRAY,
            Layout::Rgb => raw::TJPF_TJPF_RGB,
            Layout::Rgbx => raw::TJPF_TJPF_RGBX,
        };
        let (handle, jpeg) = (self.handle.0.as_ptr(), self.jpeg);
        // SAFETY: the handle is a valid decoder, and the function is libjpeg-turbo's for samples of type `T`. It writes
        // `height` rows of `width` pixels, `row` samples apart, which is exactly the size of `samples`: the region was
        // selected before, and lies inside the image whose size was read from the same bytes.
        unsafe {
            let size = jpeg.len() as raw::size_t;
            decompress(handle, jpeg.as_ptr(), size, samples.as_mut_ptr(), int(row), format as c_int) == 0
        }
    }

    /// Decodes samples of more than 8 bits and keeps the high 8 of each.
    fn read_wide<T: Copy + Default + Into<i32>>(
        &self,
        decompress: Decompress<T>,
        region: PixelRect,
        layout: Layout,
        pixels: &mut [u8],
    ) -> bool {
        let mut samples = vec![T::default(); pixels.len()];
        if !self.read(decompress, region, layout, &mut samples) {
            return false;
        }
        for (sample, pixel) in samples.into_iter().zip(pixels) {
            *pixel = (sample.into() >> (self.bits - 8)).clamp(0, 255) as u8;
        }
        true
    }

    /// Scales samples of fewer than 8 bits to the full range.
    fn widen(&self, pixels: &mut [u8]) -> bool {
        let max = (1 << self.bits) - 1;
        for pixel in pixels {
            *pixel = (u32::from(*pixel).min(max) * 255 / max) as u8;
        }
        true
    }
}

/// A function of libjpeg-turbo that decodes to samples of type `T`.
type Decompress<T> =
    unsafe extern "C" fn(*mut c_void, *const c_uchar, raw::size_t, *mut T, pitch: c_int, format: c_int) -> c_int;

impl Handle {
    /// Returns `None` when memory is exhausted.
    fn new() -> Option<Handle> {
        // SAFETY: the call takes no pointer, and returns null on failure.
        let pointer = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS.cast_signed()) };
        let handle = NonNull::new(pointer).map(Handle)?;
        // SAFETY: the handle is a valid decoder. Colour profiles are not used, so they need not be copied.
        let refused = unsafe { raw::tj3Set(pointer, raw::TJPARAM_TJPARAM_SAVEMARKERS.cast_signed(), 0) };
        (refused == 0).then_some(handle)
    }

    fn parameter(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is a valid decoder; an unknown parameter returns -1.
        unsafe { raw::tj3Get(self.0.as_ptr(), parameter.cast_signed()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle comes from `tj3Init` and is not used after this.
        unsafe { raw::tj3Destroy(self.0.as_ptr()) }
    }
}

fn int(extent: usize) -> c_int {
    c_int::try_from(extent).expect("a JPEG has at most 65,535 pixels along a side; this is a bug")
}
