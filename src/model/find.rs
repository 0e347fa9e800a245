//! Searches for the model and the ONNX Runtime library, so that the binary runs from its build directory, from an
//! unpacked archive and from an installation.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::choice::ModelChoice;
use super::library::{Library, Reference};

pub(super) const DEFAULT_MODEL: &str = "efficientnet-lite0";
/// The name of the description in the folder of a model.
pub const DESCRIPTION: &str = "model.toml";

/// The release of ONNX Runtime that `scripts/setup` installs.
pub(super) const RUNTIME_VERSION: &str = "1.32.0";

/// The file name under which `scripts/setup` installs the library.
pub(super) const PINNED_LIBRARY: &str = "libonnxruntime.so.1.32.0";

/// The file name of any other library that is found without being named.
pub(super) const UNPINNED_LIBRARY: &str = "libonnxruntime.so";

/// The ONNX Runtime library to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuntimeLibrary {
    pub path: PathBuf,
    /// True if a flag or a variable names the library, false if the search found it.
    pub is_named: bool,
}

/// The folder of the chosen model. A name is looked up in the models directory, then in the working directory, then
/// beside the executable. A worker calls this again to notice that another version is in use: it reads one small file.
pub fn model_folder(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    let wanted = choice.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let exists = |path: &Path| path.join(DESCRIPTION).is_file();
    if let Some(models_dir) = &choice.models_dir
        && let Ok(reference) = Reference::parse(wanted)
        && let Some(folder) = Library::new(models_dir).resolve(&reference)?
    {
        return Ok(folder);
    }
    if exists(Path::new(wanted)) {
        return Ok(PathBuf::from(wanted));
    }
    if Path::new(wanted).components().count() != 1 {
        bail!(
            "there is no model in {wanted}: it contains no {DESCRIPTION}; give --model the folder of a model, or a \
             name that `imgcls model list` shows"
        );
    }
    let mut candidates = model_candidates(&executable()?, wanted, &|path| path.is_dir());
    if let Some(folder) = first(&candidates, exists) {
        return Ok(folder);
    }
    candidates.splice(0..0, choice.models_dir.iter().map(|folder| folder.join(wanted)));
    bail!(
        "model {wanted:?} is not found: there is no {DESCRIPTION} in {}; `imgcls model list` shows the models, \
         `imgcls model add` adds one, and --model takes a folder too",
        listed(&candidates)
    )
}

/// The models beside the executable: their names and folders, in the order of the search.
pub fn shipped_models() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let executable = executable()?;
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let roots = model_candidates(&executable, "", &|path| path.is_dir());
    for entry in roots.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().join(DESCRIPTION).is_file() && !found.iter().any(|(known, _)| *known == name) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The path of the ONNX Runtime library; see [`runtime`].
pub(super) fn runtime_library(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    runtime(choice).map(|library| library.path)
}

/// The ONNX Runtime library: named by the flag, named by `ORT_DYLIB_PATH`, or found relative to the executable.
pub(super) fn runtime(choice: &ModelChoice) -> anyhow::Result<RuntimeLibrary> {
    let named = |path: &Path, source: &str| {
        if path.is_file() {
            Ok(RuntimeLibrary { path: path.to_owned(), is_named: true })
        } else {
            bail!("{source} names {}, which does not exist; scripts/setup installs ONNX Runtime", path.display())
        }
    };
    if let Some(path) = &choice.ort_dylib {
        return named(path, "--ort-dylib");
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return named(Path::new(&path), "ORT_DYLIB_PATH");
    }
    let candidates = runtime_candidates(&executable()?, &|path| path.is_dir());
    let path = first(&candidates, Path::is_file).with_context(|| {
        format!(
            "the ONNX Runtime library is not found in {}; scripts/setup installs it, --ort-dylib names another one",
            listed(&candidates)
        )
    })?;
    Ok(RuntimeLibrary { path, is_named: false })
}

/// Folders that are searched, in this order: the folder of the executable, `../lib/imgcls` and `../share/imgcls` relative
/// to it, and the nearest ancestor that contains `models/`.
fn model_candidates(executable: &Path, name: &str, is_folder: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let ancestor = ancestor_with_models(executable, is_folder);
    install_folders(executable).into_iter().chain(ancestor).map(|root| root.join("models").join(name)).collect()
}

fn runtime_candidates(executable: &Path, is_folder: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let ancestor = ancestor_with_models(executable, is_folder).map(|root| root.join("lib/imgcls"));
    let names = library_names();
    install_folders(executable)
        .into_iter()
        .chain(ancestor)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>())
        .collect()
}

/// The folders in which an installed executable finds its files.
fn install_folders(executable: &Path) -> Vec<PathBuf> {
    let own = executable.parent().unwrap_or(Path::new("/"));
    let mut folders = vec![own.to_owned()];
    if let Some(prefix) = own.parent() {
        folders.push(prefix.join("lib/imgcls"));
        folders.push(prefix.join("share/imgcls"));
    }
    folders
}

fn ancestor_with_models(executable: &Path, is_folder: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    executable.ancestors().skip(1).find(|folder| is_folder(&folder.join("models"))).map(Path::to_owned)
}

fn library_names() -> [String; 2] {
    if cfg!(target_os = "macos") {
        [format!("libonnxruntime.{RUNTIME_VERSION}.dylib"), "libonnxruntime.dylib".to_owned()]
    } else {
        [PINNED_LIBRARY.to_owned(), UNPINNED_LIBRARY.to_owned()]
    }
}

fn first(candidates: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    candidates.iter().find(|path| exists(path)).cloned()
}

fn listed(candidates: &[PathBuf]) -> String {
    let mut shown: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    shown.dedup();
    shown.join(", ")
}

fn executable() -> anyhow::Result<PathBuf> {
    std::env::current_exe()
        .context("cannot determine the path of this executable, which the search for models starts from")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_the_own_folder_the_prefix_and_the_nearest_ancestor_with_models() {
        let is_folder = |path: &Path| path == Path::new("/src/imgcls/models") || path == Path::new("/src/models");
        let executable = Path::new("/src/imgcls/target/release/imgcls");
        let candidates = model_candidates(executable, "m", &is_folder);
        let expected = [
            "/src/imgcls/target/release/models/m",
            "/src/imgcls/target/lib/imgcls/models/m",
            "/src/imgcls/target/share/imgcls/models/m",
            "/src/imgcls/models/m",
        ];
        assert_eq!(candidates, expected.map(PathBuf::from));
        let library = runtime_candidates(executable, &is_folder);
        assert_eq!(library.last(), Some(&PathBuf::from("/src/imgcls/lib/imgcls").join(&library_names()[1])));
        assert_eq!(library.len(), 8);
    }

    #[test]
    fn without_such_an_ancestor_only_install_folders_are_candidates() {
        let candidates = model_candidates(Path::new("/usr/bin/imgcls"), "m", &|_| false);
        let expected = ["/usr/bin/models/m", "/usr/lib/imgcls/models/m", "/usr/share/imgcls/models/m"];
        assert_eq!(candidates, expected.map(PathBuf::from));
    }

    #[test]
    fn missing_file_is_reported_in_one_line_with_a_remedy() {
        let choice = ModelChoice { model: Some("no-such-model".to_owned()), ..ModelChoice::default() };
        let error = format!("{:#}", model_folder(&choice).unwrap_err());
        assert!(error.contains("no-such-model") && error.contains("--model") && !error.contains('\n'), "{error}");

        let choice = ModelChoice { ort_dylib: Some("/no/such/library.so".into()), ..ModelChoice::default() };
        let error = format!("{:#}", runtime_library(&choice).unwrap_err());
        assert!(error.contains("/no/such/library.so") && error.contains("scripts/setup"), "{error}");
    }
}
