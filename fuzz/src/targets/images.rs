//! Bytes → tensor, by the functions that workers and `imgcls classify` call.

use std::sync::OnceLock;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::model::{self, ModelPackage, Tensor};
use imgcls::pile::Config;

use super::Verdict;

/// Decodes the input as it is, and with corrected checksums, because the decoder stops at the first wrong one.
pub fn decode_png(input: &[u8]) -> Verdict {
    let kept = decode(input, "image/png");
    if let Verdict::Keep = kept {
        decode(&with_checksums(input), "image/png");
    }
    kept
}

/// A valid image must be decoded whatever its EXIF block contains.
pub fn exif(input: &[u8]) -> Verdict {
    let block = &input[..input.len().min(60_000)];
    for image in [jpeg_with(block), png_with(block)] {
        if let Err(error) = prepare(&image) {
            panic!("a valid image is refused because of its EXIF block: {error}");
        }
    }
    Verdict::Keep
}

/// Decodes an input of this media type. Inputs of other formats belong to other targets.
pub fn decode(input: &[u8], media_type: &str) -> Verdict {
    if model::sniff(input) != Some(media_type) {
        return Verdict::Reject;
    }
    let (first, again) = (prepare(input), prepare(input));
    // An image must not affect the next one.
    assert_eq!(first, again, "the same bytes give another result the second time");
    if let Ok(tensor) = &first {
        assert_eq!((tensor.width, tensor.height), input_size(), "the model takes another size");
    }
    Verdict::Keep
}

fn prepare(bytes: &[u8]) -> Result<Tensor, model::PrepareError> {
    let (config, package) = set_up();
    model::prepare(bytes, package, &config.limits)
}

/// The default limits and the default model.
fn set_up() -> &'static (Config, ModelPackage) {
    static SET_UP: OnceLock<(Config, ModelPackage)> = OnceLock::new();
    SET_UP.get_or_init(|| {
        let line = ["imgcls", "classify", "--model", "models/efficientnet-lite0", "x.jpg"];
        let Command::Classify(args) = Cli::parse_from(line).command else {
            unreachable!("the command line names this command")
        };
        let config = args.config(None).expect("a configuration");
        let package = ModelPackage::load(&config.model).expect("the model; scripts/setup installs it");
        (config, package)
    })
}

/// Width and height of every tensor.
fn input_size() -> (usize, usize) {
    static SIZE: OnceLock<(usize, usize)> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let tensor = prepare(VALID_JPEG).expect("a valid image");
        (tensor.width, tensor.height)
    })
}

const VALID_JPEG: &[u8] = include_bytes!("../../../tests/pictures/rocket.jpg");
const VALID_PNG: &[u8] = include_bytes!("../../../tests/pictures/one-pixel.png");
const PNG_SIGNATURE_BYTES: usize = 8;
/// Size of the length, name and checksum of a chunk.
const PNG_CHUNK_FRAME_BYTES: usize = 12;

fn jpeg_with(exif: &[u8]) -> Vec<u8> {
    let length = u16::try_from(exif.len() + 8).expect("the block was truncated");
    let (start, rest) = VALID_JPEG.split_at(2);
    [start, b"\xff\xe1", &length.to_be_bytes(), b"Exif\0\0", exif, rest].concat()
}

fn png_with(exif: &[u8]) -> Vec<u8> {
    let header_end = PNG_SIGNATURE_BYTES + PNG_CHUNK_FRAME_BYTES + 13;
    let (start, rest) = VALID_PNG.split_at(header_end);
    let length = u32::try_from(exif.len()).expect("the block was truncated");
    with_checksums(&[start, &length.to_be_bytes(), b"eXIf", exif, b"\0\0\0\0", rest].concat())
}

fn with_checksums(png: &[u8]) -> Vec<u8> {
    let mut fixed = png.to_vec();
    let mut at = PNG_SIGNATURE_BYTES;
    while let Some(head) = fixed.get(at..at + 4) {
        let length = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        let Some(covered) = fixed.get(at + 4..end).filter(|_| end + 4 <= fixed.len()) else { break };
        let checksum = crc32fast::hash(covered).to_be_bytes();
        fixed[end..end + 4].copy_from_slice(&checksum);
        at = end + 4;
    }
    fixed
}
