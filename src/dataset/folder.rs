//! A folder with one folder of images per class.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::labelled::{Dataset, LabelledImage, folded};

/// Reads the names of all files, and no file. A folder in the folder of a class belongs to that class. A link to a file
/// counts as a file, a link to a folder as a class; inside a class, links to folders are not followed, because they can
/// lead in a circle. Names that begin with a dot are left out.
///
/// # Errors
/// If a folder cannot be read, there is no folder of a class, or two folders differ only in case.
pub(super) fn read(root: &Path) -> anyhow::Result<Dataset> {
    let mut dataset = Dataset::default();
    let mut by_folded_name: BTreeMap<String, String> = BTreeMap::new();
    for path in entries(root)? {
        if !path.is_dir() {
            dataset.loose_files += 1;
            continue;
        }
        let name = class_name(&path)?;
        if let Some(other) = by_folded_name.insert(folded(&name), name.clone()) {
            bail!(
                "the folders {other:?} and {name:?} in {} name one class; move their images into one",
                root.display()
            );
        }
        let class = dataset.classes.len();
        dataset.classes.push(name);
        let mut files = Vec::new();
        collect_files(&path, &mut files)?;
        dataset.images.extend(files.into_iter().map(|path| LabelledImage { path, class }));
    }
    ensure!(
        !dataset.classes.is_empty(),
        "{} has no folders; give a folder that contains one folder of images for each class",
        root.display()
    );
    ensure!(
        !dataset.images.is_empty(),
        "the folders in {} have no files; each must hold the images of its class",
        root.display()
    );
    Ok(dataset)
}

fn class_name(folder: &Path) -> anyhow::Result<String> {
    let name = folder.file_name().and_then(|name| name.to_str()).map(str::trim).unwrap_or_default();
    ensure!(
        !name.is_empty() && !name.contains(char::is_control),
        "the folder {} has no name that a class can have; rename it",
        folder.display()
    );
    Ok(name.to_owned())
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for path in entries(folder)? {
        let kind = fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.file_type();
        if kind.is_dir() {
            collect_files(&path, files)?;
        } else if kind.is_file() || (kind.is_symlink() && !path.is_dir()) {
            // A link to nothing is kept: it is reported when it cannot be read.
            files.push(path);
        }
    }
    Ok(())
}

/// The entries of a folder, sorted by name, without hidden ones.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot read the folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
    }

    #[test]
    fn every_folder_is_a_class_and_links_to_files_are_files() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["dog/1.jpg", "dog/more/2.jpg", "cat/b.jpg", "cat/.hidden", "readme.txt", ".git/x"]);
        std::os::unix::fs::symlink(root.path().join("dog/1.jpg"), root.path().join("cat/a.jpg")).unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("cat/circle")).unwrap();
        std::os::unix::fs::symlink("nothing", root.path().join("cat/z.jpg")).unwrap();
        let dataset = read(root.path()).unwrap();
        let files: Vec<(usize, &str)> = dataset
            .images
            .iter()
            .map(|image| (image.class, image.path.strip_prefix(root.path()).unwrap().to_str().unwrap()))
            .collect();
        let expected = [(0, "cat/a.jpg"), (0, "cat/b.jpg"), (0, "cat/z.jpg"), (1, "dog/1.jpg"), (1, "dog/more/2.jpg")];
        assert_eq!(files, expected);
        assert_eq!((dataset.classes.join(","), dataset.loose_files), ("cat,dog".to_owned(), 1));
        assert_eq!(dataset.images_per_class(), [3, 2]);
    }

    #[test]
    fn folders_without_labelled_images_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let refused = |expected: &str| {
            let error = format!("{:#}", read(root.path()).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        };
        refused("has no folders");
        fs::create_dir(root.path().join("cat")).unwrap();
        refused("have no files");
        write(root.path(), &["Cat/1.jpg"]);
        refused("\"Cat\" and \"cat\"");
    }
}
