//! Every format gives the pixels of its reference decoder, and every file of another format is refused by its name.
//!
//! `scripts/make_format_images.py` wrote the files of tests/pictures/formats, and beside each of them its pixels.

use std::path::Path;

use image::imageops::{crop_imm, flip_horizontal, flip_vertical, replace, rotate90, rotate180, rotate270};
use image::{ImageFormat, RgbImage};
use imgcls::model::{Limits, ModelChoice, ModelPackage, PrepareError, Tensor, Values, prepare};
use imgcls::protocol::ErrorCode;

use crate::harness::{Service, form, imgcls, test_image};
use crate::heif_file::{Coded, Item, Reference, boxed, grid, heif, size_box};
use crate::image_files::{encode, exif_orientation, exif_segment, jpeg, turned, with_segments};

/// A model with a float input, so that tensors can be compared.
struct TestModel(ModelPackage);

impl TestModel {
    fn new() -> TestModel {
        let choice = ModelChoice { variant: Some("fp16".to_owned()), ..ModelChoice::default() };
        TestModel(ModelPackage::load(&choice).unwrap())
    }

    fn prepare(&self, file: &[u8]) -> Result<Tensor, PrepareError> {
        prepare(file, &self.0, &Limits::default())
    }

    fn values(&self, name: &str, file: &[u8]) -> Vec<f32> {
        match self.prepare(file).unwrap_or_else(|error| panic!("{name}: {error}")).values {
            Values::Floats(floats) => floats,
            _ => panic!("the variant takes floats"),
        }
    }

    /// The mean difference between the inputs that two files become, in steps of 8 bits.
    fn difference(&self, name: &str, one: &[u8], other: &[u8]) -> f32 {
        let (one, other) = (self.values(name, one), self.values(name, other));
        let sum: f32 = one.iter().zip(&other).map(|(one, other)| (one - other).abs()).sum();
        128.0 * sum / one.len() as f32
    }
}

fn sample(name: &str) -> Vec<u8> {
    test_image(&format!("formats/{name}"))
}

/// The pixels of a sample as the reference decoder shows them.
fn reference(name: &str) -> RgbImage {
    image::load_from_memory(&sample(&format!("{name}.png"))).unwrap().into_rgb8()
}

fn png(image: &RgbImage) -> Vec<u8> {
    encode(image, ImageFormat::Png)
}

#[test]
fn each_format_gives_the_pixels_of_its_reference_decoder() {
    let model = TestModel::new();
    // The mean difference that is allowed. The reference decoder of HEIC repeats chroma that is stored for four pixels,
    // and ours interpolates it. That of JPEG 2000 rounds coefficients of which the file omits the lower bits.
    let samples = [
        ("photo.heic", 3.5),
        ("full-chroma.heic", 0.7),
        ("ten-bit.heic", 3.5),
        ("alpha.heic", 3.5),
        ("odd-size.heic", 3.5),
        ("photo.avif", 0.7),
        ("ten-bit.avif", 0.7),
        ("alpha.avif", 1.0),
        ("grey.avif", 0.7),
        ("turned.avif", 0.7),
        ("photo.jxl", 0.7),
        ("lossless-alpha.jxl", 0.7),
        ("from-jpeg.jxl", 1.5),
        ("photo.jp2", 0.1),
        ("lossy.jp2", 4.0),
        ("grey.j2k", 0.1),
        ("group3.tif", 0.1),
        ("group3-2d.tif", 0.1),
        ("zstd.tif", 0.1),
        ("lzma.tif", 0.1),
        ("icon.ico", 0.7),
    ];
    let mut failures = Vec::new();
    for (name, limit) in samples {
        let difference = model.difference(name, &sample(name), &sample(&format!("{name}.png")));
        println!("{name}: {difference:.3}");
        if difference > limit {
            failures.push(format!("{name}: a mean difference of {difference}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A file of one image with these properties, after its size and configuration.
fn with_properties(coded: &Coded, properties: &[Vec<u8>]) -> Vec<u8> {
    let item = properties.iter().fold(coded.item(), |item, property| item.with(property.clone()));
    heif(b"heic", &[item], 1, &[])
}

fn clap(numbers: [(u32, u32); 4]) -> Vec<u8> {
    let content: Vec<u8> = numbers.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()].concat()).collect();
    boxed(b"clap", &[&content])
}

#[test]
fn container_cuts_turns_and_mirrors_and_exif_is_ignored() {
    let model = TestModel::new();
    for name in ["full-chroma.heic", "photo.avif"] {
        let (coded, shown) = (Coded::of(&sample(name)), reference(name));
        let rotation = |quarters: u8| boxed(b"irot", &[&[quarters]]);
        let mirror = |axis: u8| boxed(b"imir", &[&[axis]]);
        let cut = clap([(40, 1), (30, 1), (0, 1), (3, 1)]);
        let part = crop_imm(&shown, 16, 20, 40, 30).to_image();
        let cases = [
            ("plain", vec![], shown.clone()),
            ("left", vec![rotation(1)], rotate270(&shown)),
            ("half", vec![rotation(2)], rotate180(&shown)),
            ("right", vec![rotation(3)], rotate90(&shown)),
            ("top and bottom", vec![mirror(0)], flip_vertical(&shown)),
            ("left and right", vec![mirror(1)], flip_horizontal(&shown)),
            ("right, then mirrored", vec![rotation(3), mirror(1)], flip_horizontal(&rotate90(&shown))),
            ("mirrored, then right", vec![mirror(1), rotation(3)], rotate90(&flip_horizontal(&shown))),
            ("cut, then right", vec![cut, rotation(3)], rotate90(&part)),
        ];
        for (case, properties, expected) in cases {
            let file = with_properties(&coded, &properties);
            let difference = model.difference(case, &file, &png(&expected));
            assert!(difference < 1.5, "{name}, {case}: a mean difference of {difference}");
        }
        let exif =
            Item { kind: *b"Exif", data: [&[0; 4], exif_orientation(6).as_slice()].concat(), properties: vec![] };
        let turned = heif(b"heic", &[coded.item(), exif], 1, &[(*b"cdsc", 2, vec![1])]);
        let plain = with_properties(&coded, &[]);
        assert!(model.difference("EXIF", &turned, &plain) < f32::EPSILON, "{name}");
    }
}

#[test]
fn tiles_of_a_grid_are_put_together() {
    let model = TestModel::new();
    for name in ["full-chroma.heic", "photo.avif"] {
        let (coded, tile) = (Coded::of(&sample(name)), reference(name));
        // Two columns and three rows; the last ones extend beyond the image.
        let (width, height) = (110, 130);
        let mut expected = RgbImage::new(width, height);
        for index in 0..6_i64 {
            replace(&mut expected, &tile, index % 2 * i64::from(tile.width()), index / 2 * i64::from(tile.height()));
        }
        let mut items = vec![grid(3, 2, width as u16, height as u16).with(boxed(b"irot", &[&[1]]))];
        items.extend((0..6).map(|_| coded.item()));
        let references: [Reference; 1] = [(*b"dimg", 1, (2..8).collect())];
        let file = heif(b"heic", &items, 1, &references);
        let difference = model.difference("grid", &file, &png(&rotate270(&expected)));
        assert!(difference < 1.5, "{name}: a mean difference of {difference}");
        let refused = |rows: u8, columns: u8, size: (u16, u16), tiles: Vec<u16>| {
            let mut items = vec![grid(rows, columns, size.0, size.1)];
            items.extend((0..6).map(|_| coded.item()));
            let error = model.prepare(&heif(b"heic", &items, 1, &[(*b"dimg", 1, tiles)])).unwrap_err();
            assert_eq!(ErrorCode::from(error.fault).as_str(), "undecodable", "{error}");
        };
        refused(3, 2, (110, 130), (2..7).collect());
        refused(3, 2, (110, 300), (2..8).collect());
        refused(3, 2, (60, 130), (2..8).collect());
        refused(3, 2, (110, 130), vec![2, 3, 4, 5, 6, 99]);
    }
}

#[test]
fn alpha_of_a_heif_is_blended_over_white() {
    let model = TestModel::new();
    let (coded, shown) = (Coded::of(&sample("photo.avif")), reference("photo.avif"));
    // The luma of the same image serves as its alpha.
    let kind = boxed(b"auxC", &[&[0; 4], b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"]);
    let file =
        |references: &[Reference]| heif(b"avif", &[coded.item(), coded.item().with(kind.clone())], 1, references);
    let luma = |pixel: &image::Rgb<u8>| {
        let [r, g, b] = pixel.0.map(f32::from);
        0.299 * r + 0.587 * g + 0.114 * b
    };
    let blended = |blend: fn(f32, f32) -> f32| {
        let mut image = shown.clone();
        for pixel in image.pixels_mut() {
            let alpha = luma(pixel);
            pixel.0 = pixel.0.map(|value| blend(f32::from(value), alpha).round().clamp(0.0, 255.0) as u8);
        }
        png(&image)
    };
    let straight = blended(|value, alpha| (value * alpha + 255.0 * (255.0 - alpha)) / 255.0);
    let premultiplied = blended(|value, alpha| value + 255.0 - alpha);
    let auxiliary = (*b"auxl", 2, vec![1]);
    let difference = model.difference("straight", &file(std::slice::from_ref(&auxiliary)), &straight);
    assert!(difference < 1.5, "{difference}");
    let difference = model.difference("premultiplied", &file(&[auxiliary, (*b"prem", 1, vec![2])]), &premultiplied);
    assert!(difference < 1.5, "{difference}");
}

#[test]
fn size_in_the_header_is_checked_before_anything_is_decoded() {
    let model = TestModel::new();
    let code = |file: &[u8]| ErrorCode::from(model.prepare(file).unwrap_err().fault).as_str();
    let coded = Coded::of(&sample("photo.heic"));
    let of_size = |width: u32, height: u32| {
        let mut item = coded.item();
        item.properties[1] = size_box(width, height);
        heif(b"heic", &[item], 1, &[])
    };
    assert_eq!(code(&of_size(20_000, 20_000)), "too_many_pixels");
    assert_eq!(code(&of_size(u32::MAX, u32::MAX)), "too_many_pixels");
    assert_eq!(code(&of_size(0, 5)), "undecodable");
    // The stream has more pixels than the container says, or fewer.
    assert_eq!(code(&of_size(2_000, 2_000)), "undecodable");
    let limits = Limits { max_decode_bytes: 100_000, ..Limits::default() };
    for name in ["photo.heic", "photo.avif", "photo.jxl", "photo.jp2"] {
        let error = prepare(&sample(name), &model.0, &limits).unwrap_err();
        assert_eq!(ErrorCode::from(error.fault).as_str(), "too_large_decoded", "{name}: {error}");
        let few = Limits { max_pixels: 1_000, ..Limits::default() };
        let error = prepare(&sample(name), &model.0, &few).unwrap_err();
        assert_eq!(ErrorCode::from(error.fault).as_str(), "too_many_pixels", "{name}: {error}");
    }
}

#[test]
fn damaged_and_truncated_files_are_refused_and_the_next_image_is_right() {
    let model = TestModel::new();
    let mut state: u32 = 7;
    for name in [
        "photo.heic",
        "alpha.avif",
        "photo.jxl",
        "lossless-alpha.jxl",
        "photo.jp2",
        "icon.ico",
        "group3-2d.tif",
        "lzma.tif",
    ] {
        let whole = sample(name);
        let right = model.values(name, &whole);
        for tenths in 1..9 {
            let cut = &whole[..whole.len() * tenths / 10];
            assert!(model.prepare(cut).is_err(), "{name}: {tenths} tenths are decoded");
        }
        for _ in 0..60 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % damaged.len();
                damaged[at] ^= (state >> 3) as u8 | 1;
            }
            if let Err(error) = model.prepare(&damaged) {
                assert!(ErrorCode::from(error.fault).is_client_fault(), "{name}: {error:?}");
            }
        }
        assert!(model.values(name, &whole) == right, "{name}: a damaged image changed the next one");
    }
}

/// A TIFF of one directory with a subdirectory, as cameras write it: a small image, and in the subdirectory the data of
/// the sensor. Fields are (tag, type, value); the value of a tag that is not given lies in the entry.
fn camera_raw(preview: &[u8], orientation: u16) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let directory =
        |entries: &[Vec<u8>]| [&(entries.len() as u16).to_le_bytes()[..], &entries.concat(), &[0; 4]].concat();
    let (first_at, first_bytes) = (8, 2 + 8 * 12 + 4);
    let (sub_at, sub_bytes) = (first_at + first_bytes, 2 + 3 * 12 + 4);
    let thumbnail_at = sub_at + sub_bytes;
    let preview_at = thumbnail_at + 12;
    let first = directory(&[
        entry(256, 4, 1, 2),
        entry(257, 4, 1, 2),
        entry(262, 3, 1, 2),
        entry(273, 4, 1, thumbnail_at),
        entry(274, 3, 1, orientation.into()),
        entry(330, 4, 1, sub_at),
        entry(513, 4, 1, preview_at),
        entry(514, 4, 1, preview.len() as u32),
    ]);
    let sub = directory(&[entry(256, 4, 1, 6000), entry(257, 4, 1, 4000), entry(262, 3, 1, 32_803)]);
    [b"II*\0", &8_u32.to_le_bytes()[..], &first, &sub, &[0; 12], preview].concat()
}

#[test]
fn preview_of_a_camera_raw_image_is_classified() {
    let model = TestModel::new();
    let stored = jpeg(&turned());
    let upright = with_segments(&stored, &[exif_segment(&exif_orientation(6))]);
    let raw = camera_raw(&stored, 6);
    assert_eq!(model.values("raw", &raw), model.values("upright", &upright));
    let mut fujifilm = b"FUJIFILMCCD-RAW 0201".to_vec();
    fujifilm.resize(84, 0);
    fujifilm.extend([100, stored.len() as u32].map(u32::to_be_bytes).concat());
    fujifilm.resize(100, 0);
    fujifilm.extend_from_slice(&stored);
    assert_eq!(model.values("RAF", &fujifilm), model.values("stored", &stored));
    let mut panasonic = raw.clone();
    panasonic[2] = b'U';
    assert_eq!(model.values("RW2", &panasonic), model.values("upright", &upright));
    for mark in [b"IIRO", b"IIRS"] {
        let mut olympus = raw.clone();
        olympus[..4].copy_from_slice(mark);
        assert_eq!(model.values("ORF", &olympus), model.values("upright", &upright));
    }
    let error = model.prepare(&camera_raw(b"no JPEG", 1)).unwrap_err();
    assert_eq!(ErrorCode::from(error.fault).as_str(), "unsupported_type", "{error}");
    assert!(error.message.contains("camera raw image without a JPEG preview"), "{error}");
}

/// A file of Olympus: the preview is named by a directory in the maker note, whose offsets count from `base`.
fn olympus_raw(note_header: &[u8], counts_from_note: bool, preview: &[u8]) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let directory =
        |entries: &[Vec<u8>]| [&(entries.len() as u16).to_le_bytes()[..], &entries.concat(), &[0; 4]].concat();
    let bytes_of = |entries: u32| 2 + 12 * entries + 4;
    let exif_at = 8 + bytes_of(2);
    let note_at = exif_at + bytes_of(1);
    let base = if counts_from_note { note_at } else { 0 };
    let settings_at = note_at + note_header.len() as u32 + bytes_of(1);
    let preview_at = settings_at + bytes_of(2);
    let first = directory(&[entry(274, 3, 1, 6), entry(34_665, 4, 1, exif_at)]);
    let exif = directory(&[entry(37_500, 7, note_header.len() as u32 + bytes_of(1), note_at)]);
    let note = directory(&[entry(0x2020, 13, 1, settings_at - base)]);
    let settings = directory(&[entry(0x0101, 4, 1, preview_at - base), entry(0x0102, 4, 1, preview.len() as u32)]);
    [b"IIRO", &8_u32.to_le_bytes()[..], &first, &exif, note_header, &note, &settings, preview].concat()
}

#[test]
fn preview_of_olympus_is_found_by_its_maker_note() {
    let model = TestModel::new();
    let stored = jpeg(&turned());
    let upright = with_segments(&stored, &[exif_segment(&exif_orientation(6))]);
    let forms: [(&[u8], bool); 3] =
        [(b"OLYMPUS\0II\x03\0", true), (b"OM SYSTEM\0\0\0II\x04\0", true), (b"OLYMP\0\x01\0", false)];
    for (header, counts_from_note) in forms {
        let file = olympus_raw(header, counts_from_note, &stored);
        assert_eq!(model.values("ORF", &file), model.values("upright", &upright), "{header:?}");
        refused_when_damaged(&model, &file);
    }
    let error = model.prepare(&olympus_raw(b"OLYMPUS\0II\x03\0", true, b"no JPEG")).unwrap_err();
    assert_eq!(ErrorCode::from(error.fault).as_str(), "unsupported_type", "{error}");
}

/// Cuts a file at every length of its structure and damages every byte of that: each is decoded or refused, without a panic.
fn refused_when_damaged(model: &TestModel, file: &[u8]) {
    for at in 0..file.len().min(400) {
        for damaged in [file[..at].to_vec(), [&file[..at], &[!file[at]], &file[at + 1..]].concat()] {
            if let Err(error) = model.prepare(&damaged) {
                assert!(ErrorCode::from(error.fault).is_client_fault(), "{error:?}");
            }
        }
    }
}

/// A CR3: a small preview in a box of its own, and a larger one as the sample of a track.
fn canon_raw(small: &[u8], large: &[u8], orientation: u16) -> Vec<u8> {
    let vendor = |id: &[u8; 16], content: &[u8]| boxed(b"uuid", &[id, content]);
    let metadata = b"\x85\xc0\xb6\x87\x82\x0f\x11\xe0\x81\x11\xf4\xce\x46\x2b\x6a\x48";
    let preview = b"\xea\xf4\x2b\x5e\x1c\x98\x4b\x88\xb9\xfb\xb7\xdc\x40\x6e\x4d\x16";
    let tiff = [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &orientation.to_le_bytes(), &[0; 6]].concat();
    let sizes = [&[0; 4][..], &(large.len() as u32).to_be_bytes(), &1_u32.to_be_bytes()].concat();
    let movie = |offset: u64| {
        let offsets = [&[0; 4][..], &1_u32.to_be_bytes(), &offset.to_be_bytes()].concat();
        let table = boxed(b"stbl", &[&boxed(b"stsz", &[&sizes]), &boxed(b"co64", &[&offsets])]);
        let track = boxed(b"trak", &[&boxed(b"mdia", &[&boxed(b"minf", &[&table])])]);
        boxed(b"moov", &[&vendor(metadata, &boxed(b"CMT1", &[&tiff])), &track])
    };
    let shown = boxed(b"PRVW", &[&[0, 0, 0, 0, 0, 1, 0, 4, 0, 3, 0, 1], &(small.len() as u32).to_be_bytes(), small]);
    let before = [
        boxed(b"ftyp", &[b"crx \0\0\0\x01crx isom"]),
        movie(0),
        vendor(preview, &[&[0, 0, 0, 0, 0, 0, 0, 1], shown.as_slice()].concat()),
    ];
    let sample_at = before.iter().map(Vec::len).sum::<usize>() as u64 + 8;
    let [kind, _, preview] = before;
    [kind, movie(sample_at), preview, boxed(b"mdat", &[large])].concat()
}

#[test]
fn largest_preview_of_a_canon_raw_image_is_classified() {
    let model = TestModel::new();
    let large = jpeg(&turned());
    let small = jpeg(&RgbImage::from_pixel(8, 8, image::Rgb([9, 200, 40])));
    let upright = with_segments(&large, &[exif_segment(&exif_orientation(6))]);
    let file = canon_raw(&small, &large, 6);
    assert_eq!(model.values("CR3", &file), model.values("upright", &upright));
    // The sample of a track may be data of the sensor.
    let only_small = canon_raw(&small, &[7; 4_000], 1);
    assert_eq!(model.values("CR3", &only_small), model.values("small", &small));
    let error = model.prepare(&canon_raw(b"no JPEG", &[7; 40], 1)).unwrap_err();
    assert_eq!(ErrorCode::from(error.fault).as_str(), "unsupported_type", "{error}");
    assert!(error.message.contains("camera raw image without a JPEG preview"), "{error}");
    refused_when_damaged(&model, &file);
}

/// A name, the file, and a part of the message that names it.
fn foreign_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let padded = |start: &[u8]| [start, &[7; 400]].concat();
    vec![
        ("drawing.svg", b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "an SVG drawing"),
        ("paper.pdf", padded(b"%PDF-1.7\n"), "a PDF document"),
        ("clip.mp4", padded(b"\0\0\0\x18ftypisom\0\0\0\0"), "a video (MP4)"),
        ("clip.mov", padded(b"\0\0\0\x14ftypqt  \0\0\0\0"), "a QuickTime video"),
        ("clip.webm", padded(b"\x1aE\xdf\xa3"), "a video (Matroska or WebM)"),
        ("layers.psd", padded(b"8BPS\0\x01"), "a Photoshop document"),
        ("scan.dcm", [&[0; 128], b"DICM".as_slice(), &[0; 200]].concat(), "a DICOM file"),
        ("raw.x3f", padded(b"FOVb\0\0\x02\0"), "a camera raw image (X3F)"),
        ("page.html", b"<!DOCTYPE html><html><body>Not found</body></html>".to_vec(), "an HTML page"),
        ("images.zip", padded(b"PK\x03\x04"), "a ZIP archive"),
        ("._photo.jpg", padded(b"\0\x05\x16\x07"), "metadata of macOS"),
        ("photo.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(), "a Git LFS pointer"),
    ]
}

#[test]
fn files_of_other_formats_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    // `classify` reads archives itself.
    let files: Vec<_> = foreign_files().into_iter().filter(|(name, ..)| *name != "images.zip").collect();
    for (name, bytes, _) in &files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let names: Vec<&str> = files.iter().map(|(name, ..)| *name).collect();
    let output = imgcls().args(["classify", "--json"]).args(&names).current_dir(directory.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), files.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for ((name, _, named), answer) in files.iter().zip(&answers) {
        assert_eq!(answer["error"]["code"], "unsupported_type", "{name}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(named) && message.contains(';'), "{name}: {message}");
    }
}

#[test]
fn service_takes_every_format_and_names_what_it_refuses() {
    let service = Service::start(1, &[], &[]);
    for name in ["photo.heic", "photo.avif", "photo.jxl", "photo.jp2", "icon.ico", "zstd.tif", "lzma.tif"] {
        let answer = service.request("POST", "/v1/classify?wait=60", &[], &sample(name));
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let (content_type, body) = form("image", name, &sample(name));
        let headers = [("content-type", content_type.as_str())];
        let answer = service.request("POST", "/v1/classify?wait=60", &headers, &body);
        assert_eq!(answer.status, 200, "{name} in a form: {}", answer.text());
    }
    for (name, bytes, named) in foreign_files() {
        let answer = service.request("POST", "/v1/classify", &[], &bytes);
        assert_eq!(answer.status, 415, "{name}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap_or_default().contains(named), "{name}: {}", answer.text());
        let (content_type, body) = form("image", name, &bytes);
        let answer = service.request("POST", "/v1/classify", &[("content-type", content_type.as_str())], &body);
        assert_eq!(answer.status, 415, "{name} in a form: {}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap_or_default().contains(named), "{name}: {}", answer.text());
    }
}

#[test]
fn extensions_of_every_format_are_known() {
    for name in ["a.heic", "a.HEIF", "a.avif", "a.jxl", "a.jp2", "a.ico", "a.NEF", "a.cr3", "a.ORF", "a.tif", "a.jpeg"]
    {
        assert!(imgcls::model::has_image_extension(Path::new(name)), "{name}");
    }
    for name in ["a.svg", "a.txt", "heic", "a.heic.part"] {
        assert!(!imgcls::model::has_image_extension(Path::new(name)), "{name}");
    }
}
