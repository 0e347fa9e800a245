//! Bytes → tensor: milliseconds per image on one thread, by size: with reduction in the JPEG decoder, from every pixel,
//! and for comparison the decoder alone.
//!
//! `cargo bench --bench decode -- --seconds 2` `cargo bench --bench decode -- --agreement DIR`: enlarges the
//! photographs of a folder to the sizes of cameras, and counts how often both ways give the same first class.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a benchmark prints its measurements")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use fast_image_resize::images::Image as ResizedImage;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use imgcls::model::{
    JPEG_DECODER, Limits, ModelChoice, ModelPackage, Session, Tensor, Values, prepare, prepare_unscaled, top_k,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// The sources of the measured images.
const PHOTOGRAPHS: [&str; 4] = ["astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg"];

struct Size {
    width: u32,
    height: u32,
    /// The reduction that the decoder uses.
    reduction: usize,
    /// The target for decoding and preprocessing, in milliseconds.
    target_ms: f64,
}

const SIZES: [Size; 4] = [
    Size { width: 64, height: 64, reduction: 1, target_ms: 0.04 },
    Size { width: 500, height: 375, reduction: 1, target_ms: 0.9 },
    Size { width: 1920, height: 1080, reduction: 2, target_ms: 5.5 },
    Size { width: 4000, height: 3000, reduction: 4, target_ms: 27.0 },
];

/// The short sides to which photographs are resized: just above the limits of the reductions, and common sizes of
/// cameras.
const SHORT_SIDES: [u32; 8] = [375, 513, 720, 1025, 1080, 2049, 2160, 3000];

/// The fraction of the photographs on which both ways must agree.
const MIN_AGREEMENT: f64 = 0.99;

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let package = ModelPackage::load(&options.choice)?;
    eprintln!("{}; JPEG by {JPEG_DECODER}", package.summary());
    match &options.agreement {
        Some(folder) => agreement(folder, &package, &options.choice),
        None => {
            println!(
                "{:<12} {:>9} {:>10} {:>10} {:>10} {:>8}",
                "pixels", "bytes", "scaled ms", "bare ms", "full ms", "target"
            );
            SIZES.iter().try_for_each(|size| measure(size, &package, options.duration))
        }
    }
}

struct Options {
    duration: Duration,
    agreement: Option<PathBuf>,
    choice: ModelChoice,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
        let mut options = Options { duration: Duration::from_secs(1), agreement: None, choice: ModelChoice::default() };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--seconds" => {
                    let seconds = value()?.parse().context("--seconds takes a number")?;
                    options.duration = Duration::try_from_secs_f64(seconds)?;
                }
                "--agreement" => options.agreement = Some(value()?.into()),
                "--model" => options.choice.model = Some(value()?),
                "--variant" => options.choice.variant = Some(value()?),
                "--bench" => {} // passed by cargo bench
                other => bail!("unknown argument {other}; see the top of benches/decode.rs"),
            }
        }
        Ok(options)
    }
}

fn measure(size: &Size, package: &ModelPackage, duration: Duration) -> anyhow::Result<()> {
    let &Size { width, height, reduction, target_ms } = size;
    let jpeg = encode(&synthesise(width, height)?)?;
    let limits = Limits::default();
    let scaled = median_ms(duration, || prepare(&jpeg, package, &limits).map(drop))?;
    let full = median_ms(duration, || prepare_unscaled(&jpeg, package, &limits).map(drop))?;
    let bare = bare_ms(&jpeg, reduction, duration)?;
    let name = format!("{width} × {height}");
    println!("{name:<12} {:>9} {scaled:>10.3} {bare:>10.3} {full:>10.3} {target_ms:>8.2}", jpeg.len());
    Ok(())
}

/// The time of libjpeg-turbo alone with the same reduction. The difference is our overhead.
fn bare_ms(jpeg: &[u8], reduction: usize, duration: Duration) -> anyhow::Result<f64> {
    let mut decompressor = turbojpeg::Decompressor::new()?;
    let scale = turbojpeg::ScalingFactor::new(1, reduction);
    decompressor.set_scaling_factor(scale)?;
    let header = decompressor.read_header(jpeg)?.scaled(scale);
    let (width, height) = (header.width, header.height);
    let mut pixels = vec![0; width * height * 3];
    median_ms(duration, || {
        let format = turbojpeg::PixelFormat::RGB;
        let raw = turbojpeg::Image { pixels: pixels.as_mut_slice(), width, pitch: width * 3, height, format };
        decompressor.decompress(jpeg, raw)
    })
}

/// The median, which ignores occasional disturbances by other processes.
fn median_ms<E: std::error::Error + Send + Sync + 'static>(
    duration: Duration,
    mut work: impl FnMut() -> Result<(), E>,
) -> anyhow::Result<f64> {
    work()?; // the first image allocates the buffers that a thread reuses
    let until = Instant::now() + duration;
    let mut times = Vec::new();
    while times.len() < 5 || Instant::now() < until {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e3)
}

/// An image with the detail of photographs at any size: one of them if it is large enough, otherwise a mosaic of tiles.
fn synthesise(width: u32, height: u32) -> anyhow::Result<RgbImage> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loadgen/samples");
    let photographs = PHOTOGRAPHS.iter().map(|name| read(&folder.join(name))).collect::<anyhow::Result<Vec<_>>>()?;
    if width <= 512 {
        return resized(&photographs[2], width, height);
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut mosaic = RgbImage::new(width, height);
    for y in (0..height).step_by(256) {
        for x in (0..width).step_by(256) {
            let photograph = photographs.choose(&mut random).context("there are photographs")?;
            let left = random.random_range(0..photograph.width() - 256);
            let top = random.random_range(0..=photograph.height() - 256);
            let tile = image::imageops::crop_imm(photograph, left, top, 256, 256).to_image();
            image::imageops::replace(&mut mosaic, &tile, x.into(), y.into());
        }
    }
    Ok(mosaic)
}

fn agreement(folder: &Path, package: &ModelPackage, choice: &ModelChoice) -> anyhow::Result<()> {
    let mut session = Session::open(package, choice)?;
    let mut files = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    let photographs: Vec<RgbImage> = files.iter().filter_map(|file| read(file).ok()).collect();
    ensure!(!photographs.is_empty(), "no photographs in {}", folder.display());
    let limits = Limits::default();
    let (mut agreed, mut all) = (0, 0);
    for short_side in SHORT_SIDES {
        let (mut agreed_here, mut total_distance) = (0, 0.0);
        for photograph in &photographs {
            let (width, height) = photograph.dimensions();
            let scale = f64::from(short_side) / f64::from(width.min(height));
            let side = |side: u32| (f64::from(side) * scale).round() as u32;
            let jpeg = encode(&resized(photograph, side(width), side(height))?)?;
            let (scaled, full) = (prepare(&jpeg, package, &limits)?, prepare_unscaled(&jpeg, package, &limits)?);
            agreed_here += usize::from(best(&mut session, package, &scaled)? == best(&mut session, package, &full)?);
            total_distance += distance(&scaled, &full);
        }
        let count = photographs.len();
        println!(
            "short side {short_side:>5}: {agreed_here} of {count}, a mean difference of {:.4}",
            total_distance / count as f64
        );
        agreed += agreed_here;
        all += count;
    }
    println!("{:.2} % of {all} agree", agreed as f64 * 100.0 / all as f64);
    ensure!(agreed as f64 >= MIN_AGREEMENT * all as f64, "fewer than {} % agree", MIN_AGREEMENT * 100.0);
    Ok(())
}

fn best(session: &mut Session, package: &ModelPackage, tensor: &Tensor) -> anyhow::Result<Option<u32>> {
    let probabilities = session.infer(&[tensor])?.pop().context("one answer a tensor")?;
    Ok(top_k(package, &probabilities, 1).first().and_then(|best| best.class_index))
}

/// The mean difference of corresponding values.
fn distance(one: &Tensor, other: &Tensor) -> f64 {
    let differences: Vec<f64> = match (&one.values, &other.values) {
        (Values::Floats(one), Values::Floats(other)) => {
            one.iter().zip(other).map(|(one, other)| f64::from((one - other).abs())).collect()
        }
        (Values::Pixels(one), Values::Pixels(other)) => {
            // The fourth byte of a pixel is unused.
            let colours = |pixels: &[u8]| {
                pixels.as_chunks::<4>().0.iter().flat_map(|pixel| pixel[..3].to_vec()).collect::<Vec<_>>()
            };
            let pairs = colours(one).into_iter().zip(colours(other));
            pairs.map(|(one, other)| f64::from(one.abs_diff(other)) / 128.0).collect()
        }
        _ => unreachable!("both tensors belong to one package"),
    };
    differences.iter().sum::<f64>() / differences.len() as f64
}

fn read(file: &Path) -> anyhow::Result<RgbImage> {
    let opened = image::ImageReader::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(opened.with_guessed_format()?.decode()?.into_rgb8())
}

fn resized(image: &RgbImage, width: u32, height: u32) -> anyhow::Result<RgbImage> {
    let source = ResizedImage::from_vec_u8(image.width(), image.height(), image.as_raw().clone(), PixelType::U8x3)?;
    let mut target = ResizedImage::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut target, &options)?;
    RgbImage::from_raw(width, height, target.into_vec()).context("as many bytes as pixels")
}

/// Encodes as cameras and phones do: 4:2:0, quality 90.
fn encode(image: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let raw = turbojpeg::Image {
        pixels: image.as_raw().as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    Ok(turbojpeg::compress(raw, 90, turbojpeg::Subsamp::Sub2x2)?.to_vec())
}
