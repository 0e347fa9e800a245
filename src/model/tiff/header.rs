//! The header of a TIFF: what its pixels mean, and their conversion to opaque grey or RGB.

use super::colours::{cmy_with_black, lab_to_rgb, ycbcr_to_rgb};
use super::directory::Directory;
use super::error::{damaged, unsupported};
use super::samples::{Predictor, Samples};
use super::tag;
use super::unpack::Compression;
use crate::error::PrepareError;
use crate::pixels::blend;

/// Maximum number of samples per pixel.
const MAX_SAMPLES: usize = 32;

/// The meaning of the pixels of the file.
pub(super) struct Header {
    pub width: usize,
    pub height: usize,
    pub colours: Colours,
    /// The index of the sample that is alpha, and how colours relate to it.
    pub alpha: Option<(usize, Alpha)>,
    /// Samples per pixel in the file.
    pub samples: usize,
    pub format: Samples,
    /// Each sample has its own strips or tiles.
    pub is_planar: bool,
    pub compression: Compression,
    pub predictor: Predictor,
    /// The first pixel of a byte is in its lowest bit.
    pub is_bit_reversed: bool,
    /// The number of pixels across and down that share their chroma, if the file stores fewer samples of it.
    pub subsampling: Option<(usize, usize)>,
}

/// How the colour of a pixel is stored.
pub(super) enum Colours {
    Grey {
        is_inverted: bool,
    },
    Rgb,
    Palette(Vec<[u8; 3]>),
    Cmyk,
    /// Luma and chroma of the full range.
    Ycbcr,
    /// CIE L*a*b*; a* and b* are signed, or have an offset of 128.
    Lab {
        is_signed: bool,
    },
}

/// How colours relate to alpha.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    Straight,
    /// Colours are multiplied by alpha.
    Premultiplied,
}

impl Header {
    /// Reads the header and refuses what is not supported.
    pub(super) fn read(directory: &Directory, width: usize, height: usize) -> Result<Header, PrepareError> {
        let samples = directory.number(tag::SAMPLES_PER_PIXEL).unwrap_or(1) as usize;
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(unsupported(format_args!("{samples} samples per pixel")));
        }
        let format = Samples::read(directory)?;
        let compression = Compression::read(directory)?;
        let colours = Colours::read(directory, compression, format, samples)?;
        if samples < colours.samples() {
            return Err(damaged());
        }
        let is_planar = samples > 1 && directory.number(tag::PLANAR_CONFIGURATION) == Some(2);
        let predictor = match directory.number(tag::PREDICTOR) {
            Some(predictor) if compression.supports_predictor() => Predictor::read(predictor, format)?,
            _ => Predictor::None,
        };
        let subsampling = match colours {
            Colours::Ycbcr => subsampling(directory, samples, is_planar, predictor)?,
            _ => None,
        };
        let alpha = alpha(directory, &colours, samples);
        if is_planar && matches!(colours, Colours::Cmyk) && alpha.is_some() {
            return Err(unsupported("CMYK with alpha in separate planes"));
        }
        Ok(Header {
            width,
            height,
            colours,
            alpha,
            samples,
            format,
            is_planar,
            compression,
            predictor,
            is_bit_reversed: directory.number(tag::FILL_ORDER) == Some(2),
            subsampling,
        })
    }

    /// Channels of the decoded image.
    pub(super) fn channels(&self) -> usize {
        if matches!(self.colours, Colours::Grey { .. }) { 1 } else { 3 }
    }

    /// Samples per pixel in one strip or tile.
    pub(super) fn chunk_samples(&self) -> usize {
        if self.is_planar { 1 } else { self.samples }
    }

    /// The planes that are used.
    pub(super) fn planes(&self) -> Vec<usize> {
        if !self.is_planar {
            return vec![0];
        }
        (0..self.colours.samples()).chain(self.alpha.map(|(sample, _)| sample)).collect()
    }

    /// Reports whether a plane in addition to the channels must be kept until all planes have been read.
    pub(super) fn has_extra_plane(&self) -> bool {
        self.is_planar && (self.alpha.is_some() || matches!(self.colours, Colours::Cmyk))
    }
}

impl Colours {
    fn read(
        directory: &Directory,
        compression: Compression,
        format: Samples,
        samples: usize,
    ) -> Result<Colours, PrepareError> {
        let photometric = directory.number(tag::PHOTOMETRIC).ok_or_else(damaged)?;
        match photometric {
            0 | 1 if samples > 2 => Err(unsupported(format_args!("{samples} bands without a colour space"))),
            0 | 1 => Ok(Colours::Grey { is_inverted: photometric == 0 }),
            2 => Ok(Colours::Rgb),
            3 if samples != 1 || !format.is_index() => {
                Err(unsupported("a palette of more than 256 colours or with alpha"))
            }
            3 => palette(directory, format).map(Colours::Palette),
            5 if !matches!(directory.number(tag::INK_SET), None | Some(1)) => Err(unsupported("inks other than CMYK")),
            5 => Ok(Colours::Cmyk),
            6 if matches!(compression, Compression::Jpeg { is_ycbcr: true }) => Ok(Colours::Rgb),
            4 => Err(unsupported("a transparency mask as its image")),
            6 if format.are_bytes() => Ok(Colours::Ycbcr),
            6 => Err(unsupported("YCbCr colours of other than 8 bits")),
            8 => Ok(Colours::Lab { is_signed: true }),
            9 => Ok(Colours::Lab { is_signed: false }),
            10 => Err(unsupported("Lab colours of fax")),
            32_844 | 32_845 => Err(unsupported("LogLuv colours")),
            other => Err(unsupported(format_args!("the colours numbered {other}"))),
        }
    }

    /// Samples per pixel that describe its colour.
    pub(super) fn samples(&self) -> usize {
        match self {
            Colours::Grey { .. } | Colours::Palette(_) => 1,
            Colours::Rgb | Colours::Ycbcr | Colours::Lab { .. } => 3,
            Colours::Cmyk => 4,
        }
    }

    /// Converts a pixel of three samples to RGB.
    #[inline]
    pub(super) fn to_rgb(&self, pixel: &mut [u8; 3]) {
        match self {
            Colours::Ycbcr => ycbcr_to_rgb(pixel),
            Colours::Lab { is_signed } => lab_to_rgb(pixel, *is_signed),
            Colours::Grey { .. } | Colours::Rgb | Colours::Palette(_) | Colours::Cmyk => {}
        }
    }
}

/// Reads how many pixels share their chroma. The default is a square of four.
fn subsampling(
    directory: &Directory,
    samples: usize,
    is_planar: bool,
    predictor: Predictor,
) -> Result<Option<(usize, usize)>, PrepareError> {
    let mut numbers = directory.numbers(tag::YCBCR_SUBSAMPLING);
    let (across, down) = (numbers.next().unwrap_or(2), numbers.next().unwrap_or(2));
    if (across, down) == (1, 1) {
        return Ok(None);
    }
    if !matches!(across, 1 | 2 | 4) || !matches!(down, 1 | 2 | 4) {
        return Err(damaged());
    }
    if samples != 3 || is_planar || predictor != Predictor::None {
        return Err(unsupported("subsampled chroma in planes, with a predictor or with alpha"));
    }
    Ok(Some((across as usize, down as usize)))
}

/// The colours of a palette. They are stored with 16 bits; some writers fill only the lower 8.
fn palette(directory: &Directory, format: Samples) -> Result<Vec<[u8; 3]>, PrepareError> {
    let colours = 1 << format.bits();
    if directory.count(tag::COLOR_MAP) != 3 * colours {
        return Err(damaged());
    }
    let values: Vec<u64> = directory.numbers(tag::COLOR_MAP).collect();
    let shift = if values.iter().all(|&value| value < 256) { 0 } else { 8 };
    let value = |at: usize| (values[at] >> shift) as u8;
    Ok((0..colours).map(|index| [value(index), value(colours + index), value(2 * colours + index)]).collect())
}

/// The first extra sample that is declared as alpha. An undeclared one may be anything, such as near infrared.
fn alpha(directory: &Directory, colours: &Colours, samples: usize) -> Option<(usize, Alpha)> {
    let extra = directory.numbers(tag::EXTRA_SAMPLES).enumerate();
    let mut alphas = extra.filter_map(|(index, meaning)| match meaning {
        1 => Some((colours.samples() + index, Alpha::Premultiplied)),
        2 => Some((colours.samples() + index, Alpha::Straight)),
        _ => None,
    });
    alphas.next().filter(|(sample, _)| *sample < samples)
}

impl Header {
    /// Converts complete pixels of 8-bit samples to opaque grey or RGB.
    pub(super) fn to_pixels(&self, samples: &[u8], target: &mut [u8]) {
        let (alpha, pixels) = (self.alpha, samples.chunks_exact(self.samples));
        match &self.colours {
            Colours::Grey { is_inverted: false } | Colours::Rgb if samples.len() == target.len() => {
                target.copy_from_slice(samples);
            }
            Colours::Grey { is_inverted } => {
                for (pixel, samples) in target.iter_mut().zip(pixels) {
                    *pixel = if *is_inverted { 255 - samples[0] } else { samples[0] };
                    if let Some((alpha, kind)) = alpha {
                        over_white(std::slice::from_mut(pixel), samples[alpha], kind);
                    }
                }
            }
            Colours::Rgb | Colours::Ycbcr | Colours::Lab { .. } => {
                for (pixel, samples) in target.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    pixel.copy_from_slice(&samples[..3]);
                    self.colours.to_rgb(pixel);
                    if let Some((alpha, kind)) = alpha {
                        over_white(pixel, samples[alpha], kind);
                    }
                }
            }
            Colours::Palette(colours) => {
                for (pixel, &index) in target.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
                    // A sample of n bits is below 2^n, the number of colours.
                    *pixel = colours.get(usize::from(index)).copied().unwrap_or_default();
                }
            }
            Colours::Cmyk => {
                for (pixel, samples) in target.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    pixel.copy_from_slice(&samples[..3]);
                    cmy_with_black(pixel, samples[3]);
                    if let Some((alpha, kind)) = alpha {
                        over_white(pixel, samples[alpha], kind);
                    }
                }
            }
        }
    }
}

/// Blends a pixel over white.
#[inline]
pub(super) fn over_white(pixel: &mut [u8], alpha: u8, kind: Alpha) {
    for value in pixel {
        *value = match kind {
            Alpha::Straight => blend(*value, alpha),
            Alpha::Premultiplied => value.saturating_add(255 - alpha),
        };
    }
}
