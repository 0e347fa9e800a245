//! The changes that the container applies to a decoded image: cutting, turning, mirroring.

use super::boxes::Reader;
use crate::orientation::Orientation;

/// The part of the decoded image that is shown, and how it is turned upright.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transform {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    pub orientation: Orientation,
}

impl Transform {
    /// Reads the properties of an image in the order in which they apply.
    ///
    /// # Errors
    /// The name of a feature that is not supported, or `None` when a property is damaged.
    pub(super) fn read<'a>(
        properties: impl Iterator<Item = ([u8; 4], Reader<'a>)>,
        (width, height): (usize, usize),
    ) -> Result<Transform, Option<&'static str>> {
        let mut transform = Transform { left: 0, top: 0, width, height, orientation: Orientation::default() };
        for (kind, mut content) in properties {
            match &kind {
                b"clap" if transform.orientation != Orientation::default() => {
                    return Err(Some("a cut after a rotation"));
                }
                b"clap" => transform.cut_to(content).ok_or(None)?,
                b"irot" => {
                    for _ in 0..content.u8().ok_or(None)? & 3 {
                        transform.orientation = transform.orientation.rotated_left();
                    }
                }
                b"imir" => {
                    let is_left_right = content.u8().ok_or(None)? & 1 == 1;
                    transform.orientation = if is_left_right {
                        transform.orientation.mirrored_left_right()
                    } else {
                        transform.orientation.mirrored_top_bottom()
                    };
                }
                _ => {}
            }
        }
        Ok(transform)
    }

    /// Reads the size of the part and the offset of its middle from that of the image, all of them as fractions.
    fn cut_to(&mut self, mut content: Reader) -> Option<()> {
        let mut fraction = || {
            let (dividend, divisor) = (content.u32()?.cast_signed(), content.u32()?);
            (divisor > 0).then(|| f64::from(dividend) / f64::from(divisor))
        };
        let (width, height, right, down) = (fraction()?, fraction()?, fraction()?, fraction()?);
        (self.left, self.width) = Self::range(self.width, width, right)?;
        (self.top, self.height) = Self::range(self.height, height, down)?;
        Some(())
    }

    /// Start and length of the part along one axis.
    fn range(all: usize, length: f64, offset: f64) -> Option<(usize, usize)> {
        let start = ((all as f64 - length) / 2.0 + offset).floor();
        let length = length.round();
        let is_inside = length >= 1.0 && start >= 0.0 && start + length <= all as f64;
        is_inside.then_some((start as usize, length as usize))
    }

    /// Keeps the part that is shown. Returns the pixels and their size.
    pub(super) fn cut(&self, mut data: Vec<u8>, (all_width, all_height): (usize, usize)) -> (Vec<u8>, (usize, usize)) {
        let Transform { left, top, width, height, .. } = *self;
        if (width, height) != (all_width, all_height) {
            for y in 0..height {
                let from = ((top + y) * all_width + left) * 3;
                data.copy_within(from..from + width * 3, y * width * 3);
            }
            data.truncate(width * height * 3);
        }
        (data, (width, height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(properties: &[(&[u8; 4], &[u8])]) -> Result<Transform, Option<&'static str>> {
        Transform::read(properties.iter().map(|(kind, content)| (**kind, Reader(content))), (8, 6))
    }

    fn clap(numbers: [(i32, u32); 4]) -> Vec<u8> {
        numbers.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()].concat()).collect()
    }

    #[test]
    fn part_is_cut_out_around_the_middle() {
        let transform = read(&[(b"clap", &clap([(5, 1), (3, 1), (-3, 2), (1, 2)]))]).unwrap();
        assert_eq!((transform.left, transform.top, transform.width, transform.height), (0, 2, 5, 3));
        let pixels: Vec<u8> = (0..8 * 6).flat_map(|pixel| [pixel; 3]).collect();
        let (data, size) = transform.cut(pixels, (8, 6));
        assert_eq!(size, (5, 3));
        assert_eq!(data.chunks(3).map(|pixel| pixel[0]).collect::<Vec<_>>()[..6], [16, 17, 18, 19, 20, 24]);
        for outside in
            [[(9, 1), (3, 1), (0, 1), (0, 1)], [(5, 1), (3, 1), (9, 1), (0, 1)], [(5, 0), (3, 1), (0, 1), (0, 1)]]
        {
            assert_eq!(read(&[(b"clap", &clap(outside))]), Err(None), "{outside:?}");
        }
        assert_eq!(
            read(&[(b"irot", &[1]), (b"clap", &clap([(5, 1), (3, 1), (0, 1), (0, 1)]))]),
            Err(Some("a cut after a rotation"))
        );
    }

    #[test]
    fn rotations_and_mirrors_are_combined_in_order() {
        let of = |properties: &[(&[u8; 4], &[u8])]| read(properties).unwrap().orientation;
        assert_eq!(of(&[]), Orientation::default());
        assert_eq!(of(&[(b"irot", &[1])]), Orientation::from_exif(8));
        assert_eq!(of(&[(b"irot", &[2])]), Orientation::from_exif(3));
        assert_eq!(of(&[(b"irot", &[3])]), Orientation::from_exif(6));
        assert_eq!(of(&[(b"imir", &[0])]), Orientation::from_exif(4));
        assert_eq!(of(&[(b"imir", &[1])]), Orientation::from_exif(2));
        assert_eq!(of(&[(b"irot", &[1]), (b"imir", &[1])]), Orientation::from_exif(7));
        assert_eq!(of(&[(b"irot", &[3]), (b"imir", &[1])]), Orientation::from_exif(5));
        assert_eq!(read(&[(b"irot", &[])]), Err(None));
    }
}
