//! Unpacks the archive of a package.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Component, Path};

use anyhow::{Context as _, ensure};

use crate::model::{ModelChoice, ModelSummary, Staging};

/// Unpacks the file `archive` of a folder into that folder, deletes it, and checks that the package is the wanted one.
///
/// # Errors
/// The archive has anything but files below the folder, or the package is another one.
pub(super) fn package(staging: Staging, archive: &str, name: &str, version: &str) -> anyhow::Result<Staging> {
    let path = staging.path().join(archive);
    unpack(&path, staging.path()).with_context(|| format!("cannot unpack the package of model {name:?}"))?;
    fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
    let folder = staging.path().to_string_lossy().into_owned();
    let found = ModelSummary::read(&ModelChoice { model: Some(folder), ..ModelChoice::default() })?;
    ensure!(
        found.name == name && found.version == version,
        "the package of model {name:?}, version {version:?}, contains model {:?}, version {:?}: upload it again",
        found.name,
        found.version
    );
    Ok(staging)
}

fn unpack(archive: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(archive)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        ensure!(
            entry.header().entry_type().is_file() && is_below(&name),
            "{} is not the name of a file in a folder",
            name.display()
        );
        let path = folder.join(&name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let size = entry.header().size()?;
        let mut file = File::create_new(&path).with_context(|| name.display().to_string())?;
        let written = std::io::copy(&mut entry.by_ref().take(size), &mut file)?;
        ensure!(written == size, "{} is incomplete", name.display());
    }
    Ok(())
}

/// Returns true for a relative path without hidden or special parts.
fn is_below(name: &Path) -> bool {
    let is_plain = |part: Component<'_>| match part {
        Component::Normal(text) => !text.to_string_lossy().starts_with('.'),
        _ => false,
    };
    name.components().count() > 0 && name.components().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, entries: &[(&str, tar::EntryType)]) -> std::path::PathBuf {
        let path = folder.join(".package.tar");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        for (name, kind) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_size(3);
            // `set_path` refuses hostile names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, &b"abc"[..]).unwrap();
        }
        archive.finish().unwrap();
        path
    }

    #[test]
    fn only_files_below_the_folder_are_unpacked() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("inner");
        fs::create_dir(&folder).unwrap();
        let good =
            archive(&folder, &[("model.toml", tar::EntryType::Regular), ("onnx/a.onnx", tar::EntryType::Regular)]);
        unpack(&good, &folder).unwrap();
        assert_eq!(fs::read(folder.join("onnx/a.onnx")).unwrap(), b"abc");
        for (name, kind) in [
            ("../outside", tar::EntryType::Regular),
            ("/tmp/imgcls-absolute", tar::EntryType::Regular),
            (".hidden", tar::EntryType::Regular),
            ("link", tar::EntryType::Symlink),
            ("folder", tar::EntryType::Directory),
            ("model.toml", tar::EntryType::Regular),
        ] {
            let bad = archive(&folder, &[(name, kind)]);
            assert!(unpack(&bad, &folder).is_err(), "{name}");
        }
        assert!(!outer.path().join("outside").exists());
    }
}
