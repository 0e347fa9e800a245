//! Decompression bombs: small files that are expensive to decode. Each ends fast and within the memory limit, and the
//! worker continues.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use serde_json::Value;

use crate::harness::{Process, Service, imgcls, label_of, request, test_image, until};
use crate::tiff_file::{
    BITS, COMPRESSION, EXTRA_SAMPLES, PLANAR, ROWS_PER_STRIP, SAMPLE_FORMAT, Tiff, empty_blocks, zlib, zlib_of,
};

/// Limit that no file here reaches, even on a busy machine and without optimisation. Without limits on decoding they take
/// 5 s to 20 minutes.
const MAX_DURATION: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

/// Name, file, and the code of its error, or `None` if it is classified.
type Bomb = (&'static str, Vec<u8>, Option<&'static str>);

fn slow_bombs() -> Vec<Bomb> {
    vec![
        ("strips that share one stream of empty blocks", tiff_of_one_stream(280_000, 40_000), Some("undecodable")),
        ("1.2 million strips", tiff_of_many_strips(), Some("undecodable")),
        ("an interlaced PNG one pixel wide", png(1, 49_000_000, 8, 0, 1, &black(98_000_000)), Some("too_many_pixels")),
        ("many scans, then an error", jpeg_of_many_scans(7_000, 12), Some("undecodable")),
    ]
}

/// Images of 12 megapixels. A file contains up to sixteen times the bytes that are kept in memory.
fn large_bombs() -> Vec<Bomb> {
    let flat = |bits: u32, format: u32, rows: usize| {
        let strip = zlib(&vec![0x11; 4_000 * rows * 4 * bits as usize / 8]);
        let mut tiff = Tiff::new(4_000, 3_000, 4, &[])
            .with(BITS, [bits; 4])
            .with(SAMPLE_FORMAT, [format; 4])
            .with(COMPRESSION, [8])
            .with(EXTRA_SAMPLES, [2])
            .with(ROWS_PER_STRIP, [rows as u32]);
        tiff.chunks = vec![strip; 3_000 / rows];
        tiff.file()
    };
    vec![
        ("float RGBA in strips", flat(32, 3, 100), None),
        ("float RGBA in one strip", flat(32, 3, 3_000), None),
        ("16-bit RGBA TIFF", flat(16, 1, 100), None),
        ("16-bit RGBA PNG", png(4_000, 3_000, 16, 6, 0, &black(3_000 * (1 + 8 * 4_000))), None),
        ("16-bit RGBA PNG, interlaced", png(4_000, 3_000, 16, 6, 1, &black(3_000 * 8 * 4_000 + 8_000)), None),
        ("a TIFF of 32 samples a pixel", tiff_of_many_samples(), Some("too_large_decoded")),
        ("a WebP of 36 bytes", webp_of_one_colour(16_000, 3_000), Some("too_large_decoded")),
    ]
}

#[test]
fn bombs_end_fast_and_the_same_worker_classifies_the_next_image() {
    let service = Service::start(1, &[], &[]);
    let label = label_of("cup.jpg");
    for (name, file, code) in slow_bombs() {
        expect_answer(&service, name, &file, code);
        expect_label(&service, &label);
    }
    // A worker that was replaced would have drained.
    assert!(!service.workers[0].log().contains("drained"), "{}", service.workers[0].log());
}

#[test]
fn worker_stays_within_the_memory_limit_of_decoding() {
    let mut service = Service::start(1, &[], &["--max-decode-bytes", "64MiB"]);
    let label = label_of("cup.jpg");
    expect_label(&service, &label);
    let before = service.workers[0].peak_memory_bytes();
    for (name, file, code) in large_bombs() {
        expect_answer(&service, name, &file, code);
        expect_label(&service, &label);
        let grown = service.workers[0].peak_memory_bytes() - before;
        println!("{name}: {} MiB in addition", grown / MIB);
        // The margin covers the file itself and memory that the allocator keeps.
        assert!(grown <= (64 + 24) * MIB, "{name}: {} MiB in addition", grown / MIB);
    }
    assert!(!service.workers[0].has_ended());
}

#[test]
fn decode_timeout_is_a_client_error_and_is_not_retried() {
    let service = Service::start(1, &[], &["--decode-timeout", "60ms"]);
    let label = label_of("cup.jpg");
    let large = png(8_000, 6_000, 8, 2, 0, &black(6_000 * (1 + 3 * 8_000)));
    let answer = expect_answer(&service, "a large PNG", &large, Some("decode_timeout"));
    assert!(answer["detail"].as_str().unwrap().contains("--decode-timeout"), "{answer}");
    let job = service.finished(answer["id"].as_str().unwrap());
    assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("failed"), Some(1)), "{job}");
    expect_label(&service, &label);
}

/// libjpeg-turbo gets the whole file at once, so only the watchdog can stop it.
#[test]
fn decoder_that_does_not_stop_ends_its_worker_and_fails_only_its_image() {
    let mut service = Service::start(1, &[], &["--decode-timeout", "30ms"]);
    let label = label_of("cup.jpg");
    let bomb = service.submit("bomb.jpg", &jpeg_of_many_scans(7_000, 12));
    let good: Vec<String> = (0..4).map(|_| service.submit("cup.jpg", &test_image("cup.jpg"))).collect();
    let job = service.finished(&bomb);
    assert_eq!(job["error"]["code"], "decode_timeout", "{job}");
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(service.workers[0].wait(), Some(1));
    assert!(service.workers[0].log().contains("a decoder did not stop"), "{}", service.workers[0].log());
    service.add_worker();
    for id in good {
        let job = service.finished(&id);
        assert_eq!(job["predictions"][0]["label"], label.as_str(), "{job}");
    }
}

#[test]
fn up_replaces_a_worker_whose_decoder_does_not_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = imgcls();
    command.args(["up", "--listen", "127.0.0.1:0", "--decode-timeout", "30ms", "--max-workers", "1", "--data-dir"]);
    command.arg(dir.path().join("data"));
    let up = Process::start(command, &dir.path().join("log"));
    let address = until("the address of `up`", || up_address(&up));
    let classify =
        |image: &[u8]| until("an answer", || request(address, "POST", "/v1/classify?wait=60", &[], image).ok());
    let answer = classify(&jpeg_of_many_scans(7_000, 12));
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("decode-timeout"), "{}", answer.text());
    let answer = classify(&test_image("cup.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn up_address(up: &Process) -> Option<std::net::SocketAddr> {
    let log = up.log();
    let line = log.lines().find(|line| line.contains(" up backend="))?;
    line.rsplit("address=").next()?.trim().parse().ok()
}

#[test]
fn message_whose_lease_expired_becomes_a_dead_letter_with_that_reason() {
    let flags =
        "--max-lease 100ms --decode-timeout 1h --max-pixels 1000000000 --max-batch-size 1 --max-receive-count 1";
    let flags: Vec<&str> = flags.split(' ').collect();
    let service = Service::start(1, &["--max-receive-count", "1"], &flags);
    let id = service.submit("long.tif", &tiff_of_many_samples());
    let job = service.finished(&id);
    assert_eq!(job["error"]["code"], "attempts_exhausted", "{job}");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("the lease of 100ms (--max-lease) ran out while decoding"), "{message}");
    let mut command = imgcls();
    command.args(["queue", "dead", "--json", "--backend", "local", "--data-dir"]).arg(service.data_dir());
    let dead_letters = String::from_utf8(command.stderr(Stdio::null()).output().unwrap().stdout).unwrap();
    assert!(dead_letters.contains(&id) && dead_letters.contains("ran out while decoding"), "{dead_letters}");
    // While the only session still decodes, jobs that wait for it expire too.
    let answer = until("the session is free again", || {
        let answer = service.request("POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg"));
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("cup.jpg"));
    // The late outcome of the worker did not change the result.
    assert_eq!(service.finished(&id), job);
}

#[test]
fn classify_reports_the_same_codes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, file: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, file).unwrap();
        path
    };
    let slow = path("slow.png", &png(8_000, 6_000, 8, 2, 0, &black(6_000 * (1 + 3 * 8_000))));
    let large = path("large.webp", &webp_of_one_colour(16_000, 3_000));
    assert_eq!(code_of(&slow, &["--decode-timeout", "50ms"]), "decode_timeout");
    assert_eq!(code_of(&large, &["--max-decode-bytes", "64MiB"]), "too_large_decoded");
}

fn code_of(file: &Path, flags: &[&str]) -> String {
    let output = imgcls().args(["classify", "--json"]).args(flags).arg(file).output().unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    line["error"]["code"].as_str().unwrap_or("none").to_owned()
}

/// Classifies a file, and checks the duration and the code. Returns the response body.
fn expect_answer(service: &Service, name: &str, file: &[u8], code: Option<&str>) -> Value {
    let begun = Instant::now();
    let answer = service.request("POST", "/v1/classify?wait=60", &[], file);
    let took = begun.elapsed();
    println!("{name}: {} bytes, {took:?}, {}", file.len(), answer.text());
    assert!(took < MAX_DURATION, "{name} took {took:?}");
    match code {
        None => assert_eq!(answer.status, 200, "{name}: {}", answer.text()),
        Some(code) => {
            assert_eq!(answer.status, 422, "{name}: {}", answer.text());
            let kind = format!("urn:imgcls:problem:{}", code.replace('_', "-"));
            assert_eq!(answer.json()["type"], kind.as_str(), "{name}");
        }
    }
    answer.json()
}

fn expect_label(service: &Service, label: &str) {
    let answer = service.request("POST", "/v1/classify?wait=60", &[], &test_image("cup.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["predictions"][0]["label"], label);
}

fn tiff_of_one_stream(blocks: usize, strips: u32) -> Vec<u8> {
    let stream = empty_blocks(blocks);
    let tiff = Tiff::new(1, strips, 1, &[]).with(COMPRESSION, [8]).with(ROWS_PER_STRIP, [1]);
    tiff.file_of(&stream, &vec![(0, stream.len() as u32); strips as usize])
}

fn tiff_of_many_strips() -> Vec<u8> {
    let strip = zlib(&[0x11; 40]);
    let tiff = Tiff::new(40, 400_000, 3, &[]).with(COMPRESSION, [8]).with(ROWS_PER_STRIP, [1]).with(PLANAR, [2]);
    tiff.file_of(&strip, &vec![(0, strip.len() as u32); 1_200_000])
}

/// A zlib stream of `bytes` zero bytes.
fn black(bytes: usize) -> Vec<u8> {
    let piece = vec![0; 1 << 20];
    let whole = std::iter::repeat_n(piece.as_slice(), bytes >> 20);
    zlib_of(whole.chain([&piece[..bytes % (1 << 20)]]))
}

fn png(width: u32, height: u32, depth: u8, colour: u8, interlaced: u8, data: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[depth, colour, 0, 0, interlaced]].concat();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", data), (b"IEND", &[])] {
        file.extend((data.len() as u32).to_be_bytes());
        let checked = [kind.as_slice(), data].concat();
        file.extend(&checked);
        file.extend(crc32fast::hash(&checked).to_be_bytes());
    }
    file
}

/// Fifteen megapixels of 32 samples of 64 bits: four gigabytes, of which three bytes per pixel are kept.
fn tiff_of_many_samples() -> Vec<u8> {
    let mut block = Vec::with_capacity(1 << 16);
    let mut compressor = Compress::new(Compression::best(), false);
    compressor.compress_vec(&vec![0; 1 << 20], &mut block, FlushCompress::Full).unwrap();
    let mut tiff = Tiff::new(3_000, 5_000, 32, &[]).with(BITS, [64; 32]).with(COMPRESSION, [8]);
    tiff.chunks = vec![[b"\x78\xda".as_slice(), &block.repeat(3_700)].concat()];
    tiff.file()
}

/// A grey progressive JPEG in which every scan visits all 63 coefficients of every block. Repeating a scan is invalid,
/// so libjpeg-turbo reports an error in the end.
fn jpeg_of_many_scans(side: u16, scans: usize) -> Vec<u8> {
    let segment = |marker: u8, data: &[u8]| {
        let length = (data.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker][..], &length, data].concat()
    };
    let blocks = usize::from(side / 8) * usize::from(side / 8);
    // The only code is a zero bit: a difference of 0, or the end of a block.
    let table = |kind: u8| segment(0xc4, &[&[kind, 1][..], &[0; 15], &[0]].concat());
    let scan = |first: u8, last: u8, bits: u8| {
        [segment(0xda, &[1, 1, 0, first, last, bits]), vec![0; blocks.div_ceil(8)]].concat()
    };
    let [high, low] = side.to_be_bytes();
    let mut file = b"\xff\xd8".to_vec();
    file.extend(segment(0xdb, &[&[0][..], &[1; 64]].concat()));
    file.extend(segment(0xc2, &[8, high, low, high, low, 1, 1, 0x11, 0]));
    file.extend(table(0x00));
    file.extend(scan(0, 0, 0x00));
    file.extend(table(0x10));
    file.extend(scan(1, 63, 0x01));
    (2..scans).for_each(|_| file.extend(scan(1, 63, 0x10)));
    file.extend(b"\xff\xd9");
    file
}

/// A lossless WebP of one colour: each of the five prefix codes has one symbol, so a pixel takes no bits.
fn webp_of_one_colour(width: u64, height: u64) -> Vec<u8> {
    let mut fields = vec![(0x2f, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)];
    fields.extend([(1, 1), (0, 1), (0, 1), (0, 1)].repeat(5));
    let mut bits: Vec<bool> =
        fields.iter().flat_map(|&(value, count)| (0..count).map(move |bit| value >> bit & 1 == 1)).collect();
    bits.resize(bits.len().next_multiple_of(16) + 64, false);
    let data: Vec<u8> =
        bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |sum, &bit| sum << 1 | u8::from(bit))).collect();
    let body = [&b"WEBPVP8L"[..], &(data.len() as u32).to_le_bytes(), &data].concat();
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}
