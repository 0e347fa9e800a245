//! A file with the classes beside each image.
//!
//! Each says in its beginning that imgcls wrote it. A file of that name which does not is left alone.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::{ClassName, SidecarFormat, appended};
use super::files::{publish_new, sync_file_system, temporary_beside};
use super::row::Classified;
use super::table::class_id;
use crate::model::Prediction;

const GENERATOR: &str = concat!("imgcls ", env!("CARGO_PKG_VERSION"));
/// The beginning of each file, up to the version.
const JSON_MARK: &str = "{\n  \"generator\": \"imgcls ";
const TEXT_MARK: &str = "# imgcls ";
const XMP_MARK: &str = "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
    <x:xmpmeta xmlns:x=\"adobe:ns:meta/\" x:xmptk=\"imgcls ";

/// The outcome of writing a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It has the classes of the image.
    Done,
    /// A file that imgcls did not write has its name.
    NotOurs,
}

pub(super) struct Sidecars {
    format: SidecarFormat,
    classes: Vec<ClassName>,
    /// The file systems that have new files, each with one of its folders.
    unsynced: HashMap<u64, PathBuf>,
}

impl Sidecars {
    pub(super) fn new(format: SidecarFormat, classes: Vec<ClassName>) -> Sidecars {
        Sidecars { format, classes, unsynced: HashMap::new() }
    }

    /// Writes the file of an image.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&mut self, image: &Path, classified: &Classified) -> io::Result<Written> {
        let (extension, mark) = match self.format {
            SidecarFormat::Json => (".json", JSON_MARK),
            SidecarFormat::Text => (".txt", TEXT_MARK),
            SidecarFormat::Xmp => (".xmp", XMP_MARK),
        };
        let path = appended(image, extension);
        let is_ours = match beginning(&path, mark.len()) {
            Ok(begin) if begin == mark.as_bytes() => true,
            Ok(_) => return Ok(Written::NotOurs),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let text = match self.format {
            SidecarFormat::Json => json(classified, &self.classes),
            SidecarFormat::Text => text(classified),
            SidecarFormat::Xmp => xmp(classified),
        };
        if is_ours && std::fs::read(&path)? == text.as_bytes() {
            return Ok(Written::Done);
        }
        let temporary = temporary_beside(&path);
        std::fs::write(&temporary, text)?;
        let folder = image.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        self.unsynced.entry(folder.metadata()?.dev()).or_insert_with(|| folder.to_owned());
        let published = if is_ours { std::fs::rename(&temporary, &path) } else { publish_new(&temporary, &path) };
        match published {
            Ok(()) => Ok(Written::Done),
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                if error.kind() == ErrorKind::AlreadyExists { Ok(Written::NotOurs) } else { Err(error) }
            }
        }
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// If a disk fails.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        for (_, folder) in self.unsynced.drain() {
            sync_file_system(&File::open(folder)?)?;
        }
        Ok(())
    }
}

/// The first bytes of a file, all of them if it is shorter. A link is not followed and counts as an empty file.
fn beginning(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(bytes);
    if path.symlink_metadata()?.is_file() {
        File::open(path)?.take(bytes as u64).read_to_end(&mut begin)?;
    }
    Ok(begin)
}

#[derive(Serialize)]
struct Json<'a> {
    generator: &'static str,
    predictions: Vec<JsonClass<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<JsonClass<'a>>,
    width: u32,
    height: u32,
    datetime_original: Option<&'a str>,
    model: &'a str,
    model_version: &'a str,
}

/// A class in JSON.
#[derive(Serialize)]
pub(super) struct JsonClass<'a> {
    class_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class_id: Option<&'a str>,
    label: &'a str,
    score: Option<f32>,
}

fn json(classified: &Classified, classes: &[ClassName]) -> String {
    let json = Json {
        generator: GENERATOR,
        predictions: classified.predictions.iter().map(|found| json_class(found, classes)).collect(),
        labels: classified.labels.iter().map(|found| json_class(found, classes)).collect(),
        width: classified.width,
        height: classified.height,
        datetime_original: classified.datetime_original.as_deref(),
        model: &classified.model.name,
        model_version: &classified.model.version,
    };
    let mut text = serde_json::to_string_pretty(&json).expect("strings and numbers serialise; this is a bug");
    text.push('\n');
    text
}

pub(super) fn json_class<'a>(found: &'a Prediction, classes: &'a [ClassName]) -> JsonClass<'a> {
    JsonClass {
        class_index: found.class_index,
        class_id: class_id(found, classes),
        label: &found.label,
        score: found.score,
    }
}

fn text(classified: &Classified) -> String {
    let model = &classified.model;
    let mut text = format!("# {GENERATOR}, model {} {}\n", model.name, model.version);
    for found in &classified.predictions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:.6}\t{}", found.score.unwrap_or_default(), found.label);
    }
    text
}

/// The keywords (`dc:subject`) are the labels at or above their thresholds, and without such labels the best class.
fn xmp(classified: &Classified) -> String {
    let keywords = match &classified.labels[..] {
        [] => classified.predictions.get(..1).unwrap_or_default(),
        labels => labels,
    };
    let keyword = |found: &Prediction| format!("     <rdf:li>{}</rdf:li>\n", escaped(&found.label));
    let prediction = |found: &Prediction| {
        let score = found.score.unwrap_or_default();
        let label = escaped(&found.label);
        format!("     <rdf:li imgcls:label=\"{label}\" imgcls:score=\"{score}\"/>\n")
    };
    format!(
        "{XMP_MARK}{version}\">\n \
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n  \
         <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
         xmlns:imgcls=\"urn:imgcls:xmp:1:\"\n   \
         imgcls:model=\"{model}\" imgcls:model_version=\"{model_version}\">\n   \
         <dc:subject>\n    <rdf:Bag>\n{keywords}    </rdf:Bag>\n   </dc:subject>\n   \
         <imgcls:predictions>\n    <rdf:Seq>\n{predictions}    </rdf:Seq>\n   </imgcls:predictions>\n  \
         </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end=\"w\"?>\n",
        version = env!("CARGO_PKG_VERSION"),
        model = escaped(&classified.model.name),
        model_version = escaped(&classified.model.version),
        keywords = keywords.iter().map(keyword).collect::<String>(),
        predictions = classified.predictions.iter().map(prediction).collect::<String>(),
    )
}

/// The text for XML. Characters that XML cannot contain become `?`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::classified;
    use super::*;

    #[test]
    fn only_files_of_imgcls_are_replaced() {
        for (format, extension) in
            [(SidecarFormat::Json, "json"), (SidecarFormat::Text, "txt"), (SidecarFormat::Xmp, "xmp")]
        {
            let folder = tempfile::tempdir().unwrap();
            let image = folder.path().join("x.jpg");
            let path = folder.path().join(format!("x.jpg.{extension}"));
            let mut sidecars = Sidecars::new(format, Vec::new());
            assert_eq!(sidecars.write(&image, &classified(&["cat"])).unwrap(), Written::Done);
            assert_eq!(sidecars.write(&image, &classified(&["dog <&> \"cat\"", "cow"])).unwrap(), Written::Done);
            sidecars.sync().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains("dog") && text.contains("cow") && text.contains("tiny"), "{text}");
            for content in ["", "{}", "# imgcl", "of a person"] {
                std::fs::write(&path, content).unwrap();
                assert_eq!(sidecars.write(&image, &classified(&["cat"])).unwrap(), Written::NotOurs);
                assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            }
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("elsewhere", &path).unwrap();
            assert_eq!(sidecars.write(&image, &classified(&["cat"])).unwrap(), Written::NotOurs);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn sidecars_are_valid_json_and_xml() {
        let odd = classified(&["dog <&> \"cat\"\u{1}", "ä"]);
        let value: serde_json::Value = serde_json::from_str(&json(&odd, &[])).unwrap();
        assert_eq!(value["predictions"][0]["label"], "dog <&> \"cat\"\u{1}");
        let xmp = xmp(&odd);
        let document = roxmltree::Document::parse(&xmp).unwrap();
        let keywords: Vec<&str> =
            document.descendants().filter(|node| node.has_tag_name("li")).filter_map(|node| node.text()).collect();
        assert_eq!(keywords, ["dog <&> \"cat\"?"]);
        assert!(
            json(&odd, &[]).starts_with(JSON_MARK) && xmp.starts_with(XMP_MARK) && text(&odd).starts_with(TEXT_MARK)
        );
    }
}
