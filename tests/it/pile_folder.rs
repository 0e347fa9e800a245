//! A folder with a small model and images, in which `imgcls classify` runs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{ImageFormat, Rgb, RgbImage};

use crate::harness::imgcls;
use crate::image_files::encode;
use crate::tiny_model::write_package;

/// A folder with a model, and images.
pub struct Pile(tempfile::TempDir);

impl Pile {
    /// A folder with a model of these weights, and without images.
    pub fn with_model(weights: u32) -> Pile {
        let pile = Pile(tempfile::tempdir().unwrap());
        write_package(&pile.path("model"), "tiny", "1", weights);
        pile
    }

    /// A pile of so many images in folders of a hundred. Every 50th is broken, in twenty ways one after the other.
    pub fn of(images: usize) -> Pile {
        let pile = Pile::with_model(1);
        let colours: Vec<Vec<u8>> = (0..7u8)
            .map(|colour| {
                encode(&RgbImage::from_pixel(12, 10, Rgb([colour * 40, 255 - colour * 30, colour])), ImageFormat::Png)
            })
            .collect();
        for number in 0..images {
            let broken = (number % 50 == 49).then(|| broken(number / 50, &colours[0]));
            let content = broken.as_deref().unwrap_or(&colours[number % 7]);
            pile.write(&format!("images/{:03}/{number:05}.png", number / 100), content);
        }
        pile
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = imgcls();
        command.args(["classify", "--model", "model"]).args(arguments);
        command.current_dir(self.0.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().unwrap())
    }
}

/// A file that is no image, made of a PNG in one of twenty ways.
fn broken(way: usize, png: &[u8]) -> Vec<u8> {
    let with = |at: usize, byte: u8| [&png[..at], &[byte], &png[at + 1..]].concat();
    match way % 20 {
        0 => b"no image".to_vec(),
        1 => Vec::new(),
        2 => png[..1].to_vec(),
        3 => png[..8].to_vec(),
        4 => png[..20].to_vec(),
        5 => png[..png.len() / 2].to_vec(),
        6 => png[..png.len() - 13].to_vec(),
        // The sum over the header, the width, the depth, the kind of colours, the compressed pixels.
        7 => with(29, !png[29]),
        8 => with(16, 0x7f),
        9 => with(24, 3),
        10 => with(25, 5),
        11 => with(45, !png[45]),
        12 => b"\xff\xd8\xff\xe0 no image at all".to_vec(),
        13 => b"GIF89a\0\0\0\0".to_vec(),
        14 => b"RIFF\xff\0\0\0WEBPVP8 ".to_vec(),
        15 => b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec(),
        16 => b"II*\0\xff\xff\0\0".to_vec(),
        17 => b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(),
        18 => b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(),
        _ => vec![0; 4_096],
    }
}

/// A process that has ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// How often each path is in a table.
pub fn paths(csv: &str) -> HashMap<String, usize> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let mut counts = HashMap::new();
    for record in reader.records() {
        *counts.entry(record.unwrap()[0].to_owned()).or_default() += 1;
    }
    counts
}

pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
