//! TIFF: the same pixels give the same tensor however they are stored, and unsupported features are refused by name.

use imgcls::model::{Limits, ModelChoice, ModelPackage, Tensor, prepare};
use imgcls::protocol::ErrorCode;
use weezl::BitOrder;

use crate::harness::test_image;
use crate::tiff_file::{
    BITS, COLOR_MAP, COMPRESSION, EXTRA_SAMPLES, FILL_ORDER, PHOTOMETRIC, PLANAR, PREDICTOR, ROWS_PER_STRIP,
    SAMPLE_FORMAT, SAMPLES, TILE_LENGTH, TILE_WIDTH, Tiff, zlib,
};

const JPEG_INTERCHANGE: u16 = 513;
const JPEG_INTERCHANGE_LENGTH: u16 = 514;
const SUBSAMPLING: u16 = 530;

const WIDTH: usize = 61;
const HEIGHT: usize = 47;

/// A model with a float input, so that tensors can be compared.
struct TestModel(ModelPackage);

impl TestModel {
    fn new() -> TestModel {
        TestModel(
            ModelPackage::load(&ModelChoice { variant: Some("fp16".to_owned()), ..ModelChoice::default() }).unwrap(),
        )
    }

    fn tensor(&self, name: &str, file: &[u8]) -> Tensor {
        prepare(file, &self.0, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The message of the error.
    fn refusal(&self, name: &str, file: &[u8]) -> String {
        let error = prepare(file, &self.0, &Limits::default()).err().unwrap_or_else(|| panic!("{name} was decoded"));
        assert_eq!(ErrorCode::from(error.fault).as_str(), "undecodable", "{name}: {error}");
        assert!(error.message.len() < 120, "{name}: {error}");
        error.message
    }
}

/// An image without symmetry.
fn rgb() -> Vec<u8> {
    let pixel = |at: usize| {
        let (x, y) = (at % WIDTH, at / WIDTH);
        [(x * 4) as u8, (y * 5) as u8, ((x * y) % 251) as u8]
    };
    (0..WIDTH * HEIGHT).flat_map(pixel).collect()
}

fn grey() -> Vec<u8> {
    rgb().chunks(3).map(|pixel| pixel[2]).collect()
}

fn plain(samples: u32, pixels: &[u8]) -> Tiff {
    Tiff::new(WIDTH as u32, HEIGHT as u32, samples, pixels)
}

/// Splits the image into strips of `rows` rows.
fn strips(mut tiff: Tiff, rows: usize, row_bytes: usize) -> Tiff {
    tiff.chunks = tiff.chunks.iter().flat_map(|plane| plane.chunks(rows * row_bytes).map(<[u8]>::to_vec)).collect();
    tiff.with(ROWS_PER_STRIP, [rows as u32])
}

/// Splits each plane into tiles of 16 × 32 pixels. The last ones extend beyond the image.
fn tiles(mut tiff: Tiff, pixel_bytes: usize) -> Tiff {
    let tile = |plane: &[u8], left: usize, top: usize| {
        let mut tile = vec![0xee; 16 * 32 * pixel_bytes];
        for y in 0..32.min(HEIGHT - top) {
            let bytes = 16.min(WIDTH - left) * pixel_bytes;
            let from = ((top + y) * WIDTH + left) * pixel_bytes;
            tile[y * 16 * pixel_bytes..][..bytes].copy_from_slice(&plane[from..from + bytes]);
        }
        tile
    };
    let corners = || (0..HEIGHT).step_by(32).flat_map(|top| (0..WIDTH).step_by(16).map(move |left| (left, top)));
    tiff.chunks = tiff.chunks.iter().flat_map(|plane| corners().map(|(left, top)| tile(plane, left, top))).collect();
    tiff.with(TILE_WIDTH, [16]).with(TILE_LENGTH, [32])
}

fn planes(mut tiff: Tiff, samples: usize) -> Tiff {
    let pixels = tiff.chunks.concat();
    tiff.chunks = (0..samples).map(|sample| pixels.iter().skip(sample).step_by(samples).copied().collect()).collect();
    tiff.with(PLANAR, [2])
}

fn lzw(bytes: &[u8]) -> Vec<u8> {
    weezl::encode::Encoder::with_tiff_size_switch(BitOrder::Msb, 8).encode(bytes).unwrap()
}

/// Compresses to literals and runs, each after a no-op byte.
fn pack_bits(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    for piece in bytes.chunks(100) {
        packed.push(128);
        if piece.iter().all(|byte| *byte == piece[0]) && piece.len() > 1 {
            packed.extend([(257 - piece.len()) as u8, piece[0]]);
        } else {
            packed.push(piece.len() as u8 - 1);
            packed.extend(piece);
        }
    }
    packed
}

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte.reverse_bits()).collect()
}

fn differences(bytes: &[u8], samples: usize) -> Vec<u8> {
    let rows = bytes.chunks(WIDTH * samples);
    let difference = |row: &[u8]| -> Vec<u8> {
        (0..row.len()).map(|at| row[at].wrapping_sub(if at < samples { 0 } else { row[at - samples] })).collect()
    };
    rows.flat_map(difference).collect()
}

#[test]
fn same_pixels_give_the_same_tensor_however_they_are_stored() {
    let model = TestModel::new();
    let rgb = rgb();
    let expected = model.tensor("plain", &plain(3, &rgb).file());
    let wide = |scale: fn(u8) -> Vec<u8>, bits: u32, format: u32| {
        let pixels: Vec<u8> = rgb.iter().flat_map(|value| scale(*value)).collect();
        plain(3, &pixels).with(BITS, [bits; 3]).with(SAMPLE_FORMAT, [format; 3])
    };
    let big = |mut tiff: Tiff| {
        tiff.is_big_endian = true;
        tiff
    };
    let opaque: Vec<u8> = rgb.chunks(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
    let infrared: Vec<u8> = rgb.chunks(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 0]).collect();
    let bigtiff = |mut tiff: Tiff| {
        tiff.is_bigtiff = true;
        tiff
    };
    let kinds = [
        ("strips", strips(plain(3, &rgb), 5, 3 * WIDTH)),
        ("strips, LZW", strips(plain(3, &rgb), 5, 3 * WIDTH).compressed(5, lzw)),
        ("strips, Deflate", strips(plain(3, &rgb), 5, 3 * WIDTH).compressed(8, zlib)),
        ("strips, Zstandard", strips(plain(3, &rgb), 5, 3 * WIDTH).compressed(50_000, zstd)),
        ("tiles, Zstandard", tiles(plain(3, &rgb), 3).compressed(50_000, zstd)),
        ("strips, PackBits", strips(plain(3, &rgb), 5, 3 * WIDTH).compressed(32_773, pack_bits)),
        ("differences", strips(plain(3, &differences(&rgb, 3)), 7, 3 * WIDTH).compressed(8, zlib).with(PREDICTOR, [2])),
        ("a predictor without compression", plain(3, &rgb).with(PREDICTOR, [2])),
        ("tiles", tiles(plain(3, &rgb), 3)),
        ("tiles, LZW", tiles(plain(3, &rgb), 3).compressed(5, lzw)),
        ("planes", planes(plain(3, &rgb), 3)),
        ("planes in strips", strips(planes(plain(3, &rgb), 3), 4, WIDTH)),
        ("planes in tiles", tiles(planes(plain(3, &rgb), 3), 1)),
        ("planes in tiles, Deflate", tiles(planes(plain(3, &rgb), 3), 1).compressed(8, zlib)),
        ("big-endian", big(plain(3, &rgb))),
        ("BigTIFF", bigtiff(plain(3, &rgb))),
        ("BigTIFF, big-endian", bigtiff(big(strips(plain(3, &rgb), 5, 3 * WIDTH)))),
        ("bits reversed", plain(3, &reversed(&rgb)).with(FILL_ORDER, [2])),
        ("bits reversed, LZW", plain(3, &rgb).compressed(5, |bytes| reversed(&lzw(bytes))).with(FILL_ORDER, [2])),
        ("16 bits", wide(|value| vec![0x77, value], 16, 1)),
        ("16 bits, big-endian", big(wide(|value| vec![value, 0x77], 16, 1))),
        ("32 bits", wide(|value| vec![1, 2, 3, value], 32, 1)),
        ("16 bits, signed", wide(|value| vec![value << 7, value >> 1], 16, 2)),
        ("32 bits, signed", wide(|value| vec![1, 2, value << 7, value >> 1], 32, 2)),
        ("half floats", wide(|value| half(value).to_le_bytes().to_vec(), 16, 3)),
        ("floats", wide(|value| (f32::from(value) / 255.0).to_le_bytes().to_vec(), 32, 3)),
        ("doubles, big-endian", big(wide(|value| (f64::from(value) / 255.0).to_be_bytes().to_vec(), 64, 3))),
        ("opaque alpha", plain(4, &opaque).with(EXTRA_SAMPLES, [2])),
        ("opaque alpha, premultiplied", plain(4, &opaque).with(EXTRA_SAMPLES, [1])),
        ("opaque alpha in planes", planes(plain(4, &opaque).with(EXTRA_SAMPLES, [2]), 4)),
        ("an undeclared fourth sample", plain(4, &infrared)),
        ("a fourth sample that is declared not to be alpha", plain(4, &infrared).with(EXTRA_SAMPLES, [0])),
    ];
    for (name, tiff) in kinds {
        assert!(model.tensor(name, &tiff.file()) == expected, "{name}");
    }
}

/// The 16-bit float nearest to value / 255.
fn half(value: u8) -> u16 {
    let target = f32::from(value) / 255.0;
    let exponent = target.max(f32::MIN_POSITIVE).log2().floor().clamp(-14.0, 0.0);
    let steps = (target / exponent.exp2() * 1024.0).round() as u16;
    if steps < 1024 { steps } else { ((exponent as i16 + 15) as u16) << 10 | (steps & 1023) }
}

#[test]
fn grey_and_palette_images_equal_their_plain_forms() {
    let model = TestModel::new();
    let grey = grey();
    let expected = model.tensor("plain", &plain(1, &grey).file());
    let inverted: Vec<u8> = grey.iter().map(|value| 255 - value).collect();
    let with_alpha: Vec<u8> = grey.iter().flat_map(|value| [*value, 255]).collect();
    let words: Vec<u8> = grey.iter().flat_map(|value| [0, 0, 0, *value]).collect();
    let floats: Vec<u8> = grey.iter().flat_map(|value| (f32::from(*value) / 255.0).to_le_bytes()).collect();
    let same = [
        ("white is zero", plain(1, &inverted).with(PHOTOMETRIC, [0])),
        ("alpha", plain(2, &with_alpha).with(EXTRA_SAMPLES, [2])),
        ("32 bits", plain(1, &words).with(BITS, [32])),
        ("floats", plain(1, &floats).with(BITS, [32]).with(SAMPLE_FORMAT, [3])),
    ];
    for (name, tiff) in same {
        assert!(model.tensor(name, &tiff.file()) == expected, "{name}");
    }
    // With twelve bits, the high eight are those of the plain image.
    let twelve: Vec<u8> = grey
        .chunks(WIDTH)
        .flat_map(|row| {
            let nibbles: Vec<u8> = row.iter().flat_map(|value| [value >> 4, value & 15, 0x9]).chain([0]).collect();
            nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>()
        })
        .collect();
    assert!(model.tensor("12 bits", &plain(1, &twelve).with(BITS, [12]).file()) == expected, "12 bits");

    let colours = |shift: u32| {
        (0..3).flat_map(move |channel| (0..256).map(move |index| ((index * (channel + 3)) & 255) << shift))
    };
    let shown: Vec<u8> = grey.iter().flat_map(|&index| [3, 4, 5].map(|factor| index.wrapping_mul(factor))).collect();
    let expected = model.tensor("plain", &plain(3, &shown).file());
    for (name, shift) in [("a palette of 16 bits", 8), ("a palette that fills only the lower 8", 0)] {
        let tiff = plain(1, &grey).with(PHOTOMETRIC, [3]).with(COLOR_MAP, colours(shift));
        assert!(model.tensor(name, &tiff.file()) == expected, "{name}");
    }
}

#[test]
fn bits_are_read_in_the_fill_order_of_the_file() {
    let model = TestModel::new();
    let pixels: Vec<u8> = grey().iter().map(|value| if *value > 99 { 255 } else { 0 }).collect();
    let expected = model.tensor("bytes", &plain(1, &pixels).file());
    let packed: Vec<u8> = pixels
        .chunks(WIDTH)
        .flat_map(|row| {
            row.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | (bit & 1) << (7 - at)))
        })
        .collect();
    let bits = plain(1, &packed).with(BITS, [1]);
    assert!(model.tensor("bits", &bits.file()) == expected);
    let mirrored = plain(1, &reversed(&packed)).with(BITS, [1]).with(FILL_ORDER, [2]);
    assert!(model.tensor("bits reversed", &mirrored.file()) == expected);
}

#[test]
fn straight_and_premultiplied_alpha_are_blended_over_white() {
    let model = TestModel::new();
    let alpha = |at: usize| if at % WIDTH < WIDTH / 2 { 90 } else { 255 };
    let with = |pixel: fn(u32, u32) -> u32, has_alpha: bool| -> Vec<u8> {
        let values = rgb();
        let pixels = values.chunks(3).enumerate();
        pixels
            .flat_map(|(at, colours)| {
                let colours: Vec<u8> = colours.iter().map(|&value| pixel(value.into(), alpha(at)) as u8).collect();
                colours.into_iter().chain(has_alpha.then_some(alpha(at) as u8)).collect::<Vec<u8>>()
            })
            .collect()
    };
    let shown = |value: u32, alpha: u32| (value * alpha + 255 * (255 - alpha) + 127) / 255;
    let expected = model.tensor("opaque", &plain(3, &with(shown, false)).file());
    let straight = plain(4, &with(|value, _| value, true)).with(EXTRA_SAMPLES, [2]);
    let multiplied = plain(4, &with(|value, alpha| (value * alpha + 127) / 255, true)).with(EXTRA_SAMPLES, [1]);
    assert!(model.tensor("straight", &straight.file()) == expected);
    assert!(model.tensor("straight, planes", &planes(straight, 4).file()) == expected);
    assert!(
        model.tensor("multiplied, planes", &planes(multiplied.clone(), 4).file())
            == model.tensor("multiplied", &multiplied.file())
    );
    // Values are rounded twice, so single ones may differ by one of 255 steps.
    let difference = difference(&model.tensor("multiplied", &multiplied.file()), &expected);
    assert!(difference <= 2.0 / 128.0, "{difference}");
}

fn difference(one: &Tensor, other: &Tensor) -> f32 {
    let [one, other] = [one, other].map(|tensor| match &tensor.values {
        imgcls::model::Values::Floats(floats) => floats,
        _ => panic!("the variant takes floats"),
    });
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

/// The bytes as blocks of a Zstandard frame that are not compressed.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend((bytes.len() as u32).to_le_bytes());
    let blocks = bytes.len().div_ceil(1_000);
    for (index, block) in bytes.chunks(1_000).enumerate() {
        let header = (block.len() as u32) << 3 | u32::from(index + 1 == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

#[test]
fn luma_and_chroma_are_converted_however_many_pixels_share_their_chroma() {
    let model = TestModel::new();
    let values = rgb();
    let luma = |x: usize, y: usize| values[(y.min(HEIGHT - 1) * WIDTH + x.min(WIDTH - 1)) * 3 + 2];
    let chroma = |x: usize, y: usize| [(x * 3 + 60) as u8, (200 - y * 2) as u8];
    for (across, down) in [(2, 2), (2, 1), (4, 2), (1, 2)] {
        let pixel = |at: usize| {
            let (x, y) = (at % WIDTH, at / WIDTH);
            let [cb, cr] = chroma(x / across, y / down);
            [luma(x, y), cb, cr]
        };
        let whole: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(pixel).collect();
        let mut packed = Vec::new();
        for top in (0..HEIGHT).step_by(down) {
            for left in (0..WIDTH).step_by(across) {
                packed.extend((0..across * down).map(|at| luma(left + at % across, top + at / across)));
                packed.extend(chroma(left / across, top / down));
            }
        }
        let name = format!("{across} × {down}");
        let of = |pixels: &[u8], across: u32, down: u32| {
            plain(3, pixels).with(PHOTOMETRIC, [6]).with(SUBSAMPLING, [across, down])
        };
        let expected = model.tensor(&name, &of(&whole, 1, 1).file());
        let (across, down) = (across as u32, down as u32);
        assert!(model.tensor(&name, &of(&packed, across, down).file()) == expected, "{name}");
        assert!(model.tensor(&name, &of(&packed, across, down).compressed(5, lzw).file()) == expected, "{name}, LZW");
        assert!(model.tensor(&name, &planes(of(&whole, 1, 1), 3).file()) == expected, "{name}, planes");
        let converted: Vec<u8> = whole
            .chunks(3)
            .flat_map(|pixel| {
                let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
                let (cb, cr) = (cb - 128.0, cr - 128.0);
                [y + 1.402 * cr, y - 0.3441 * cb - 0.7141 * cr, y + 1.772 * cb].map(|value| value.round() as u8)
            })
            .collect();
        let difference = difference(&expected, &model.tensor(&name, &plain(3, &converted).file()));
        assert!(difference <= 2.0 / 128.0, "{name}: {difference}");
    }
}

#[test]
fn lab_colours_are_converted_from_both_of_their_forms() {
    let model = TestModel::new();
    let signed: Vec<u8> = rgb().chunks(3).flat_map(|pixel| [pixel[0], pixel[1] >> 3, pixel[2] >> 3]).collect();
    let offset: Vec<u8> = signed.chunks(3).flat_map(|lab| [lab[0], lab[1] ^ 0x80, lab[2] ^ 0x80]).collect();
    let lab = plain(3, &signed).with(PHOTOMETRIC, [8]);
    let expected = model.tensor("signed", &lab.file());
    assert!(model.tensor("planes", &planes(lab, 3).file()) == expected);
    assert!(model.tensor("offset", &plain(3, &offset).with(PHOTOMETRIC, [9]).file()) == expected);
    let white = plain(3, &[255, 0, 0].repeat(WIDTH * HEIGHT)).with(PHOTOMETRIC, [8]);
    let plain_white = plain(3, &vec![255; 3 * WIDTH * HEIGHT]);
    assert!(model.tensor("white", &white.file()) == model.tensor("white", &plain_white.file()));
}

#[test]
fn jpeg_of_an_old_tiff_is_decoded() {
    let model = TestModel::new();
    let jpeg = test_image("cup.jpg");
    let mut tiff = Tiff::new(300, 200, 3, &jpeg).with(COMPRESSION, [6]).with(PHOTOMETRIC, [6]);
    tiff = tiff.with(JPEG_INTERCHANGE, [8]).with(JPEG_INTERCHANGE_LENGTH, [jpeg.len() as u32]);
    assert!(model.tensor("old JPEG", &tiff.file()) == model.tensor("JPEG", &jpeg));
}

#[test]
fn floats_above_1_are_refused_unless_they_are_few() {
    let model = TestModel::new();
    let floats =
        |scale: f32| -> Vec<u8> { rgb().iter().flat_map(|&value| (f32::from(value) * scale).to_le_bytes()).collect() };
    let tiff = |pixels: &[u8]| plain(3, pixels).with(BITS, [32; 3]).with(SAMPLE_FORMAT, [3; 3]).file();
    let message = model.refusal("0 to 255", &tiff(&floats(1.0)));
    assert!(message.contains("floats above 1"), "{message}");
    let good = model.tensor("0 to 1", &tiff(&floats(1.0 / 255.0)));
    let mut odd = floats(1.0 / 255.0);
    for (at, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.5, -1.0].into_iter().enumerate() {
        odd[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
    assert!(difference(&model.tensor("odd values", &tiff(&odd)), &good) < 3.0);
}

#[test]
fn unsupported_features_are_refused_by_name() {
    let model = TestModel::new();
    let (rgb, grey) = (rgb(), grey());
    let kinds = [
        (plain(3, &rgb).with(PHOTOMETRIC, [6]).with(BITS, [16; 3]), "YCbCr"),
        (plain(3, &planes(plain(3, &rgb), 3).chunks.concat()).with(PHOTOMETRIC, [6]).with(PLANAR, [2]), "subsampled"),
        (plain(3, &rgb).with(PHOTOMETRIC, [10]), "Lab"),
        (plain(3, &rgb).with(PHOTOMETRIC, [32_845]), "LogLuv"),
        (plain(3, &rgb).with(PHOTOMETRIC, [77]), "77"),
        (plain(1, &grey).with(PHOTOMETRIC, [4]), "mask"),
        (plain(1, &grey).with(COMPRESSION, [6]), "JPEG"),
        (plain(1, &grey).with(COMPRESSION, [999]), "999"),
        (plain(3, &rgb).with(SAMPLE_FORMAT, [2; 3]).with(BITS, [12; 3]), "sign"),
        (plain(3, &rgb).with(BITS, [8, 8, 16]), "different sizes"),
        (plain(3, &rgb).with(PHOTOMETRIC, [1]), "3 bands"),
        (plain(3, &rgb).with(SAMPLES, [99]), "99 samples"),
    ];
    for (tiff, named) in kinds {
        let message = model.refusal(named, &tiff.file());
        assert!(message.contains(named), "{named}: {message}");
    }
}

#[test]
fn damaged_or_truncated_tiff_is_refused_without_a_panic() {
    let model = TestModel::new();
    let rgb = rgb();
    let tiffs = [
        strips(plain(3, &rgb), 5, 3 * WIDTH).compressed(5, lzw),
        tiles(planes(plain(3, &rgb), 3), 1).compressed(8, zlib),
        strips(plain(3, &differences(&rgb, 3)), 7, 3 * WIDTH).compressed(32_773, pack_bits),
        plain(3, &rgb),
    ];
    let mut state: u32 = 1;
    for tiff in tiffs {
        let whole = tiff.file();
        for tenths in 1..10 {
            model.refusal("truncated", &whole[..whole.len() * tenths / 10]);
        }
        for _ in 0..400 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // The directory is at the end.
                let reach = if state & 1 == 0 { damaged.len() } else { damaged.len().min(400) };
                let at = damaged.len() - 1 - (state >> 8) as usize % reach;
                damaged[at] ^= (state >> 3) as u8 | 1;
            }
            if let Err(error) = prepare(&damaged, &model.0, &Limits::default()) {
                assert!(ErrorCode::from(error.fault).is_client_fault(), "{error:?}");
                assert!(!error.message.contains("stopped the decoder"), "{error:?}");
            }
        }
    }
    for (width, height) in [(0, 5), (5, 0), (0, 0)] {
        model.refusal("no pixels", &Tiff::new(width, height, 1, b"").file());
    }
}
