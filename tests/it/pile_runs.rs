//! Runs of `imgcls classify` over a pile that are killed, stopped and repeated, through the real binary with a small model.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{ImageFormat, Rgb, RgbImage};

use crate::harness::{imgcls, until};
use crate::image_files::encode;
use crate::tiny_model::write_package;

/// A folder with images and a model.
pub struct Pile(tempfile::TempDir);

impl Pile {
    /// A pile of so many images in folders of a hundred. Every 50th is broken.
    pub fn of(images: usize) -> Pile {
        let pile = Pile(tempfile::tempdir().unwrap());
        write_package(&pile.path("model"), "tiny", "1", 1);
        let colours: Vec<Vec<u8>> = (0..7u8)
            .map(|colour| {
                encode(&RgbImage::from_pixel(12, 10, Rgb([colour * 40, 255 - colour * 30, colour])), ImageFormat::Png)
            })
            .collect();
        for number in 0..images {
            let content = if number % 50 == 49 { b"no image" } else { &colours[number % 7][..] };
            pile.write(&format!("images/{:03}/{number:05}.png", number / 100), content);
        }
        pile
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

#[test]
fn run_that_is_killed_continues_and_writes_each_image_once() {
    let pile = Pile::of(3_000);
    let undisturbed = pile.run(&["images", "--out", "undisturbed.csv"]);
    assert_eq!(undisturbed.code, Some(1), "{}", undisturbed.stderr);
    let arguments = ["images", "--out", "out.csv", "--sidecar", "txt", "--sort-into", "sorted"];
    let mut kills = 0;
    loop {
        let mut child = pile.command(&arguments).spawn().unwrap();
        let log = pile.path("out.csv.part");
        let before = length(&log);
        // Each run adds something before it is killed, so that the last one comes to an end.
        until("progress", || (length(&log) > before + 40_000 || child.try_wait().unwrap().is_some()).then_some(()));
        child.kill().unwrap();
        if child.wait().unwrap().code() == Some(1) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "killed {kills} times");
    // A run that ended before the kill may have left a complete table; the same command brings it about in any case.
    let last = pile.run(&arguments);
    assert_eq!(last.code, Some(1), "{}", last.stderr);
    assert_eq!(pile.read("out.csv"), pile.read("undisturbed.csv"));
    let counts = paths(&pile.read("out.csv"));
    assert!(counts.len() == 3_000 && counts.values().all(|count| *count == 1));
    let links: usize = fs::read_dir(pile.path("sorted"))
        .unwrap()
        .map(|class| class.unwrap().path())
        .filter(|class| class.is_dir())
        .map(|class| fs::read_dir(class).unwrap().count())
        .sum();
    assert_eq!(links, 3_000 - 60);
}

#[test]
fn full_disk_ends_the_run_and_the_same_command_continues_it() {
    let pile = Pile::of(600);
    pile.run(&["images", "--out", "undisturbed.csv"]);
    // The limit on the size of a file stops writes as a full disk does.
    let limited = |blocks: u32| {
        let binary = imgcls();
        let mut shell = Command::new("sh");
        let script =
            format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" classify --model model images --out out.csv");
        for (name, value) in binary.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.args(["-c", &script]).arg(binary.get_program()).current_dir(pile.0.path());
        Ended::of(shell.output().unwrap())
    };
    let stopped = limited(64);
    assert_eq!(stopped.code, Some(1));
    assert!(stopped.stderr.contains("the same command continues where it stopped"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("cannot write out.csv.part"), "{}", stopped.stderr);
    assert!(length(&pile.path("out.csv.part")) <= 64 * 1_024 && !pile.path("out.csv").exists());
    let continued = pile.run(&["images", "--out", "out.csv"]);
    assert_eq!(continued.code, Some(1), "{}", continued.stderr);
    assert_eq!(pile.read("out.csv"), pile.read("undisturbed.csv"));
}

#[test]
fn second_process_with_the_same_output_is_refused() {
    let pile = Pile::of(2);
    let mut first = pile.command(&["--files-from", "-", "--out", "out.csv"]).stdin(Stdio::piped()).spawn().unwrap();
    until("the log", || pile.path("out.csv.part").exists().then_some(()));
    let second = pile.run(&["images", "--out", "out.csv"]);
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("another process writes out.csv.part"), "{}", second.stderr);
    let mut stdin = first.stdin.take().unwrap();
    writeln!(stdin, "images/000/00001.png").unwrap();
    drop(stdin);
    let mut stderr = String::new();
    first.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(first.wait().unwrap().success(), "{stderr}");
    assert_eq!(paths(&pile.read("out.csv")).len(), 1);
}

#[test]
fn failed_images_are_classified_again_once_they_are_repaired() {
    let pile = Pile::of(100);
    let arguments = ["images", "--out", "out.jsonl", "--errors", "errors.csv"];
    assert_eq!(pile.run(&arguments).code, Some(1));
    assert_eq!(paths(&pile.read("errors.csv")).len(), 2);
    let good = fs::read(pile.path("images/000/00000.png")).unwrap();
    for name in ["images/000/00049.png", "images/000/00099.png"] {
        pile.write(name, &good);
    }
    // Images that were classified are not read again.
    pile.write("images/000/00050.png", b"broken now");
    let again = pile.run(&[&arguments[..], &["--retry-errors"]].concat());
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let lines: Vec<serde_json::Value> =
        pile.read("out.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == 100 && lines.iter().all(|line| line["status"] == "succeeded"));
    assert_eq!(lines[49]["path"], "000/00049.png");
    assert!(!pile.path("out.jsonl.part").exists());
    let refused = pile.run(&arguments);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("out.jsonl exists: --overwrite replaces it"), "{}", refused.stderr);
}

#[test]
fn run_stops_beyond_max_failures_and_succeeds_within_it() {
    let pile = Pile::of(200);
    let arguments = |limit| ["images", "--out", "out.csv", "--max-failures", limit];
    let stopped = pile.run(&arguments("1"));
    assert_eq!(stopped.code, Some(1));
    assert!(stopped.stderr.contains("more than --max-failures allows"), "{}", stopped.stderr);
    assert!(pile.path("out.csv.part").exists() && !pile.path("out.csv").exists());
    let done = pile.run(&arguments("2%"));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(paths(&pile.read("out.csv")).len(), 200);
}

#[test]
fn pipe_gets_the_table_of_the_file_and_may_be_closed() {
    let pile = Pile::of(120);
    pile.run(&["images", "--out", "out.csv"]);
    let piped = pile.run(&["images"]);
    assert_eq!(piped.code, Some(1), "{}", piped.stderr);
    assert_eq!(piped.stdout, pile.read("out.csv"));
    let mut child = pile.command(&["images"]).spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    child.wait().unwrap();
    assert!(!stderr.contains("Broken pipe"), "{stderr}");
}

#[test]
fn sorted_images_are_not_classified_again() {
    let pile = Pile::of(30);
    let arguments = ["images", "--sort-into", "images/sorted", "--sidecar", "json"];
    let first = pile.run(&arguments);
    assert_eq!((first.code, paths(&first.stdout).len()), (Some(0), 30), "{}", first.stderr);
    let second = pile.run(&arguments);
    assert_eq!(second.stdout, first.stdout);
    let sidecar: serde_json::Value = serde_json::from_str(&pile.read("images/000/00000.png.json")).unwrap();
    assert_eq!((&sidecar["model"], &sidecar["width"]), (&"tiny".into(), &12.into()));
}
