//! The files of SOURCE: the ONNX file, and the files beside it that describe it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Configurations are small. A larger file is something else.
const MAX_TEXT_BYTES: u64 = 16 << 20;

const DESCRIPTION: &str = "model.toml";

/// The content of SOURCE.
#[derive(Debug)]
pub(super) enum Source {
    /// A package that imgcls can run as it is.
    Package(PathBuf),
    /// An export.
    Export(Box<Export>),
}

/// An ONNX file and what lies beside it.
#[derive(Debug)]
pub(super) struct Export {
    pub model: PathBuf,
    /// The names that the model can get, the best first.
    pub names: Vec<String>,
    pub config: Option<Value>,
    pub preprocessor: Option<Value>,
    pub labels: Option<PathBuf>,
    /// The file that shows that the folder is a project of Teachable Machine.
    pub teachable_machine: Option<&'static str>,
    /// Licences and notices, which are kept.
    pub notices: Vec<PathBuf>,
}

/// Finds the files of SOURCE.
///
/// # Errors
/// If it does not exist, has no or several ONNX files, or is a file of another format, with the way to ONNX.
pub(super) fn find(source: &Path) -> anyhow::Result<Source> {
    let metadata = std::fs::metadata(source)
        .with_context(|| format!("cannot read {}; give an ONNX file or a folder", source.display()))?;
    if !metadata.is_dir() {
        ensure!(
            metadata.is_file(),
            "{} is neither a file nor a folder; give an ONNX file or a folder",
            source.display()
        );
        return Ok(Source::Export(Box::new(of_file(source)?)));
    }
    if source.join(DESCRIPTION).is_file() {
        return Ok(Source::Package(source.to_owned()));
    }
    let model = model_in(source)?;
    let mut export = with_sidecars(model, source)?;
    let labels = source.join("labels.txt");
    export.labels = labels.is_file().then_some(labels);
    export.teachable_machine = teachable_machine(source);
    export.notices = notices(source)?;
    Ok(Source::Export(Box::new(export)))
}

/// Licences and notices in a folder.
pub(super) fn notices(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_notice = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["LICENSE", "LICENCE", "NOTICE", "COPYING"].iter().any(|beginning| name.starts_with(beginning))
    };
    Ok(files_in(folder)?
        .into_iter()
        .filter(|path| is_notice(&file_name(path)) && size(path) <= MAX_TEXT_BYTES)
        .collect())
}

fn of_file(model: &Path) -> anyhow::Result<Export> {
    refuse_other_formats(model)?;
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // optimum keeps the ONNX files in a folder of their own.
    let folder = match folder.parent() {
        Some(parent) if file_name(folder) == "onnx" && parent.join("config.json").is_file() => parent,
        _ => folder,
    };
    with_sidecars(model.to_owned(), folder)
}

fn with_sidecars(model: PathBuf, folder: &Path) -> anyhow::Result<Export> {
    refuse_other_formats(&model)?;
    let folder_name = std::fs::canonicalize(folder).map(|folder| file_name(&folder)).unwrap_or_default();
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Many exporters call every file `model.onnx`.
    let names =
        if stem.starts_with("model") || stem == "best" { vec![folder_name, stem] } else { vec![stem, folder_name] };
    Ok(Export {
        config: json(&folder.join("config.json"))?,
        preprocessor: json(&folder.join("preprocessor_config.json"))?,
        model,
        names,
        labels: None,
        teachable_machine: None,
        notices: Vec::new(),
    })
}

/// The ONNX file of a folder: `model.onnx`, or the only one.
fn model_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let inner = folder.join("onnx");
    for candidate in [folder.join("model.onnx"), inner.join("model.onnx")] {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    let mut found = files_in(folder)?;
    let others: Vec<PathBuf> = found.iter().filter(|path| !is_onnx(path)).cloned().collect();
    if inner.is_dir() {
        found.extend(files_in(&inner)?);
    }
    found.retain(|path| is_onnx(path));
    match found.as_slice() {
        [model] => Ok(model.clone()),
        [] => {
            if folder.join("saved_model.pb").is_file() {
                bail!("{} is a TensorFlow SavedModel; {}", folder.display(), Foreign::SavedModel.way_out());
            }
            for other in &others {
                refuse_other_formats(other)?;
            }
            bail!("{} contains no ONNX file; export the network to ONNX first (docs/models.md)", folder.display())
        }
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            bail!("{} contains several ONNX files; give one of them: {}", folder.display(), names.join(", "))
        }
    }
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

fn teachable_machine(folder: &Path) -> Option<&'static str> {
    if folder.join("keras_model.h5").is_file() && folder.join("labels.txt").is_file() {
        return Some("keras_model.h5 and labels.txt of Teachable Machine");
    }
    let metadata = std::fs::read_to_string(folder.join("metadata.json")).ok()?;
    metadata.contains("@teachablemachine/image").then_some("metadata.json of Teachable Machine")
}

fn json(path: &Path) -> anyhow::Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    ensure!(size(path) <= MAX_TEXT_BYTES, "{} has more than {MAX_TEXT_BYTES} bytes", path.display());
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    Ok(Some(value))
}

fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort_unstable();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}

/// A format that is not ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    Pickle,
    PyTorch,
    Keras,
    Hdf5,
    TfLite,
    SavedModel,
    Safetensors,
    Zip,
    LfsPointer,
}

impl Foreign {
    /// Recognises a file by its first bytes, and an archive by its name too.
    fn of(name: &str, bytes: &[u8]) -> Option<Foreign> {
        let name = name.to_ascii_lowercase();
        let ends_with = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
        let length = bytes.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        match bytes {
            [0x80, 2..=5, ..] => Some(Foreign::Pickle),
            [b'P', b'K', 3, 4, ..] if ends_with(&[".keras"]) => Some(Foreign::Keras),
            [b'P', b'K', 3, 4, ..] if ends_with(&[".pt", ".pth", ".bin", ".ckpt", ".pkl"]) => Some(Foreign::PyTorch),
            [b'P', b'K', 3, 4, ..] => Some(Foreign::Zip),
            [0x89, b'H', b'D', b'F', ..] => Some(Foreign::Hdf5),
            [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Some(Foreign::TfLite),
            [_, _, _, _, _, _, _, _, b'{', ..] if length < 1 << 30 => Some(Foreign::Safetensors),
            _ if bytes.starts_with(b"version https://git-lfs") => Some(Foreign::LfsPointer),
            _ if name == "saved_model.pb" => Some(Foreign::SavedModel),
            _ => None,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Foreign::Pickle => "a pickle, which can run any code when it is opened, so that imgcls never opens one",
            Foreign::PyTorch => "a PyTorch checkpoint, which contains a pickle and no network",
            Foreign::Keras => "a Keras file",
            Foreign::Hdf5 => "an HDF5 file, as Keras writes them",
            Foreign::TfLite => "a TensorFlow Lite file",
            Foreign::SavedModel => "a TensorFlow SavedModel",
            Foreign::Safetensors => "a safetensors file, which contains weights and no network",
            Foreign::Zip => "a ZIP archive",
            Foreign::LfsPointer => "a pointer of Git LFS, not the file itself",
        }
    }

    fn way_out(self) -> &'static str {
        match self {
            Foreign::Pickle | Foreign::PyTorch => {
                "export the network with torch.onnx.export where it was made (docs/models.md)"
            }
            Foreign::Safetensors => {
                "export the network with `optimum-cli export onnx` or torch.onnx.export (docs/models.md)"
            }
            Foreign::Keras | Foreign::Hdf5 | Foreign::TfLite | Foreign::SavedModel => {
                "convert it with tf2onnx (docs/models.md has the commands)"
            }
            Foreign::Zip => "unpack it and give the folder",
            Foreign::LfsPointer => "fetch the file with `git lfs pull`",
        }
    }
}

fn refuse_other_formats(path: &Path) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    match Foreign::of(&file_name(path), &bytes) {
        Some(format) => bail!("{} is {}; {}", path.display(), format.description(), format.way_out()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_told_by_their_bytes() {
        for (name, bytes, expected) in [
            ("a.pkl", &b"\x80\x04\x95"[..], Some(Foreign::Pickle)),
            ("a.pth", b"PK\x03\x04", Some(Foreign::PyTorch)),
            ("a.zip", b"PK\x03\x04", Some(Foreign::Zip)),
            ("a.keras", b"PK\x03\x04", Some(Foreign::Keras)),
            ("a.h5", b"\x89HDF\r\n\x1a\n", Some(Foreign::Hdf5)),
            ("a.tflite", b"\x1c\0\0\0TFL3", Some(Foreign::TfLite)),
            ("a.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\"", Some(Foreign::Safetensors)),
            ("a.onnx", b"version https://git-lfs.github.com/spec/v1", Some(Foreign::LfsPointer)),
            ("a.onnx", b"\x08\x08\x12\x07pytorch", None),
            ("a.onnx", b"", None),
        ] {
            assert_eq!(Foreign::of(name, bytes), expected, "{name}");
        }
    }
}
