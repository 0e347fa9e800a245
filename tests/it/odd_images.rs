//! Unusual images that are valid or nearly valid, which viewers show and few decoders support: each gets the
//! predictions of an equivalent plain image. If the coding is not supported, the error names it.

use std::path::Path;

use image::ImageFormat;
use serde_json::Value;

use crate::harness::{imgcls, test_image};
use crate::image_files::{
    bmp, bmp_header, bmp_indices, bmp_palette, bmp_pixels, encode, exif, exif_orientation, exif_segment, jpeg,
    jpeg_segment, mosaic_jpeg, png_chunk, raw_profile, small, turned, webp, with_png_chunk, with_segments,
    without_segments, zlib,
};

/// Name, unusual image, equivalent plain image.
type Pair = (String, Vec<u8>, Vec<u8>);

/// Classifies files of a directory in one process. Returns the line of JSON of each, in order.
fn classified(directory: &Path, names: &[String]) -> Vec<Value> {
    let output = imgcls().args(["classify", "--json", "--top-k", "1000"]).args(names).current_dir(directory).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), names.len(), "{}", String::from_utf8_lossy(&output.stderr));
    lines
}

/// Asserts that each unusual image has exactly the scores of its plain image.
fn assert_alike(pairs: &[Pair]) {
    let directory = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (index, (name, odd, plain)) in pairs.iter().enumerate() {
        for (kind, bytes) in [("odd", odd), ("plain", plain)] {
            names.push(format!("{index}-{name}-{kind}"));
            std::fs::write(directory.path().join(names.last().unwrap()), bytes).unwrap();
        }
    }
    let answers = classified(directory.path(), &names);
    let failures: Vec<String> = pairs
        .iter()
        .zip(answers.as_chunks::<2>().0)
        .filter(|(_, [odd, plain])| plain["predictions"].is_null() || odd["predictions"] != plain["predictions"])
        .map(|((name, ..), answers)| {
            let [odd, plain] =
                answers.each_ref().map(|answer| format!("{} {}", answer["predictions"][0], answer["error"]));
            format!("{name}: {odd}, not {plain}")
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The code and the message of the error of each image.
fn refusals(images: &[(&str, Vec<u8>)]) -> Vec<(String, String)> {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = images.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, bytes) in images {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let text = |answer: &Value, key: &str| answer["error"][key].as_str().unwrap_or_default().to_owned();
    classified(directory.path(), &names).iter().map(|answer| (text(answer, "code"), text(answer, "message"))).collect()
}

#[test]
fn jpeg_orientation_is_read_as_in_pillow() {
    let stored = jpeg(&turned());
    let with = |blocks: &[Vec<u8>]| with_segments(&stored, blocks);
    let plain = with(&[exif_segment(&exif_orientation(6))]);
    let mut pairs: Vec<Pair> = Vec::new();
    for is_big_endian in [false, true] {
        let field = |kind: u16, count: u32, value: [u8; 4], behind: &[u8]| {
            with(&[exif_segment(&exif(is_big_endian, 0x0112, kind, count, value, behind))])
        };
        let (six, at) = if is_big_endian { ([0, 0, 0, 6], [0, 0, 0, 26]) } else { ([6, 0, 0, 0], [26, 0, 0, 0]) };
        let short = if is_big_endian { [0, 6, 0, 1] } else { [6, 0, 1, 0] };
        let mut add = |name: &str, odd| pairs.push((format!("{name}-{is_big_endian}"), odd, plain.clone()));
        add("long", field(4, 1, six, b""));
        add("signed-long", field(9, 1, six, b""));
        add("two-shorts", field(3, 2, short, b""));
        add("three-shorts", field(3, 3, at, &[&short[..2], &[0; 4]].concat()));
        add("two-longs", field(4, 2, at, &[six, six].concat()));
    }
    let other = exif_segment(&exif(false, 0x010f, 2, 4, *b"abc\0", b""));
    let (six, three) = (exif_segment(&exif_orientation(6)), exif_segment(&exif_orientation(3)));
    let unturned = with(std::slice::from_ref(&other));
    pairs.extend([
        ("first-of-two".to_owned(), with(&[six.clone(), three]), plain.clone()),
        ("then-none".to_owned(), with(&[six.clone(), other.clone()]), plain.clone()),
        ("first-none".to_owned(), with(&[other.clone(), six]), unturned.clone()),
        ("byte".to_owned(), with(&[exif_segment(&exif(false, 0x0112, 1, 1, [6, 0, 0, 0], b""))]), unturned),
        (
            "xmp".to_owned(),
            with(&[other, jpeg_segment(0xe1, b"http://ns.adobe.com/xap/1.0/\0<a tiff:Orientation=\"6\"/>")]),
            plain,
        ),
    ]);
    assert_alike(&pairs);
}

#[test]
fn png_orientation_is_read_from_every_kind_of_chunk() {
    let stored = encode(&turned(), ImageFormat::Png);
    let block = exif_orientation(6);
    let plain = with_png_chunk(&stored, &png_chunk(b"eXIf", &block), true);
    let text = |kind: &[u8; 4], between: &[u8], text: &[u8]| {
        png_chunk(kind, &[b"Raw profile type exif\0".as_slice(), between, text].concat())
    };
    let profile = raw_profile(&block);
    let chunks = [
        ("long", png_chunk(b"eXIf", &exif(true, 0x0112, 4, 1, [0, 0, 0, 6], b""))),
        ("prefix", png_chunk(b"eXIf", &[b"Exif\0\0", block.as_slice()].concat())),
        ("text", text(b"tEXt", b"", &profile)),
        ("compressed-text", text(b"zTXt", &[0], &zlib(&profile))),
        ("international-text", text(b"iTXt", b"\0\0en\0exif\0", &profile)),
        ("compressed-international-text", text(b"iTXt", b"\x01\0\0\0", &zlib(&profile))),
    ];
    let mut pairs =
        vec![("after".to_owned(), with_png_chunk(&stored, &png_chunk(b"eXIf", &block), false), plain.clone())];
    for (name, chunk) in chunks {
        pairs.push((name.to_owned(), with_png_chunk(&stored, &chunk, true), plain.clone()));
        pairs.push((format!("{name}-after"), with_png_chunk(&stored, &chunk, false), plain.clone()));
    }
    let bomb = text(b"zTXt", &[0], &zlib(&vec![b'\n'; 8 << 20]));
    pairs.push(("bomb".to_owned(), with_png_chunk(&stored, &bomb, true), stored));
    assert_alike(&pairs);
}

#[test]
fn webp_is_read_as_in_browsers() {
    let upright = test_image("lossy.webp");
    let (vp8, size) = (&upright[20..], (300, 200));
    let file = |flags, others: &[(&[u8; 4], &[u8])]| webp(flags, size, &[&[(b"VP8 ", vp8)], others].concat());
    let block = exif_orientation(6);
    let prefixed = [b"Exif\0\0", block.as_slice()].concat();
    let (plain, turned) = (file(0, &[]), file(8, &[(b"EXIF", block.as_slice())]));
    assert_alike(&[
        ("plain".to_owned(), plain.clone(), upright.clone()),
        ("alpha-announced".to_owned(), file(0x10, &[]), plain.clone()),
        ("metadata-announced".to_owned(), file(0x0c, &[]), plain.clone()),
        ("exif-not-announced".to_owned(), file(0, &[(b"EXIF", block.as_slice())]), plain),
        ("exif-with-prefix".to_owned(), file(8, &[(b"EXIF", prefixed.as_slice())]), turned.clone()),
        ("alpha-announced-and-exif".to_owned(), file(0x18, &[(b"EXIF", block.as_slice())]), turned),
    ]);
}

#[test]
fn bmp_with_an_unusual_header_is_decoded() {
    let image = small();
    let colours = bmp_pixels(&image, None);
    let plain = encode(&image, ImageFormat::Png);
    let opaque = |fourth| bmp_pixels(&image, Some(fourth));
    let rgb = [0x00ff_0000, 0xff00, 0xff];
    let rgba = [0x00ff_0000, 0xff00, 0xff, 0xff00_0000];
    let behind = |masks: &[u32]| masks.iter().flat_map(|mask| mask.to_le_bytes()).collect::<Vec<u8>>();
    let core = |planes: u8, bits: u8| [12, 0, 0, 0, 96, 0, 64, 0, planes, 0, bits, 0];
    let (indices, shown) = bmp_indices(&image);
    let grey = encode(&shown, ImageFormat::Png);
    let palette = bmp_palette(4, 64);
    let paletted = |size, planes, offset| bmp(&bmp_header(size, planes, 8, 0, 64, &[]), &palette, offset, &indices);
    let header = |size, bits, compression, masks: &[u32]| bmp_header(size, 1, bits, compression, 0, masks);
    let of_colours = [
        ("os2-1", bmp(&core(1, 24), b"", 26, &colours)),
        ("os2-1-no-planes", bmp(&core(0, 24), b"", 26, &colours)),
        ("os2-2", bmp(&header(64, 24, 0, &[]), b"", 78, &colours)),
        ("os2-2-short", bmp(&header(16, 24, 0, &[]), b"", 30, &colours)),
        ("no-planes", bmp(&bmp_header(40, 0, 24, 0, 0, &[]), b"", 54, &colours)),
        ("no-offset", bmp(&header(40, 24, 0, &[]), b"", 0, &colours)),
        ("offset-behind-the-end", bmp(&header(40, 24, 0, &[]), b"", 99_999, &colours)),
        ("unused-fourth-byte", bmp(&header(40, 32, 0, &[]), b"", 54, &opaque(0))),
        ("masks-behind", bmp(&header(40, 32, 3, &[]), &behind(&rgb), 66, &opaque(0))),
        ("offset-at-masks", bmp(&header(40, 32, 3, &[]), &behind(&rgb), 54, &opaque(0))),
        ("alpha-masks-behind", bmp(&header(40, 32, 6, &[]), &behind(&rgba), 70, &opaque(0))),
        ("v2", bmp(&header(52, 32, 3, &rgb), b"", 66, &opaque(0))),
        ("v3-empty-alpha", bmp(&header(56, 32, 3, &rgba), b"", 70, &opaque(0))),
        ("v4-empty-alpha", bmp(&header(108, 32, 3, &rgba), b"", 122, &opaque(0))),
        ("v5-empty-alpha", bmp(&header(124, 32, 3, &rgba), b"", 138, &opaque(0))),
        ("v5-full-alpha", bmp(&header(124, 32, 3, &rgba), b"", 138, &opaque(255))),
        ("v5-no-masks", bmp(&header(124, 32, 3, &[]), b"", 138, &opaque(0))),
    ];
    let of_greys = [
        ("palette", paletted(40, 1, 54 + 256)),
        ("palette-os2-1", bmp(&core(1, 8), &[bmp_palette(3, 64), vec![0; 576]].concat(), 26 + 768, &indices)),
        ("palette-os2-1-offset", bmp(&core(1, 8), &[bmp_palette(3, 64), vec![0; 576]].concat(), 26, &indices)),
        ("palette-os2-2", paletted(64, 1, 78 + 256)),
        ("palette-no-planes", paletted(40, 0, 54 + 256)),
        ("offset-at-palette", paletted(40, 1, 54)),
        ("offset-in-header", paletted(40, 1, 20)),
        ("too-many-colours", {
            let palette = [palette.clone(), vec![0; 4 * 300 - 256]].concat();
            bmp(&bmp_header(40, 1, 8, 0, 300, &[]), &palette, 54 + 1200, &indices)
        }),
    ];
    let pairs = |files: &[(&str, Vec<u8>)], plain: &Vec<u8>| -> Vec<Pair> {
        files.iter().map(|(name, odd)| ((*name).to_owned(), odd.clone(), plain.clone())).collect()
    };
    assert_alike(&[pairs(&of_colours, &plain), pairs(&of_greys, &grey)].concat());
}

#[test]
fn gif_with_too_small_a_screen_is_decoded() {
    let plain = encode(&small(), ImageFormat::Gif);
    let with_screen = |version: &[u8; 6], width: u16, height: u16| {
        let mut gif = plain.clone();
        gif[..6].copy_from_slice(version);
        gif[6..8].copy_from_slice(&width.to_le_bytes());
        gif[8..10].copy_from_slice(&height.to_le_bytes());
        gif
    };
    let pairs: Vec<Pair> = [(0, 0), (1, 1), (0, 64), (96, 10), (50, 200 / 7)]
        .into_iter()
        .flat_map(|size| [(size, b"GIF87a"), (size, b"GIF89a")])
        .map(|((width, height), version)| {
            (format!("{width}x{height}"), with_screen(version, width, height), plain.clone())
        })
        .collect();
    assert_alike(&pairs);
}

#[test]
fn jpeg_with_a_short_adobe_segment_or_without_huffman_tables_is_decoded() {
    let (plain, cmyk) = (jpeg(&small()), test_image("cmyk-without-marker.jpg"));
    let adobe = |content: &[u8]| jpeg_segment(0xee, content);
    let short = [b"Adobe".as_slice(), b"Adobe\0\x64", b"Adobe\0\x64\0\0\0\0"];
    let mut pairs: Vec<Pair> = short
        .iter()
        .flat_map(|content| [&plain, &cmyk].map(|jpeg| (jpeg, content)))
        .map(|(jpeg, content)| {
            (format!("adobe-{}", content.len()), with_segments(jpeg, &[adobe(content)]), jpeg.clone())
        })
        .collect();
    let grey = mosaic_jpeg(8, 0);
    pairs.push(("restarts".to_owned(), mosaic_jpeg(8, 7), grey));
    pairs.push(("no-tables".to_owned(), without_segments(&plain, 0xc4), plain));
    pairs.push(("no-tables-cmyk".to_owned(), without_segments(&cmyk, 0xc4), cmyk));
    assert_alike(&pairs);
}

#[test]
fn error_names_an_unsupported_coding() {
    let plain = jpeg(&small());
    let frame = plain.windows(2).position(|marker| marker == b"\xff\xc0").unwrap();
    let with = |marker: u8, bits: u8| {
        let mut changed = plain.clone();
        (changed[frame + 1], changed[frame + 4]) = (marker, bits);
        changed
    };
    let mut images = vec![
        ("hierarchical", with(0xc5, 8)),
        ("lossless and arithmetic-coded", with(0xcb, 8)),
        ("hierarchical and arithmetic-coded", with(0xce, 8)),
        ("JPEG-LS", with(0xf7, 8)),
        ("16 bits", with(0xc0, 16)),
    ];
    if !cfg!(feature = "turbojpeg") {
        images.extend([
            ("arithmetic-coded", with(0xc9, 8)),
            ("lossless", with(0xc3, 8)),
            ("12 bits", mosaic_jpeg(12, 0)),
        ]);
    }
    for ((name, _), (code, message)) in images.iter().zip(refusals(&images)) {
        assert_eq!(code, "unsupported_type", "{name}: {message}");
        assert!(message.contains(name) && message.contains("save it as a baseline JPEG"), "{name}: {message}");
    }
}

#[test]
fn jpeg_without_required_tables_is_refused() {
    let plain = jpeg(&small());
    let images = [
        ("no-quantisation", without_segments(&plain, 0xdb)),
        ("no-quantisation-progressive", without_segments(&test_image("progressive.jpg"), 0xdb)),
        ("no-huffman-progressive", without_segments(&test_image("progressive.jpg"), 0xc4)),
    ];
    for ((name, _), (code, message)) in images.iter().zip(refusals(&images)) {
        assert_eq!((code.as_str(), message.contains("tables")), ("undecodable", true), "{name}: {message}");
    }
}

/// The decoder would panic on such a palette. It accepts more transparencies than colours.
#[test]
fn png_with_an_incomplete_palette_is_refused() {
    let png = |palette: &[u8], alpha: &[u8]| {
        let header = png_chunk(b"IHDR", &[0, 0, 0, 8, 0, 0, 0, 8, 4, 3, 0, 0, 0]);
        let chunks = [header, png_chunk(b"PLTE", palette), png_chunk(b"tRNS", alpha)];
        let rows = png_chunk(b"IDAT", &zlib(&[0; 8 * 5]));
        [b"\x89PNG\r\n\x1a\n".as_slice(), &chunks.concat(), &rows, &png_chunk(b"IEND", b"")].concat()
    };
    let files =
        [("49.png", png(&[9; 49], &[0, 128])), ("46.png", png(&[9; 46], &[0; 16])), ("4.png", png(&[9; 4], b"a"))];
    for (code, message) in refusals(&files) {
        assert_eq!((code.as_str(), message.contains("palette")), ("undecodable", true), "{message}");
    }
    assert_eq!(refusals(&[("6.png", png(&[9; 6], &[0; 16]))]), [(String::new(), String::new())]);
}

/// 8160 × 6144 is the size of a photograph of a phone.
#[test]
fn default_limit_allows_fifty_megapixels() {
    let mut header = jpeg(&small());
    let frame = header.windows(2).position(|marker| marker == b"\xff\xc0").unwrap();
    header[frame + 5..frame + 7].copy_from_slice(&6144_u16.to_be_bytes());
    header[frame + 7..frame + 9].copy_from_slice(&8160_u16.to_be_bytes());
    let mut beyond = header.clone();
    beyond[frame + 5..frame + 7].copy_from_slice(&8000_u16.to_be_bytes());
    let refusals = refusals(&[("within", header), ("beyond", beyond)]);
    assert_eq!(refusals[0].0, "undecodable", "the file must only be truncated: {}", refusals[0].1);
    assert_eq!(refusals[1].0, "too_many_pixels", "{}", refusals[1].1);
    assert!(refusals[1].1.contains("64000000"), "{}", refusals[1].1);
}

/// A coding of JPEG that libjpeg-turbo can write.
#[cfg(feature = "turbojpeg")]
#[derive(Debug, Clone, Copy)]
pub enum Coding {
    Baseline,
    Optimised,
    Progressive,
    Arithmetic,
    ArithmeticProgressive,
    Lossless,
}

#[cfg(feature = "turbojpeg")]
impl Coding {
    pub fn encode(self, image: &image::RgbImage) -> Vec<u8> {
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_quality(90).unwrap();
        compressor.set_subsamp(turbojpeg::Subsamp::Sub2x2).unwrap();
        compressor.set_optimize(matches!(self, Coding::Optimised)).unwrap();
        compressor.set_progressive(matches!(self, Coding::Progressive | Coding::ArithmeticProgressive)).unwrap();
        compressor.set_arithmetic(matches!(self, Coding::Arithmetic | Coding::ArithmeticProgressive)).unwrap();
        compressor.set_lossless(matches!(self, Coding::Lossless)).unwrap();
        let (width, height) = (image.width() as usize, image.height() as usize);
        let format = turbojpeg::PixelFormat::RGB;
        let pixels = image.as_raw().as_slice();
        compressor.compress_to_vec(turbojpeg::Image { pixels, width, pitch: width * 3, height, format }).unwrap()
    }
}

#[cfg(feature = "turbojpeg")]
#[test]
fn rare_jpeg_codings_are_decoded() {
    let image = small();
    let baseline = Coding::Baseline.encode(&image);
    let same = [Coding::Optimised, Coding::Progressive, Coding::Arithmetic, Coding::ArithmeticProgressive];
    let mut pairs: Vec<Pair> =
        same.iter().map(|coding| (format!("{coding:?}"), coding.encode(&image), baseline.clone())).collect();
    pairs.push(("Lossless".to_owned(), Coding::Lossless.encode(&image), encode(&image, ImageFormat::Png)));
    pairs.push(("12-bits".to_owned(), mosaic_jpeg(12, 0), mosaic_jpeg(8, 0)));
    assert_alike(&pairs);
}

#[cfg(feature = "turbojpeg")]
#[test]
fn error_tells_damage_of_a_rare_coding_from_lack_of_support() {
    let whole = Coding::Arithmetic.encode(&small());
    let conditioning_of_no_table = jpeg_segment(0xcc, &[0xff, 0x00]);
    let images = [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("damaged", with_segments(&whole, &[conditioning_of_no_table])),
    ];
    for ((name, _), (code, message)) in images.iter().zip(refusals(&images)) {
        assert_eq!(code, "undecodable", "{message}");
        assert!(message.contains("arithmetic-coded") && message.contains(name), "{message}");
    }
}
