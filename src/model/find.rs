//! Where a model and the ONNX Runtime library are looked for, so that the binary runs from where it was built, from an
//! unpacked archive and from an installation alike.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::ModelChoice;

const DEFAULT_MODEL: &str = "efficientnet-lite0";
const DESCRIPTION: &str = "model.toml";

/// The release that `scripts/setup` brings.
pub const RUNTIME_VERSION: &str = "1.32.0";

/// The file name under which `scripts/setup` installs it.
pub const PINNED_LIBRARY: &str = "libonnxruntime.so.1.32.0";

/// The file name of any other library, near the executable.
pub const UNPINNED_LIBRARY: &str = "libonnxruntime.so";

/// The ONNX Runtime library to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeLibrary {
    pub path: PathBuf,
    /// A flag or a variable names it. Otherwise it was found near the executable.
    pub is_named: bool,
}

/// The folder of the chosen model.
pub fn model_folder(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    let wanted = choice.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let exists = |path: &Path| path.join(DESCRIPTION).is_file();
    if exists(Path::new(wanted)) {
        return Ok(PathBuf::from(wanted));
    }
    if Path::new(wanted).components().count() != 1 {
        bail!(
            "no model in {wanted}: it holds no {DESCRIPTION}; give --model a model's folder, or a name under models/"
        );
    }
    let places = model_places(&executable()?, wanted, &|path| path.is_dir());
    first(&places, exists).with_context(|| {
        format!(
            "no model {wanted:?}: no {DESCRIPTION} in {}; give --model a folder, or bring models/ from the repository",
            listed(&places)
        )
    })
}

/// Path of the ONNX Runtime library; see [`runtime`].
pub fn runtime_library(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    runtime(choice).map(|library| library.path)
}

/// The ONNX Runtime library: the flag, `ORT_DYLIB_PATH`, near the executable.
pub fn runtime(choice: &ModelChoice) -> anyhow::Result<RuntimeLibrary> {
    let named = |path: &Path, said_by: &str| {
        if path.is_file() {
            Ok(RuntimeLibrary { path: path.to_owned(), is_named: true })
        } else {
            bail!("no ONNX Runtime library at {}, where {said_by} says; scripts/setup brings it", path.display())
        }
    };
    if let Some(path) = &choice.ort_dylib {
        return named(path, "--ort-dylib");
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return named(Path::new(&path), "ORT_DYLIB_PATH");
    }
    let places = runtime_places(&executable()?, &|path| path.is_dir());
    let path = first(&places, Path::is_file).with_context(|| {
        format!(
            "no ONNX Runtime library: looked for {}; scripts/setup brings it, --ort-dylib names another",
            listed(&places)
        )
    })?;
    Ok(RuntimeLibrary { path, is_named: false })
}

/// In order: beside the executable, its `../lib/imgcls` and `../share/imgcls`, the nearest ancestor with `models/`.
fn model_places(executable: &Path, name: &str, is_folder: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let ancestor = ancestor_with_models(executable, is_folder);
    near(executable).into_iter().chain(ancestor).map(|root| root.join("models").join(name)).collect()
}

fn runtime_places(executable: &Path, is_folder: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let ancestor = ancestor_with_models(executable, is_folder).map(|root| root.join("lib/imgcls"));
    let names = library_names();
    near(executable)
        .into_iter()
        .chain(ancestor)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>())
        .collect()
}

fn near(executable: &Path) -> Vec<PathBuf> {
    let beside = executable.parent().unwrap_or(Path::new("/"));
    let mut places = vec![beside.to_owned()];
    if let Some(prefix) = beside.parent() {
        places.push(prefix.join("lib/imgcls"));
        places.push(prefix.join("share/imgcls"));
    }
    places
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

fn first(places: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    places.iter().find(|path| exists(path)).cloned()
}

fn listed(places: &[PathBuf]) -> String {
    let mut shown: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    shown.dedup();
    shown.join(", ")
}

fn executable() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program lies, to look for models near it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_then_the_prefix_then_the_nearest_ancestor_with_models() {
        let is_folder = |path: &Path| path == Path::new("/src/imgcls/models") || path == Path::new("/src/models");
        let executable = Path::new("/src/imgcls/target/release/imgcls");
        let places = model_places(executable, "m", &is_folder);
        let expected = [
            "/src/imgcls/target/release/models/m",
            "/src/imgcls/target/lib/imgcls/models/m",
            "/src/imgcls/target/share/imgcls/models/m",
            "/src/imgcls/models/m",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
        let library = runtime_places(executable, &is_folder);
        assert_eq!(library.last(), Some(&PathBuf::from("/src/imgcls/lib/imgcls").join(&library_names()[1])));
        assert_eq!(library.len(), 8);
    }

    #[test]
    fn without_an_ancestor_only_the_near_places_count() {
        let places = model_places(Path::new("/usr/bin/imgcls"), "m", &|_| false);
        let expected = ["/usr/bin/models/m", "/usr/lib/imgcls/models/m", "/usr/share/imgcls/models/m"];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[test]
    fn what_is_missing_is_said_in_one_line_with_the_way_out() {
        let choice = ModelChoice { model: Some("no-such-model".to_owned()), ..ModelChoice::default() };
        let error = format!("{:#}", model_folder(&choice).unwrap_err());
        assert!(error.contains("no-such-model") && error.contains("--model") && !error.contains('\n'), "{error}");

        let choice = ModelChoice { ort_dylib: Some("/no/such/library.so".into()), ..ModelChoice::default() };
        let error = format!("{:#}", runtime_library(&choice).unwrap_err());
        assert!(error.contains("/no/such/library.so") && error.contains("scripts/setup"), "{error}");
    }
}
