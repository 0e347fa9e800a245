//! Labelled images that tests draw: textures that differ in kind, and within a kind in colour, size and position.

use std::fs;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};

use crate::image_files::encode;

/// The kinds of textures, each a class.
pub const TEXTURES: [&str; 3] = ["checks", "dots", "stripes"];

/// Writes `count` images of each texture into a folder per class.
pub fn write_textures(folder: &Path, count: u32) {
    for texture in TEXTURES {
        fs::create_dir_all(folder.join(texture)).unwrap();
        for number in 0..count {
            fs::write(folder.join(texture).join(format!("{number:03}.png")), texture_image(texture, number)).unwrap();
        }
    }
}

/// One image of a texture as a PNG.
pub fn texture_image(texture: &str, number: u32) -> Vec<u8> {
    let period = 10 + number * 5 % 13;
    let (dark, light) = (number * 37 % 90, 160 + number * 53 % 90);
    let offset = number * 7;
    let is_dark = |x: u32, y: u32| {
        let (x, y) = (x + offset, y + 2 * offset);
        match texture {
            "checks" => (x / period + y / period).is_multiple_of(2),
            "stripes" => ((x + y) / period).is_multiple_of(2),
            _ => {
                let centre = |at: u32| (at % (2 * period)).abs_diff(period);
                centre(x).pow(2) + centre(y).pow(2) < (period * 2 / 3).pow(2)
            }
        }
    };
    let image = RgbImage::from_fn(120, 96, |x, y| {
        let value = if is_dark(x, y) { dark } else { light } as u8;
        Rgb([value, value.wrapping_add((number * 11 % 20) as u8), value / 2 + 60])
    });
    encode(&image, ImageFormat::Png)
}
