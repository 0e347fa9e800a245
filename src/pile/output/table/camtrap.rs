//! The observations of a Camera Trap Data Package (Camtrap DP 1.0): a row for each box, and one for each image without.
//!
//! The columns are those of <https://camtrap-dp.tdwg.org/data/#observations>, in its order.

use std::io::Write;
use std::path::Path;

use super::super::row::Row;
use super::TableWriter;
use super::detections::{Matched, Matching};
use crate::pile::boxes::{Boxes, Detection, DetectorFile, Observations};
use crate::protocol::ErrorInfo;
use crate::spreadsheet::no_formula;

const COLUMNS: [&str; 28] = [
    "observationID",
    "deploymentID",
    "mediaID",
    "eventID",
    "eventStart",
    "eventEnd",
    "observationLevel",
    "observationType",
    "cameraSetupType",
    "scientificName",
    "count",
    "lifeStage",
    "sex",
    "behavior",
    "individualID",
    "individualPositionRadius",
    "individualPositionAngle",
    "individualSpeed",
    "bboxX",
    "bboxY",
    "bboxWidth",
    "bboxHeight",
    "classificationMethod",
    "classifiedBy",
    "classificationTimestamp",
    "classificationProbability",
    "observationTags",
    "observationComments",
];

pub(super) struct CamtrapDp<W: Write> {
    matching: Matching,
    table: Table<W>,
}

struct Table<W: Write> {
    writer: csv::Writer<W>,
    options: Observations,
    /// The deployment of images that are in no folder.
    root: String,
    /// When the images were classified.
    now: String,
    /// Rows without a time, which the format requires.
    without_time: u64,
}

/// The cells of a row that are not empty.
#[derive(Default)]
struct Observation<'a> {
    id: &'a str,
    time: Option<&'a str>,
    kind: &'static str,
    name: &'a str,
    detection: Option<&'a Detection>,
    by: &'a str,
    probability: Option<f64>,
    comment: &'a str,
}

impl<W: Write> CamtrapDp<W> {
    /// # Errors
    /// If the detector's file cannot be read, or the output cannot be written.
    pub(super) fn new(boxes: &Boxes, options: &Observations, out: W) -> anyhow::Result<CamtrapDp<W>> {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(COLUMNS)?;
        let root = std::path::absolute(&boxes.root)?;
        let root = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let table = Table { writer, options: options.clone(), root, now, without_time: 0 };
        Ok(CamtrapDp { matching: Matching::new(boxes)?, table })
    }
}

impl<W: Write> TableWriter for CamtrapDp<W> {
    fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        let CamtrapDp { matching, table } = self;
        matching.add(row, |image, detector| table.write(&image, detector))
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        let CamtrapDp { matching, table } = &mut *self;
        matching.finish(|image, detector| table.write(&image, detector))?;
        table.writer.flush()?;
        if table.without_time > 0 {
            tracing::warn!(
                rows = table.without_time,
                "observations have no eventStart, which Camtrap DP requires: their images have no time; fill it in"
            );
        }
        Ok(())
    }
}

impl<W: Write> Table<W> {
    fn write(&mut self, matched: &Matched, detector: &DetectorFile) -> anyhow::Result<()> {
        let detector_name = detector.head.get("info").and_then(|info| info.get("detector"));
        let detector_name = detector_name.and_then(|name| name.as_str()).unwrap_or_default();
        let detections = matched.detections.iter().map(Some).chain(std::iter::repeat(None));
        for (row, detection) in matched.rows.iter().zip(detections) {
            let Some(row) = row else { continue };
            let mut observation =
                Observation { id: row.path.as_str(), detection, by: detector_name, ..Observation::default() };
            let (comment, classifier);
            match (&row.outcome, detection) {
                (Err(ErrorInfo { code, message }), _) => {
                    observation.kind = "unclassified";
                    comment = format!("{}: {message}", code.as_str());
                    observation.comment = &comment;
                }
                (Ok(classified), None) => {
                    observation.kind = "blank";
                    observation.time = classified.datetime_original.as_deref();
                }
                (Ok(classified), Some(detection)) => {
                    observation.kind = kind(&detection.category);
                    observation.time = classified.datetime_original.as_deref();
                    observation.probability = Some(detection.confidence);
                    let best = classified.predictions.first();
                    if let ("animal" | "unknown", Some(best)) = (observation.kind, best) {
                        observation.name = &best.label;
                        classifier = format!("{} {}", classified.model.name, classified.model.version);
                        observation.by = &classifier;
                        observation.probability = best.score.map(f64::from);
                    }
                }
            }
            self.write_row(&matched.image.file, &observation)?;
        }
        Ok(())
    }

    fn write_row(&mut self, file: &str, observation: &Observation) -> anyhow::Result<()> {
        let &Observation { id, time, kind, name, detection, by, probability, comment } = observation;
        let time = time.map(|time| self.with_offset(time)).unwrap_or_default();
        self.without_time += u64::from(time.is_empty());
        let number = |number: f64| ((number * 1e5).round() / 1e5).to_string();
        let region = detection.map(|detection| detection.region);
        let deployment = self.deployment(file);
        for column in COLUMNS {
            let cell = match column {
                "observationID" => no_formula(id),
                "deploymentID" => no_formula(&deployment),
                "mediaID" => no_formula(file),
                "eventStart" | "eventEnd" => no_formula(&time),
                "observationLevel" => "media".into(),
                "observationType" => kind.into(),
                "scientificName" => no_formula(name),
                "count" if region.is_some() => "1".into(),
                "bboxX" => region.map_or_else(String::new, |region| number(region.x)).into(),
                "bboxY" => region.map_or_else(String::new, |region| number(region.y)).into(),
                "bboxWidth" => region.map_or_else(String::new, |region| number(region.width)).into(),
                "bboxHeight" => region.map_or_else(String::new, |region| number(region.height)).into(),
                "classificationMethod" => "machine".into(),
                "classifiedBy" => no_formula(by),
                "classificationTimestamp" => (&self.now[..]).into(),
                "classificationProbability" => probability.map(number).unwrap_or_default().into(),
                "observationComments" => no_formula(comment),
                _ => "".into(),
            };
            self.writer.write_field(cell.as_bytes())?;
        }
        Ok(self.writer.write_record(None::<&[u8]>)?)
    }

    /// The time with an offset from UTC, which cameras seldom store.
    fn with_offset(&self, time: &str) -> String {
        const WITHOUT_OFFSET: usize = "2024-05-01T12:34:56".len();
        let offset = if time.len() > WITHOUT_OFFSET { "" } else { &self.options.utc_offset };
        format!("{time}{offset}")
    }

    /// The deployment of an image: that of all images, or its folder.
    fn deployment(&self, file: &str) -> String {
        if let Some(deployment) = &self.options.deployment {
            return deployment.clone();
        }
        let file = file.replace('\\', "/");
        match Path::new(&file).parent().map(Path::to_string_lossy) {
            Some(folder) if !folder.is_empty() => folder.into_owned(),
            _ => self.root.clone(),
        }
    }
}

/// The type of an observation for a category of a detector.
fn kind(category: &str) -> &'static str {
    match category.to_ascii_lowercase().as_str() {
        "animal" => "animal",
        "person" | "human" => "human",
        "vehicle" => "vehicle",
        _ => "unknown",
    }
}
