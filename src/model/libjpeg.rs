//! libjpeg-turbo's decoder by its own interface, since the crate's safe one cannot leave out what lies beside a region.
//! The only unsafe code of the program; what must hold for it is checked here, on this page.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uchar, c_void};
use std::ptr::NonNull;

use turbojpeg::raw;

use super::window::Region;

/// A JPEG whose header was read, and the decoder that read it.
///
/// Each image has a decoder of its own. One that decoded an image keeps the quantisation and Huffman tables of it, and
/// after an error in a header it stays in the middle of that header: the next image would be answered by what the last
/// one left. Making one takes 0.4 µs (`tj3Init` to `tj3Destroy`, with what the first image allocates).
pub struct Opened<'a> {
    decoder: Decoder,
    jpeg: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub is_grey: bool,
    /// Of a sample, as it is stored: 8, or 12, and 2 to 16 where the image is lossless.
    pub bits: u32,
    /// Decoded whole and at full size only.
    pub is_lossless: bool,
    /// A region begins at a multiple of so many pixels of the whole picture. None: no region can be decoded.
    pub column_width: Option<usize>,
}

struct Decoder(NonNull<c_void>);

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

impl Opened<'_> {
    /// Reads the header. None: it is damaged, or the colours are none of grey, YCbCr and RGB, or there is no memory.
    pub fn new(jpeg: &[u8]) -> Option<Opened<'_>> {
        let decoder = Decoder::new()?;
        // SAFETY: the handle is a decoder's; the bytes are read only during the call.
        let failed = unsafe { raw::tj3DecompressHeader(decoder.0.as_ptr(), jpeg.as_ptr(), jpeg.len() as raw::size_t) };
        if failed != 0 {
            return None;
        }
        let is_grey = match decoder.parameter(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS {
            raw::TJCS_TJCS_GRAY => true,
            raw::TJCS_TJCS_YCbCr | raw::TJCS_TJCS_RGB => false,
            _ => return None,
        };
        let width = usize::try_from(decoder.parameter(raw::TJPARAM_TJPARAM_JPEGWIDTH)).ok()?;
        let height = usize::try_from(decoder.parameter(raw::TJPARAM_TJPARAM_JPEGHEIGHT)).ok()?;
        let bits = u32::try_from(decoder.parameter(raw::TJPARAM_TJPARAM_PRECISION)).ok()?;
        let is_lossless = decoder.parameter(raw::TJPARAM_TJPARAM_LOSSLESS) != 0;
        let column_width = match decoder.parameter(raw::TJPARAM_TJPARAM_SUBSAMP) as raw::TJSAMP {
            _ if is_lossless => None,
            raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_GRAY | raw::TJSAMP_TJSAMP_440 | raw::TJSAMP_TJSAMP_441 => {
                Some(8)
            }
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        };
        Some(Opened { decoder, jpeg, width, height, is_grey, bits, is_lossless, column_width })
    }

    /// Decodes a region of the picture at 1 / `reduction` (1, 2, 4, 8) of its size into `pixels`, rows without padding,
    /// 8 bits a sample. False where libjpeg-turbo complains about anything; what it left is then of no use.
    ///
    /// # Panics
    /// Where `region` is empty or leaves the reduced picture, or `pixels` is not of its size.
    pub fn decode(self, reduction: usize, region: Region, layout: Layout, pixels: &mut [u8]) -> bool {
        self.select(reduction, region)
            && match self.bits {
                8 => self.read(raw::tj3Decompress8, region, layout, pixels),
                ..8 => self.read(raw::tj3Decompress8, region, layout, pixels) && self.widen(pixels),
                9..=12 => self.read_wide::<i16>(raw::tj3Decompress12, region, layout, pixels),
                _ => self.read_wide::<u16>(raw::tj3Decompress16, region, layout, pixels),
            }
    }

    /// Says what to decode. False where that is refused.
    fn select(&self, reduction: usize, region: Region) -> bool {
        let Region { left, top, width, height } = region;
        let (all_width, all_height) = (self.width.div_ceil(reduction), self.height.div_ceil(reduction));
        assert!(width > 0 && height > 0 && left + width <= all_width && top + height <= all_height, "{region:?}");
        let is_all = (width, height) == (all_width, all_height);
        assert!(!self.is_lossless || (reduction == 1 && is_all), "a lossless JPEG is decoded whole; this is a bug");
        let scale = raw::tjscalingfactor { num: 1, denom: int(reduction) };
        let [x, y, w, h] = if is_all { [0; 4] } else { [left, top, width, height].map(int) };
        let handle = self.decoder.0.as_ptr();
        // SAFETY: the handle is a decoder's; both calls take their arguments by value.
        unsafe {
            raw::tj3SetScalingFactor(handle, scale) == 0
                && raw::tj3SetCroppingRegion(handle, raw::tjregion { x, y, w, h }) == 0
        }
    }

    /// Decodes what was selected, samples as they are stored.
    fn read<T>(&self, decompress: Decompress<T>, region: Region, layout: Layout, samples: &mut [T]) -> bool {
        let row = region.width * layout.channels();
        assert_eq!(samples.len(), row * region.height);
        let format = match layout {
            Layout::Grey => raw::TJPF_TJPF_GRAY,
            Layout::Rgb => raw::TJPF_TJPF_RGB,
            Layout::Rgbx => raw::TJPF_TJPF_RGBX,
        };
        let (handle, jpeg) = (self.decoder.0.as_ptr(), self.jpeg);
        // SAFETY: the handle is a decoder's, and the function is libjpeg-turbo's for samples of type `T`. It writes
        // `height` rows of `width` pixels, `row` samples apart, and `samples` has room for just that: the region was
        // selected before, and lies inside the picture whose size was read from the same bytes.
        unsafe {
            let size = jpeg.len() as raw::size_t;
            decompress(handle, jpeg.as_ptr(), size, samples.as_mut_ptr(), int(row), format as c_int) == 0
        }
    }

    /// Decodes samples of more than 8 bits and keeps the high 8 of each.
    fn read_wide<T: Copy + Default + Into<i32>>(
        &self,
        decompress: Decompress<T>,
        region: Region,
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

    /// Brings samples of fewer than 8 bits to the whole range.
    fn widen(&self, pixels: &mut [u8]) -> bool {
        let most = (1 << self.bits) - 1;
        for pixel in pixels {
            *pixel = (u32::from(*pixel).min(most) * 255 / most) as u8;
        }
        true
    }
}

/// One of libjpeg-turbo's functions that decode to samples of type `T`.
type Decompress<T> =
    unsafe extern "C" fn(*mut c_void, *const c_uchar, raw::size_t, *mut T, pitch: c_int, format: c_int) -> c_int;

impl Decoder {
    /// None: no memory.
    fn new() -> Option<Decoder> {
        // SAFETY: takes no pointer; null is an error.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS.cast_signed()) };
        let decoder = NonNull::new(handle).map(Decoder)?;
        // SAFETY: the handle is a decoder's. Colour profiles are not looked at, so they need not be copied.
        let refused = unsafe { raw::tj3Set(handle, raw::TJPARAM_TJPARAM_SAVEMARKERS.cast_signed(), 0) };
        (refused == 0).then_some(decoder)
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

fn int(extent: usize) -> c_int {
    c_int::try_from(extent).expect("a JPEG has at most 65,535 pixels along a side; this is a bug")
}
