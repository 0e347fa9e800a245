//! How a stored image is turned upright.

/// The transformation from a stored image to the upright one: the upright pixel (x, y) is stored at (x, y), or at (y,
/// x) if `swapped`; then each stored axis is mirrored if its flag is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Orientation {
    pub swapped: bool,
    pub mirror_x: bool,
    pub mirror_y: bool,
}

impl Orientation {
    /// Converts the EXIF value. Values other than 1 to 8 mean upright.
    pub(super) fn from_exif(value: u8) -> Orientation {
        let (swapped, mirror_x, mirror_y) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };
        Orientation { swapped, mirror_x, mirror_y }
    }

    /// The orientation of an image that is turned by 90° against the clock after this one.
    pub(super) fn rotated_left(self) -> Orientation {
        let mirrored = self.mirrored_left_right();
        Orientation { swapped: !self.swapped, ..mirrored }
    }

    /// The orientation of an image whose left and right are exchanged after this one.
    pub(super) fn mirrored_left_right(mut self) -> Orientation {
        let mirror = if self.swapped { &mut self.mirror_y } else { &mut self.mirror_x };
        *mirror = !*mirror;
        self
    }

    /// The orientation of an image whose top and bottom are exchanged after this one.
    pub(super) fn mirrored_top_bottom(mut self) -> Orientation {
        let mirror = if self.swapped { &mut self.mirror_x } else { &mut self.mirror_y };
        *mirror = !*mirror;
        self
    }

    /// Width and height of the upright image.
    pub(super) fn upright_size(self, width: usize, height: usize) -> (usize, usize) {
        if self.swapped { (height, width) } else { (width, height) }
    }

    /// Returns for each pixel of the upright image, row by row, its index in the stored image of `width` × `height`.
    pub(super) fn stored_indices(self, width: usize, height: usize) -> impl Iterator<Item = usize> {
        let Orientation { swapped, mirror_x, mirror_y } = self;
        let (upright_width, upright_height) = self.upright_size(width, height);
        (0..upright_height).flat_map(move |y| {
            (0..upright_width).map(move |x| {
                let (x, y) = if swapped { (y, x) } else { (x, y) };
                let x = if mirror_x { width - 1 - x } else { x };
                let y = if mirror_y { height - 1 - y } else { y };
                y * width + x
            })
        })
    }
}

/// For each value of EXIF: the width and the pixels, as stored, of the upright image of 3 × 2 pixels 0 1 2 above 3 4 5.
#[cfg(test)]
pub(super) const STORED_IN_EACH_ORIENTATION: [(u8, usize, [u8; 6]); 8] = [
    (1, 3, [0, 1, 2, 3, 4, 5]),
    (2, 3, [2, 1, 0, 5, 4, 3]),
    (3, 3, [5, 4, 3, 2, 1, 0]),
    (4, 3, [3, 4, 5, 0, 1, 2]),
    (5, 2, [0, 3, 1, 4, 2, 5]),
    (6, 2, [2, 5, 1, 4, 0, 3]),
    (7, 2, [5, 2, 4, 1, 3, 0]),
    (8, 2, [3, 0, 4, 1, 5, 2]),
];
