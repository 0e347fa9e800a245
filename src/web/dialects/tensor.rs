//! Pixels that clients send instead of an image file. They become a PNG without any loss, so that they pass the same
//! checks and the same decoder as every other image.

use bytes::Bytes;

use crate::web::error::Problem;
use crate::web::upload::{Upload, UploadRules};

/// Memory of the encoder, in multiples of the pixels: what is written, and the rows before they are compressed.
const ENCODER_COPIES: usize = 2;
const ENCODER_BYTES: usize = 64 << 10;

/// Encodes rows of red, green and blue bytes as PNG.
///
/// # Errors
/// 400 if the sides do not fit the pixels, 413 if the file is above the limit, 503 without memory.
pub(super) async fn encode(pixels: Bytes, height: u32, width: u32, rules: &UploadRules) -> Result<Upload, Problem> {
    let expected = u64::from(height) * u64::from(width) * 3;
    if expected == 0 || pixels.len() as u64 != expected {
        let detail = format!("{} bytes are not the pixels of an image of {height} x {width} x 3", pixels.len());
        return Err(Problem::malformed(detail));
    }
    let reservation = rules.reserve(ENCODER_COPIES * pixels.len() + ENCODER_BYTES)?;
    let encoded = tokio::task::spawn_blocking(move || write(&pixels, height, width)).await;
    let failed = |reason: String| Problem::malformed(format!("the pixels cannot be written as PNG: {reason}"));
    let file = encoded.map_err(|_panic| failed("the encoder failed".to_owned()))?;
    Upload::of_image(file.map_err(|error| failed(error.to_string()))?.into(), reservation, rules)
}

fn write(pixels: &[u8], height: u32, width: u32) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_has_exactly_the_pixels() {
        let pixels: Vec<u8> = (0..5 * 7 * 3_u32).map(|at| (at * 97 % 256) as u8).collect();
        let file = write(&pixels, 5, 7).unwrap();
        let image = image::load_from_memory(&file).unwrap();
        assert_eq!((image.width(), image.height()), (7, 5));
        assert_eq!(image.into_rgb8().into_raw(), pixels);
    }
}
