//! A detector's file in MegaDetector's format (<https://lila.science/megadetector-output-format>).
//!
//! The list of images may be long, so it is never in memory: the file is read once for its other members, and then image
//! by image. Members that are not named here are kept as they are.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::Selection;
use crate::model::Region;

/// The entry of one image is never longer. One with a thousand boxes has less than a tenth of this.
const MAX_IMAGE_BYTES: u64 = 4 << 20;

/// The file without its images.
pub(crate) struct DetectorFile {
    path: PathBuf,
    /// All members but the images.
    pub head: Map<String, Value>,
    /// The offset of the first byte after the bracket that opens the list of images.
    images_at: u64,
}

/// The images of the file, in order.
pub(crate) struct Images {
    path: PathBuf,
    reader: BufReader<File>,
    /// The number of images that were read.
    read: u64,
    has_ended: bool,
}

/// The entry of an image.
#[derive(Debug, Clone)]
pub(crate) struct DetectedImage {
    /// All members of the entry.
    pub members: Map<String, Value>,
    /// The path of the image.
    pub file: String,
}

/// A box of an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Detection {
    /// The place among the detections of the image.
    pub index: usize,
    /// The name of the category.
    pub category: String,
    pub confidence: f64,
    pub region: Region,
}

impl DetectorFile {
    /// Reads the file once.
    ///
    /// # Errors
    /// If it cannot be read, or is not in the format.
    pub(crate) fn open(path: &Path) -> anyhow::Result<DetectorFile> {
        let cannot_read = || format!("cannot read the boxes in {}", path.display());
        let file = File::open(path).with_context(cannot_read)?;
        let position = Cell::new(0);
        let reader = Counted { reader: BufReader::new(file), position: &position };
        let mut deserializer = serde_json::Deserializer::from_reader(reader);
        let (head, images_at) =
            Head { position: &position }.deserialize(&mut deserializer).with_context(cannot_read)?;
        deserializer.end().with_context(cannot_read)?;
        let images_at = images_at.with_context(|| format!("{} has no list of images", path.display()));
        let images_at = images_at.context("give --boxes a file in MegaDetector's format")?;
        ensure!(
            head.get("detection_categories").is_some_and(Value::is_object),
            "{} has no detection_categories: give --boxes a file in MegaDetector's format",
            path.display()
        );
        Ok(DetectorFile { path: path.to_owned(), head, images_at })
    }

    /// Reads the images.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) fn images(&self) -> anyhow::Result<Images> {
        let cannot_read = || format!("cannot read the boxes in {}", self.path.display());
        let mut file = File::open(&self.path).with_context(cannot_read)?;
        file.seek(SeekFrom::Start(self.images_at)).with_context(cannot_read)?;
        Ok(Images { path: self.path.clone(), reader: BufReader::new(file), read: 0, has_ended: false })
    }

    /// The boxes of an image that are classified. A box whose category the file does not name counts as none.
    pub(crate) fn selected(&self, image: &DetectedImage, selection: &Selection) -> Vec<Detection> {
        let Selection { min_confidence, categories } = selection;
        let detections = image.members.get("detections").and_then(Value::as_array).into_iter().flatten();
        let detection = |(index, detection): (usize, &Value)| {
            let id = detection.get("category")?.as_str()?;
            let category = self.head.get("detection_categories")?.get(id)?.as_str()?;
            let confidence = detection.get("conf")?.as_f64()?;
            let is_chosen = categories.is_empty() || categories.iter().any(|chosen| chosen == id || chosen == category);
            let numbers = detection.get("bbox")?.as_array()?;
            let [x, y, width, height] = numbers.iter().filter_map(Value::as_f64).collect::<Vec<_>>().try_into().ok()?;
            let region = Region { x, y, width, height };
            let found = Detection { index, category: category.to_owned(), confidence, region };
            (is_chosen && confidence >= *min_confidence).then_some(found)
        };
        if image.is_classified() { detections.enumerate().filter_map(detection).collect() } else { Vec::new() }
    }
}

impl DetectedImage {
    /// Returns true if the detector could read the image, and it is no video.
    pub(crate) fn is_classified(&self) -> bool {
        let is_missing = |name| self.members.get(name).is_none_or(Value::is_null);
        is_missing("failure") && is_missing("frame_rate")
    }

    /// The path of the image below `root`. Files that were made on Windows may have backslashes.
    pub(crate) fn path_below(&self, root: &Path) -> PathBuf {
        let path = root.join(&self.file);
        if self.file.contains('\\') && !path.exists() { root.join(self.file.replace('\\', "/")) } else { path }
    }
}

impl Images {
    fn read(&mut self) -> anyhow::Result<Option<DetectedImage>> {
        if self.has_ended {
            return Ok(None);
        }
        let mut byte = [0];
        loop {
            self.reader.read_exact(&mut byte)?;
            match byte[0] {
                b']' => {
                    self.has_ended = true;
                    return Ok(None);
                }
                b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => break,
            }
        }
        self.read += 1;
        // An object ends with its bracket, so that no byte after it is read.
        let reader = byte.as_slice().chain(&mut self.reader).take(MAX_IMAGE_BYTES);
        let mut deserializer = serde_json::Deserializer::from_reader(reader);
        let members = Map::deserialize(&mut deserializer)
            .with_context(|| format!("the image is not an object of at most {MAX_IMAGE_BYTES} bytes"))?;
        let Some(file) = members.get("file").and_then(Value::as_str) else { bail!("the image has no file") };
        let file = file.to_owned();
        Ok(Some(DetectedImage { members, file }))
    }
}

impl Iterator for Images {
    type Item = anyhow::Result<DetectedImage>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        let located = read.with_context(|| format!("cannot read image {} of {}", self.read, self.path.display()));
        if located.is_err() {
            self.has_ended = true;
        }
        located.transpose()
    }
}

/// The digest of a file in hexadecimal, which recognises it when a run is continued.
///
/// # Errors
/// If it cannot be read.
pub(super) fn digest(path: &Path) -> anyhow::Result<String> {
    let cannot_read = || format!("cannot read the boxes in {}", path.display());
    let mut file = File::open(path).with_context(cannot_read)?;
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut digest).with_context(cannot_read)?;
    Ok(crate::model::hex(&digest.finalize()))
}

/// A reader that counts the bytes which were read.
struct Counted<'a, R> {
    reader: R,
    position: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.position.set(self.position.get() + read as u64);
        Ok(read)
    }
}

/// Reads the members of the file but its images, whose offset it notes.
struct Head<'a> {
    position: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Head<'_> {
    type Value = (Map<String, Value>, Option<u64>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Head<'_> {
    type Value = (Map<String, Value>, Option<u64>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object in MegaDetector's format")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut head, mut images_at) = (Map::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            if name == "images" {
                images_at = Some(map.next_value_seed(Skipped { position: self.position })?);
            } else {
                head.insert(name, map.next_value()?);
            }
        }
        Ok((head, images_at))
    }
}

/// Skips the images, and returns the offset of the first one.
struct Skipped<'a> {
    position: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Skipped<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Skipped<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of images")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<u64, A::Error> {
        // The parser reads byte by byte, and has read the bracket that opens the list.
        let images_at = self.position.get();
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(images_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(text: &str) -> anyhow::Result<(DetectorFile, Vec<DetectedImage>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        std::fs::write(&path, text).unwrap();
        let file = DetectorFile::open(&path)?;
        let images = file.images()?.collect::<anyhow::Result<Vec<_>>>()?;
        Ok((file, images))
    }

    #[test]
    fn images_are_found_wherever_the_list_is() {
        let images = r#"[ {"file":"a.jpg","detections":[]} ,
            {"file":"b]}.jpg","x":{"y":[1,{}]},"detections":null,"failure":"Failure image access"}, {"file":"c.jpg"}]"#;
        let categories = r#""detection_categories": {"1": "animal"}"#;
        for text in [
            format!("{{ \"images\" : {images}, {categories} }}"),
            format!("{{{categories}, \"images\":{images}}}\n"),
            format!("{{{categories}, \"images\":\n\t{images}, \"info\": {{\"detector\": \"x\"}}}}"),
        ] {
            let (_, found) = opened(&text).unwrap();
            assert_eq!(found.iter().map(|image| &image.file[..]).collect::<Vec<_>>(), ["a.jpg", "b]}.jpg", "c.jpg"]);
            assert!(found[0].is_classified() && !found[1].is_classified());
        }
        assert_eq!(opened(&format!("{{{categories}, \"images\": []}}")).unwrap().1.len(), 0);
    }

    #[test]
    fn files_of_another_format_are_refused() {
        let categories = r#""detection_categories": {"1": "animal"}"#;
        for (text, named) in [
            ("[]", "MegaDetector's format"),
            (r#"{"images": []}"#, "no detection_categories"),
            (&format!("{{{categories}}}"), "MegaDetector's format"),
            (&format!("{{{categories}, \"images\": {{}}}}"), "a list of images"),
            (&format!("{{{categories}, \"images\": [{{}}]}}"), "the image has no file"),
            (&format!("{{{categories}, \"images\": [3]}}"), "image 1 of"),
            (&format!("{{{categories}, \"images\": [{{\"file\": \"a"), "cannot read the boxes"),
        ] {
            let error = opened(text).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn boxes_are_selected_by_confidence_and_category() {
        let text = r#"{"detection_categories": {"1": "animal", "2": "person"}, "images": [{"file": "a.jpg", "detections": [
            {"category": "1", "conf": 0.9, "bbox": [0.1, 0.2, 0.3, 0.4]},
            {"category": "1", "conf": 0.1, "bbox": [0, 0, 1, 1]},
            {"category": "2", "conf": 0.5, "bbox": [0, 0, 1, 1]},
            {"category": "7", "conf": 0.9, "bbox": [0, 0, 1, 1]},
            {"category": "1", "conf": 0.9, "bbox": [0, 0, 1]}]}]}"#;
        let (file, images) = opened(text).unwrap();
        let selected = |min_confidence, categories: &[&str]| {
            let categories = categories.iter().map(|name| (*name).to_owned()).collect();
            let selected = file.selected(&images[0], &Selection { min_confidence, categories });
            selected.iter().map(|detection| detection.index).collect::<Vec<_>>()
        };
        assert_eq!(selected(0.2, &[]), [0, 2]);
        assert_eq!(selected(0.1, &["animal"]), [0, 1]);
        assert_eq!(selected(0.0, &["2"]), [2]);
    }
}
