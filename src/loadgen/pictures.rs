//! What is sent: the image files of a folder, or the pictures that the binary carries.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use image::ImageFormat;

/// Pictures are held in memory up to this much together; the rest is read when its turn comes.
const HELD_BYTES: u64 = 512 << 20;
/// Enough to tell every type.
const SIGNATURE_BYTES: u64 = 16;

#[derive(Debug, Clone)]
pub struct Picture {
    /// The file's base name as it is, for the request; it may hold anything.
    pub name: String,
    pub content_type: &'static str,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub enum Content {
    Held(Bytes),
    OnDisk(PathBuf),
}

/// The pictures of a folder, and what was passed over.
#[derive(Debug)]
pub struct Folder {
    /// Sorted by name.
    pub pictures: Vec<Picture>,
    /// Names of files that are not images.
    pub skipped: Vec<String>,
}

/// Photographs under free licences; where they come from: `samples/SOURCES.md`.
pub fn samples() -> Vec<Picture> {
    const SAMPLES: [(&str, &[u8]); 6] = [
        ("astronaut.jpg", include_bytes!("samples/astronaut.jpg")),
        ("camera.jpg", include_bytes!("samples/camera.jpg")),
        ("chelsea.jpg", include_bytes!("samples/chelsea.jpg")),
        ("clock_motion.jpg", include_bytes!("samples/clock_motion.jpg")),
        ("coffee.jpg", include_bytes!("samples/coffee.jpg")),
        ("rocket.jpg", include_bytes!("samples/rocket.jpg")),
    ];
    let picture = |(name, bytes): (&str, &'static [u8])| Picture {
        name: name.to_owned(),
        content_type: "image/jpeg",
        content: Content::Held(Bytes::from_static(bytes)),
    };
    SAMPLES.into_iter().map(picture).collect()
}

/// The image files directly in `folder`, told by signature, not by name. At most `limit`: what is never sent need not
/// be read.
///
/// # Errors
/// Where the folder cannot be read or holds no image.
pub fn folder(folder: &Path, limit: u64) -> anyhow::Result<Folder> {
    let mut pictures = Vec::new();
    let mut skipped = Vec::new();
    let mut held_bytes = 0;
    for name in sorted_names(folder)? {
        let path = folder.join(&name);
        let name = name.to_string_lossy().into_owned();
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        match content_type(&path).with_context(|| format!("cannot read {}", path.display()))? {
            None => skipped.push(name),
            Some(_) if pictures.len() as u64 >= limit => {}
            Some(content_type) => {
                let content = hold(path, &mut held_bytes)?;
                pictures.push(Picture { name, content_type, content });
            }
        }
    }
    if pictures.is_empty() {
        bail!(
            "no image file in {}: JPEG, PNG, GIF, BMP, TIFF or WebP files directly in the folder are sent; leave \
             --image-folder out to send the pictures that imgcls carries",
            folder.display()
        );
    }
    Ok(Folder { pictures, skipped })
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
    Ok(image::guess_format(&signature).ok().filter(|format| is_classified(*format)).map(|it| it.to_mime_type()))
}

fn is_classified(format: ImageFormat) -> bool {
    matches!(
        format,
        ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::Gif
            | ImageFormat::Bmp
            | ImageFormat::Tiff
            | ImageFormat::WebP
    )
}

fn hold(path: PathBuf, held_bytes: &mut u64) -> anyhow::Result<Content> {
    if *held_bytes >= HELD_BYTES {
        return Ok(Content::OnDisk(path));
    }
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    *held_bytes += bytes.len() as u64;
    Ok(Content::Held(bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_images_by_signature_in_order_of_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
        write("b.txt", b"\xff\xd8\xff\xe0 a JPEG by another name");
        write("a.png", b"\x89PNG\r\n\x1a\n");
        write("notes.jpg", b"not an image");
        write("empty.jpg", b"");
        write("icon.ico", b"\0\0\x01\0");
        fs::create_dir(directory.path().join("more")).expect("made");
        let found = folder(directory.path(), 100).expect("images");
        let names: Vec<_> = found.pictures.iter().map(|it| (it.name.as_str(), it.content_type)).collect();
        assert_eq!(names, [("a.png", "image/png"), ("b.txt", "image/jpeg")]);
        assert_eq!(found.skipped, ["empty.jpg", "icon.ico", "notes.jpg"]);
        assert_eq!(folder(directory.path(), 1).expect("images").pictures.len(), 1);
    }

    #[test]
    fn a_folder_without_images_says_what_is_wanted() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = folder(directory.path(), 1).expect_err("empty").to_string();
        assert!(error.contains("no image file in") && error.contains("--image-folder"), "{error}");
        let error = folder(&directory.path().join("none"), 1).expect_err("missing").to_string();
        assert!(error.contains("cannot read the image folder"), "{error}");
    }

    #[test]
    fn the_carried_pictures_are_images() {
        for picture in samples() {
            let Content::Held(bytes) = picture.content else { panic!("on disk") };
            assert_eq!(image::guess_format(&bytes).ok(), Some(ImageFormat::Jpeg), "{}", picture.name);
        }
    }
}
