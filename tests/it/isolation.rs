//! No image affects the result of the next: whatever a worker classified before, a result equals that of a fresh
//! process, bit for bit.

use std::path::Path;

use image::ImageFormat;
use imgcls::model::{Limits, ModelChoice, ModelPackage, PrepareError, Session, Tensor, Values, prepare};
use serde_json::{Value, json};

use crate::harness::{Service, imgcls, test_image};
use crate::image_files::{
    bmp, bmp_header, bmp_pixels, encode, exif_orientation, exif_segment, jpeg, jpeg_segment, mosaic_jpeg, small,
    split_jpeg, webp, with_segments, without_segments,
};
use crate::tiff_file::Tiff;

const FROM_THE_REPOSITORY: &[&str] = &[
    "progressive.jpg",
    "grey.jpg",
    "orientation-6.jpg",
    "cmyk-adobe.jpg",
    "palette-transparent.png",
    "grey-16bit.png",
    "one-pixel.png",
    "one-by-3000.png",
    "lossy.webp",
    "lossless-alpha.webp",
    "animated.gif",
    "rgb.bmp",
    "rgb-lzw.tiff",
    "formats/photo.heic",
    "formats/alpha.heic",
    "formats/photo.avif",
    "formats/ten-bit.avif",
    "formats/photo.jxl",
    "formats/photo.jp2",
    "formats/icon.ico",
    "formats/zstd.tif",
    "hostile/half.jpg",
    "hostile/head-only.jpg",
    "hostile/bad-checksum.png",
    "hostile/text.jpg",
];

/// Valid, unusual and damaged images of every format, by name.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut corpus: Vec<_> = FROM_THE_REPOSITORY.iter().map(|&name| (name.to_owned(), test_image(name))).collect();
    corpus.extend(odd_jpegs().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    corpus.extend(coded_jpegs());
    let image = small();
    let png = encode(&image, ImageFormat::Png);
    let masks = [0x00ff_0000, 0xff00, 0xff, 0xff00_0000];
    let others = [
        ("cut.png", png[..png.len() / 2].to_vec()),
        ("small.gif", encode(&image, ImageFormat::Gif)),
        ("small.tiff", Tiff::new(image.width(), image.height(), 3, image.as_raw()).file()),
        ("empty-alpha.bmp", bmp(&bmp_header(124, 1, 32, 3, 0, &masks), b"", 138, &bmp_pixels(&image, Some(0)))),
        ("cut.bmp", bmp(&bmp_header(40, 1, 24, 0, 0, &[]), b"", 54, &bmp_pixels(&image, None)[..900])),
        ("no-pixels.webp", webp(0x10, (96, 64), &[])),
    ];
    corpus.extend(others.map(|(name, bytes)| (name.to_owned(), bytes)));
    corpus
}

/// JPEGs that leave a decoder in an unusual state, or that need what an earlier image may have left in it.
fn odd_jpegs() -> Vec<(&'static str, Vec<u8>)> {
    let whole = jpeg(&small());
    let (segments, scan) = split_jpeg(&whole);
    let tables: Vec<u8> =
        segments.iter().filter(|segment| matches!(segment[1], 0xdb | 0xc4)).copied().flatten().copied().collect();
    // The table has more codes than fit into their lengths.
    let bogus_table = jpeg_segment(0xc4, &[&[0x00], [0xff; 16].as_slice(), &[0; 40]].concat());
    let other_quantisation = jpeg_segment(0xdb, &[[0].as_slice(), &[200; 64], &[1], &[3; 64], &[2], &[9; 64]].concat());
    let without_both = without_segments(&without_segments(&whole, 0xc4), 0xdb);
    let one_table_less = {
        let kept: Vec<u8> = segments[..segments.len() - 1].concat();
        [&whole[..2], &kept, scan].concat()
    };
    vec![
        ("small.jpg", whole.clone()),
        ("no-huffman-tables.jpg", without_segments(&whole, 0xc4)),
        ("no-quantisation-tables.jpg", without_segments(&whole, 0xdb)),
        ("no-tables.jpg", without_both),
        ("one-segment-less.jpg", one_table_less),
        ("no-huffman-tables-progressive.jpg", without_segments(&test_image("progressive.jpg"), 0xc4)),
        ("no-huffman-tables-cmyk.jpg", without_segments(&test_image("cmyk-adobe.jpg"), 0xc4)),
        ("tables-only.jpg", [&whole[..2], &tables, &[0xff, 0xd9]].concat()),
        ("bad-header.jpg", with_segments(&whole, &[bogus_table])),
        ("two-starts.jpg", [&whole[..2], &whole].concat()),
        ("other-quantisation.jpg", with_segments(&whole, &[other_quantisation])),
        ("no-frame.jpg", without_segments(&whole, 0xc0)),
        ("turned.jpg", with_segments(&whole, &[exif_segment(&exif_orientation(8))])),
        (
            "rgb-by-adobe.jpg",
            with_segments(&without_segments(&whole, 0xe0), &[jpeg_segment(0xee, b"Adobe\0\x64\0\0\0\0\0")]),
        ),
        ("cut-in-scan.jpg", [&whole[..whole.len() - scan.len() / 2], &[0xff, 0xd9]].concat()),
        ("cut-in-header.jpg", [&whole[..100], &[0xff, 0xd9]].concat()),
        ("mosaic.jpg", mosaic_jpeg(8, 0)),
        ("mosaic-restarts.jpg", mosaic_jpeg(8, 5)),
        ("mosaic-12-bit.jpg", mosaic_jpeg(12, 0)),
        ("mosaic-no-restart-interval.jpg", without_segments(&mosaic_jpeg(8, 5), 0xdd)),
    ]
}

#[cfg(feature = "turbojpeg")]
fn coded_jpegs() -> Vec<(String, Vec<u8>)> {
    use crate::odd_images::Coding;
    let codings = [Coding::Optimised, Coding::Progressive, Coding::Arithmetic, Coding::Lossless];
    codings.map(|coding| (format!("{coding:?}.jpg"), coding.encode(&small()))).into()
}

#[cfg(not(feature = "turbojpeg"))]
fn coded_jpegs() -> Vec<(String, Vec<u8>)> {
    Vec::new()
}

type Prepared = Result<Tensor, PrepareError>;

/// Decodes an image on a new thread.
fn prepared_on_new_thread(package: &ModelPackage, bytes: &[u8]) -> Prepared {
    std::thread::scope(|scope| scope.spawn(|| prepare(bytes, package, &Limits::default())).join().unwrap())
}

#[test]
fn image_is_decoded_the_same_after_every_other_image() {
    let package = ModelPackage::load(&ModelChoice::default()).unwrap();
    let corpus = corpus();
    let fresh: Vec<Prepared> = corpus.iter().map(|(_, bytes)| prepared_on_new_thread(&package, bytes)).collect();
    let decoded = fresh.iter().filter(|prepared| prepared.is_ok()).count();
    assert!(decoded >= 25 && fresh.len() - decoded >= 12, "{decoded} of {} are decoded", fresh.len());
    // Each preceding image gets its own thread, so that a failure names the pair.
    let after =
        |first| std::thread::scope(|scope| scope.spawn(|| differing_after(first, &corpus, &fresh, &package)).join());
    let differing: Vec<String> = corpus.iter().flat_map(|first| after(first).unwrap()).collect();
    assert!(differing.is_empty(), "{} pairs differ: {}", differing.len(), differing.join(", "));
}

/// Returns the names of the images whose result differs when they are decoded right after `first`.
fn differing_after(
    first: &(String, Vec<u8>),
    corpus: &[(String, Vec<u8>)],
    fresh: &[Prepared],
    package: &ModelPackage,
) -> Vec<String> {
    let differs = |bytes: &[u8], expected: &Prepared| {
        let _ = prepare(&first.1, package, &Limits::default());
        prepare(bytes, package, &Limits::default()) != *expected
    };
    let images = corpus.iter().zip(fresh).filter(|((_, bytes), expected)| differs(bytes, expected));
    images.map(|((name, _), _)| format!("{name} after {}", first.0)).collect()
}

/// Classifies files of a directory in one process. Returns the predictions or the error of each.
fn classified(directory: &Path, names: &[&str], variables: &[(&str, &str)]) -> Vec<Value> {
    let output = imgcls()
        .args(["classify", "--json", "--top-k", "1000"])
        .args(names)
        .current_dir(directory)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| answer(&serde_json::from_str(line).unwrap())).collect();
    assert_eq!(answers.len(), names.len(), "{}", String::from_utf8_lossy(&output.stderr));
    answers
}

/// The part of a report that does not differ between runs.
fn answer(report: &Value) -> Value {
    let predictions = report["predictions"].as_array().filter(|predictions| !predictions.is_empty());
    json!({ "predictions": predictions, "error": report["error"] })
}

/// Files that may leave state in a decoder. `FOLLOWERS` are files whose result would reveal it.
const LEADERS: [&str; 6] =
    ["bad-header.jpg", "two-starts.jpg", "other-quantisation.jpg", "mosaic.jpg", "cut-in-scan.jpg", "tables-only.jpg"];
const FOLLOWERS: [&str; 6] = [
    "small.jpg",
    "no-huffman-tables.jpg",
    "no-quantisation-tables.jpg",
    "no-tables.jpg",
    "no-huffman-tables-progressive.jpg",
    "rgb.bmp",
];

#[test]
fn worker_gives_the_result_of_a_fresh_process_after_any_image() {
    let directory = tempfile::tempdir().unwrap();
    let corpus: Vec<(String, Vec<u8>)> = corpus();
    let bytes = |name: &str| &corpus.iter().find(|(of, _)| of == name).unwrap().1;
    for name in FOLLOWERS {
        std::fs::write(directory.path().join(name), bytes(name)).unwrap();
    }
    let fresh = FOLLOWERS.map(|name| classified(directory.path(), &[name], &[]).remove(0));
    let service = Service::start(1, &[], &[]);
    let submit = |name: &str| {
        let job = service.request("POST", "/v1/jobs?top_k=1000", &[], bytes(name)).json();
        service.finished(job["id"].as_str().unwrap())
    };
    for leader in LEADERS {
        for (follower, expected) in FOLLOWERS.iter().zip(&fresh) {
            submit(leader);
            let given = answer(&submit(follower));
            let first = |answer: &Value| format!("{} {}", answer["predictions"][0], answer["error"]);
            assert!(given == *expected, "{follower} after {leader}: {}, not {}", first(&given), first(expected));
        }
    }
}

/// `MALLOC_PERTURB_` fills allocated memory; it is a feature of glibc.
#[test]
fn results_do_not_depend_on_the_previous_content_of_memory() {
    let directory = tempfile::tempdir().unwrap();
    let corpus = corpus();
    let names: Vec<String> = corpus.iter().map(|(name, _)| name.replace('/', "-")).collect();
    for (name, (_, bytes)) in names.iter().zip(&corpus) {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected = classified(directory.path(), &names, &[]);
    for filling in ["1", "170", "255"] {
        let answers = classified(directory.path(), &names, &[("MALLOC_PERTURB_", filling)]);
        for ((name, answer), expected) in names.iter().zip(answers).zip(&expected) {
            assert!(answer == *expected, "{name}, with memory filled by {filling}");
        }
    }
}

#[test]
fn other_images_of_a_batch_do_not_affect_a_result() {
    let package = ModelPackage::load(&ModelChoice::default()).unwrap();
    let mut session = Session::open(&package, &ModelChoice::default()).unwrap();
    let tensor = |name: &str| prepare(&test_image(name), &package, &Limits::default()).unwrap();
    let (image, plain) = (tensor("cup.jpg"), tensor("one-pixel.png"));
    let extreme = Tensor {
        values: match &image.values {
            Values::Floats(floats) => Values::Floats((0..floats.len()).map(|index| [-0.99, 1.0][index % 2]).collect()),
            Values::Pixels(pixels) => Values::Pixels((0..pixels.len()).map(|index| [0, 255][index / 4 % 2]).collect()),
            Values::Halves(_) => panic!("the default model takes floats or pixels"),
        },
        ..image
    };
    let companions = [tensor("cat.jpg"), plain, extreme];
    let result_with = |companion: &Tensor, session: &mut Session| {
        let [first, last] = [[&image, companion], [companion, &image]].map(|batch| session.infer(&batch).unwrap());
        [first[0].clone(), last[1].clone()]
    };
    let expected = result_with(&companions[0], &mut session);
    for companion in &companions[1..] {
        assert!(
            result_with(companion, &mut session) == expected,
            "the result of an image depends on another image of the batch"
        );
    }
}
