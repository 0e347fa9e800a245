//! The images to send: the image files of a folder, or the built-in images.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::model;

/// Images are kept in memory up to this total size; the others are read when they are sent.
const MAX_MEMORY_BYTES: u64 = 512 << 20;
/// So many bytes of a file are enough to recognize every format.
const SIGNATURE_BYTES: u64 = 64;

#[derive(Debug, Clone)]
pub(super) struct Image {
    /// The base name of the file, unchanged; it may contain any character.
    pub name: String,
    pub content_type: &'static str,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    InMemory(Bytes),
    OnDisk(PathBuf),
}

/// The images of a folder, and the files that were skipped.
#[derive(Debug)]
pub(super) struct Folder {
    /// Sorted by name.
    pub images: Vec<Image>,
    /// Names of files that are not images.
    pub skipped: Vec<String>,
}

/// Photographs under free licences; `samples/SOURCES.md` names their sources.
pub(super) fn samples() -> Vec<Image> {
    const SAMPLES: [(&str, &[u8]); 6] = [
        ("astronaut.jpg", include_bytes!("samples/astronaut.jpg")),
        ("camera.jpg", include_bytes!("samples/camera.jpg")),
        ("chelsea.jpg", include_bytes!("samples/chelsea.jpg")),
        ("clock_motion.jpg", include_bytes!("samples/clock_motion.jpg")),
        ("coffee.jpg", include_bytes!("samples/coffee.jpg")),
        ("rocket.jpg", include_bytes!("samples/rocket.jpg")),
    ];
    let image = |(name, bytes): (&str, &'static [u8])| Image {
        name: name.to_owned(),
        content_type: "image/jpeg",
        content: Content::InMemory(Bytes::from_static(bytes)),
    };
    SAMPLES.into_iter().map(image).collect()
}

/// Finds the image files directly in `folder`, by signature and not by name. At most `limit` are read.
///
/// # Errors
/// If the folder cannot be read or holds no image.
pub(super) fn folder(folder: &Path, limit: u64) -> anyhow::Result<Folder> {
    let mut images = Vec::new();
    let mut skipped = Vec::new();
    let mut memory_bytes = 0;
    for name in sorted_names(folder)? {
        let path = folder.join(&name);
        let name = name.to_string_lossy().into_owned();
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        match content_type(&path).with_context(|| format!("cannot read {}", path.display()))? {
            None => skipped.push(name),
            Some(_) if images.len() as u64 >= limit => {}
            Some(content_type) => {
                let content = load(path, &mut memory_bytes)?;
                images.push(Image { name, content_type, content });
            }
        }
    }
    if images.is_empty() {
        bail!(
            "no image file in {}: files directly in the folder are sent that are {}; omit --image-folder to send the \
             built-in images",
            folder.display(),
            model::format_names()
        );
    }
    Ok(Folder { images, skipped })
}

fn sorted_names(folder: &Path) -> anyhow::Result<Vec<OsString>> {
    let context = || format!("cannot read the image folder {}", folder.display());
    let mut names = fs::read_dir(folder)
        .with_context(context)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(context)?;
    names.sort_unstable();
    Ok(names)
}

fn content_type(path: &Path) -> std::io::Result<Option<&'static str>> {
    let mut signature = Vec::with_capacity(SIGNATURE_BYTES as usize);
    File::open(path)?.take(SIGNATURE_BYTES).read_to_end(&mut signature)?;
    Ok(model::sniff(&signature))
}

fn load(path: PathBuf, memory_bytes: &mut u64) -> anyhow::Result<Content> {
    if *memory_bytes >= MAX_MEMORY_BYTES {
        return Ok(Content::OnDisk(path));
    }
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    *memory_bytes += bytes.len() as u64;
    Ok(Content::InMemory(bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_folder_are_found_by_signature_and_sorted_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
        write("b.txt", b"\xff\xd8\xff\xe0 a JPEG by another name");
        write("a.png", b"\x89PNG\r\n\x1a\n");
        write("notes.jpg", b"not an image");
        write("empty.jpg", b"");
        write("icon.ico", b"\0\0\x01\0");
        fs::create_dir(directory.path().join("more")).expect("made");
        let found = folder(directory.path(), 100).expect("images");
        let names: Vec<_> = found.images.iter().map(|it| (it.name.as_str(), it.content_type)).collect();
        assert_eq!(names, [("a.png", "image/png"), ("b.txt", "image/jpeg")]);
        assert_eq!(found.skipped, ["empty.jpg", "icon.ico", "notes.jpg"]);
        assert_eq!(folder(directory.path(), 1).expect("images").images.len(), 1);
    }

    #[test]
    fn folder_without_images_is_refused_with_advice() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = folder(directory.path(), 1).expect_err("empty").to_string();
        assert!(error.contains("no image file in") && error.contains("--image-folder"), "{error}");
        let error = folder(&directory.path().join("none"), 1).expect_err("missing").to_string();
        assert!(error.contains("cannot read the image folder"), "{error}");
    }

    #[test]
    fn built_in_images_are_jpeg() {
        for image in samples() {
            let Content::InMemory(bytes) = image.content else { panic!("on disk") };
            assert_eq!(model::sniff(&bytes), Some("image/jpeg"), "{}", image.name);
        }
    }
}
