//! Colours that are not stored as red, green and blue.

/// Converts cyan, magenta and yellow to red, green and blue.
#[inline]
pub(super) fn cmy_with_black(pixel: &mut [u8], black: u8) {
    let light = 1.0 - f32::from(black) / 255.0;
    for value in pixel {
        *value = ((255.0 - f32::from(*value)) * light) as u8;
    }
}

/// Converts luma and chroma of the full range to RGB, with the default coefficients of TIFF.
#[inline]
pub(super) fn ycbcr_to_rgb(pixel: &mut [u8; 3]) {
    let [y, cb, cr] = pixel.map(f32::from);
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let rgb = [y + 1.402 * cr, y - 0.344_14 * cb - 0.714_14 * cr, y + 1.772 * cb];
    *pixel = rgb.map(|value| (value + 0.5) as u8);
}

/// Converts CIE L*a*b* of the illuminant D50 to sRGB. `a` and `b` are signed, or have an offset of 128.
pub(super) fn lab_to_rgb(pixel: &mut [u8; 3], is_signed: bool) {
    let chroma = |value: u8| if is_signed { f32::from(value.cast_signed()) } else { f32::from(value) - 128.0 };
    let [lightness, red_green, yellow_blue] =
        [f32::from(pixel[0]) * (100.0 / 255.0), chroma(pixel[1]), chroma(pixel[2])];
    let middle = (lightness + 16.0) / 116.0;
    let linear = |value: f32| if value > 6.0 / 29.0 { value.powi(3) } else { (value - 4.0 / 29.0) * (108.0 / 841.0) };
    let x = 0.964_22 * linear(middle + red_green / 500.0);
    let y = linear(middle);
    let z = 0.825_21 * linear(middle - yellow_blue / 200.0);
    let rgb = [
        3.133_856 * x - 1.616_867 * y - 0.490_615 * z,
        -0.978_768 * x + 1.916_142 * y + 0.033_454 * z,
        0.071_945 * x - 0.228_991 * y + 1.405_243 * z,
    ];
    let gamma = |value: f32| if value > 0.003_130_8 { 1.055 * value.powf(1.0 / 2.4) - 0.055 } else { 12.92 * value };
    *pixel = rgb.map(|value| (255.0 * gamma(value) + 0.5) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_black_and_primaries_are_converted() {
        let of = |mut pixel: [u8; 3], is_signed| {
            lab_to_rgb(&mut pixel, is_signed);
            pixel
        };
        assert_eq!(of([255, 0, 0], true), [255, 255, 255]);
        assert_eq!(of([255, 128, 128], false), [255, 255, 255]);
        assert_eq!(of([0, 0, 0], true), [0, 0, 0]);
        // L* 54.3, a* 80.8, b* 69.9 is the red of sRGB.
        let [red, green, blue] = of([138, 81, 70], true);
        assert!(red > 250 && green < 15 && blue < 15, "{red} {green} {blue}");
        let mut pixel = [76, 85, 255];
        ycbcr_to_rgb(&mut pixel);
        assert_eq!(pixel, [254, 0, 0]);
    }
}
