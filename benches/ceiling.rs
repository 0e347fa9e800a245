//! The upper bound of throughput: decode, preprocess and infer in a loop, with one session per thread and without a
//! queue. The difference between this and the full path is the overhead of the full path.
//!
//! `cargo bench --bench ceiling -- --threads 2 --seconds 5 --images DIR --json`

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a benchmark prints its measurements")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use imgcls::model::{Limits, ModelChoice, ModelPackage, Session, prepare, sniff};

/// The photographs among the test images. The others are special cases, such as an image of one pixel.
const PHOTOGRAPHS: [&str; 4] = ["cat.jpg", "cup.jpg", "full-chroma.jpg", "rocket.jpg"];

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let package = Arc::new(ModelPackage::load(&options.choice)?);
    let images = Arc::new(read_images(options.image_folder.as_deref())?);
    eprintln!("{}; {} images", package.summary(), images.len());
    let report = measure(&options, &package, &images)?;
    println!("{}", if options.json { report.json() } else { report.text() });
    Ok(())
}

struct Options {
    threads: usize,
    duration: Duration,
    image_folder: Option<PathBuf>,
    choice: ModelChoice,
    json: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
        let threads = std::thread::available_parallelism()?.get();
        let choice = ModelChoice::default();
        let mut options =
            Options { threads, duration: Duration::from_secs(5), image_folder: None, choice, json: false };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--threads" => options.threads = value()?.parse().context("--threads takes a number")?,
                "--seconds" => {
                    let seconds = value()?.parse().context("--seconds takes a number")?;
                    options.duration = Duration::try_from_secs_f64(seconds)?;
                }
                "--images" | "--pictures" => options.image_folder = Some(value()?.into()),
                "--model" => options.choice.model = Some(value()?),
                "--variant" => options.choice.variant = Some(value()?),
                "--json" => options.json = true,
                "--bench" => {} // passed by cargo bench
                other => bail!("unknown argument {other}; see the top of benches/ceiling.rs"),
            }
        }
        ensure!(options.threads > 0, "--threads takes at least 1");
        Ok(options)
    }
}

fn read_images(folder: Option<&Path>) -> anyhow::Result<Vec<Vec<u8>>> {
    let files = match folder {
        Some(folder) => {
            let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
            let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
            files.retain(|file| file.is_file());
            files.sort();
            files
        }
        None => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
            PHOTOGRAPHS.iter().map(|name| folder.join(name)).collect()
        }
    };
    let mut images = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if sniff(&bytes).is_some() {
            images.push(bytes);
        }
    }
    ensure!(!images.is_empty(), "there are no images to measure with; give --images a folder of images");
    Ok(images)
}

/// The work of one thread, or of all threads.
#[derive(Default)]
struct Work {
    images: u64,
    prepared: Duration,
    inferred: Duration,
}

struct Report {
    threads: usize,
    work: Work,
    elapsed: Duration,
    cpu: Option<Duration>,
}

fn measure(options: &Options, package: &Arc<ModelPackage>, images: &Arc<Vec<Vec<u8>>>) -> anyhow::Result<Report> {
    let next = Arc::new(AtomicUsize::new(0));
    // Before the first image, all sessions must be open and this thread must have read the clocks.
    let start = Arc::new(Barrier::new(options.threads + 1));
    let sessions =
        (0..options.threads).map(|_| Session::open(package, &options.choice)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(session) = sessions.first() {
        eprintln!("{}", session.describe());
    }
    let threads: Vec<_> = sessions
        .into_iter()
        .map(|session| {
            let (package, images) = (Arc::clone(package), Arc::clone(images));
            let (next, start, duration) = (Arc::clone(&next), Arc::clone(&start), options.duration);
            std::thread::spawn(move || {
                start.wait();
                work(session, &package, &images, &next, duration)
            })
        })
        .collect();
    let cpu_before = cpu_time();
    start.wait();
    let begun = Instant::now();
    let mut total = Work::default();
    for thread in threads {
        let work = thread.join().expect("no thread of the loop panics; this is a bug")?;
        total.images += work.images;
        total.prepared += work.prepared;
        total.inferred += work.inferred;
    }
    let elapsed = begun.elapsed();
    let cpu = cpu_time().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    ensure!(total.images > 0, "no image was classified in that time; give a longer --seconds");
    Ok(Report { threads: options.threads, work: total, elapsed, cpu })
}

fn work(
    mut session: Session,
    package: &ModelPackage,
    images: &[Vec<u8>],
    next: &AtomicUsize,
    duration: Duration,
) -> anyhow::Result<Work> {
    let limits = Limits::default();
    let mut work = Work::default();
    let until = Instant::now() + duration;
    while Instant::now() < until {
        let image = &images[next.fetch_add(1, Ordering::Relaxed) % images.len()];
        let begun = Instant::now();
        let tensor = prepare(image, package, &limits)?;
        let prepared = Instant::now();
        session.infer(&[&tensor])?;
        work.images += 1;
        work.prepared += prepared - begun;
        work.inferred += prepared.elapsed();
    }
    Ok(work)
}

impl Report {
    fn images_per_second(&self) -> f64 {
        self.work.images as f64 / self.elapsed.as_secs_f64()
    }

    fn per_image_ms(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e3 / self.work.images as f64
    }

    fn text(&self) -> String {
        let cpu = self.cpu.map_or("-".to_owned(), |cpu| format!("{:.2}", self.per_image_ms(cpu)));
        format!(
            "{:.1} images/s on {} threads; per image: {cpu} ms CPU, {:.2} ms decode + preprocess, {:.2} ms inference",
            self.images_per_second(),
            self.threads,
            self.per_image_ms(self.work.prepared),
            self.per_image_ms(self.work.inferred),
        )
    }

    fn json(&self) -> String {
        serde_json::json!({
            "threads": self.threads,
            "seconds": self.elapsed.as_secs_f64(),
            "images": self.work.images,
            "images_per_second": self.images_per_second(),
            "cpu_ms_per_image": self.cpu.map(|cpu| self.per_image_ms(cpu)),
            "prepare_ms_per_image": self.per_image_ms(self.work.prepared),
            "infer_ms_per_image": self.per_image_ms(self.work.inferred),
        })
        .to_string()
    }
}

/// User and system time of this process, if the kernel reports it.
fn cpu_time() -> Option<Duration> {
    const TICKS_PER_SECOND: u64 = 100; // of /proc on every Linux
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may contain blanks. User and system time are the 12th and 13th fields after it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}
