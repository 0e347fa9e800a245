//! `imgcls classify` over piles of images: folders with everything that file systems have, lists, archives, hostile
//! archives, the order of the output, and runs that are stopped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::emulators::{moto, python};
use crate::harness::{imgcls, test_image};

/// A folder for the files of one test.
struct Pile(tempfile::TempDir);

impl Pile {
    fn new() -> Pile {
        Pile(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: impl AsRef<Path>, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Adds test images under other names.
    fn images(&self, names: &[(&str, &str)]) {
        for (name, image) in names {
            self.write(name, &test_image(image));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = imgcls();
        command.arg("classify").args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn classify(&self, arguments: &[&str]) -> Run {
        Run::of(self.command(&[&["--json"], arguments].concat()).output().unwrap())
    }

    fn classify_stdin(&self, arguments: &[&str], input: &[u8]) -> Run {
        let mut command = self.command(&[&["--json"], arguments].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Run::of(child.wait_with_output().unwrap())
    }

    /// Runs a Python program in the folder, for archives that another program writes.
    fn python(&self, program: &str) {
        let status = Command::new(python()).args(["-c", program]).current_dir(self.0.path()).status().unwrap();
        assert!(status.success(), "{program}");
    }
}

/// A run that has ended.
struct Run {
    rows: Vec<Value>,
    code: Option<i32>,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Run {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}\n{stderr}")));
        Run { rows: rows.collect(), code: output.status.code(), stderr }
    }

    /// The path of each row, with its best label or the code of its error.
    fn outcomes(&self) -> Vec<(&str, &str)> {
        self.rows.iter().map(outcome).collect()
    }

    fn paths(&self) -> Vec<&str> {
        self.outcomes().into_iter().map(|(path, _)| path).collect()
    }
}

fn outcome(row: &Value) -> (&str, &str) {
    let label = row["predictions"][0]["label"].as_str();
    let outcome = label.or(row["error"]["code"].as_str());
    (row["file"].as_str().unwrap(), outcome.unwrap_or_else(|| panic!("{row}")))
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn folder_is_classified_in_the_order_of_its_names() {
    let pile = Pile::new();
    pile.images(&[
        ("pile/b.JPG", "cup.jpg"),
        ("pile/a/2.png", "one-pixel.png"),
        ("pile/a/10.jpg", "cat.jpg"),
        ("pile/a/deep/x.webp", "lossy.webp"),
        ("pile/c/y.jpg", "rocket.jpg"),
        ("pile/.hidden/z.jpg", "cat.jpg"),
        ("pile/._b.JPG", "cat.jpg"),
        ("elsewhere/linked.jpg", "cup.jpg"),
    ]);
    pile.write("pile/notes.txt", b"no image");
    pile.write("pile/a/broken.jpg", b"no image either");
    pile.write(Path::new("pile/a").join(OsStr::from_bytes(b"name-\xff.jpg")), &test_image("cup.jpg"));
    symlink("../elsewhere", pile.path("pile/d-folder")).unwrap();
    symlink("../c/y.jpg", pile.path("pile/a/link.jpg")).unwrap();
    symlink("nowhere", pile.path("pile/e.jpg")).unwrap();
    symlink("nowhere", pile.path("pile/e.txt")).unwrap();
    // Reading this file fails, also for a user who may read everything.
    symlink("/proc/self/mem", pile.path("pile/f.jpg")).unwrap();
    symlink("..", pile.path("pile/c/above")).unwrap();
    symlink("../../pile", pile.path("pile/c/top")).unwrap();
    symlink("itself", pile.path("pile/itself")).unwrap();
    // Reading it would wait forever.
    make_fifo(&pile.path("pile/pipe.jpg"));

    let run = pile.classify(&["pile"]);
    let expected = [
        ("a/10.jpg", "…"),
        ("a/2.png", "…"),
        ("a/broken.jpg", "unsupported_type"),
        ("a/deep/x.webp", "…"),
        ("a/link.jpg", "…"),
        ("a/name-\u{fffd}.jpg", "espresso"),
        ("b.JPG", "espresso"),
        ("c/y.jpg", "…"),
        ("d-folder/linked.jpg", "espresso"),
        ("e.jpg", "input_missing"),
        ("f.jpg", "input_missing"),
    ];
    assert_eq!(run.paths(), expected.map(|(path, _)| path), "{}", run.stderr);
    for ((path, outcome), (_, expected)) in run.outcomes().iter().zip(expected) {
        assert!(expected == "…" || *outcome == expected, "{path}: {outcome}");
    }
    assert_eq!(run.code, Some(1));
    assert_eq!(run.stderr.matches("leads to a folder above it").count(), 2, "{}", run.stderr);
    let last = run.stderr.lines().last().unwrap();
    // Not counted: what is in hidden folders.
    assert!(last.starts_with("classify: 11 images in ") && last.contains("3 failed; 8 other files skipped"), "{last}");
}

#[test]
fn answers_of_a_pile_are_those_of_single_files() {
    let pile = Pile::new();
    let names = ["cat.jpg", "cup.jpg", "grey-16bit.png", "orientation-6.jpg", "rgb-lzw.tiff", "rocket.jpg"];
    for name in names {
        pile.images(&[(&format!("pile/{name}"), name)]);
    }
    let together = pile.classify(&["--jobs", "3", "pile"]);
    assert_eq!((together.code, together.paths()), (Some(0), names.to_vec()));
    for (name, row) in names.iter().zip(&together.rows) {
        let alone = pile.classify(&[&format!("pile/{name}")]);
        assert_eq!(alone.rows[0]["predictions"], row["predictions"], "{name}");
        assert_eq!(alone.rows[0]["file"], format!("pile/{name}"), "a file that is named keeps its path");
    }
}

#[test]
fn paths_of_several_inputs_begin_with_the_inputs() {
    let pile = Pile::new();
    pile.images(&[("one/a.jpg", "cup.jpg"), ("two/a.jpg", "cat.jpg"), ("three.dat", "cup.jpg")]);
    let run = pile.classify(&["two", "three.dat", "./one", "missing.jpg"]);
    assert_eq!(run.paths(), ["two/a.jpg", "three.dat", "./one/a.jpg", "missing.jpg"]);
    assert_eq!((run.outcomes()[1].1, run.outcomes()[3].1), ("espresso", "input_missing"));
    assert_eq!(run.code, Some(1));
}

#[test]
fn unreadable_folder_is_a_row_and_the_others_are_classified() {
    let pile = Pile::new();
    pile.images(&[("pile/closed/a.jpg", "cup.jpg"), ("pile/open/b.jpg", "cup.jpg")]);
    let closed = pile.path("pile/closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    if fs::read_dir(&closed).is_ok() {
        eprintln!("not run: the user {} reads folders without permission", fs::metadata("/proc/self").unwrap().uid());
        return;
    }
    let run = pile.classify(&["pile"]);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run.outcomes(), [("closed", "input_missing"), ("open/b.jpg", "espresso")]);
    assert_eq!(run.code, Some(1));
}

#[test]
fn patterns_choose_files_and_folders() {
    let pile = Pile::new();
    pile.images(&[
        ("pile/a.jpg", "cup.jpg"),
        ("pile/b.png", "one-pixel.png"),
        ("pile/2024/c.jpg", "cup.jpg"),
        ("pile/2024/thumbs/d.jpg", "cup.jpg"),
        ("pile/e.raw-scan", "cup.jpg"),
    ]);
    let paths = |arguments: &[&str]| {
        let run = pile.classify(&[&["pile"], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.paths().join(" ")
    };
    assert_eq!(paths(&["--exclude", "thumbs", "--exclude", "*.png"]), "2024/c.jpg a.jpg");
    assert_eq!(paths(&["--include", "*.raw-scan"]), "e.raw-scan");
    assert_eq!(paths(&["--include", "2024/**", "--exclude", "d.*"]), "2024/c.jpg");
    let wrong = pile.command(&["pile", "--include", "[a"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// The extensions of all formats that are decoded, camera raw by its preview included.
const EXTENSIONS: [&str; 38] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "heic", "heif", "hif", "jxl", "jp2", "j2k", "jpf",
    "j2c", "jpc", "tif", "tiff", "gif", "bmp", "dib", "ico", "rw2", "dng", "nef", "nrw", "cr2", "arw", "sr2", "srw",
    "pef", "raf", "3fr", "iiq", "erf", "mos", "NEF",
];

#[test]
fn files_of_every_format_that_is_decoded_are_found_in_folders() {
    let pile = Pile::new();
    for extension in EXTENSIONS {
        pile.images(&[(&format!("pile/image.{extension}"), "cup.jpg")]);
    }
    pile.write("pile/notes.txt", b"no image");
    let run = pile.classify(&["pile"]);
    assert_eq!((run.code, run.rows.len()), (Some(0), EXTENSIONS.len()), "{}", run.stderr);
    assert!(run.outcomes().iter().all(|(_, outcome)| *outcome == "espresso"), "the content decides");
}

#[test]
fn lists_of_paths_come_from_files_and_standard_input() {
    let pile = Pile::new();
    pile.images(&[("a.jpg", "cup.jpg"), ("with\nline.jpg", "cup.jpg"), ("folder/b.jpg", "cat.jpg")]);
    pile.write("list.txt", b"a.jpg\r\nfolder\n\nmissing.jpg");
    let run = pile.classify(&["--files-from", "list.txt"]);
    assert_eq!(run.paths(), ["a.jpg", "folder/b.jpg", "missing.jpg"]);
    assert_eq!(run.code, Some(1));
    let run = pile.classify_stdin(&["--files-from", "-"], b"with\nline.jpg\0folder/b.jpg\0");
    assert_eq!((run.code, run.paths()), (Some(0), vec!["with\nline.jpg", "folder/b.jpg"]));
    let run = pile.classify_stdin(&["folder", "--files-from", "-"], b"a.jpg\n");
    assert_eq!(run.paths(), ["folder/b.jpg", "a.jpg"]);
    let run = pile.classify(&["--files-from", "nothing.txt"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("nothing.txt") && run.rows.is_empty(), "{}", run.stderr);
}

#[test]
fn image_on_standard_input_is_classified() {
    let pile = Pile::new();
    let run = pile.classify_stdin(&["-"], &test_image("cup.jpg"));
    assert_eq!(run.outcomes(), [("-", "espresso")]);
    let run = pile.classify_stdin(&["-", "--max-upload-bytes", "1000"], &test_image("cup.jpg"));
    assert_eq!(run.outcomes(), [("-", "input_too_large")]);
    let twice = pile.command(&["-", "--files-from", "-"]).output().unwrap();
    assert_eq!(twice.status.code(), Some(2));
}

/// Names in archives, with the images behind them.
const ARCHIVED: [(&str, &str); 4] =
    [("b/cup.jpg", "cup.jpg"), ("a.png", "rgb.png"), ("b/deep/cat.JPG", "cat.jpg"), ("b/cut.jpg", "hostile/half.jpg")];

#[test]
fn archives_are_classified_like_their_files() {
    let pile = Pile::new();
    pile.images(&ARCHIVED);
    pile.write("b/notes.txt", b"no image");
    let long = format!("b/{}/long.jpg", "x".repeat(150));
    pile.images(&[(&long, "cup.jpg")]);
    let mut names: Vec<&str> = ARCHIVED.iter().map(|(name, _)| *name).collect();
    names.push(&long);
    pile.python(&format!(
        "import tarfile, zipfile\n\
         names = {names:?} + ['b/notes.txt']\n\
         for name, mode, form in [('gnu.tar', 'w', tarfile.GNU_FORMAT), ('pax.tar', 'w', tarfile.PAX_FORMAT), ('c.tar.gz', 'w:gz', tarfile.GNU_FORMAT)]:\n\
         \x20with tarfile.open(name, mode, format=form) as archive:\n\
         \x20\x20[archive.add(each) for each in names]\n\
         for name, method in [('stored.zip', zipfile.ZIP_STORED), ('deflated.zip', zipfile.ZIP_DEFLATED)]:\n\
         \x20with zipfile.ZipFile(name, 'w', method) as archive:\n\
         \x20\x20[archive.write(each) for each in names]\n\
         class Pipe:\n\
         \x20def __init__(self, file): self.write, self.flush = file.write, file.flush\n\
         with open('streamed.zip', 'wb') as file:\n\
         \x20with zipfile.ZipFile(Pipe(file), 'w', zipfile.ZIP_DEFLATED) as archive:\n\
         \x20\x20for each in names:\n\
         \x20\x20\x20with archive.open(each, 'w', force_zip64=True) as to: to.write(open(each, 'rb').read())\n\
         open('prefixed.zip', 'wb').write(b'#!/bin/sh' * 99 + open('deflated.zip', 'rb').read())\n"
    ));
    let files = pile.classify(&names);
    for archive in ["gnu.tar", "pax.tar", "c.tar.gz", "stored.zip", "deflated.zip", "streamed.zip", "prefixed.zip"] {
        let run = pile.classify(&[archive]);
        assert_eq!(run.outcomes(), files.outcomes(), "{archive}: {}", run.stderr);
        assert_eq!(run.code, Some(1), "{archive}");
        assert_eq!(run.rows[0]["predictions"], files.rows[0]["predictions"], "{archive}");
    }
    let run = pile.classify(&["gnu.tar", "a.png", "--include", "cup.*"]);
    assert_eq!(run.paths(), ["gnu.tar/b/cup.jpg", "a.png"]);
}

#[test]
fn damaged_archives_are_rows() {
    let pile = Pile::new();
    pile.images(&ARCHIVED);
    pile.python(
        "import tarfile, zipfile\n\
         with tarfile.open('whole.tar', 'w') as archive: archive.add('b/cup.jpg'); archive.add('a.png')\n\
         whole = open('whole.tar', 'rb').read()\n\
         open('cut.tar', 'wb').write(whole[:10000])\n\
         open('text.tar', 'wb').write(b'no archive' * 100)\n\
         with zipfile.ZipFile('whole.zip', 'w') as archive: archive.write('b/cup.jpg'); archive.write('a.png')\n\
         whole = open('whole.zip', 'rb').read()\n\
         open('cut.zip', 'wb').write(whole[:-500])\n\
         changed = bytearray(whole); changed[5000] ^= 1\n\
         open('changed.zip', 'wb').write(changed)\n\
         open('text.zip', 'wb').write(b'no archive')\n",
    );
    let outcomes = |archive: &str| {
        let run = pile.classify(&[archive]);
        assert_eq!(run.code, Some(1), "{archive}: {}", run.stderr);
        run.outcomes().iter().map(|(path, outcome)| format!("{path} {outcome}")).collect::<Vec<_>>()
    };
    assert_eq!(outcomes("cut.tar"), ["b/cup.jpg undecodable"]);
    assert_eq!(outcomes("text.tar"), ["text.tar undecodable"]);
    assert_eq!(outcomes("cut.zip"), ["cut.zip undecodable"]);
    assert_eq!(outcomes("text.zip"), ["text.zip undecodable"]);
    let changed = outcomes("changed.zip");
    assert_eq!(changed[0], "b/cup.jpg undecodable");
    assert_eq!(changed.len(), 2);
}

/// The address space of a process that reads hostile archives, in KiB. Most of it is that of ONNX Runtime.
const ADDRESS_SPACE_KIB: u64 = 3 << 20;

#[test]
fn archives_that_expand_without_end_are_stopped() {
    let pile = Pile::new();
    pile.images(&[("cup.jpg", "cup.jpg")]);
    pile.python(
        "import io, gzip, struct, tarfile, zipfile\n\
         zeros = bytes(64 << 20)\n\
         class Zeros(io.RawIOBase):\n\
         \x20def __init__(self, size): self.left = size\n\
         \x20def read(self, n=-1):\n\
         \x20\x20n = min(n, self.left); self.left -= n; return zeros[:n]\n\
         def info(name, size):\n\
         \x20entry = tarfile.TarInfo(name); entry.size = size; return entry\n\
         with zipfile.ZipFile('bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:\n\
         \x20archive.writestr('bomb.png', zeros); archive.write('cup.jpg')\n\
         data = bytearray(open('bomb.zip', 'rb').read())\n\
         at = data.index(b'PK\\x01\\x02'); data[at + 24:at + 28] = struct.pack('<I', 1000)\n\
         open('lying.zip', 'wb').write(data)\n\
         with tarfile.open('skipped.tar.gz', 'w:gz', compresslevel=1) as archive:\n\
         \x20archive.add('cup.jpg'); archive.addfile(info('zeros.txt', 1 << 29), Zeros(1 << 29)); archive.add('cup.jpg')\n\
         with tarfile.open('large.tar.gz', 'w:gz', compresslevel=1) as archive:\n\
         \x20archive.addfile(info('large.png', 64 << 20), Zeros(64 << 20)); archive.add('cup.jpg')\n\
         name = info('././@LongLink', 300 << 20); name.type = tarfile.GNUTYPE_LONGNAME\n\
         with gzip.open('name.tar.gz', 'wb', 1) as file:\n\
         \x20file.write(name.tobuf(tarfile.GNU_FORMAT))\n\
         \x20for _ in range(5): file.write(zeros.replace(b'\\0', b'n'))\n",
    );
    let outcomes = |archive: &str| {
        let mut command = Command::new("bash");
        let limited = format!("ulimit -v {ADDRESS_SPACE_KIB}; exec \"$@\"");
        let program = pile.command(&[]);
        command.args(["-c", &limited, "bash"]).arg(program.get_program()).args(["classify", "--json", archive]);
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let run = Run::of(command.current_dir(pile.path("")).output().unwrap());
        assert_eq!(run.code, Some(1), "{archive}: {}", run.stderr);
        run.outcomes().iter().map(|(path, outcome)| format!("{path} {outcome}")).collect::<Vec<_>>()
    };
    assert_eq!(outcomes("bomb.zip"), ["bomb.png input_too_large", "cup.jpg espresso"]);
    assert_eq!(outcomes("lying.zip"), ["bomb.png undecodable", "cup.jpg espresso"]);
    assert_eq!(outcomes("large.tar.gz"), ["large.png input_too_large", "cup.jpg espresso"]);
    assert_eq!(outcomes("skipped.tar.gz"), ["cup.jpg espresso", "skipped.tar.gz undecodable"]);
    assert_eq!(outcomes("name.tar.gz"), ["name.tar.gz undecodable"]);
}

#[test]
fn images_that_finish_early_wait_for_those_before_them() {
    let pile = Pile::new();
    pile.images(&[("pile/0.png", "black-49-megapixels.png")]);
    for number in 10..40 {
        pile.images(&[(&format!("pile/{number}.jpg"), "cup.jpg")]);
    }
    let run = pile.classify(&["--jobs", "4", "pile"]);
    let expected: Vec<String> =
        std::iter::once("0.png".to_owned()).chain((10..40).map(|number| format!("{number}.jpg"))).collect();
    assert_eq!(run.paths(), expected);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

#[test]
fn interrupted_run_prints_what_it_has_begun_and_ends() {
    let pile = Pile::new();
    pile.images(&[("cup.jpg", "cup.jpg")]);
    fs::create_dir(pile.path("pile")).unwrap();
    for number in 0..20_000 {
        symlink("../cup.jpg", pile.path(format!("pile/{number:05}.jpg"))).unwrap();
    }
    for signal in ["INT", "TERM"] {
        let mut command = pile.command(&["--json", "pile"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut rows: Vec<String> = lines.by_ref().take(5).map(Result::unwrap).collect();
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
        assert!(sent.success());
        rows.extend(lines.map(Result::unwrap));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(rows.len() < 20_000, "the run was not stopped");
        for (number, row) in rows.iter().enumerate() {
            let row: Value = serde_json::from_str(row).unwrap();
            assert_eq!(row["file"], format!("{number:05}.jpg"));
            assert_eq!(row["predictions"][0]["label"], "espresso");
        }
    }
}

#[test]
fn dry_run_counts_and_needs_no_model() {
    let pile = Pile::new();
    pile.images(&ARCHIVED);
    pile.write("b/notes.txt", b"no image");
    pile.python(
        "import tarfile\nwith tarfile.open('c.tgz', 'w:gz') as archive: [archive.add(n) for n in ['a.png', 'b/notes.txt']]",
    );
    let counted = |arguments: &[&str]| {
        let mut command = pile.command(&[&["--dry-run"], arguments].concat());
        let output = command.env("ORT_DYLIB_PATH", "/no/such/library.so").output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(counted(&["b"]), ("3 images, 1 other files skipped, 0 inputs cannot be read\n".to_owned(), Some(0)));
    let (text, code) = counted(&["--json", "b", "c.tgz", "a.png", "none"]);
    let count: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(count, serde_json::json!({ "images": 5, "skipped": 2, "unreadable": 1 }));
    assert_eq!(code, Some(1));
}

#[test]
fn polite_run_has_the_lowest_priority() {
    let pile = Pile::new();
    make_fifo(&pile.path("image"));
    let child = pile.command(&["--nice", "--json", "image"]).stdout(Stdio::piped()).spawn().unwrap();
    // Opening the pipe waits until a thread of the run reads it.
    let mut image = File::options().write(true).open(pile.path("image")).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let priorities: Vec<(String, i64)> = tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap())
        .map(|stat| {
            let (name, rest) = stat.rsplit_once(')').unwrap();
            (name.rsplit_once('(').unwrap().1.to_owned(), rest.split_whitespace().nth(16).unwrap().parse().unwrap())
        })
        .collect();
    let sessions: Vec<_> = priorities.iter().filter(|(name, _)| name.starts_with("session-")).collect();
    assert!(!sessions.is_empty() && sessions.iter().all(|(_, nice)| *nice == 19), "{priorities:?}");
    image.write_all(&test_image("cup.jpg")).unwrap();
    drop(image);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.outcomes(), [("image", "espresso")]);
}

#[test]
fn bucket_is_classified_like_a_folder() {
    let moto = moto();
    let pile = Pile::new();
    pile.images(&ARCHIVED);
    let environment = moto.environment();
    // A page of a list has 1,000 keys.
    let program = "import boto3\n\
         s3 = boto3.client('s3'); s3.create_bucket(Bucket='pile-of-images')\n\
         put = lambda key, body: s3.put_object(Bucket='pile-of-images', Key=key, Body=body)\n\
         [put(f'photos/{number:04}.txt', b'') for number in range(1005)]\n\
         [put('photos/' + name, open(name, 'rb').read()) for name in ['a.png', 'b/cup.jpg', 'b/deep/cat.JPG']]\n\
         put('photos/b/', b''); put('photos-2/x.jpg', b'no image')\n";
    let made =
        Command::new(python()).args(["-c", program]).current_dir(pile.path("")).envs(environment.clone()).status();
    assert!(made.unwrap().success());
    let classify = |arguments: &[&str]| {
        let mut command = pile.command(&[&["--json"], arguments].concat());
        Run::of(command.envs(environment.clone()).output().unwrap())
    };
    let run = classify(&["s3://pile-of-images/photos/"]);
    assert_eq!((run.code, run.paths()), (Some(0), vec!["a.png", "b/cup.jpg", "b/deep/cat.JPG"]), "{}", run.stderr);
    let files = pile.classify(&["a.png", "b/cup.jpg"]);
    assert_eq!(run.rows[1]["predictions"], files.rows[1]["predictions"]);
    assert!(run.stderr.contains("1005 other files skipped"), "{}", run.stderr);
    let run = classify(&["s3://pile-of-images/photos-", "a.png", "--max-upload-bytes", "20KB"]);
    let path = "s3://pile-of-images/photos-2/x.jpg";
    assert_eq!(run.outcomes(), [(path, "unsupported_type"), ("a.png", "input_too_large")]);
    let run = classify(&["s3://no-such-pile-of-images/"]);
    assert_eq!((run.code, run.rows.len()), (Some(1), 0));
    assert!(run.stderr.contains("no-such-pile-of-images") && run.stderr.contains("does not exist"), "{}", run.stderr);
}

/// A TIFF with a page of each colour: plain RGB, one strip each. Pages of `reduced` say that they are smaller versions.
fn pages_of(colours: &[[u8; 3]], reduced: &[usize]) -> Vec<u8> {
    let (width, height) = (9u32, 7u32);
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    for (number, colour) in colours.iter().enumerate() {
        let tags: [(u16, u32); 9] = [
            (254, u32::from(reduced.contains(&number))),
            (256, width),
            (257, height),
            (258, 8),
            (259, 1),
            (262, 2),
            (273, 0),
            (277, 3),
            (279, width * height * 3),
        ];
        let start = file.len() as u32;
        let pixels = start + 2 + 12 * tags.len() as u32 + 4;
        let next = pixels + width * height * 3;
        file.extend((tags.len() as u16).to_le_bytes());
        for (tag, value) in tags {
            let value = if tag == 273 { pixels } else { value };
            file.extend([tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
            file.extend([1u32.to_le_bytes(), value.to_le_bytes()].concat());
        }
        file.extend(if number + 1 == colours.len() { 0 } else { next }.to_le_bytes());
        file.extend(colour.repeat((width * height) as usize));
    }
    file
}

#[test]
fn pages_of_a_tiff_are_images_of_their_own() {
    let pile = crate::pile_folder::Pile::of(1);
    let (red, green, blue) = ([250, 10, 10], [10, 250, 10], [10, 10, 250]);
    pile.write("scans/a.tif", &pages_of(&[red, green, blue, red], &[2]));
    pile.write("scans/b.TIFF", &pages_of(&[green], &[]));
    // The chain of its pages leads back to the first one.
    let mut circle = pages_of(&[blue, green], &[]);
    let last = circle.len() - 9 * 7 * 3 - 4;
    circle[last..last + 4].copy_from_slice(&8u32.to_le_bytes());
    pile.write("scans/circle.tif", &circle);
    pile.write("scans/broken.tif", b"II*\0\xff\xff\0\0");
    let first = pile.run(&["scans", "--out", "first.csv"]);
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    let all = pile.run(&["scans", "--out", "all.csv", "--pages", "all", "--max-failures", "1"]);
    assert_eq!(all.code, Some(0), "{}", all.stderr);
    let rows = |name: &str| -> Vec<(String, String, String)> {
        let text = pile.read(name);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let row = |row: csv::StringRecord| (row[0].to_owned(), row[2].to_owned(), row[5].to_owned());
        reader.records().map(|found| row(found.unwrap())).collect()
    };
    let (of_first, of_all) = (rows("first.csv"), rows("all.csv"));
    let names = |rows: &[(String, String, String)]| rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&of_first), ["a.tif", "b.TIFF", "broken.tif", "circle.tif"]);
    let expected = ["a.tif#page=1", "a.tif#page=2", "a.tif#page=3", "b.TIFF", "broken.tif", "circle.tif#page=1"];
    assert_eq!(names(&of_all)[..6], expected);
    assert_eq!(names(&of_all)[6..], ["circle.tif#page=2"]);
    let answer = |rows: &[(String, String, String)], at: usize| (rows[at].1.clone(), rows[at].2.clone());
    assert_eq!(answer(&of_all, 0), answer(&of_first, 0), "the first page");
    assert_eq!(answer(&of_all, 1), answer(&of_all, 3), "the same green in two files");
    assert_eq!(answer(&of_all, 2), answer(&of_all, 0), "the smaller version is left out");
    assert_eq!(answer(&of_all, 6), answer(&of_all, 1));
    assert_ne!(answer(&of_all, 0), answer(&of_all, 1));
    let counted = pile.run(&["scans", "--dry-run", "--pages", "all"]);
    assert!(counted.stdout.starts_with("7 images"), "{}", counted.stdout);
}

#[test]
fn pages_of_objects_are_images_of_their_own_and_flags_name_the_place() {
    let moto = moto();
    let pile = Pile::new();
    let (red, green) = ([250, 10, 10], [10, 250, 10]);
    pile.write("two.tif", &pages_of(&[red, green], &[]));
    pile.write("one.tif", &pages_of(&[green], &[]));
    let program = "import boto3\n\
         s3 = boto3.client('s3'); s3.create_bucket(Bucket='scans-with-pages')\n\
         [s3.put_object(Bucket='scans-with-pages', Key='in/' + name, Body=open(name, 'rb').read())\n\
          for name in ['two.tif', 'one.tif']]\n";
    let made =
        Command::new(python()).args(["-c", program]).current_dir(pile.path("")).envs(moto.environment()).status();
    assert!(made.unwrap().success());
    // Without the variables that name the region and the address, flags do.
    let classify = |arguments: &[&str]| {
        let mut command = pile.command(&[&["--json", "s3://scans-with-pages/in/"], arguments].concat());
        let is_place = |name: &str| name.contains("REGION") || name.contains("ENDPOINT");
        command.envs(moto.environment().into_iter().filter(|(name, _)| !is_place(name)));
        Run::of(command.output().unwrap())
    };
    let address = format!("http://{}", moto.address);
    let place = ["--region", "us-east-1", "--endpoint-url", &address];
    let first = classify(&place);
    assert_eq!((first.code, first.paths()), (Some(0), vec!["one.tif", "two.tif"]), "{}", first.stderr);
    let all = classify(&[&place[..], &["--pages", "all"]].concat());
    assert_eq!(all.paths(), ["one.tif", "two.tif#page=1", "two.tif#page=2"], "{}", all.stderr);
    let predictions = |run: &Run, at: usize| run.rows[at]["predictions"].clone();
    assert_eq!(predictions(&all, 1), predictions(&first, 1));
    assert_eq!(predictions(&all, 2), predictions(&first, 0), "the same green");
    assert_ne!(predictions(&all, 1), predictions(&all, 2));
}

/// A service that refuses one action in the words of S3.
#[test]
fn bucket_without_permission_is_refused_with_the_name_of_the_action() {
    use crate::http_server::{Answer, serve};
    let pile = Pile::new();
    let refusing = |refused: &'static str| {
        serve(move |request| {
            let action = if request.path.contains("list-type") { "s3:ListBucket" } else { "s3:GetObject" };
            if action == refused {
                let body =
                    "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
                return Answer::text(403, "application/xml", body);
            }
            let body = "<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated><Contents>\
                        <Key>a.jpg</Key><Size>9</Size></Contents></ListBucketResult>";
            Answer::text(200, "application/xml", body)
        })
    };
    let classify = |refused| {
        let address = format!("http://{}", refusing(refused));
        let mut command =
            pile.command(&["--json", "s3://closed/", "--region", "us-east-1", "--endpoint-url", &address]);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        Run::of(command.output().unwrap())
    };
    let listed = classify("s3:ListBucket");
    assert_eq!((listed.code, listed.rows.len()), (Some(1), 0));
    assert!(listed.stderr.contains("s3:ListBucket") && listed.stderr.contains("closed"), "{}", listed.stderr);
    let read = classify("s3:GetObject");
    assert_eq!(read.outcomes(), [("a.jpg", "input_missing")], "{}", read.stderr);
    let message = read.rows[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("s3:GetObject"), "{message}");
}

/// Opening a pipe waits until somebody writes to it, as a file on a slow mount does.
#[test]
fn slow_files_delay_no_other_and_a_stopped_run_does_not_wait_for_them() {
    let pile = Pile::new();
    let names = ["1.jpg", "2.jpg", "3.jpg"];
    pile.images(&names.map(|name| (name, "cup.jpg")));
    make_fifo(&pile.path("slow"));
    let mut command = pile.command(&["--json", "1.jpg", "slow", "2.jpg", "3.jpg", "--jobs", "2"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Rows have the order of the input, so that those after the slow file wait for it.
    assert!(lines.next().unwrap().unwrap().contains("1.jpg"));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(1), "it ends although nobody writes to the pipe");
}
