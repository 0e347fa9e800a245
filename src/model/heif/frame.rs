//! A decoded frame of luma and chroma, and its conversion to RGB.

/// Samples of one component, row by row.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a> {
    pub samples: Samples<'a>,
    pub width: usize,
    pub height: usize,
    /// Number of samples from the beginning of one row to the next.
    pub stride: usize,
}

/// How samples are stored.
#[derive(Clone, Copy)]
pub(super) enum Samples<'a> {
    Words(&'a [u16]),
    Bytes(&'a [u8]),
    /// Two bytes for each sample, in the order of this machine.
    BytePairs(&'a [u8]),
}

/// A frame as the codec returns it.
pub(super) struct Frame<'a> {
    pub luma: Plane<'a>,
    /// Cb and Cr. They may have half the width, or half the width and height, of luma.
    pub chroma: Option<[Plane<'a>; 2]>,
    /// Bits of a sample of luma and of chroma.
    pub bits: [u32; 2],
    /// The colours that the stream itself declares.
    pub colours: ColourCoding,
}

/// How RGB was converted to luma and chroma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColourCoding {
    /// The number of the matrix in ITU-T H.273.
    pub matrix: u16,
    /// Samples use all values, not only those from 16 to 235.
    pub is_full_range: bool,
}

/// The image that frames are drawn into.
pub(super) struct Canvas {
    /// Rows without padding.
    pub data: Vec<u8>,
    pub width: usize,
    pub height: usize,
    /// 1: luma alone, for alpha. 3: RGB.
    pub channels: usize,
}

impl Plane<'_> {
    /// Copies the beginning of a row. Returns `None` when the plane is smaller than its size says.
    fn read_row(&self, y: usize, target: &mut [u16]) -> Option<()> {
        let (from, count) = (y * self.stride, target.len());
        match self.samples {
            Samples::Words(words) => target.copy_from_slice(words.get(from..from + count)?),
            Samples::Bytes(bytes) => {
                let row = bytes.get(from..from + count)?;
                target.iter_mut().zip(row).for_each(|(target, byte)| *target = u16::from(*byte));
            }
            Samples::BytePairs(bytes) => {
                let row = bytes.get(2 * from..2 * (from + count))?.as_chunks::<2>().0;
                target.iter_mut().zip(row).for_each(|(target, pair)| *target = u16::from_ne_bytes(*pair));
            }
        }
        Some(())
    }
}

/// A linear function that maps samples to the range 0 to 255, or chroma to the range around 0.
#[derive(Clone, Copy)]
struct Scale {
    offset: f32,
    factor: f32,
}

impl Scale {
    fn luma(bits: u32, is_full_range: bool) -> Scale {
        let unit = (1_u32 << (bits - 8)) as f32;
        if is_full_range {
            Scale { offset: 0.0, factor: 255.0 / (256.0 * unit - 1.0) }
        } else {
            Scale { offset: 16.0 * unit, factor: 255.0 / (219.0 * unit) }
        }
    }

    fn chroma(bits: u32, is_full_range: bool) -> Scale {
        let unit = (1_u32 << (bits - 8)) as f32;
        let factor = if is_full_range { 255.0 / (256.0 * unit - 1.0) } else { 255.0 / (224.0 * unit) };
        Scale { offset: 128.0 * unit, factor }
    }

    fn apply(self, sample: f32) -> f32 {
        (sample - self.offset) * self.factor
    }
}

/// The weights of red and blue in luma, by ITU-T H.273. What is not specified is BT.601, as in other decoders.
fn luma_weights(matrix: u16) -> (f32, f32) {
    match matrix {
        1 => (0.2126, 0.0722),
        4 => (0.30, 0.11),
        7 => (0.212, 0.087),
        9 | 10 => (0.2627, 0.0593),
        _ => (0.299, 0.114),
    }
}

const IDENTITY: u16 = 0;
const YCGCO: u16 = 8;

impl Frame<'_> {
    /// Draws the upper left `size` of the frame into the canvas at (left, top), as far as it lies inside.
    ///
    /// Returns `None` when the frame is smaller than `size` or has an unknown subsampling.
    pub(super) fn draw(
        &self,
        (width, height): (usize, usize),
        colours: ColourCoding,
        canvas: &mut Canvas,
        (left, top): (usize, usize),
    ) -> Option<()> {
        if width > self.luma.width || height > self.luma.height || self.bits.iter().any(|bits| !(8..=16).contains(bits))
        {
            return None;
        }
        let columns = width.min(canvas.width.saturating_sub(left));
        let rows = height.min(canvas.height.saturating_sub(top));
        let mut converter = Converter::new(self, colours, columns)?;
        for y in 0..rows {
            let start = ((top + y) * canvas.width + left) * canvas.channels;
            let target = &mut canvas.data[start..start + columns * canvas.channels];
            if canvas.channels == 1 { converter.luma_row(y, target)? } else { converter.rgb_row(y, target)? }
        }
        Some(())
    }
}

/// Converts the rows of one frame. The buffers hold one row each.
struct Converter<'a> {
    frame: &'a Frame<'a>,
    colours: ColourCoding,
    scale: Scale,
    chroma_scale: Scale,
    luma: Vec<u16>,
    stored: [Vec<u16>; 2],
    chroma: [Vec<f32>; 2],
    /// Chroma has half the width and half the height of luma.
    is_halved: (bool, bool),
}

impl<'a> Converter<'a> {
    fn new(frame: &'a Frame<'a>, colours: ColourCoding, columns: usize) -> Option<Converter<'a>> {
        let luma = &frame.luma;
        let (mut is_halved, mut chroma_columns) = ((false, false), 0);
        if let Some([cb, cr]) = &frame.chroma {
            let halved = |all: usize, part: usize| match part {
                _ if part == all => Some(false),
                _ if part == all.div_ceil(2) => Some(true),
                _ => None,
            };
            is_halved = (halved(luma.width, cb.width)?, halved(luma.height, cb.height)?);
            if (cr.width, cr.height) != (cb.width, cb.height) {
                return None;
            }
            // One column more, which the last pixel is interpolated with.
            chroma_columns = if is_halved.0 { (columns / 2 + 1).min(cb.width) } else { columns };
        }
        let [bits, chroma_bits] = frame.bits;
        let is_full_range = colours.is_full_range;
        Some(Converter {
            frame,
            colours,
            scale: Scale::luma(bits, is_full_range),
            chroma_scale: if colours.matrix == IDENTITY {
                Scale::luma(chroma_bits, is_full_range)
            } else {
                Scale::chroma(chroma_bits, is_full_range)
            },
            luma: vec![0; columns],
            stored: [vec![0; chroma_columns], vec![0; chroma_columns]],
            chroma: [vec![0.0; columns], vec![0.0; columns]],
            is_halved,
        })
    }

    fn luma_row(&mut self, y: usize, target: &mut [u8]) -> Option<()> {
        self.frame.luma.read_row(y, &mut self.luma)?;
        for (target, sample) in target.iter_mut().zip(&self.luma) {
            *target = to_byte(self.scale.apply(f32::from(*sample)));
        }
        Some(())
    }

    fn rgb_row(&mut self, y: usize, target: &mut [u8]) -> Option<()> {
        self.frame.luma.read_row(y, &mut self.luma)?;
        let Some(planes) = &self.frame.chroma else {
            for (pixel, sample) in target.as_chunks_mut::<3>().0.iter_mut().zip(&self.luma) {
                *pixel = [to_byte(self.scale.apply(f32::from(*sample))); 3];
            }
            return Some(());
        };
        for (plane, target) in planes.iter().zip(&mut self.chroma) {
            read_chroma(plane, y, self.is_halved, &mut self.stored, target)?;
        }
        let (scale, chroma_scale) = (self.scale, self.chroma_scale);
        let (red, blue) = luma_weights(self.colours.matrix);
        let green = 1.0 - red - blue;
        let matrix = self.colours.matrix;
        let [cb, cr] = &self.chroma;
        let samples = self.luma.iter().zip(cb).zip(cr);
        for (pixel, ((luma, cb), cr)) in target.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
            let y = scale.apply(f32::from(*luma));
            let (cb, cr) = (chroma_scale.apply(*cb), chroma_scale.apply(*cr));
            let rgb = match matrix {
                IDENTITY => [cr, y, cb],
                YCGCO => [y - cb + cr, y + cb, y - cb - cr],
                _ => {
                    let (r, b) = (y + 2.0 * (1.0 - red) * cr, y + 2.0 * (1.0 - blue) * cb);
                    [r, (y - red * r - blue * b) / green, b]
                }
            };
            *pixel = rgb.map(to_byte);
        }
        Some(())
    }
}

/// Reads a row of chroma and interpolates it to the size of luma. Samples lie in the middle between those of luma.
fn read_chroma(
    plane: &Plane,
    y: usize,
    (is_half_width, is_half_height): (bool, bool),
    [near, far]: &mut [Vec<u16>; 2],
    target: &mut [f32],
) -> Option<()> {
    if is_half_height {
        let other = if y % 2 == 1 { (y / 2 + 1).min(plane.height - 1) } else { (y / 2).saturating_sub(1) };
        plane.read_row(y / 2, near)?;
        plane.read_row(other, far)?;
    } else {
        plane.read_row(y, near)?;
        far.copy_from_slice(near);
    }
    let mixed = |at: usize| 0.75 * f32::from(near[at]) + 0.25 * f32::from(far[at]);
    let last = near.len().checked_sub(1)?;
    for (x, target) in target.iter_mut().enumerate() {
        *target = if is_half_width {
            let other = if x % 2 == 1 { (x / 2 + 1).min(last) } else { (x / 2).saturating_sub(1) };
            0.75 * mixed((x / 2).min(last)) + 0.25 * mixed(other)
        } else {
            mixed(x.min(last))
        };
    }
    Some(())
}

/// Rounds. The conversion clamps to 0 and 255.
fn to_byte(value: f32) -> u8 {
    (value + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: ColourCoding = ColourCoding { matrix: 6, is_full_range: true };

    fn plane(samples: &[u16], width: usize) -> Plane<'_> {
        Plane { samples: Samples::Words(samples), width, height: samples.len() / width, stride: width }
    }

    fn rgb(luma: &[u16], chroma: [&[u16]; 2], size: (usize, usize), colours: ColourCoding, bits: u32) -> Vec<u8> {
        let (width, height) = size;
        let halved = if chroma[0].len() == luma.len() { width } else { width.div_ceil(2) };
        let planes = chroma.map(|samples| plane(samples, halved));
        let frame = Frame { luma: plane(luma, width), chroma: Some(planes), bits: [bits; 2], colours };
        let mut canvas = Canvas { data: vec![0; 3 * width * height], width, height, channels: 3 };
        frame.draw(size, colours, &mut canvas, (0, 0)).unwrap();
        canvas.data
    }

    #[test]
    fn primaries_are_converted_in_every_range_and_depth() {
        let of = |y, cb, cr, colours, bits| rgb(&[y], [&[cb], &[cr]], (1, 1), colours, bits);
        assert_eq!(of(128, 128, 128, FULL, 8), [128, 128, 128]);
        assert_eq!(of(76, 85, 255, FULL, 8), [254, 0, 0]);
        let limited = ColourCoding { matrix: 1, is_full_range: false };
        assert_eq!(of(16, 128, 128, limited, 8), [0, 0, 0]);
        assert_eq!(of(235, 128, 128, limited, 8), [255, 255, 255]);
        assert_eq!(of(940, 512, 512, limited, 10), [255, 255, 255]);
        assert_eq!(of(10, 20, 30, ColourCoding { matrix: IDENTITY, is_full_range: true }, 8), [30, 10, 20]);
        assert_eq!(of(100, 128, 128, ColourCoding { matrix: YCGCO, is_full_range: true }, 8), [100, 100, 100]);
    }

    #[test]
    fn chroma_is_interpolated_between_its_samples() {
        let red_of = |pixels: Vec<u8>| pixels.chunks(3).map(|pixel| pixel[0]).collect::<Vec<u8>>();
        let pixels = rgb(&[128; 4], [&[128, 128], &[128, 168]], (4, 1), FULL, 8);
        assert_eq!(red_of(pixels), [128, 142, 170, 184]);
        let odd = rgb(&[128; 9], [&[128; 4], &[128; 4]], (3, 3), FULL, 8);
        assert_eq!(odd, [128; 27]);
    }

    #[test]
    fn frame_outside_the_canvas_is_cut_and_a_small_one_is_refused() {
        let samples = [200; 16];
        let luma = plane(&samples, 4);
        let frame = Frame { luma, chroma: None, bits: [8, 8], colours: FULL };
        let mut canvas = Canvas { data: vec![0; 9], width: 3, height: 3, channels: 1 };
        frame.draw((4, 4), FULL, &mut canvas, (2, 1)).unwrap();
        assert_eq!(canvas.data, [0, 0, 0, 0, 0, 200, 0, 0, 200]);
        assert_eq!(frame.draw((5, 4), FULL, &mut canvas, (0, 0)), None);
        let short = Frame { luma: Plane { height: 5, ..luma }, ..frame };
        assert_eq!(
            short.draw((4, 5), FULL, &mut Canvas { data: vec![0; 20], width: 4, height: 5, channels: 1 }, (0, 0)),
            None
        );
    }
}
