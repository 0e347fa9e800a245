//! The output of `imgcls classify` for a pile of images: tables, sidecars, links by class, and the log that a run continues.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imgcls::model::{ModelRef, Prediction};
use imgcls::pile::output::{
    ClassName, Classified, Flow, MaxFailures, Output, OutputConfig, PathText, Resume, Row, SidecarFormat, SortEntry,
    SortInto, Summary, Target,
};
use imgcls::protocol::{ErrorCode, ErrorInfo};
use serde_json::Value;

use crate::emulators::python;

/// Labels that a table has to quote.
const LABELS: [&str; 4] = ["tabby, tabby cat", "the \"quoted\" one", "=SUM(A1)", "日本"];

fn config(out: &Path) -> OutputConfig {
    let class = |(index, label): (usize, &&str)| ClassName {
        label: (*label).to_owned(),
        id: (index != 3).then(|| format!("n0000000{index}")),
    };
    OutputConfig {
        target: Target::File(out.to_str().unwrap().parse().unwrap()),
        overwrite: false,
        resume: Resume::IfPossible,
        is_long: false,
        top_k: 1,
        errors: None,
        retry_errors: false,
        max_failures: None,
        sort_into: None,
        sidecar: None,
        classes: LABELS.iter().enumerate().map(class).collect(),
        has_labels: false,
        options: BTreeMap::from([("model".to_owned(), "sha256:00".to_owned())]),
        boxes: None,
        grows: false,
        webhook: None,
    }
}

/// The best class has this index, the others follow.
fn classified(best: u32, top_k: u32) -> Classified {
    let prediction = |rank: u32| {
        let class_index = (best + rank) % 4;
        let label = LABELS[class_index as usize].to_owned();
        Prediction { class_index: Some(class_index), label, score: Some(0.9 / (rank + 1) as f32) }
    };
    Classified {
        predictions: (0..top_k).map(prediction).collect(),
        labels: Vec::new(),
        width: 4_000,
        height: 3_000,
        datetime_original: (best == 0).then(|| "2024-05-01T12:34:56+02:00".to_owned()),
        model: ModelRef { name: "tiny".to_owned(), version: "1.0".to_owned(), digest: "sha256:00".to_owned() },
    }
}

fn good(path: &[u8], best: u32, top_k: u32) -> Row {
    Row { path: PathText::from_bytes(path), file: None, outcome: Ok(classified(best, top_k)) }
}

fn broken(path: &[u8]) -> Row {
    let error = ErrorInfo { code: ErrorCode::Undecodable, message: "the JPEG is truncated".to_owned() };
    Row { path: PathText::from_bytes(path), file: None, outcome: Err(error) }
}

/// Rows with everything that is hard to write.
fn hard_rows(top_k: u32) -> Vec<Row> {
    vec![
        good(b"a/b.jpg", 0, top_k),
        good(b"=HYPERLINK(\"http://x\")", 1, top_k),
        broken(b"-1,2;3\t\"4\".jpg"),
        good(b"not utf8 \xff.jpg", 2, top_k),
        good("ä\nb.jpg".as_bytes(), 3, top_k),
    ]
}

fn append_all(output: &mut Output, rows: &[Row]) {
    for row in rows {
        assert_eq!(output.append(row.clone()).unwrap(), Flow::Continue);
    }
}

fn finish(config: &OutputConfig, rows: &[Row]) -> Summary {
    let mut output = Output::open(config).unwrap();
    append_all(&mut output, rows);
    output.finish().unwrap()
}

fn refusal(config: &OutputConfig) -> String {
    match Output::open(config) {
        Ok(_) => panic!("the output is accepted"),
        Err(error) => format!("{error:#}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Compares a file with the golden file of this name, whatever the version of the program. IMGCLS_GOLDEN=write writes the
/// golden file.
fn assert_golden(written: &[u8], name: &str) {
    let written = String::from_utf8_lossy(written);
    let written = written.replace(concat!("imgcls ", env!("CARGO_PKG_VERSION")), "imgcls VERSION");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pile").join(name);
    if std::env::var("IMGCLS_GOLDEN").is_ok_and(|value| value == "write") {
        fs::create_dir_all(golden.parent().unwrap()).unwrap();
        fs::write(&golden, &written).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
    assert_eq!(written, expected, "{name}");
}

#[test]
fn tables_are_those_of_the_golden_files() {
    for (name, extension, top_k, is_long, has_labels) in [
        ("top-1.csv", "csv", 1, false, false),
        ("top-3.csv", "csv", 3, false, false),
        ("long.csv", "csv", 2, true, false),
        ("labels.csv", "csv", 1, false, true),
        ("top-1.tsv", "tsv", 1, false, false),
        ("top-2.jsonl", "jsonl", 2, false, false),
        ("long.jsonl", "jsonl", 2, true, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join(format!("out.{extension}"));
        let config = OutputConfig { top_k, is_long, has_labels, ..config(&out) };
        let mut rows = hard_rows(top_k);
        if has_labels {
            let Ok(image) = &mut rows[0].outcome else { panic!("the first image is classified") };
            image.labels = classified(1, 2).predictions;
        }
        let summary = finish(&config, &rows);
        assert_eq!((summary.images, summary.failed, summary.is_within_limit), (5, 1, false));
        assert_golden(&fs::read(&out).unwrap(), name);
    }
}

#[test]
fn table_that_is_read_back_has_the_paths_and_labels_that_were_written() {
    let folder = tempfile::tempdir().unwrap();
    for (extension, delimiter) in [("csv", b','), ("tsv", b'\t')] {
        let out = folder.path().join(format!("out.{extension}"));
        finish(&config(&out), &hard_rows(1));
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_path(&out).unwrap();
        let undone = |text: &str| {
            let is_quoted = text.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']);
            text[usize::from(is_quoted)..].to_owned()
        };
        for (record, row) in reader.records().map(Result::unwrap).zip(hard_rows(1)) {
            assert_eq!(undone(&record[0]), row.path.as_str());
            let label = row.outcome.map_or(String::new(), |image| image.predictions[0].label.clone());
            assert_eq!(undone(&record[4]), label);
        }
    }
}

/// Prints each table as JSON: its columns with their types, and its rows.
const READ_TABLES: &str = "
import json, sys
try:
    import duckdb
except ImportError:
    sys.exit(77)
for path in sys.argv[1:]:
    table = duckdb.sql(f\"select * from '{path}'\")
    print(json.dumps([list(zip(table.columns, map(str, table.types))), table.fetchall()], default=str))
";

/// The names and types of the columns, and the rows.
type Table = (Vec<(String, String)>, Vec<Vec<Value>>);

#[test]
fn duckdb_reads_the_tables_of_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["out.parquet", "out.jsonl", "out.csv", "out.tsv"].map(|name| folder.path().join(name));
    // More than a row group of Parquet.
    let mut rows = hard_rows(2);
    rows.extend((0..20_000).map(|number| good(format!("{number}.jpg").as_bytes(), number % 4, 2)));
    for file in &files {
        finish(&OutputConfig { top_k: 2, ..config(file) }, &rows);
    }
    let read = Command::new(python()).args(["-c", READ_TABLES]).args(&files).output().unwrap();
    if read.status.code() == Some(77) {
        eprintln!("not run: the emulators are installed without DuckDB; run scripts/emulators/install");
        return;
    }
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let tables: Vec<Table> =
        read.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parsed).collect();
    let [parquet, jsonl, csv, tsv] = &tables[..] else { panic!("four tables") };
    for (name, kind) in [
        ("path", "VARCHAR"),
        ("class_index", "INTEGER"),
        ("label_2", "VARCHAR"),
        ("score", "FLOAT"),
        ("width", "INTEGER"),
    ] {
        assert!(parquet.0.contains(&(name.to_owned(), kind.to_owned())), "{name}: {:?}", parquet.0);
    }
    for (columns, found) in [parquet, jsonl] {
        let column = |name: &str| columns.iter().position(|(column, _)| column == name).unwrap();
        assert_eq!(found.len(), rows.len());
        for (found, row) in found.iter().zip(&rows) {
            assert_eq!(found[column("path")], row.path.as_str());
            match &row.outcome {
                Ok(image) => {
                    assert_eq!(found[column("label_2")], image.predictions[1].label.as_str());
                    assert!((found[column("score")].as_f64().unwrap() - 0.9).abs() < 1e-6);
                    // DuckDB takes the text in JSON for a time.
                    assert_eq!(found[column("datetime_original")].is_null(), image.datetime_original.is_none());
                    assert!(found[column("error_code")].is_null());
                }
                Err(error) => {
                    assert_eq!(found[column("error_message")], error.message.as_str());
                    assert!(found[column("score")].is_null() && found[column("label")].is_null());
                }
            }
        }
    }
    for (columns, found) in [csv, tsv] {
        assert_eq!((columns.len(), found.len()), (parquet.0.len(), rows.len()));
    }
}

fn parsed<T: serde::de::DeserializeOwned>(line: &[u8]) -> T {
    serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)))
}

#[test]
fn output_appears_when_the_run_is_finished_and_its_log_goes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let mut output = Output::open(&config(&out)).unwrap();
    append_all(&mut output, &[good(b"a.jpg", 0, 1)]);
    assert_eq!(names(folder.path()), ["out.csv.part"]);
    let summary = output.finish().unwrap();
    assert!(summary.is_within_limit && summary.images == 1, "{summary:?}");
    assert_eq!(names(folder.path()), ["out.csv"]);
    assert!(refusal(&config(&out)).ends_with("out.csv exists: --overwrite replaces it"));
    assert_eq!(names(folder.path()), ["out.csv"]);
    let again = OutputConfig { overwrite: true, ..config(&out) };
    assert_eq!(finish(&again, &[]).images, 0);
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 1);
}

#[test]
fn run_that_was_interrupted_continues_with_each_image_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let undisturbed = folder.path().join("undisturbed.csv");
    let rows: Vec<Row> = (0..30).map(|number| good(format!("{number}.jpg").as_bytes(), number % 4, 1)).collect();
    finish(&config(&undisturbed), &rows);
    for (run, stop) in [7, 7, 19, 30].into_iter().enumerate() {
        let mut output = Output::open(&config(&out)).unwrap();
        assert_eq!(output.resumed(), [0, 7, 7, 19][run]);
        let done = output.done();
        for row in &rows[..stop] {
            assert_eq!(output.is_done(&row.path), done.contains(&row.path));
            // A row that is appended twice is written once.
            append_all(&mut output, std::slice::from_ref(row));
            assert!(output.is_done(&row.path));
        }
        if stop == 30 {
            assert_eq!(output.finish().unwrap().images, 30);
        } else {
            let summary = output.suspend().unwrap();
            assert!(!summary.is_within_limit && summary.lines[0].ends_with("the same command continues there"));
        }
    }
    assert_eq!(fs::read(&out).unwrap(), fs::read(&undisturbed).unwrap());
}

#[test]
fn run_that_continues_has_the_same_options() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let mut output = Output::open(&config(&out)).unwrap();
    append_all(&mut output, &[good(b"a.jpg", 0, 1)]);
    output.suspend().unwrap();
    let other = OutputConfig { top_k: 3, ..config(&out) };
    assert_eq!(
        refusal(&other),
        format!(
            "{}.part is of a run with other options (--top-k was 1, now it is 3): give the same ones to continue it, or \
             begin again with --restart",
            out.display()
        )
    );
    let restarted = OutputConfig { resume: Resume::Restart, ..other };
    let output = Output::open(&restarted).unwrap();
    assert_eq!(output.resumed(), 0);
    assert!(refusal(&restarted).contains("another process writes"));
    drop(output);
    let required = OutputConfig { resume: Resume::Required, ..config(&folder.path().join("none.csv")) };
    assert!(refusal(&required).starts_with("there is no run to resume"));
    assert_eq!(names(folder.path()), ["out.csv.part"]);
}

#[test]
fn failed_images_are_retried_in_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let (out, errors) = (folder.path().join("out.csv"), folder.path().join("errors.csv"));
    let first = OutputConfig { errors: Some(errors.clone()), ..config(&out) };
    let rows = [good(b"a.jpg", 0, 1), broken(b"b.jpg"), broken(b"c.jpg"), good(b"d.jpg", 1, 1)];
    let summary = finish(&first, &rows);
    assert_eq!((summary.failed, summary.is_within_limit), (2, false));
    assert_golden(&fs::read(&errors).unwrap(), "errors.csv");
    assert_eq!(names(folder.path()), ["errors.csv", "out.csv", "out.csv.part"]);

    let retry = OutputConfig { retry_errors: true, ..first.clone() };
    let mut output = Output::open(&retry).unwrap();
    assert_eq!(output.resumed(), 2);
    assert!(output.is_done(&rows[0].path) && !output.is_done(&rows[1].path));
    append_all(&mut output, &[good(b"b.jpg", 2, 1), broken(b"c.jpg"), good(b"e.jpg", 0, 1)]);
    let summary = output.suspend().unwrap();
    assert_eq!((summary.images, summary.failed), (5, 1));

    // Killed in between, the run continues, and only what still fails is retried.
    let mut output = Output::open(&retry).unwrap();
    assert!(output.is_done(&rows[1].path) && !output.is_done(&rows[2].path));
    append_all(&mut output, &[good(b"c.jpg", 3, 1)]);
    let summary = output.finish().unwrap();
    assert_eq!((summary.images, summary.failed, summary.is_within_limit), (5, 0, true));
    let expected = folder.path().join("expected.csv");
    let all = [&rows[0], &good(b"b.jpg", 2, 1), &good(b"c.jpg", 3, 1), &rows[3], &good(b"e.jpg", 0, 1)];
    finish(&config(&expected), &all.map(Clone::clone));
    assert_eq!(fs::read_to_string(&out).unwrap(), fs::read_to_string(&expected).unwrap());
    assert_eq!(fs::read_to_string(&errors).unwrap().lines().count(), 1);
    assert!(!folder.path().join("out.csv.part").exists());
}

#[test]
fn finished_output_of_the_log_is_replaced_and_an_edited_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let rows = [good(b"a.jpg", 0, 1), broken(b"b.jpg")];
    finish(&config(&out), &rows);
    // The folder has grown: only the new image is appended.
    let summary = finish(&config(&out), &[good(b"c.jpg", 1, 1)]);
    assert_eq!((summary.images, summary.resumed), (3, 2));
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text.lines().count(), 4);
    fs::write(&out, format!("{text}x")).unwrap();
    assert!(refusal(&config(&out)).ends_with("out.csv exists: --overwrite replaces it"));
    // A finished run that is to be overwritten begins again, also with other options.
    let again = OutputConfig { overwrite: true, top_k: 2, ..config(&out) };
    let summary = finish(&again, &[good(b"a.jpg", 0, 2)]);
    assert_eq!((summary.images, summary.resumed), (1, 0));
    assert_eq!(names(folder.path()), ["out.csv"]);
}

#[test]
fn run_stops_beyond_the_limit_on_failures() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let limited = OutputConfig { max_failures: Some(MaxFailures::Count(1)), ..config(&out) };
    let mut output = Output::open(&limited).unwrap();
    assert_eq!(output.append(broken(b"a.jpg")).unwrap(), Flow::Continue);
    assert_eq!(output.append(broken(b"b.jpg")).unwrap(), Flow::Stop);
    let summary = output.suspend().unwrap();
    assert!(!summary.is_within_limit);
    assert_eq!(summary.lines[0], "stopped: 2 of 2 images failed, more than --max-failures allows");
    let higher = OutputConfig { max_failures: Some(MaxFailures::Share(0.5)), ..config(&out) };
    let mut output = Output::open(&higher).unwrap();
    output.set_total(4);
    append_all(&mut output, &[good(b"c.jpg", 0, 1), good(b"d.jpg", 0, 1)]);
    assert!(output.finish().unwrap().is_within_limit, "half of the images may fail");
}

#[test]
fn files_of_other_people_are_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    fs::write(folder.path().join("out.csv.part"), "a download").unwrap();
    assert!(refusal(&config(&out)).ends_with("out.csv.part exists and is not a log of imgcls: move it away"));
    assert_eq!(fs::read_to_string(folder.path().join("out.csv.part")).unwrap(), "a download");
    let errors = folder.path().join("errors.csv");
    fs::write(&errors, "mine").unwrap();
    let other = OutputConfig { errors: Some(errors.clone()), ..config(&folder.path().join("b.csv")) };
    assert!(refusal(&other).ends_with("errors.csv exists: --overwrite replaces it"));
    assert!(refusal(&config(&folder.path().join("missing/b.csv"))).contains("missing/b.csv.part"));
    fs::create_dir(folder.path().join("c.csv")).unwrap();
    assert!(refusal(&config(&folder.path().join("c.csv"))).ends_with("is a folder: give the path of a file"));
    assert_eq!(names(folder.path()), ["c.csv", "errors.csv", "out.csv.part"]);
}

/// An image on disk with its row.
fn on_disk(folder: &Path, name: &str, best: u32) -> Row {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, name).unwrap();
    Row { file: Some(file), ..good(name.as_bytes(), best, 2) }
}

#[test]
fn sidecars_are_those_of_the_golden_files() {
    for (format, extension) in
        [(SidecarFormat::Json, "json"), (SidecarFormat::Text, "txt"), (SidecarFormat::Xmp, "xmp")]
    {
        let folder = tempfile::tempdir().unwrap();
        let row = on_disk(folder.path(), "a.jpg", 0);
        let foreign = on_disk(folder.path(), "b.jpg", 0);
        fs::write(folder.path().join(format!("b.jpg.{extension}")), "mine").unwrap();
        let config = OutputConfig { target: Target::Nothing, sidecar: Some(format), ..config(&PathBuf::from("x.csv")) };
        let summary = finish(&config, &[row, foreign, broken(b"c.jpg")]);
        assert_eq!(summary.lines, ["1 sidecars were left alone, because imgcls did not write them"]);
        assert_golden(
            &fs::read(folder.path().join(format!("a.jpg.{extension}"))).unwrap(),
            &format!("sidecar.{extension}"),
        );
        assert_eq!(fs::read(folder.path().join(format!("b.jpg.{extension}"))).unwrap(), b"mine");
        assert_eq!(names(folder.path()).len(), 4);
    }
}

#[test]
fn images_are_sorted_into_a_folder_of_each_class() {
    let folder = tempfile::tempdir().unwrap();
    let rows =
        [on_disk(folder.path(), "x/a.jpg", 0), on_disk(folder.path(), "y/a.jpg", 0), good(b"in.zip/b.jpg", 1, 2)];
    let sort_into = SortInto { folder: folder.path().join("sorted"), entry: SortEntry::HardLink };
    let config = OutputConfig {
        target: Target::Nothing,
        top_k: 2,
        sort_into: Some(sort_into),
        ..config(&PathBuf::from("x.csv"))
    };
    for _ in 0..2 {
        let summary = finish(&config, &rows);
        assert_eq!(summary.lines, ["1 images are no files here, so they have no link or sidecar"]);
        assert!(summary.is_within_limit);
    }
    assert_eq!(names(&folder.path().join("sorted")), [".imgcls-sorted", "tabby, tabby cat"]);
    let class = folder.path().join("sorted/tabby, tabby cat");
    assert_eq!(names(&class), ["a-2.jpg", "a.jpg"]);
    assert_eq!(fs::read(class.join("a-2.jpg")).unwrap(), b"y/a.jpg");
}
