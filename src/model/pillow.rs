//! Pillow's resize of 8-bit images, value for value: its filters, its fixed-point weights, and its rounding after each of
//! the two passes. Checked against Pillow's output in `tests/it/preprocess_modes.rs`.

use std::f64::consts::PI;
use std::ops::Range;

use super::input::Filter;
use super::pixels::Pixels;
use super::placement::{Axis, Placement};

/// The bits of a weight behind its point. Sums fit into 32 bits: the absolute weights of a pixel add up to less than 2.
const PRECISION: u32 = 22;
const ONE_HALF: i32 = 1 << (PRECISION - 1);

/// Resizes the visible part of an image, which must have been decoded at full size, in its stored orientation into
/// `target`. `between` is the buffer between the two passes. Returns the width and the height.
pub(super) fn resize(
    pixels: &Pixels,
    filter: Filter,
    placement: &Placement,
    between: &mut Vec<u8>,
    target: &mut Vec<u8>,
) -> (usize, usize) {
    match pixels.channels {
        1 => resize_channels::<1>(pixels, filter, placement, between, target),
        3 => resize_channels::<3>(pixels, filter, placement, between, target),
        _ => resize_channels::<4>(pixels, filter, placement, between, target),
    }
}

fn resize_channels<const N: usize>(
    pixels: &Pixels,
    filter: Filter,
    placement: &Placement,
    between: &mut Vec<u8>,
    target: &mut Vec<u8>,
) -> (usize, usize) {
    let (orientation, origin) = (pixels.orientation, pixels.origin);
    let Placement { across, down } = placement;
    let (across, down) = if orientation.swapped { (down, across) } else { (across, down) };
    let mut columns = Taps::new(across, filter, orientation.mirror_x, origin.left);
    let mut rows = Taps::new(down, filter, orientation.mirror_y, origin.top);
    let source = Plane::<N> { data: pixels.data.as_chunks().0, width: pixels.width };
    // Rows of the upright image come first. They are columns of the stored one if the axes are swapped.
    if orientation.swapped {
        let needed = columns.relative_to_first();
        down_columns(&source, &rows, needed.clone(), between);
        let source = Plane::<N> { data: between.as_chunks().0, width: needed.len() };
        along_rows(&source, &columns, 0..rows.len(), target);
    } else {
        let needed = rows.relative_to_first();
        along_rows(&source, &columns, needed, between);
        let source = Plane::<N> { data: between.as_chunks().0, width: columns.len() };
        down_columns(&source, &rows, 0..columns.len(), target);
    }
    (across.visible, down.visible)
}

/// Pixels of `N` channels, row by row.
struct Plane<'a, const N: usize> {
    data: &'a [[u8; N]],
    width: usize,
}

/// Resizes each of these rows along itself.
fn along_rows<const N: usize>(source: &Plane<N>, columns: &Taps, rows: Range<usize>, target: &mut Vec<u8>) {
    target.clear();
    for row in rows {
        let row = &source.data[row * source.width..][..source.width];
        for (first, weights) in columns.iter() {
            let mut sums = [ONE_HALF; N];
            for (pixel, weight) in row[first..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            target.extend(sums.map(rounded));
        }
    }
}

/// Resizes each of these columns along itself.
fn down_columns<const N: usize>(source: &Plane<N>, rows: &Taps, columns: Range<usize>, target: &mut Vec<u8>) {
    target.clear();
    let mut sums = vec![ONE_HALF; columns.len() * N];
    for (first, weights) in rows.iter() {
        sums.fill(ONE_HALF);
        for (row, weight) in source.data[first * source.width..].chunks_exact(source.width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row[columns.clone()].as_flattened()) {
                *sum += i32::from(value) * weight;
            }
        }
        target.extend(sums.iter().map(|&sum| rounded(sum)));
    }
}

/// The sum started at one half, so its whole part is the rounded value.
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The stored pixels that each target pixel along one stored axis is made of, with their weights in units of 2⁻²².
struct Taps {
    /// The first pixel, and the place of the weights in `weights`.
    places: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    /// `skipped` is the number of stored pixels before the first one that was decoded.
    fn new(axis: &Axis, filter: Filter, is_mirrored: bool, skipped: usize) -> Taps {
        let mut taps = Taps { places: Vec::with_capacity(axis.visible), weights: Vec::new() };
        let mut exact = Vec::new();
        let upright = axis.from..axis.from + axis.visible;
        for index in upright.clone() {
            let position = if is_mirrored { upright.end - 1 - (index - upright.start) } else { index };
            let first = weigh(axis, filter, position, &mut exact);
            let first = if is_mirrored { axis.extent - first - exact.len() } else { first };
            let start = taps.weights.len();
            let fixed = exact.iter().map(|weight| fixed_point(*weight));
            if is_mirrored {
                taps.weights.extend(fixed.rev());
            } else {
                taps.weights.extend(fixed);
            }
            taps.places.push((first - skipped, start..taps.weights.len()));
        }
        taps
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.places.iter().map(|(first, place)| (*first, &self.weights[place.clone()]))
    }

    /// Makes the positions relative to the first pixel that is read. Returns the pixels that are read, as they were
    /// counted before.
    fn relative_to_first(&mut self) -> Range<usize> {
        let start = self.places.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.places.iter().map(|(first, place)| first + place.len()).max().unwrap_or(0);
        self.places.iter_mut().for_each(|(first, _)| *first -= start);
        start..end
    }
}

/// Computes the weights of the upright pixels that the target pixel at `position` is made of. Returns the first of them.
fn weigh(axis: &Axis, filter: Filter, position: usize, weights: &mut Vec<f64>) -> usize {
    let scale = axis.length / axis.resized as f64;
    let filter_scale = scale.max(1.0);
    let radius = filter.radius() * filter_scale;
    let centre = axis.start + (position as f64 + 0.5) * scale;
    // The conversions drop the fraction.
    let first = (centre - radius + 0.5).max(0.0) as usize;
    let end = ((centre + radius + 0.5) as usize).min(axis.extent);
    weights.clear();
    let shrink = 1.0 / filter_scale;
    weights.extend((0..end - first).map(|tap| value(filter, ((tap + first) as f64 - centre + 0.5) * shrink)));
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        for weight in weights {
            *weight /= sum;
        }
    }
    first
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// The value of a filter at a distance from its centre.
fn value(filter: Filter, at: f64) -> f64 {
    let distance = at.abs();
    match filter {
        Filter::Box if at > -0.5 && at <= 0.5 => 1.0,
        Filter::Bilinear if distance < 1.0 => 1.0 - distance,
        Filter::Hamming if distance == 0.0 => 1.0,
        Filter::Hamming if distance < 1.0 => {
            (distance * PI).sin() / (distance * PI) * (0.54 + 0.46 * (distance * PI).cos())
        }
        Filter::Bicubic => bicubic(distance),
        Filter::Lanczos if (-3.0..3.0).contains(&at) => sinc(at) * sinc(at / 3.0),
        // Nearest and OpenCV's filter read single pixels, and are not computed here.
        _ => 0.0,
    }
}

/// Keys' cubic with a = −0.5.
fn bicubic(distance: f64) -> f64 {
    const A: f64 = -0.5;
    if distance < 1.0 {
        ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
    } else if distance < 2.0 {
        (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(at: f64) -> f64 {
    if at == 0.0 { 1.0 } else { (at * PI).sin() / (at * PI) }
}
