//! An ONNX file that ultralytics exported. Its metadata names the classes, the image size and the task.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};

use super::literal::{Literal, parse};
use crate::model_command::draft::{Channels, Draft, Filter, Head, Labels, Resize, Size, Sourced};

/// Returns the draft of a file that ultralytics exported, or `None` if another program did.
///
/// # Errors
/// If its network does not classify images, or the metadata is damaged.
pub(in crate::model_command) fn recognise(metadata: &BTreeMap<String, String>) -> anyhow::Result<Option<Draft>> {
    let (Some(task), Some(names)) = (metadata.get("task"), metadata.get("names")) else { return Ok(None) };
    ensure!(
        task == "classify",
        "the metadata says that the task of this ultralytics network is {task:?}, not \"classify\"; export a network whose name \
         ends in -cls"
    );
    let names = class_names(names).context("the names in the metadata are damaged; give --labels FILE")?;
    let mut draft = Draft {
        labels: Some(Sourced::new(Labels::Names(names), "metadata, names")),
        filter: Some(Sourced::new(Filter::Bilinear, "ultralytics resizes with Pillow's bilinear")),
        rescale: Some(Sourced::new(1.0 / 255.0, "ultralytics scales to 0..1")),
        mean: Some(Sourced::new([0.0; 3], "ultralytics subtracts nothing")),
        std: Some(Sourced::new([1.0; 3], "ultralytics divides by nothing")),
        channels: Some(Sourced::new(Channels::Rgb, "ultralytics classifies RGB")),
        activation: Some(Sourced::new(Head::None, "the exported head of ultralytics applies softmax")),
        ..Draft::default()
    };
    if let Some(text) = metadata.get("imgsz") {
        let size = image_size(text).context("imgsz in the metadata is damaged; give --size and --crop")?;
        // `classify_transforms` resizes the shortest edge of square inputs and cuts the centre, and squashes others.
        if size.height == size.width {
            draft.resize = Some(Sourced::new(Resize::ShortestEdge, "ultralytics, square images"));
            draft.crop = Some(Sourced::new(Some(size), "metadata, imgsz"));
        } else {
            draft.resize = Some(Sourced::new(Resize::Squash, "ultralytics, images that are not square"));
            draft.crop = Some(Sourced::new(None, "ultralytics, images that are not square"));
        }
        draft.size = Some(Sourced::new(size, "metadata, imgsz"));
    }
    Ok(Some(draft))
}

fn class_names(text: &str) -> anyhow::Result<Vec<String>> {
    let entries: Vec<(Literal, Literal)> = match parse(text)? {
        Literal::Dict(entries) => entries,
        Literal::List(names) => {
            names.into_iter().enumerate().map(|(index, name)| (Literal::Number(index as f64), name)).collect()
        }
        _ => bail!("they are neither a dict nor a list"),
    };
    let mut names = BTreeMap::new();
    for (index, name) in entries {
        let (Literal::Number(index), Literal::Text(name)) = (index, name) else {
            bail!("an entry is not `index: name`")
        };
        ensure!(index >= 0.0 && index.fract() == 0.0, "{index} is not the index of a class");
        ensure!(names.insert(index as u64, name).is_none(), "class {index} is there twice");
    }
    let count = names.len() as u64;
    ensure!(count > 0 && names.keys().copied().eq(0..count), "the indexes are not 0, 1, 2 …");
    Ok(names.into_values().collect())
}

fn image_size(text: &str) -> anyhow::Result<Size> {
    let side = |literal: &Literal| match literal {
        Literal::Number(side) if (1.0..=16384.0).contains(side) => Ok(*side as u32),
        _ => bail!("it is not a number of pixels"),
    };
    match parse(text)? {
        Literal::List(sides) if sides.len() == 2 => Ok(Size { height: side(&sides[0])?, width: side(&sides[1])? }),
        Literal::List(sides) if sides.len() == 1 => side(&sides[0]).map(Size::square),
        literal => side(&literal).map(Size::square),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn square_images_are_cropped_and_others_squashed() {
        let draft = |size| {
            let entries = metadata(&[("task", "classify"), ("names", "{0: 'a', 1: 'b'}"), ("imgsz", size)]);
            recognise(&entries).unwrap().unwrap()
        };
        let square = draft("[224, 224]");
        assert_eq!(square.resize.unwrap().value, Resize::ShortestEdge);
        assert_eq!(square.crop.unwrap().value, Some(Size::square(224)));
        assert_eq!(square.labels.unwrap().value, Labels::Names(vec!["a".to_owned(), "b".to_owned()]));
        let wide = draft("[224, 320]");
        assert_eq!(wide.resize.unwrap().value, Resize::Squash);
        assert_eq!(wide.size.unwrap().value, Size { height: 224, width: 320 });
    }

    #[test]
    fn other_tasks_and_damaged_metadata_are_refused() {
        assert_eq!(recognise(&metadata(&[("producer", "torch")])).unwrap(), None);
        let error = |entries: &[(&str, &str)]| format!("{:#}", recognise(&metadata(entries)).unwrap_err());
        assert!(error(&[("task", "detect"), ("names", "{}")]).contains("-cls"));
        for names in ["{0: 'a', 2: 'b'}", "{}", "{0: 1}", "{0: 'a', 0: 'b'}", "nonsense", "{0.5: 'a'}"] {
            assert!(error(&[("task", "classify"), ("names", names)]).contains("--labels"), "{names}");
        }
        assert!(error(&[("task", "classify"), ("names", "{0: 'a'}"), ("imgsz", "wide")]).contains("--size"));
    }
}
