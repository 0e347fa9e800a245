//! `model.toml` of a model that is added. Each value has its source as a comment.

use std::fmt::Write as _;

use super::complete::Complete;
use super::draft::{Resize, Size, Sourced};

/// The files of a package.
pub(super) struct Files {
    /// `fp32`, `fp16` or `int8`.
    pub variant: &'static str,
    pub model: File,
    pub external: Vec<File>,
    pub labels: File,
}

/// A file of a package and its digest.
pub(super) struct File {
    pub path: String,
    pub sha256: String,
}

/// Facts about the addition, which do not change the version.
pub(super) struct Provenance {
    pub source: String,
    pub producer: String,
    /// Memory that a session took here, in bytes, if it was measured.
    pub memory_bytes: Option<u64>,
}

/// The text of `model.toml`.
pub(super) fn render(name: &str, version: &str, model: &Complete, files: &Files, provenance: &Provenance) -> String {
    let mut text =
        Text(String::from("# Written by `imgcls model add`. The comments say where each value came from.\n"));
    text.pair("name", &quoted(name), "");
    text.pair("version", &quoted(version), "the beginning of a digest over the content");
    text.pair("task", "\"image-classification\"", "");
    text.pair("labels", &quoted(&files.labels.path), &model.labels.source);
    text.output(model);
    text.files(files);
    text.input(model);
    text.table("provenance");
    text.pair("source", &quoted(&provenance.source), "");
    text.pair("producer", &quoted(&provenance.producer), "");
    if let Some(bytes) = provenance.memory_bytes {
        text.table("measured");
        text.pair("memory_bytes", &bytes.to_string(), "of one session, when the model was added");
    }
    text.0
}

struct Text(String);

impl Text {
    fn output(&mut self, model: &Complete) {
        self.table("output");
        if model.head.is_none() {
            self.pair("activation", "\"none\"", "until the outputs for an image were seen");
        }
        if let Some(head) = &model.head {
            self.pair("activation", &quoted(head.value.activation()), &head.source);
            if head.value.is_multi_label() {
                self.pair("multi_label", "true", &head.source);
            }
        }
        if let Some(name) = &model.output_name {
            self.pair("name", &quoted(name), "");
        }
        let is_multi_label = model.head.as_ref().is_some_and(|head| head.value.is_multi_label());
        if let Some(threshold) = model.threshold.as_ref().filter(|_| is_multi_label) {
            self.sourced("threshold", threshold, |threshold| number(*threshold));
        }
    }

    fn files(&mut self, files: &Files) {
        self.table(&format!("files.{}", files.variant));
        self.pair("path", &quoted(&files.model.path), "");
        self.pair("sha256", &quoted(&files.model.sha256), "");
        if !files.external.is_empty() {
            let entry = |file: &File| format!("{{ path = {}, sha256 = {} }}", quoted(&file.path), quoted(&file.sha256));
            let entries: Vec<String> = files.external.iter().map(entry).collect();
            self.pair("external", &format!("[{}]", entries.join(", ")), "");
        }
        self.table("labels_file");
        self.pair("sha256", &quoted(&files.labels.sha256), "");
    }

    fn input(&mut self, model: &Complete) {
        self.table("input");
        self.pair("name", &quoted(&model.input_name), "");
        self.pair("type", &quoted(model.element.as_str()), "the type of the input");
        self.sourced("layout", &model.layout, |layout| quoted(layout.as_str()));
        self.sourced("channels", &model.channels, |channels| quoted(channels.as_str()));
        self.sourced("resize", &model.resize, |resize| quoted(resize.as_str()));
        if let Some(size) = &model.size {
            let is_edge = model.resize.value == Resize::ShortestEdge;
            self.sourced("size", size, |size| if is_edge { size.shortest().to_string() } else { pixels(*size) });
        }
        if let Some(filter) = &model.filter {
            self.sourced("filter", filter, |filter| quoted(filter.as_str()));
        }
        if let Some(crop) = &model.crop {
            self.sourced("crop", crop, |crop| pixels(*crop));
        }
        if let Some(fill) = &model.fill {
            self.sourced("fill", fill, |fill| format!("{fill:?}"));
        }
        if let Some(position) = &model.position {
            self.sourced("position", position, |position| quoted(position.as_str()));
        }
        if let Some(rounding) = &model.rounding {
            self.sourced("rounding", rounding, |rounding| quoted(rounding.as_str()));
        }
        if let Some(normalisation) = &model.normalisation {
            let three = |numbers: &[f64; 3]| format!("[{}]", numbers.map(number).join(", "));
            self.sourced("rescale", &normalisation.rescale, |rescale| number(*rescale));
            self.sourced("mean", &normalisation.mean, three);
            self.sourced("std", &normalisation.std, three);
        }
    }

    fn table(&mut self, name: &str) {
        let _ = writeln!(self.0, "\n[{name}]");
    }

    fn sourced<T>(&mut self, key: &str, value: &Sourced<T>, text: impl Fn(&T) -> String) {
        self.pair(key, &text(&value.value), &value.source);
    }

    fn pair(&mut self, key: &str, value: &str, source: &str) {
        // A comment ends with its line.
        let source = source.replace(|character: char| character.is_control(), " ");
        let comment = if source.is_empty() { String::new() } else { format!("   # {source}") };
        let _ = writeln!(self.0, "{key} = {value}{comment}");
    }
}

fn pixels(size: Size) -> String {
    if size.height == size.width { size.height.to_string() } else { format!("[{}, {}]", size.height, size.width) }
}

/// A number that TOML reads as a float.
fn number(number: f64) -> String {
    toml::Value::Float(number).to_string()
}

/// A string of TOML with its escapes.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
