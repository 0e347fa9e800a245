//! A folder for each class, with links to the images of the class or copies of them.
//!
//! Nothing is overwritten: if another file has the name of an image, the image gets a number, as `name-2.jpg`. A link to
//! the same image is found and not made again, so that a run may be repeated.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::config::{ClassName, SortEntry, SortInto};
use super::files::{publish_new, sync_file_system, temporary_beside};
use super::row::Classified;
use super::safe_name::{folders, safe};
use crate::model::Prediction;

/// A file of this name marks a folder of [`SortInto`], so that a walk over a folder around it does not read its images.
pub const SORTED_MARKER: &str = ".imgcls-sorted";
const MARKER_TEXT: &str = "Made by `imgcls classify --sort-into`, which does not read the images of this folder.\n";
/// The numbers of so many names are remembered.
const MAX_REMEMBERED: usize = 100_000;

pub(super) struct Sorter {
    folder: PathBuf,
    entry: SortEntry,
    /// The label and the name of the folder of each class.
    class_folders: Vec<(String, String)>,
    existing_folders: HashSet<PathBuf>,
    /// The last number of names that several images have. It only saves time.
    last_numbers: HashMap<PathBuf, u32>,
    is_dirty: bool,
}

impl Sorter {
    /// Creates the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn open(sort_into: &SortInto, classes: &[ClassName]) -> anyhow::Result<Sorter> {
        let SortInto { folder, entry } = sort_into.clone();
        let cannot_write = || format!("cannot write to {}", folder.display());
        std::fs::create_dir_all(&folder).with_context(cannot_write)?;
        std::fs::write(folder.join(SORTED_MARKER), MARKER_TEXT).with_context(cannot_write)?;
        let class_folders = classes.iter().map(|class| class.label.clone()).zip(folders(classes)).collect();
        let (existing_folders, last_numbers) = (HashSet::new(), HashMap::new());
        Ok(Sorter { folder, entry, class_folders, existing_folders, last_numbers, is_dirty: false })
    }

    /// Puts the image into the folder of its best class; with several labels, into the folder of each of them.
    ///
    /// # Errors
    /// If a link or copy cannot be made.
    pub(super) fn place(&mut self, file: &Path, classified: &Classified, has_labels: bool) -> io::Result<()> {
        let classes = if has_labels { &classified.labels[..] } else { classified.predictions.get(..1).unwrap_or(&[]) };
        if classes.is_empty() {
            return Ok(());
        }
        let source = file.canonicalize()?;
        let name = file.file_name().unwrap_or_else(|| source.file_name().unwrap_or_default());
        for class in classes {
            let folder = self.folder.join(self.folder_of(class));
            if !self.existing_folders.contains(&folder) {
                std::fs::create_dir_all(&folder)?;
                self.existing_folders.insert(folder.clone());
            }
            self.place_as(&source, folder.join(name))?;
        }
        Ok(())
    }

    /// Makes everything durable that was placed.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_dirty) {
            sync_file_system(&File::open(&self.folder)?)?;
        }
        Ok(())
    }

    fn folder_of(&self, class: &Prediction) -> String {
        let known = class.class_index.and_then(|index| self.class_folders.get(index as usize));
        // A service may have classified the image with another model.
        let known = known.filter(|(label, _)| *label == class.label);
        known.map_or_else(|| safe(&class.label), |(_, folder)| folder.clone())
    }

    fn place_as(&mut self, source: &Path, wanted: PathBuf) -> io::Result<()> {
        let mut number = self.last_numbers.get(&wanted).copied().unwrap_or(1);
        loop {
            let path = numbered(&wanted, number);
            match make(self.entry, source, &path) {
                Ok(()) => break,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Err(_) if stands_for(self.entry, source, &path)? => break,
                Err(_) => number += 1,
            }
        }
        self.is_dirty = true;
        if number > 1 {
            if self.last_numbers.len() >= MAX_REMEMBERED {
                self.last_numbers.clear();
            }
            self.last_numbers.insert(wanted, number);
        }
        Ok(())
    }
}

/// The path with a number before its extension; 1 is the path itself.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Makes a link or copy.
///
/// # Errors
/// `AlreadyExists` if the path exists.
fn make(entry: SortEntry, source: &Path, path: &Path) -> io::Result<()> {
    match entry {
        SortEntry::Symlink => symlink(source, path),
        SortEntry::Copy => copy(source, path),
        SortEntry::HardLink => match std::fs::hard_link(source, path) {
            Err(error) if has_no_hard_link(&error) => copy(source, path),
            made => made,
        },
    }
}

/// Returns true if the file system, or its rules, has no hard link here, so that a copy may help.
fn has_no_hard_link(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}

fn copy(source: &Path, path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let temporary = temporary_beside(path);
    std::fs::copy(source, &temporary).and_then(|_| publish_new(&temporary, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Returns true if the entry at `path` is the one that would be made for this image.
fn stands_for(entry: SortEntry, source: &Path, path: &Path) -> io::Result<bool> {
    let there = path.symlink_metadata()?;
    if there.is_symlink() {
        return Ok(entry == SortEntry::Symlink && std::fs::read_link(path)? == source);
    }
    let own = source.metadata()?;
    if there.dev() == own.dev() && there.ino() == own.ino() {
        return Ok(true);
    }
    let is_copy = entry == SortEntry::Copy || (entry == SortEntry::HardLink && there.nlink() == 1);
    Ok(is_copy && there.is_file() && there.len() == own.len() && have_same_bytes(source, path)?)
}

/// Compares two files of the same length.
fn have_same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::new(File::open(one)?), BufReader::new(File::open(other)?));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] || left.is_empty() != right.is_empty() {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
        one.consume(length);
        other.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::classified;
    use super::*;

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn images_of_the_same_name_get_numbers_and_repeating_makes_no_second_link() {
        for entry in [SortEntry::HardLink, SortEntry::Symlink, SortEntry::Copy] {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in [("a", "one"), ("b", "two"), ("c", "three")] {
                std::fs::create_dir(folder.path().join(name)).unwrap();
                std::fs::write(folder.path().join(name).join("x.y.jpg"), content).unwrap();
            }
            let sorted = folder.path().join("sorted");
            std::fs::create_dir_all(sorted.join("cat")).unwrap();
            std::fs::write(sorted.join("cat/x.y.jpg"), "of a person").unwrap();
            let sort_into = SortInto { folder: sorted.clone(), entry };
            let class = ClassName { label: "cat".to_owned(), id: None };
            for _ in 0..2 {
                let mut sorter = Sorter::open(&sort_into, std::slice::from_ref(&class)).unwrap();
                for name in ["a", "b", "c"] {
                    let file = folder.path().join(name).join("x.y.jpg");
                    sorter.place(&file, &classified(&["cat"]), false).unwrap();
                }
                sorter.sync().unwrap();
            }
            assert_eq!(listing(&sorted.join("cat")), ["x.y-2.jpg", "x.y-3.jpg", "x.y-4.jpg", "x.y.jpg"], "{entry:?}");
            assert_eq!(std::fs::read_to_string(sorted.join("cat/x.y.jpg")).unwrap(), "of a person");
            assert_eq!(std::fs::read_to_string(sorted.join("cat/x.y-4.jpg")).unwrap(), "three");
            assert_eq!(listing(&sorted), [SORTED_MARKER, "cat"]);
        }
    }

    #[test]
    fn identical_images_have_a_hard_link_each() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("x.jpg"), "same").unwrap();
        }
        let sort_into = SortInto { folder: folder.path().join("sorted"), entry: SortEntry::HardLink };
        let mut sorter = Sorter::open(&sort_into, &[]).unwrap();
        for name in ["a", "b"] {
            sorter.place(&folder.path().join(name).join("x.jpg"), &classified(&["cat"]), false).unwrap();
        }
        assert_eq!(listing(&folder.path().join("sorted/cat")), ["x-2.jpg", "x.jpg"]);
    }

    #[test]
    fn image_with_several_labels_is_in_the_folder_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.jpg");
        std::fs::write(&file, "x").unwrap();
        let sort_into = SortInto { folder: folder.path().join("sorted"), entry: SortEntry::HardLink };
        let mut sorter = Sorter::open(&sort_into, &[]).unwrap();
        let mut image = classified(&["cat"]);
        sorter.place(&file, &image, true).unwrap();
        image.labels = classified(&["dog", "../up"]).predictions;
        sorter.place(&file, &image, true).unwrap();
        assert_eq!(listing(&folder.path().join("sorted")), [SORTED_MARKER, "_.._up", "dog"]);
    }
}
