//! A folder that transformers or optimum saved: `config.json` names the classes, `preprocessor_config.json` describes the
//! preprocessing. The class of the image processor decides what its sizes mean.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{IMAGENET_MEAN, IMAGENET_STD, pixels, three};
use crate::model_command::draft::{Channels, Draft, Filter, Head, Labels, Resize, Size, Sourced};

const PREPROCESSOR: &str = "preprocessor_config.json";
const RESCALE: f64 = 1.0 / 255.0;
/// `ConvNextImageProcessor` squashes from this size on.
const CONVNEXT_SQUASH: u32 = 384;
/// The processors that crop unless they are told otherwise.
const CROP_BY_DEFAULT: [&str; 7] = ["CLIP", "Bit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Levit"];
const CONVNEXT_CROP_PCT: f64 = 224.0 / 256.0;

/// Returns the draft of a folder of transformers, or `None` if the two files are not those of transformers.
///
/// # Errors
/// If a file asks for something that is not supported, or contradicts itself.
pub(in crate::model_command) fn recognise(
    config: Option<&Value>,
    preprocessor: Option<&Value>,
) -> anyhow::Result<Option<Draft>> {
    let is_config = config.is_some_and(|config| config.get("id2label").is_some() || config.get("model_type").is_some());
    if !is_config && preprocessor.is_none() {
        return Ok(None);
    }
    let mut draft =
        Draft { channels: Some(Sourced::new(Channels::Rgb, "transformers classifies RGB")), ..Draft::default() };
    if let Some(config) = config.filter(|_| is_config) {
        draft.labels = labels(config)?;
        draft.activation = head(config, draft.labels.as_ref())?;
    }
    if let Some(preprocessor) = preprocessor {
        let preprocessor = Preprocessor { json: preprocessor };
        preprocessor.geometry(&mut draft)?;
        preprocessor.normalisation(&mut draft)?;
    }
    Ok(Some(draft))
}

/// The names in `id2label`, whose keys are the indexes of the classes as texts.
pub(super) fn labels(config: &Value) -> anyhow::Result<Option<Sourced<Labels>>> {
    let Some(entries) = config.get("id2label").and_then(Value::as_object) else { return Ok(None) };
    let mut names = BTreeMap::new();
    for (index, name) in entries {
        let index: u64 = index.parse().ok().with_context(|| format!("config.json, id2label: {index:?} is no index"))?;
        let name = name.as_str().with_context(|| format!("config.json, id2label: {name} is no name"))?;
        names.insert(index, name.to_owned());
    }
    ensure!(
        !names.is_empty() && names.keys().copied().eq(0..names.len() as u64),
        "config.json, id2label: the indexes are not 0, 1, 2 …; give --labels FILE"
    );
    Ok(Some(Sourced::new(Labels::Names(names.into_values().collect()), "config.json, id2label")))
}

/// The head, by the rules of transformers' image-classification pipeline.
fn head(config: &Value, labels: Option<&Sourced<Labels>>) -> anyhow::Result<Option<Sourced<Head>>> {
    let count = match labels.map(|labels| &labels.value) {
        Some(Labels::Names(names)) => names.len(),
        _ => 0,
    };
    Ok(match config.get("problem_type").and_then(Value::as_str) {
        Some("multi_label_classification") => Some(Sourced::new(Head::Sigmoid, "config.json, problem_type")),
        Some("single_label_classification") => Some(Sourced::new(Head::Softmax, "config.json, problem_type")),
        Some("regression") => {
            bail!("config.json says that the problem_type is regression; only classifiers are supported")
        }
        Some(other) => bail!("config.json has the problem_type {other:?}, which is not known; give --activation"),
        None if count == 1 => {
            Some(Sourced::new(Head::Sigmoid, "transformers' rule for one class without problem_type"))
        }
        None if count > 1 => Some(Sourced::new(Head::Softmax, "transformers' rule for classes without problem_type")),
        None => None,
    })
}

struct Preprocessor<'a> {
    json: &'a Value,
}

impl Preprocessor<'_> {
    fn get(&self, key: &str) -> Option<(&Value, String)> {
        self.json.get(key).filter(|value| !value.is_null()).map(|value| (value, format!("{PREPROCESSOR}, {key}")))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.json.get(key).and_then(Value::as_bool)
    }

    /// The class without the suffixes of its versions: `ViT`, `ConvNext`.
    fn class(&self) -> String {
        let class = self.get("image_processor_type").or_else(|| self.get("feature_extractor_type"));
        let class = class.and_then(|(value, _)| value.as_str()).unwrap_or_default();
        let base = class.trim_end_matches("Fast");
        base.trim_end_matches("ImageProcessor").trim_end_matches("FeatureExtractor").to_owned()
    }

    fn geometry(&self, draft: &mut Draft) -> anyhow::Result<()> {
        ensure!(
            self.flag("do_pad") != Some(true),
            "{PREPROCESSOR} asks for do_pad, which is not supported; give --resize, --size and --crop"
        );
        if self.flag("do_resize") == Some(false) {
            draft.resize = Some(Sourced::new(Resize::None, format!("{PREPROCESSOR}, do_resize")));
            draft.crop = self.crop()?.or(Some(Sourced::new(None, format!("{PREPROCESSOR}, do_center_crop"))));
            return Ok(());
        }
        if let Some((value, source)) = self.get("resample") {
            let filter = value.as_u64().and_then(Filter::of_pillow);
            draft.filter = Some(Sourced::new(
                filter.with_context(|| format!("{source} is {value}, no filter of Pillow"))?,
                source,
            ));
        }
        let class = self.class();
        let rule = |rule: &str| format!("{PREPROCESSOR}; {class}ImageProcessor {rule}");
        let mut set = |resize, size, size_source: String, crop: Option<Sourced<Option<Size>>>, how: &str| {
            draft.resize = Some(Sourced::new(resize, rule(how)));
            draft.size = Some(Sourced::new(size, size_source));
            draft.crop = crop.or_else(|| Some(Sourced::new(None, rule("crops nothing"))));
        };
        match class.as_str() {
            "ViT" | "DeiT" | "Beit" | "Siglip" | "Pvt" | "EfficientNet" => {
                let (size, source) = self.both_sides()?;
                set(Resize::Squash, size, source, self.crop()?, "squashes to height and width");
            }
            "CLIP" | "Bit" | "MobileNetV1" | "MobileNetV2" | "MobileViT" => {
                // These squash too if the configuration has a height and a width.
                let (resize, (size, source)) = match self.shortest_edge()? {
                    Some(shortest) => (Resize::ShortestEdge, shortest),
                    None => (Resize::Squash, self.both_sides()?),
                };
                let how =
                    if resize == Resize::Squash { "squashes to height and width" } else { "resizes the shortest edge" };
                set(resize, size, source, self.crop()?, how);
            }
            "ConvNext" | "ConvNeXT" => {
                let (size, source) = self.expect_shortest_edge()?;
                let side = size.height;
                if side >= CONVNEXT_SQUASH {
                    set(Resize::Squash, size, source, None, "squashes from 384 pixels on");
                } else {
                    let (scaled, scaled_by) = self.enlarged(side, Some(CONVNEXT_CROP_PCT))?;
                    let crop = Some(Sourced::new(Some(size), source.clone()));
                    set(
                        Resize::ShortestEdge,
                        scaled,
                        format!("{source}; {scaled_by}"),
                        crop,
                        "resizes the shortest edge by crop_pct",
                    );
                }
            }
            "PoolFormer" => {
                let (size, source) = self.expect_shortest_edge()?;
                let (scaled, scaled_by) = self.enlarged(size.height, None)?;
                let source = format!("{source}; {scaled_by}");
                set(Resize::ShortestEdge, scaled, source, self.crop()?, "resizes the shortest edge by crop_pct");
            }
            "Levit" => {
                let (size, source) = self.expect_shortest_edge()?;
                let scaled = Size::square((256.0 / 224.0 * f64::from(size.height)) as u32);
                let source = format!("{source}; × 256 / 224");
                set(Resize::ShortestEdge, scaled, source, self.crop()?, "resizes the shortest edge");
            }
            "" => bail!(
                "{PREPROCESSOR} does not name the class of its image processor; give --resize, --size, --crop and --filter"
            ),
            other => bail!(
                "{PREPROCESSOR} belongs to {other}ImageProcessor, whose resizing is not known; give --resize, --size, --crop and \
                 --filter"
            ),
        }
        Ok(())
    }

    fn normalisation(&self, draft: &mut Draft) -> anyhow::Result<()> {
        let is_rescaled = self.flag("do_rescale") != Some(false);
        draft.rescale = Some(match self.get("rescale_factor") {
            _ if !is_rescaled => Sourced::new(1.0, format!("{PREPROCESSOR}, do_rescale")),
            Some((value, source)) => {
                let factor = value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0);
                Sourced::new(factor.with_context(|| format!("{source} is {value}, no factor"))?, source)
            }
            None => Sourced::new(RESCALE, "transformers' default rescale_factor 1/255"),
        });
        let (mut mean, mut std) = if self.flag("do_normalize") == Some(false) || self.normalises_nothing() {
            let source = format!("{PREPROCESSOR}, do_normalize");
            (Some(Sourced::new([0.0; 3], source.clone())), Some(Sourced::new([1.0; 3], source)))
        } else {
            (self.three("image_mean", "--mean")?, self.three("image_std", "--std")?)
        };
        if self.class() == "EfficientNet" {
            // The processor subtracts 1 if rescale_offset is set, and divides by the deviation twice if include_top is.
            if is_rescaled && self.flag("rescale_offset") == Some(true) {
                mean = mean.map(|mean| {
                    Sourced::new(mean.value.map(|mean| mean + 1.0), format!("{}; rescale_offset", mean.source))
                });
            }
            if self.flag("include_top") == Some(true) {
                std =
                    std.map(|std| Sourced::new(std.value.map(|std| std * std), format!("{}; include_top", std.source)));
            }
        }
        (draft.mean, draft.std) = (mean, std);
        // MobileViT was trained on BGR, and its processor flips unless it is told otherwise.
        if self.flag("do_flip_channel_order").unwrap_or(self.class() == "MobileViT") {
            draft.channels = Some(Sourced::new(Channels::Bgr, format!("{PREPROCESSOR}, do_flip_channel_order")));
        }
        Ok(())
    }

    /// MobileViT only rescales.
    fn normalises_nothing(&self) -> bool {
        self.class() == "MobileViT" && self.get("image_mean").is_none()
    }

    fn three(&self, key: &str, flag: &str) -> anyhow::Result<Option<Sourced<[f64; 3]>>> {
        let Some((value, source)) = self.get(key) else { return Ok(None) };
        // Old configurations name ImageNet's values.
        let named = match value.as_str() {
            Some("IMAGENET_DEFAULT_MEAN") => Some(IMAGENET_MEAN),
            Some("IMAGENET_DEFAULT_STD") => Some(IMAGENET_STD),
            _ => three(value),
        };
        let numbers = named.with_context(|| format!("{source} is not three numbers; give {flag}"))?;
        Ok(Some(Sourced::new(numbers, source)))
    }

    fn both_sides(&self) -> anyhow::Result<(Size, String)> {
        let (value, source) = self.get("size").with_context(|| format!("{PREPROCESSOR} has no size; give --size"))?;
        let size =
            size(value).with_context(|| format!("{source} is {value}, not a height and a width; give --size"))?;
        Ok((size, source))
    }

    /// The size if it is a shortest edge. A number alone is one too, for the processors that ask.
    fn shortest_edge(&self) -> anyhow::Result<Option<(Size, String)>> {
        let (value, source) = self.get("size").with_context(|| format!("{PREPROCESSOR} has no size; give --size"))?;
        let edge = value.get("shortest_edge").map_or_else(|| pixels(value), pixels);
        Ok(edge.map(|edge| (Size::square(edge), source)))
    }

    fn expect_shortest_edge(&self) -> anyhow::Result<(Size, String)> {
        match self.shortest_edge()? {
            Some(found) => Ok(found),
            None => {
                let (size, source) = self.both_sides()?;
                ensure!(size.height == size.width, "{source} is not square; give --resize, --size and --crop");
                Ok((size, source))
            }
        }
    }

    /// A side divided by `crop_pct`, and the text for it.
    fn enlarged(&self, side: u32, default: Option<f64>) -> anyhow::Result<(Size, String)> {
        let (share, text) = match self.get("crop_pct") {
            Some((value, source)) => {
                let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
                (share.with_context(|| format!("{source} is {value}, not a share"))?, format!("crop_pct {value}"))
            }
            None => {
                let share =
                    default.with_context(|| format!("{PREPROCESSOR} has no crop_pct; give --resize and --size"))?;
                (share, "crop_pct 0.875, the default".to_owned())
            }
        };
        Ok((Size::square((f64::from(side) / share) as u32), text))
    }

    /// The crop, if there is one.
    fn crop(&self) -> anyhow::Result<Option<Sourced<Option<Size>>>> {
        let is_default = || CROP_BY_DEFAULT.contains(&self.class().as_str()) && self.get("crop_size").is_some();
        if !self.flag("do_center_crop").unwrap_or_else(is_default) {
            return Ok(None);
        }
        let (value, source) = self
            .get("crop_size")
            .with_context(|| format!("{PREPROCESSOR} has do_center_crop and no crop_size; give --crop"))?;
        let size =
            size(value).with_context(|| format!("{source} is {value}, not a height and a width; give --crop"))?;
        Ok(Some(Sourced::new(Some(size), source)))
    }
}

/// A number, or a height and a width.
fn size(value: &Value) -> Option<Size> {
    if let Some(side) = pixels(value) {
        return Some(Size::square(side));
    }
    Some(Size { height: pixels(value.get("height")?)?, width: pixels(value.get("width")?)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn geometry(preprocessor: &Value) -> (Resize, Size, Option<Size>) {
        let draft = recognise(None, Some(preprocessor)).unwrap().unwrap();
        (draft.resize.unwrap().value, draft.size.unwrap().value, draft.crop.unwrap().value)
    }

    #[test]
    fn class_of_the_processor_decides_squash_or_crop() {
        let square = Size::square;
        for (preprocessor, expected) in [
            (
                json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}),
                (Resize::Squash, square(224), None),
            ),
            (
                json!({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}),
                (Resize::Squash, square(224), None),
            ),
            (
                json!({"image_processor_type": "ViTImageProcessorFast", "size": {"height": 256, "width": 256},
                    "do_center_crop": true, "crop_size": 224}),
                (Resize::Squash, square(256), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}),
                (Resize::ShortestEdge, square(256), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.95}),
                (Resize::ShortestEdge, square(235), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}),
                (Resize::Squash, square(384), None),
            ),
            (
                json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "do_center_crop": true,
                    "crop_size": {"height": 224, "width": 224}}),
                (Resize::ShortestEdge, square(224), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": true,
                    "crop_size": {"height": 224, "width": 224}}),
                (Resize::ShortestEdge, square(256), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "CLIPImageProcessor", "size": 256, "crop_size": 224}),
                (Resize::ShortestEdge, square(256), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "BitImageProcessor", "size": {"height": 448, "width": 448}}),
                (Resize::Squash, square(448), None),
            ),
            (
                json!({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224},
                    "do_center_crop": true, "crop_size": {"height": 224, "width": 224}}),
                (Resize::ShortestEdge, square(256), Some(square(224))),
            ),
            (
                json!({"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.9,
                    "do_center_crop": true, "crop_size": {"height": 224, "width": 224}}),
                (Resize::ShortestEdge, square(248), Some(square(224))),
            ),
        ] {
            assert_eq!(geometry(&preprocessor), expected, "{preprocessor}");
        }
        for unknown in ["DonutImageProcessor", ""] {
            let error = recognise(None, Some(&json!({"image_processor_type": unknown, "size": 224}))).unwrap_err();
            assert!(error.to_string().contains("--resize"), "{error}");
        }
    }

    #[test]
    fn normalisation_follows_the_switches_of_the_processor() {
        let draft = |more: Value| {
            let mut preprocessor = json!({"image_processor_type": "EfficientNetImageProcessor",
                "size": {"height": 224, "width": 224}, "resample": 0, "image_mean": [0.5, 0.5, 0.5], "image_std": 0.5});
            preprocessor.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            recognise(None, Some(&preprocessor)).unwrap().unwrap()
        };
        let plain = draft(json!({"rescale_factor": 0.25}));
        assert_eq!((plain.rescale.unwrap().value, plain.mean.unwrap().value), (0.25, [0.5; 3]));
        assert_eq!(plain.filter.unwrap().value, Filter::Nearest);
        let offset = draft(json!({"rescale_offset": true, "include_top": true, "do_rescale": true}));
        assert_eq!((offset.mean.unwrap().value, offset.std.unwrap().value), ([1.5; 3], [0.25; 3]));
        let bytes = draft(json!({"do_rescale": false, "do_normalize": false}));
        assert_eq!((bytes.rescale.unwrap().value, bytes.std.unwrap().value), (1.0, [1.0; 3]));
        let flipped = draft(json!({"do_flip_channel_order": true}));
        assert_eq!(flipped.channels.unwrap().value, Channels::Bgr);
        let channels = |class: &str| {
            let named = json!({"image_processor_type": format!("{class}ImageProcessor")});
            draft(named).channels.unwrap().value
        };
        assert_eq!((channels("MobileViT"), channels("CLIP")), (Channels::Bgr, Channels::Rgb));
    }

    #[test]
    fn head_and_labels_come_from_the_configuration() {
        let head = |config: Value| {
            recognise(Some(&config), None).map(|draft| draft.unwrap().activation.map(|head| head.value))
        };
        let names = json!({"1": "dog", "0": "cat"});
        assert_eq!(head(json!({"id2label": names})).unwrap(), Some(Head::Softmax));
        let multi = json!({"id2label": names, "problem_type": "multi_label_classification"});
        assert_eq!(head(multi.clone()).unwrap(), Some(Head::Sigmoid));
        assert_eq!(head(json!({"id2label": {"0": "unsafe"}})).unwrap(), Some(Head::Sigmoid));
        assert!(head(json!({"id2label": names, "problem_type": "regression"})).is_err());
        assert!(head(json!({"id2label": {"0": "cat", "2": "dog"}})).unwrap_err().to_string().contains("--labels"));
        let labels = recognise(Some(&multi), None).unwrap().unwrap().labels.unwrap();
        assert_eq!(
            labels,
            Sourced::new(Labels::Names(vec!["cat".to_owned(), "dog".to_owned()]), "config.json, id2label")
        );
        assert_eq!(recognise(Some(&json!({"name": "x"})), None).unwrap(), None);
    }
}
