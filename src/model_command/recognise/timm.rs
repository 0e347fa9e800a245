//! A folder that timm saved: `config.json` with `pretrained_cfg`, or with its keys at the top level as older versions wrote
//! them.

use anyhow::Context as _;
use serde_json::Value;

use super::{pixels, three};
use crate::model_command::draft::{Channels, Draft, Filter, Head, Labels, Resize, Size, Sourced};

/// The part of an image that timm shows to a network whose configuration does not say it.
const DEFAULT_CROP_PCT: f64 = 0.875;

/// Returns the draft of timm's configuration, or `None` if another program wrote it. `exported` is the size of the input
/// if the ONNX file fixes it.
///
/// # Errors
/// If the configuration asks for something that is not supported.
pub(in crate::model_command) fn recognise(config: &Value, exported: Option<Size>) -> anyhow::Result<Option<Draft>> {
    let nested = config.get("pretrained_cfg");
    let is_old = config.get("architecture").is_some() && config.get("input_size").is_some();
    let Some(pretrained) = nested.or_else(|| is_old.then_some(config)).filter(|value| value.is_object()) else {
        return Ok(None);
    };
    let key = |name: &str| {
        let source = if nested.is_some() {
            format!("config.json, pretrained_cfg.{name}")
        } else {
            format!("config.json, {name}")
        };
        pretrained.get(name).filter(|value| !value.is_null()).map(|value| (value, source))
    };
    let mut draft = Draft {
        channels: Some(Sourced::new(Channels::Rgb, "timm classifies RGB")),
        rescale: Some(Sourced::new(1.0 / 255.0, "timm scales to 0..1")),
        activation: Some(Sourced::new(Head::Softmax, "timm's networks return logits of one label")),
        labels: labels(config)?,
        ..Draft::default()
    };
    if let Some((value, source)) = key("interpolation") {
        let word = value.as_str().unwrap_or_default();
        // timm takes bilinear where a configuration says random.
        let filter = match word {
            "bicubic" => Filter::Bicubic,
            "bilinear" | "random" => Filter::Bilinear,
            "lanczos" => Filter::Lanczos,
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "hamming" => Filter::Hamming,
            _ => anyhow::bail!("{source} is {value}, which is no filter; give --filter"),
        };
        draft.filter = Some(Sourced::new(filter, source));
    }
    for (name, field) in [("mean", &mut draft.mean), ("std", &mut draft.std)] {
        if let Some((value, source)) = key(name) {
            let numbers = three(value).with_context(|| format!("{source} is not three numbers; give --{name}"))?;
            *field = Some(Sourced::new(numbers, source));
        }
    }
    geometry(&mut draft, key, exported)?;
    Ok(Some(draft))
}

/// The size, the crop and how the aspect ratio is treated, as `timm.data.create_transform` builds them.
fn geometry<'a>(
    draft: &mut Draft,
    key: impl Fn(&str) -> Option<(&'a Value, String)>,
    exported: Option<Size>,
) -> anyhow::Result<()> {
    let size_of = |name: &str| {
        let Some((value, source)) = key(name) else { return Ok(None) };
        let axes: Option<Vec<u32>> = value.as_array().and_then(|axes| axes.iter().map(pixels).collect());
        match axes.as_deref() {
            Some(&[3, height, width]) => Ok(Some(Sourced::new(Size { height, width }, source))),
            _ => anyhow::bail!("{source} is {value}, not [3, height, width]; give --size and --crop"),
        }
    };
    // A network that was exported at the size of timm's test gets the crop of that test.
    let test = size_of("test_input_size")?.filter(|test| Some(test.value) == exported);
    let is_test = test.is_some();
    let Some(input) = test.or(size_of("input_size")?) else { return Ok(()) };
    let input = match exported {
        Some(size) if size != input.value => Sourced::new(size, "the ONNX file, whose size differs from config.json"),
        _ => input,
    };
    let crop_pct = key("test_crop_pct").filter(|_| is_test).or_else(|| key("crop_pct"));
    let crop_pct = match crop_pct {
        Some((value, source)) => {
            let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
            Sourced::new(share.with_context(|| format!("{source} is {value}, not a share; give --size"))?, source)
        }
        None => Sourced::new(DEFAULT_CROP_PCT, "timm's default crop_pct 0.875"),
    };
    let scaled = |side: u32| (f64::from(side) / crop_pct.value).floor() as u32;
    let Size { height, width } = input.value;
    let size = Size { height: scaled(height), width: scaled(width) };
    let (mode, mode_source) = match key("crop_mode") {
        Some((value, source)) => (value.as_str().unwrap_or_default(), source),
        None => ("center", "timm's default crop_mode".to_owned()),
    };
    let resize = match mode {
        "center" => {
            anyhow::ensure!(
                height == width,
                "{mode_source} is center for an input of {} pixels, which is not square and not supported; give --resize, --size and \
                 --crop",
                input.value
            );
            Resize::ShortestEdge
        }
        "squash" => Resize::Squash,
        "border" => Resize::Letterbox,
        other => anyhow::bail!("{mode_source} is {other:?}, which is not supported; give --resize, --size and --crop"),
    };
    if resize == Resize::Letterbox
        && let Some(mean) = &draft.mean
    {
        let fill = mean.value.map(|mean| (mean * 255.0).round_ties_even().clamp(0.0, 255.0) as u8);
        draft.fill = Some(Sourced::new(fill, format!("{}, × 255", mean.source)));
        draft.position = Some(Sourced::new(crate::model_command::draft::Position::Centre, "timm, crop_mode border"));
    }
    draft.resize = Some(Sourced::new(resize, mode_source));
    let rule = format!("{}; {} {}", input.source, crop_pct.source, crop_pct.value);
    draft.size = Some(Sourced::new(size, rule));
    draft.crop = Some(Sourced::new(Some(input.value), input.source));
    Ok(())
}

fn labels(config: &Value) -> anyhow::Result<Option<Sourced<Labels>>> {
    if let Some(names) = config.get("label_names").and_then(Value::as_array) {
        let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
        let names = names.context("config.json, label_names is not a list of names; give --labels")?;
        let described = |id: &String| {
            let description = config.get("label_descriptions")?.get(id)?.as_str()?;
            is_wordnet_id(id).then(|| (id.clone(), description.to_owned()))
        };
        return Ok(Some(match names.iter().map(described).collect::<Option<Vec<_>>>() {
            Some(labels) => {
                Sourced::new(Labels::IdsAndNames(labels), "config.json, label_names and label_descriptions")
            }
            None => Sourced::new(Labels::Names(names), "config.json, label_names"),
        }));
    }
    super::hugging_face::labels(config)
}

fn is_wordnet_id(text: &str) -> bool {
    text.len() == 9 && text.strip_prefix('n').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(cfg: &Value) -> Value {
        json!({"architecture": "resnet18", "num_classes": 2, "label_names": ["a", "b"], "pretrained_cfg": cfg})
    }

    #[test]
    fn crop_pct_enlarges_the_resize_by_timm_s_rounding() {
        let cfg = json!({"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9,
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_mode": "center"});
        let draft = recognise(&config(&cfg), None).unwrap().unwrap();
        assert_eq!(draft.size.unwrap().value, Size::square(248));
        assert_eq!(draft.crop.unwrap().value, Some(Size::square(224)));
        assert_eq!((draft.resize.unwrap().value, draft.filter.unwrap().value), (Resize::ShortestEdge, Filter::Bicubic));
        assert_eq!(draft.mean.unwrap().source, "config.json, pretrained_cfg.mean");
    }

    #[test]
    fn size_of_the_test_applies_if_the_file_was_exported_with_it() {
        let cfg = json!({"input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "crop_pct": 0.95,
            "test_crop_pct": 1.0});
        let sizes = |exported| {
            let draft = recognise(&config(&cfg), exported).unwrap().unwrap();
            (draft.size.unwrap().value.height, draft.crop.unwrap().value.unwrap().height)
        };
        assert_eq!(sizes(None), (235, 224));
        assert_eq!(sizes(Some(Size::square(288))), (288, 288));
        assert_eq!(sizes(Some(Size::square(192))), (202, 192));
    }

    #[test]
    fn modes_squash_and_border_are_known_and_others_refused() {
        let draft = |mode: &str| {
            recognise(
                &config(&json!({"input_size": [3, 200, 100], "crop_pct": 1.0, "crop_mode": mode, "mean": 0.5})),
                None,
            )
        };
        let squash = draft("squash").unwrap().unwrap();
        assert_eq!(
            (squash.resize.unwrap().value, squash.size.unwrap().value),
            (Resize::Squash, Size { height: 200, width: 100 })
        );
        assert_eq!(draft("border").unwrap().unwrap().fill.unwrap().value, [128; 3]);
        assert!(draft("center").unwrap_err().to_string().contains("--resize"));
        assert!(draft("other").unwrap_err().to_string().contains("--resize"));
        assert_eq!(recognise(&json!({"model_type": "vit"}), None).unwrap(), None);
    }

    #[test]
    fn wordnet_ids_get_their_descriptions() {
        let config = json!({"pretrained_cfg": {}, "label_names": ["n01440764"],
            "label_descriptions": {"n01440764": "tench"}});
        let labels = recognise(&config, None).unwrap().unwrap().labels.unwrap().value;
        assert_eq!(labels, Labels::IdsAndNames(vec![("n01440764".to_owned(), "tench".to_owned())]));
    }
}
