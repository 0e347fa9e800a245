//! `imgcls watch`: images that come into a folder, through the real binary with a small model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use image::{ImageFormat, Rgb, RgbImage};

use crate::harness::{Process, imgcls, until};
use crate::image_files::encode;
use crate::tiny_model::write_package;

/// A folder that is watched, beside a model and the table.
struct Inbox(tempfile::TempDir);

impl Inbox {
    fn new() -> Inbox {
        let inbox = Inbox(tempfile::tempdir().unwrap());
        write_package(&inbox.path("model"), "tiny", "1", 1);
        fs::create_dir(inbox.path("in")).unwrap();
        inbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an image in place.
    fn write(&self, name: &str) {
        fs::write(self.path(name), png()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = imgcls();
        command.args(["watch", "in", "--model", "model", "--out", "out.csv"]).args(arguments);
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Starts the command, and waits until it has read the folder.
    fn watch(&self, arguments: &[&str]) -> Process {
        let runs = fs::read_dir(self.0.path()).unwrap().count();
        let process = Process::start(self.command(arguments), &self.path(&format!("{runs}.log")));
        process.wait_for_log("watching");
        process
    }

    fn refusal(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// The status of each path of the table, with the number of its rows.
    fn rows(&self) -> BTreeMap<String, (String, usize)> {
        let mut rows = BTreeMap::new();
        let Ok(mut reader) = csv::Reader::from_path(self.path("out.csv")) else { return rows };
        // The last row may be half written while it is read.
        for record in reader.records().map_while(Result::ok) {
            let row: &mut (String, usize) = rows.entry(record[0].to_owned()).or_default();
            *row = (record[1].to_owned(), row.1 + 1);
        }
        rows
    }

    /// Waits until these images have a row, and no others.
    fn wait_for(&self, paths: &[&str]) {
        let mut expected: Vec<&str> = paths.to_vec();
        expected.sort_unstable();
        let rows =
            until(&format!("rows of {expected:?}"), || Some(self.rows()).filter(|rows| rows.len() >= paths.len()));
        assert_eq!(rows.keys().collect::<Vec<_>>(), expected);
        assert!(rows.values().all(|(status, count)| status == "succeeded" && *count == 1), "{rows:?}");
    }
}

fn png() -> Vec<u8> {
    encode(&RgbImage::from_pixel(40, 30, Rgb([10, 200, 90])), ImageFormat::Png)
}

fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "{}", process.log());
}

#[test]
fn files_that_come_are_classified_once_also_while_the_process_was_away() {
    let inbox = Inbox::new();
    inbox.write("in/before.png");
    let process = inbox.watch(&["--stable-after", "50ms"]);
    inbox.wait_for(&["before.png"]);
    inbox.write("in/written.png");
    inbox.write("elsewhere.png");
    fs::rename(inbox.path("elsewhere.png"), inbox.path("in/moved.png")).unwrap();
    fs::write(inbox.path("in/notes.txt"), "no image").unwrap();
    fs::hard_link(inbox.path("in/written.png"), inbox.path("in/linked.png")).unwrap();
    fs::write(inbox.path("in/.upload.png"), png()).unwrap();
    inbox.wait_for(&["before.png", "written.png", "moved.png", "linked.png"]);
    // A program that writes to a hidden name first.
    fs::rename(inbox.path("in/.upload.png"), inbox.path("in/upload.png")).unwrap();
    let mut expected = vec!["before.png", "written.png", "moved.png", "linked.png", "upload.png"];
    inbox.wait_for(&expected);
    stop(process);

    inbox.write("in/away.png");
    expected.push("away.png");
    let process = inbox.watch(&["--stable-after", "50ms"]);
    inbox.wait_for(&expected);
    inbox.write("in/again.png");
    expected.push("again.png");
    inbox.wait_for(&expected);
    stop(process);
}

#[test]
fn folders_that_come_are_read_whatever_comes_into_them_first() {
    let inbox = Inbox::new();
    let process = inbox.watch(&["--stable-after", "100ms"]);
    let mut expected = Vec::new();
    for number in 0..20 {
        let folder = format!("day-{number}/north");
        fs::create_dir_all(inbox.path("in").join(&folder)).unwrap();
        for name in ["a.png", "b.png"] {
            inbox.write(&format!("in/{folder}/{name}"));
            expected.push(format!("{folder}/{name}"));
        }
    }
    fs::create_dir_all(inbox.path("card/DCIM")).unwrap();
    inbox.write("card/DCIM/1.png");
    fs::rename(inbox.path("card"), inbox.path("in/card")).unwrap();
    expected.push("card/DCIM/1.png".to_owned());
    inbox.wait_for(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    stop(process);
}

#[test]
fn file_that_is_written_slowly_is_classified_when_it_is_closed() {
    let inbox = Inbox::new();
    let process = inbox.watch(&["--stable-after", "500ms"]);
    let content = png();
    let mut slow = File::create(inbox.path("in/slow.png")).unwrap();
    slow.write_all(&content[..content.len() / 2]).unwrap();
    // The system only reports that a link was created, so this one counts when it did not change for a while.
    inbox.write("linked.png");
    fs::hard_link(inbox.path("linked.png"), inbox.path("in/linked.png")).unwrap();
    inbox.wait_for(&["linked.png"]);
    slow.write_all(&content[content.len() / 2..]).unwrap();
    drop(slow);
    inbox.wait_for(&["linked.png", "slow.png"]);
    stop(process);
}

#[test]
fn process_that_is_killed_writes_each_row_once() {
    let inbox = Inbox::new();
    let mut expected = Vec::new();
    let mut rows = 0;
    for run in 0..4 {
        let mut process = inbox.watch(&["--stable-after", "50ms"]);
        for number in 0..100 {
            let name = format!("{run}-{number}.png");
            inbox.write(&format!("in/{name}"));
            expected.push(name);
        }
        rows = until("rows", || Some(inbox.rows().len()).filter(|now| *now > rows));
        process.kill();
    }
    let process = inbox.watch(&["--stable-after", "50ms"]);
    inbox.wait_for(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    stop(process);
    assert!(fs::read_to_string(inbox.path("out.csv")).unwrap().ends_with('\n'));
}

#[test]
fn broken_image_is_a_row_and_is_tried_again_only_if_that_is_asked_for() {
    let inbox = Inbox::new();
    fs::write(inbox.path("in/broken.png"), "no image").unwrap();
    inbox.write("in/good.png");
    let both = |status: &str| {
        until("rows", || {
            let rows = inbox.rows();
            let is_there = rows.len() == 2 && rows["broken.png"].0 == status;
            is_there.then(|| assert!(rows.values().all(|(_, count)| *count == 1), "{rows:?}"))
        });
    };
    let process = inbox.watch(&["--stable-after", "50ms"]);
    both("failed");
    assert!(process.log().contains("broken.png"), "{}", process.log());
    stop(process);
    inbox.write("in/broken.png");
    let process = inbox.watch(&["--stable-after", "50ms"]);
    both("failed");
    stop(process);
    let process = inbox.watch(&["--stable-after", "50ms", "--retry-errors"]);
    both("succeeded");
    stop(process);
    let process = inbox.watch(&["--stable-after", "50ms"]);
    both("succeeded");
    stop(process);
}

#[test]
fn images_are_sorted_and_described_beside_the_table() {
    let inbox = Inbox::new();
    let flags =
        ["--stable-after", "50ms", "--sort-into", "in/sorted", "--sidecar", "json", "--long", "--rescan", "50ms"];
    let process = inbox.watch(&flags);
    inbox.write("in/1.png");
    let rows = || fs::read_to_string(inbox.path("out.csv")).map_or(0, |table| table.lines().count().saturating_sub(1));
    until("five classes", || (rows() == 5).then_some(()));
    inbox.write("in/2.png");
    until("five classes of another image", || (rows() == 10).then_some(()));
    stop(process);
    assert!(inbox.path("in/1.png.json").exists());
    let classes = fs::read_dir(inbox.path("in/sorted")).unwrap().map(Result::unwrap);
    let class = classes.map(|entry| entry.path()).find(|path| path.is_dir()).unwrap();
    let mut names: Vec<_> = fs::read_dir(class).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["1.png", "2.png"]);
    assert_eq!(rows(), 10, "links are not classified");
}

#[test]
fn table_of_somebody_else_and_folders_that_do_not_exist_are_refused() {
    let inbox = Inbox::new();
    fs::write(inbox.path("out.csv"), "mine").unwrap();
    let (code, stderr) = inbox.refusal(&[]);
    assert!(code == Some(1) && stderr.contains("out.csv exists: --overwrite replaces it"), "{stderr}");
    assert_eq!(fs::read_to_string(inbox.path("out.csv")).unwrap(), "mine");
    let process = inbox.watch(&["--overwrite"]);
    let (code, stderr) = inbox.refusal(&[]);
    assert!(code == Some(1) && stderr.contains("another process writes out.csv.part"), "{stderr}");
    stop(process);
    fs::rename(inbox.path("in"), inbox.path("other")).unwrap();
    let (code, stderr) = inbox.refusal(&[]);
    assert!(code == Some(1) && stderr.contains("cannot watch the folder in"), "{stderr}");
    let output = imgcls().args(["watch", "in", "--out", "out.parquet"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.contains("cannot grow"), "{stderr}");
}
