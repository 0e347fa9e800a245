//! Runs of `imgcls classify` over a pile that are killed, stopped and repeated, through the real binary with a small model.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use crate::harness::{imgcls, until};
use crate::pile_folder::{Ended, Pile, length, paths};

/// Numbers that look random and are the same in each run of the test.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[test]
fn run_that_is_killed_continues_and_writes_each_image_once() {
    let is_long = std::env::var_os("IMGCLS_TEST_LONG").is_some();
    let (images, most_bytes, least_kills) = if is_long { (20_000, 150_000, 25) } else { (3_000, 80_000, 4) };
    let pile = Pile::of(images);
    let undisturbed = pile.run(&["images", "--out", "undisturbed.csv"]);
    assert_eq!(undisturbed.code, Some(1), "{}", undisturbed.stderr);
    let arguments = ["images", "--out", "out.csv", "--sidecar", "txt", "--sort-into", "sorted"];
    let mut numbers = Numbers(20);
    let mut kills = 0;
    loop {
        let mut child = pile.command(&arguments).spawn().unwrap();
        let log = pile.path("out.csv.part");
        let before = length(&log);
        // Each run is killed at another moment, the first ones of some even before they add a row.
        let added = numbers.below(most_bytes);
        until("progress", || (length(&log) >= before + added || child.try_wait().unwrap().is_some()).then_some(()));
        child.kill().unwrap();
        if child.wait().unwrap().code() == Some(1) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= least_kills, "killed {kills} times");
    // A run that ended before the kill may have left a complete table; the same command brings it about in any case.
    let last = pile.run(&arguments);
    assert_eq!(last.code, Some(1), "{}", last.stderr);
    assert_eq!(pile.read("out.csv"), pile.read("undisturbed.csv"));
    let counts = paths(&pile.read("out.csv"));
    assert!(counts.len() == images && counts.values().all(|count| *count == 1));
    let links: usize = fs::read_dir(pile.path("sorted"))
        .unwrap()
        .map(|class| class.unwrap().path())
        .filter(|class| class.is_dir())
        .map(|class| fs::read_dir(class).unwrap().count())
        .sum();
    assert_eq!(links, images - images / 50);
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
        shell.args(["-c", &script]).arg(binary.get_program()).current_dir(pile.folder());
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

/// The most memory that the process has used, in bytes, by what the system says while it runs.
fn most_memory(pile: &Pile, arguments: &[&str], input: &[u8]) -> u64 {
    let mut child =
        pile.command(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut most = 0;
    until("the end of the run", || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or_default() * 1_024);
        child.try_wait().unwrap()
    });
    writer.join().unwrap().unwrap();
    assert!(most > 1 << 20, "the memory of the process was not seen");
    most
}

#[test]
fn memory_does_not_grow_with_the_number_of_images() {
    let pile = Pile::of(1);
    let image = fs::read(pile.path("images/000/00000.png")).unwrap();
    for colour in 0..4 {
        pile.write(&format!("few/{colour}.png"), &image);
    }
    // Links in folders of a thousand.
    let link = |root: &str, count: usize| {
        for number in 0..count {
            let folder = pile.path(&format!("{root}/{:03}", number / 1_000));
            fs::create_dir_all(&folder).unwrap();
            let target = pile.path(&format!("few/{}.png", number % 4));
            std::os::unix::fs::symlink(target, folder.join(format!("{number:06}.png"))).unwrap();
        }
    };
    link("thousand", 1_000);
    link("many", 20_000);
    let flags = ["--jobs", "2"];
    let of_few = most_memory(&pile, &[&["thousand", "--out", "thousand.csv"], &flags[..]].concat(), b"");
    let of_many = most_memory(&pile, &[&["many", "--out", "many.csv"], &flags[..]].concat(), b"");
    assert_eq!(paths(&pile.read("many.csv")).len(), 20_000);
    // The digests of the paths take 13 bytes each, with what the allocator adds; a row that is kept takes a kilobyte.
    assert!(of_many < of_few + (8 << 20), "{of_few} bytes for 1,000 images and {of_many} for 20,000");

    let list = |count: usize| "images/000/00000.png\n".repeat(count).into_bytes();
    // The shorter list takes long enough for its memory to be seen before it ends.
    let of_few = most_memory(&pile, &["--files-from", "-", "--dry-run"], &list(60_000));
    let of_many = most_memory(&pile, &["--files-from", "-", "--dry-run"], &list(300_000));
    assert!(of_many < of_few + (4 << 20), "{of_few} bytes for 60,000 paths and {of_many} for 300,000");
}
