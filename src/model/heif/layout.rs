//! The tiles that an image consists of: itself, or those of a grid.

use super::container::Container;

/// An image as a grid of tiles of one size, row by row.
pub(super) struct Layout {
    pub width: usize,
    pub height: usize,
    pub tiles: Vec<u32>,
    pub columns: usize,
    pub tile_width: usize,
    pub tile_height: usize,
}

impl Layout {
    /// Reads the layout of an item. Returns `None` when it is damaged: tiles of a grid must have one size, cover the
    /// image, and each contain a part of it.
    pub(super) fn read(container: &Container, item: u32) -> Option<Layout> {
        if container.kind(item)? != *b"grid" {
            let (width, height) = size(container, item)?;
            return Some(Layout {
                width,
                height,
                tiles: vec![item],
                columns: 1,
                tile_width: width,
                tile_height: height,
            });
        }
        let data = container.data(item)?;
        let &[0, flags, rows, columns, ref size_fields @ ..] = data.as_ref() else { return None };
        let (rows, columns) = (usize::from(rows) + 1, usize::from(columns) + 1);
        let number = |at: usize| {
            let bytes = if flags & 1 == 1 { 4 } else { 2 };
            let field = size_fields.get(at * bytes..(at + 1) * bytes)?;
            Some(field.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
        };
        let (width, height) = (number(0)?, number(1)?);
        let tiles = container.targets(item, *b"dimg").to_vec();
        let (tile_width, tile_height) = size(container, *tiles.first()?)?;
        let covers = |tiles: usize, tile: usize, all: usize| tiles * tile >= all && (tiles - 1) * tile < all;
        let is_valid = tiles.len() == rows * columns
            && covers(columns, tile_width, width)
            && covers(rows, tile_height, height)
            && tiles.iter().all(|tile| size(container, *tile) == Some((tile_width, tile_height)));
        is_valid.then_some(Layout { width, height, tiles, columns, tile_width, tile_height })
    }

    /// The largest number of pixels that a tile may have in its stream: codecs round up to blocks of at most 64 pixels
    /// along each side.
    pub(super) fn coded_pixels(&self) -> u64 {
        let [width, height] = [self.tile_width, self.tile_height].map(|side| side.next_multiple_of(64) as u64);
        width.saturating_mul(height)
    }
}

/// The size of an item, which is not empty.
fn size(container: &Container, item: u32) -> Option<(usize, usize)> {
    let (width, height) = container.size(item)?;
    (width > 0 && height > 0).then_some((width as usize, height as usize))
}
