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
