//! The detector's file with the classes of its boxes, in MegaDetector's format: one image a line.

use std::io::Write;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::super::config::ClassName;
use super::super::row::Row;
use super::TableWriter;
use super::detections::{Matched, Matching};
use crate::model::{ModelRef, Prediction};
use crate::pile::boxes::{Boxes, DetectorFile};

pub(super) struct MegaDetector<W: Write> {
    matching: Matching,
    out: Lines<W>,
    classes: Vec<ClassName>,
    model: Option<ModelRef>,
}

/// The list of images as far as it is written.
struct Lines<W: Write> {
    out: W,
    is_empty: bool,
}

impl<W: Write> MegaDetector<W> {
    /// # Errors
    /// If the detector's file cannot be read, or the output cannot be written.
    pub(super) fn new(boxes: &Boxes, classes: &[ClassName], mut out: W) -> anyhow::Result<MegaDetector<W>> {
        let matching = Matching::new(boxes)?;
        out.write_all(b"{\n \"images\": [")?;
        Ok(MegaDetector { matching, out: Lines { out, is_empty: true }, classes: classes.to_vec(), model: None })
    }
}

impl<W: Write> TableWriter for MegaDetector<W> {
    fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        if let (Ok(classified), None) = (&row.outcome, &self.model) {
            self.model = Some(classified.model.clone());
        }
        let MegaDetector { matching, out, .. } = self;
        matching.add(row, |image, _| out.write(image))
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        let MegaDetector { matching, out, classes, model } = &mut *self;
        matching.finish(|image, _| out.write(image))?;
        let Lines { out, is_empty } = out;
        out.write_all(if *is_empty { b"]" } else { b"\n ]" })?;
        for (name, value) in head(&matching.detector, classes, model.as_ref()) {
            write!(out, ",\n {}: ", Value::String(name))?;
            serde_json::to_writer(&mut *out, &value)?;
        }
        out.write_all(b"\n}\n")?;
        Ok(out.flush()?)
    }
}

impl<W: Write> Lines<W> {
    fn write(&mut self, matched: Matched) -> anyhow::Result<()> {
        let Matched { mut image, detections, rows, .. } = matched;
        let entries = image.members.get_mut("detections").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
            // They would mean classes of another model.
            entry.remove("classifications");
        }
        for (detection, row) in detections.iter().zip(rows) {
            let Some(Row { outcome: Ok(classified), .. }) = row else { continue };
            let entry = image.members.get_mut("detections").and_then(|entries| entries.get_mut(detection.index));
            let entry = entry.and_then(Value::as_object_mut).context("a box vanished; this is a bug")?;
            let classes = classified.predictions.iter().filter_map(classification);
            entry.insert("classifications".to_owned(), classes.collect());
        }
        self.out.write_all(if self.is_empty { b"\n  " } else { b",\n  " })?;
        self.is_empty = false;
        Ok(serde_json::to_writer(&mut self.out, &Value::Object(image.members))?)
    }
}

/// The id of a class and its score, to five digits after the point.
fn classification(prediction: &Prediction) -> Option<Value> {
    let score = (f64::from(prediction.score?) * 1e5).round() / 1e5;
    Some(json!([prediction.class_index?.to_string(), score]))
}

/// The members after the images: those of the detector's file, with the classes of this model in place of others.
fn head(detector: &DetectorFile, classes: &[ClassName], model: Option<&ModelRef>) -> Map<String, Value> {
    let mut head = detector.head.clone();
    head.remove("classification_category_descriptions");
    let categories = classes.iter().enumerate();
    let categories: Map<_, _> =
        categories.map(|(index, class)| (index.to_string(), Value::String(class.label.clone()))).collect();
    head.insert("classification_categories".to_owned(), Value::Object(categories));
    if let Some(info) = head.entry("info").or_insert_with(|| json!({})).as_object_mut() {
        // Its thresholds were those of another classifier.
        info.remove("classifier_metadata");
        info.remove("classifier");
        if let Some(ModelRef { name, version, .. }) = model {
            info.insert("classifier".to_owned(), Value::String(format!("{name} {version}")));
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        info.insert("classification_completion_time".to_owned(), Value::String(now));
    }
    head
}
