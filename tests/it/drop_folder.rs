//! `imgcls watch`: images that come into a folder, through the real binary with a small model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use image::{ImageFormat, Rgb, RgbImage};

use crate::callbacks::{Receiver, status};
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

/// The path of the image that a call is about.
fn path_of(call: &crate::callbacks::Call) -> String {
    call.event()["data"]["path"].as_str().unwrap().to_owned()
}

#[test]
fn receiver_gets_each_row_signed_also_after_failures_and_kills() {
    let inbox = Inbox::new();
    // It fails, then takes some, and fails again until the process is killed.
    let receiver = Receiver::start(|count| status(if count < 3 || (6..20).contains(&count) { 503 } else { 204 }));
    let url = receiver.url();
    let flags = ["--stable-after", "50ms", "--webhook", &url, "--allow-calls-to", "127.0.0.0/8"];
    let mut process = inbox.watch(&flags);
    let mut expected: Vec<String> = (0..12).map(|number| format!("{number:02}.png")).collect();
    for name in &expected {
        inbox.write(&format!("in/{name}"));
    }
    inbox.wait_for(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    until("calls that fail after others succeeded", || (receiver.calls().len() >= 8).then_some(()));
    process.kill();

    fs::write(inbox.path("in/broken.png"), "no image").unwrap();
    expected.push("broken.png".to_owned());
    let process = inbox.watch(&flags);
    let taken = || {
        let calls = receiver.calls();
        let is_taken = |count: usize| !(count < 3 || (6..20).contains(&count));
        let taken = calls.iter().enumerate().filter(|(at, _)| is_taken(at + 1));
        taken.map(|(_, call)| path_of(call)).collect::<std::collections::BTreeSet<_>>()
    };
    until("a call for each row", || (taken().len() == expected.len()).then_some(()));
    stop(process);
    let secret = fs::read_to_string(inbox.path("out.csv.webhook-secret")).unwrap();
    let mut ids = BTreeMap::new();
    for call in receiver.calls() {
        assert!(call.is_signed_with(secret.trim()));
        let event = call.event();
        assert_eq!(event["type"], "image.finished");
        assert_eq!(
            *ids.entry(path_of(&call)).or_insert_with(|| call.id.clone()),
            call.id,
            "a repeated call has its id"
        );
        if path_of(&call) == "broken.png" {
            assert_eq!(event["data"]["error"]["code"], "unsupported_type", "{event}");
        } else {
            assert_eq!(
                (&event["data"]["status"], &event["data"]["width"]),
                (&"succeeded".into(), &40.into()),
                "{event}"
            );
        }
    }
    assert_eq!(ids.values().collect::<std::collections::BTreeSet<_>>().len(), expected.len());
    // Nothing is sent again after a clean end.
    let calls = receiver.calls().len();
    let process = inbox.watch(&flags);
    inbox.write("in/last.png");
    until("the call for the last image", || taken().contains("last.png").then_some(()));
    stop(process);
    assert_eq!(receiver.calls().len(), calls + 1);
}

#[test]
fn receiver_that_may_not_be_called_is_refused() {
    let inbox = Inbox::new();
    for url in ["http://127.0.0.1:9/hook", "ftp://receiver.example/", "http://169.254.169.254/latest", "no url"] {
        let (code, stderr) = inbox.refusal(&["--webhook", url]);
        assert!(code == Some(2) && stderr.contains("--webhook cannot be called"), "{url}: {stderr}");
        assert!(!inbox.path("out.csv.part").exists(), "{url}");
    }
    let (code, stderr) = inbox.refusal(&["--allow-calls-to", "10.0.0.0/8"]);
    assert!(code == Some(2) && stderr.contains("--webhook"), "{stderr}");
}
