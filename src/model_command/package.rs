//! Writes a package into a folder, and runs it before anybody else can.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Component, Path};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::complete::Complete;
use super::description::{self, Files, Provenance};
use super::draft::Labels;
use super::source::Export;
use crate::model::{self, OnnxFile, content_version};

pub(super) const DESCRIPTION: &str = "model.toml";
const MODEL: &str = "model.onnx";
const LABELS: &str = "labels.txt";
/// A name takes less than a hundred bytes, and no network has a hundred thousand classes.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Reads a text file of a package.
///
/// # Errors
/// If it cannot be read, is too large, or is not text.
pub(super) fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(text.len() as u64 <= MAX_TEXT_BYTES, "{} has more than {MAX_TEXT_BYTES} bytes", path.display());
    Ok(text)
}

/// Copies a file and returns the digest of what was copied.
///
/// # Errors
/// If the file cannot be read, or the copy not be written.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<String> {
    let cannot_write = || format!("cannot write {}; check its permissions and the free space", to.display());
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).with_context(cannot_write)?;
    }
    let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut copy = File::create_new(to).with_context(cannot_write)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer).with_context(|| format!("cannot read {}", from.display()))?;
        if read == 0 {
            return Ok(model::hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        copy.write_all(&buffer[..read]).with_context(cannot_write)?;
    }
}

/// The digest of a file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn digest(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(model::hex(&hash.finalize()))
}

/// Copies the files of an export into a folder.
///
/// # Errors
/// If a file is missing, or has a name that the package needs for another one.
pub(super) fn write_files(folder: &Path, export: &Export, onnx: &OnnxFile, labels: &Labels) -> anyhow::Result<Files> {
    let file = |path: &str, sha256: String| description::File { path: path.to_owned(), sha256 };
    let model = file(MODEL, copy(&export.model, &folder.join(MODEL))?);
    let beside = export.model.parent().unwrap_or(Path::new("."));
    let mut external = Vec::new();
    for location in &onnx.external {
        ensure!(
            ![MODEL, LABELS, DESCRIPTION].contains(&location.as_str()),
            "the network keeps its weights in {location:?}, a name that imgcls needs for another file; export it with another \
             location"
        );
        let source = beside.join(location);
        ensure!(
            source.is_file(),
            "the weights of the network are in {location:?}, which is not beside {}; put both files into one folder",
            export.model.display()
        );
        external.push(file(location, copy(&source, &folder.join(location))?));
    }
    let path = folder.join(LABELS);
    match labels {
        Labels::File(source) => write(&path, &read_text(source)?)?,
        Labels::ImageNet => drop(copy(&imagenet_labels()?, &path)?),
        Labels::Names(names) => write(&path, &lines(names.iter().enumerate())?)?,
        Labels::IdsAndNames(labels) => write(&path, &lines(labels.iter().map(|(id, name)| (id, name)))?)?,
    }
    for notice in &export.notices {
        let name = notice.file_name().unwrap_or_default();
        if !folder.join(name).exists() {
            copy(notice, &folder.join(name))?;
        }
    }
    Ok(Files { variant: onnx.precision, model, external, labels: file(LABELS, digest(&path)?) })
}

/// Writes `model.toml`. Returns its version and its text.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_description(
    folder: &Path,
    name: &str,
    model: &Complete,
    files: &Files,
    provenance: &Provenance,
) -> anyhow::Result<(String, String)> {
    let version = content_version(&description::render(name, "", model, files, provenance))?;
    let text = description::render(name, &version, model, files, provenance);
    write(&folder.join(DESCRIPTION), &text)?;
    Ok((version, text))
}

/// Copies a package that has a `model.toml`, and gives it a name and the version of its content. Returns the name, the
/// version and the text.
///
/// # Errors
/// If the description or a digest is wrong.
pub(super) fn copy_package(
    from: &Path,
    to: &Path,
    name: Option<&str>,
    notices: &[std::path::PathBuf],
) -> anyhow::Result<(String, String, String)> {
    let path = from.join(DESCRIPTION);
    let text = read_text(&path)?;
    let mut table = parse(&text).with_context(|| format!("{}", path.display()))?;
    for (file, sha256) in described_files(&table)? {
        let found = copy(&from.join(&file), &to.join(&file))?;
        if let Some(sha256) = sha256.filter(|sha256| *sha256 != found) {
            bail!(
                "{} is not the file that model.toml describes: its sha256 is {found}, not {sha256}; restore it",
                from.join(&file).display()
            );
        }
    }
    for notice in notices {
        let name = notice.file_name().unwrap_or_default();
        if !to.join(name).exists() {
            copy(notice, &to.join(name))?;
        }
    }
    let name = match name {
        Some(name) => name.to_owned(),
        None => table.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned(),
    };
    table.insert("name".to_owned(), toml::Value::String(name.clone()));
    let version = content_version(&toml::to_string(&table)?)?;
    table.insert("version".to_owned(), toml::Value::String(version.clone()));
    let text = toml::to_string(&table)?;
    write(&to.join(DESCRIPTION), &text)?;
    Ok((name, version, text))
}

/// The files that a description names, with their digests where it has them.
///
/// # Errors
/// If a path leads out of the folder.
pub(super) fn described_files(table: &toml::Table) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let text = |value: Option<&toml::Value>| value.and_then(toml::Value::as_str).map(str::to_owned);
    let mut files = Vec::new();
    let mut add = |path: Option<String>, sha256| -> anyhow::Result<()> {
        let path = path.context("a file has no path")?;
        let is_inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(
            is_inside && !path.is_empty() && path != DESCRIPTION,
            "the path {path:?} is not one of a file in the package"
        );
        if !files.iter().any(|(known, _)| *known == path) {
            files.push((path, sha256));
        }
        Ok(())
    };
    let digest = table.get("labels_file").and_then(|file| text(file.get("sha256")));
    add(text(table.get("labels")), digest)?;
    let tables =
        |key: &str| table.get(key).and_then(toml::Value::as_table).into_iter().flat_map(|table| table.values());
    for entry in tables("files").chain(tables("label_sets")) {
        add(text(entry.get("path")), text(entry.get("sha256")))?;
        for external in entry.get("external").and_then(toml::Value::as_array).into_iter().flatten() {
            add(text(external.get("path")), text(external.get("sha256")))?;
        }
    }
    Ok(files)
}

/// Parses TOML with an error of one line.
///
/// # Errors
/// The first fault and its line.
pub(super) fn parse(text: &str) -> anyhow::Result<toml::Table> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow::anyhow!("line {line}: {}", error.message().replace('\n', " "))
    })
}

/// The lines of a labels file, each an index or id and a name.
fn lines<'a>(labels: impl Iterator<Item = (impl std::fmt::Display, &'a String)>) -> anyhow::Result<String> {
    let mut text = String::new();
    for (index, (key, name)) in labels.enumerate() {
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(!name.is_empty(), "class {index} has no name; give --labels FILE");
        let _ = writeln!(text, "{key} {name}");
    }
    Ok(text)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)
        .with_context(|| format!("cannot write {}; check its permissions and the free space", path.display()))
}

/// The 1,000 names of the model that is shipped.
fn imagenet_labels() -> anyhow::Result<std::path::PathBuf> {
    let models = model::shipped_models()?;
    let labels = models.into_iter().map(|(_, folder)| folder.join(LABELS)).find(|path| path.is_file());
    labels.context(
        "--labels imagenet takes the labels of the model that comes with imgcls, and there is none; give a file",
    )
}
