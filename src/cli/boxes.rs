//! Boxes that are classified instead of whole images.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::usage::usage;
use crate::model::RegionCrop;
use crate::pile::output::{OutFile, TableFormat};
use crate::pile::{Boxes, Observations, Selection};

#[derive(Debug, Args)]
pub struct BoxArgs {
    /// Classify the boxes in this file, which a detector wrote in MegaDetector's JSON format, instead of whole images.
    /// PATH is the folder that the paths in it are relative to [default: the folder of FILE]. --out FILE.json is the same
    /// file with the classes of the boxes; a table has a row for each box, whose path is IMAGE#N for the Nth detection
    /// of the image from 0
    #[arg(
        long,
        env = "IMGCLS_BOXES",
        value_name = "FILE",
        requires = "out",
        conflicts_with_all = ["files_from", "include", "exclude", "json", "sidecar", "through"]
    )]
    pub boxes: Option<PathBuf>,
    /// Leave out boxes of which the detector is less sure
    #[arg(long, env = "IMGCLS_MIN_CONFIDENCE", default_value_t = 0.2, value_name = "0..1", value_parser = share)]
    pub min_confidence: f64,
    /// Classify only boxes of this category of the detector, such as animal; may be repeated [default: all]
    #[arg(long, env = "IMGCLS_BOX_CATEGORY", value_name = "NAME")]
    pub box_category: Vec<String>,
    /// The part of the image that the model gets of a box
    #[arg(long, env = "IMGCLS_BOX_SHAPE", value_enum, default_value_t = BoxShape::Square)]
    pub box_shape: BoxShape,
    /// The margin around a box at each side, in percent of its longer side. With the default, models that see the
    /// inner 7/8 of an image see all of a square box
    #[arg(long, env = "IMGCLS_BOX_PADDING", default_value = "10%", value_name = "P%", value_parser = padding)]
    pub box_padding: f64,
    /// The columns of a table of boxes [default: table]
    #[arg(long, env = "IMGCLS_FORMAT", value_enum, requires = "boxes")]
    pub format: Option<BoxTable>,
    /// The deploymentID of all images in a table of Camtrap DP [default: the folder of each image]
    #[arg(long, env = "IMGCLS_DEPLOYMENT", value_name = "ID", requires = "boxes")]
    pub deployment: Option<String>,
    /// The offset from UTC of cameras that did not store theirs, for a table of Camtrap DP: Z, or such as +02:00
    #[arg(long, env = "IMGCLS_UTC_OFFSET", default_value = "Z", value_parser = utc_offset, allow_hyphen_values = true)]
    pub utc_offset: String,
}

/// The part of the image around a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BoxShape {
    /// A square around the box, as far as the image reaches
    Square,
    /// The box itself
    Exact,
}

/// The columns of a table of boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BoxTable {
    /// The columns of every other table
    Table,
    /// The observations of a Camera Trap Data Package, as CSV
    CamtrapDp,
}

impl BoxArgs {
    /// The boxes, if there are any. `paths` are those of the command.
    ///
    /// # Errors
    /// A [`super::UsageError`] if there are several paths, or the output has no such format.
    pub(super) fn config(&self, paths: &[PathBuf], out: Option<&OutFile>) -> anyhow::Result<Option<Boxes>> {
        let format = out.map(|out| out.format);
        let Some(file) = &self.boxes else {
            let needs_boxes = format == Some(TableFormat::MegaDetector);
            return if needs_boxes { Err(usage("classify", "--out FILE.json needs --boxes")) } else { Ok(None) };
        };
        let is_camtrap = self.format == Some(BoxTable::CamtrapDp);
        if is_camtrap && format != Some(TableFormat::Csv) {
            return Err(usage("classify", "--format camtrap-dp needs --out FILE.csv"));
        }
        let root = match paths {
            [] => file.parent().unwrap_or(Path::new("")).to_owned(),
            [root] => root.clone(),
            _ => return Err(usage("classify", "with --boxes give one PATH: the folder of its images")),
        };
        let observations = Observations { deployment: self.deployment.clone(), utc_offset: self.utc_offset.clone() };
        let crop = RegionCrop { is_square: self.box_shape == BoxShape::Square, padding: self.box_padding };
        Ok(Some(Boxes {
            file: file.clone(),
            root,
            selection: Selection { min_confidence: self.min_confidence, categories: self.box_category.clone() },
            crop,
            observations: is_camtrap.then_some(observations),
        }))
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number from 0 to 1".to_owned()),
    }
}

fn padding(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("give a percentage such as 10%".to_owned()),
    }
}

fn utc_offset(text: &str) -> Result<String, String> {
    let is_offset = match text.as_bytes() {
        b"Z" => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|digit| digit.is_ascii_digit()),
        _ => false,
    };
    if is_offset { Ok(text.to_owned()) } else { Err("give Z, or an offset such as +02:00".to_owned()) }
}
