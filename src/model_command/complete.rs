//! Completes a draft with the facts of the ONNX file, and names the flags for what nobody says.

use anyhow::{bail, ensure};

use super::draft::{Channels, Draft, Filter, Head, Labels, Layout, Position, Resize, Rounding, Size, Sourced};
use crate::model::{Element, MAX_SIDE, OnnxFile, TensorInfo};

const DEFAULT_THRESHOLD: f64 = 0.5;

/// Everything that `model.toml` says about input and output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Complete {
    pub labels: Sourced<Labels>,
    pub input_name: String,
    pub element: Element,
    pub layout: Sourced<Layout>,
    pub channels: Sourced<Channels>,
    pub resize: Sourced<Resize>,
    /// `None` if images keep their size.
    pub size: Option<Sourced<Size>>,
    pub crop: Option<Sourced<Size>>,
    pub filter: Option<Sourced<Filter>>,
    pub fill: Option<Sourced<[u8; 3]>>,
    pub position: Option<Sourced<Position>>,
    pub rounding: Option<Sourced<Rounding>>,
    /// How values are normalised. An input of bytes has none, because the model normalises itself.
    pub normalisation: Option<Normalisation>,
    pub output_name: Option<String>,
    /// How outputs become scores. `None` until the outputs for images were seen.
    pub head: Option<Sourced<Head>>,
    pub threshold: Option<Sourced<f64>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Normalisation {
    pub rescale: Sourced<f64>,
    pub mean: Sourced<[f64; 3]>,
    pub std: Sourced<[f64; 3]>,
}

/// The size of the input, if the file fixes it.
pub(super) fn exported_size(onnx: &OnnxFile) -> Option<Size> {
    let input = image_input(onnx).ok()?;
    let (_, size) = axes(input, layout_of(input)?)?;
    size
}

/// Completes a draft.
///
/// # Errors
/// If the input is no image, the file contradicts the draft, or something is missing: then all missing flags are named.
pub(super) fn complete(draft: Draft, onnx: &OnnxFile) -> anyhow::Result<Complete> {
    let input = image_input(onnx)?;
    let element = element(input)?;
    let mut missing = Missing::default();
    let layout = match layout_of(input) {
        Some(layout) => Some(Sourced::new(layout, format!("the shape {} of the input", input.shape_text()))),
        None => draft.layout.clone(),
    };
    if let (Some(found), Some(given)) = (&layout, &draft.layout) {
        ensure!(
            found.value == given.value,
            "{} gives the layout {}, but the input has the shape {}, which is {}",
            given.source,
            given.value.as_str(),
            input.shape_text(),
            found.value.as_str()
        );
    }
    let exported = layout.as_ref().and_then(|layout| axes(input, layout.value)).and_then(|(_, size)| size);
    let resize = missing.need(draft.resize, "--resize shortest-edge|squash|cover|letterbox|none");
    let geometry = Geometry::complete(resize.as_ref(), draft.size, draft.crop, exported, &mut missing)?;
    let keeps_size = resize.as_ref().is_some_and(|resize| resize.value == Resize::None);
    let filter = match draft.filter {
        _ if keeps_size => None,
        filter => missing.need(filter, "--filter nearest|box|bilinear|hamming|bicubic|lanczos"),
    };
    let is_letterbox = resize.as_ref().is_some_and(|resize| resize.value == Resize::Letterbox);
    let fill = if is_letterbox { missing.need(draft.fill, "--fill 0,0,0 or another colour") } else { None };
    let position = if is_letterbox { missing.need(draft.position, "--position centre|top-left") } else { None };
    let normalisation = if element == Element::Uint8 {
        None
    } else {
        let rescale =
            draft.rescale.unwrap_or_else(|| Sourced::new(1.0 / 255.0, "the default 1/255; --rescale says otherwise"));
        let mean = missing.need(draft.mean, "--mean (0 for none)");
        let std = missing.need(draft.std, "--std (1 for none)");
        mean.zip(std).map(|(mean, std)| Normalisation { rescale, mean, std })
    };
    let channels =
        draft.channels.unwrap_or_else(|| Sourced::new(Channels::Rgb, "the default; --channels bgr says otherwise"));
    let layout = missing.need(layout, "--layout nchw|nhwc");
    let labels = missing.need(draft.labels, "--labels FILE, or --labels imagenet");
    let head = head(draft.activation, draft.threshold.is_some(), output(onnx)?)?;
    let (Some(labels), Some(layout), Some(resize)) = (labels, layout, resize) else { return Err(missing.error()) };
    if !missing.0.is_empty() {
        return Err(missing.error());
    }
    let mut complete = Complete {
        labels,
        input_name: input.name.clone(),
        element,
        layout,
        channels,
        resize,
        size: geometry.size,
        crop: geometry.crop,
        filter,
        fill,
        position,
        rounding: draft.rounding.filter(|_| is_letterbox),
        normalisation,
        output_name: (onnx.outputs.len() > 1).then(|| output(onnx).map(|output| output.name.clone())).transpose()?,
        head: None,
        threshold: draft.threshold,
    };
    complete.set_head(head)?;
    Ok(complete)
}

impl Complete {
    /// Sets the head, and the threshold that a multi-label head has.
    ///
    /// # Errors
    /// If there is a threshold for a head of one label.
    pub(super) fn set_head(&mut self, head: Option<Sourced<Head>>) -> anyhow::Result<()> {
        if let Some(head) = &head {
            if head.value.is_multi_label() {
                let default = || Sourced::new(DEFAULT_THRESHOLD, "the default; --threshold says otherwise");
                self.threshold.get_or_insert_with(default);
            } else {
                ensure!(
                    self.threshold.is_none(),
                    "--threshold is for networks with several labels an image, and the scores of this one belong to one label \
                     ({}); leave it out, or give --activation sigmoid",
                    head.source
                );
            }
        }
        self.head = head;
        Ok(())
    }
}

/// Collects the flags that are missing, so that one message names all of them.
#[derive(Default)]
struct Missing(Vec<&'static str>);

impl Missing {
    fn need<T>(&mut self, value: Option<T>, flag: &'static str) -> Option<T> {
        if value.is_none() {
            self.0.push(flag);
        }
        value
    }

    fn error(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "nothing says how this network was trained to see images, and imgcls does not guess; give {}, or a --preset \
             (docs/models.md has the values of the common exports)",
            self.0.join(", ")
        )
    }
}

struct Geometry {
    size: Option<Sourced<Size>>,
    crop: Option<Sourced<Size>>,
}

impl Geometry {
    fn complete(
        resize: Option<&Sourced<Resize>>,
        size: Option<Sourced<Size>>,
        crop: Option<Sourced<Option<Size>>>,
        exported: Option<Size>,
        missing: &mut Missing,
    ) -> anyhow::Result<Geometry> {
        let Some(resize) = resize else { return Ok(Geometry { size: None, crop: None }) };
        let of_the_input = || exported.map(|size| Sourced::new(size, "the size of the input"));
        let (size, crop) = match resize.value {
            Resize::ShortestEdge => {
                let size = missing.need(size, "--size");
                // Without a crop, images of different aspect ratios have different sizes.
                let crop = match crop {
                    Some(Sourced { value: Some(crop), source }) => Some(Sourced::new(crop, source)),
                    Some(Sourced { value: None, .. }) if exported.is_none() => None,
                    _ => missing.need(of_the_input(), "--crop"),
                };
                (size, crop)
            }
            Resize::Squash | Resize::Cover | Resize::Letterbox => {
                let crop = crop.and_then(|crop| crop.value.map(|size| Sourced::new(size, crop.source)));
                let size = missing.need(size.or_else(of_the_input), "--size");
                (size, crop)
            }
            Resize::None => (None, crop.and_then(|crop| crop.value.map(|size| Sourced::new(size, crop.source)))),
        };
        // A crop of the whole resized image is none.
        let is_whole = |crop: &Sourced<Size>| {
            resize.value != Resize::ShortestEdge && size.as_ref().is_some_and(|size| size.value == crop.value)
        };
        let crop = crop.filter(|crop| !is_whole(crop));
        if let Some(crop) = crop.as_ref().filter(|_| resize.value == Resize::Letterbox) {
            bail!(
                "{} letterboxes and {} crops to {}, which is not supported together; give --size {} and --crop none",
                resize.source,
                crop.source,
                crop.value,
                crop.value
            );
        }
        for side in [&size, &crop].into_iter().flatten() {
            let Size { height, width } = side.value;
            ensure!(
                (1..=MAX_SIDE).contains(&height) && (1..=MAX_SIDE).contains(&width),
                "{} gives {} pixels; a side has 1 to {MAX_SIDE}",
                side.source,
                side.value
            );
        }
        let result = if resize.value == Resize::ShortestEdge { crop.as_ref() } else { crop.as_ref().or(size.as_ref()) };
        if let (Some(result), Some(exported)) = (result, exported) {
            ensure!(
                result.value == exported,
                "the input of the network has {exported} pixels, but {} gives {}; give --size and --crop that lead to {exported}, \
                 or export the network again",
                result.source,
                result.value
            );
        }
        Ok(Geometry { size, crop })
    }
}

/// The input of a network that classifies images.
fn image_input(onnx: &OnnxFile) -> anyhow::Result<&TensorInfo> {
    let [input] = onnx.inputs.as_slice() else {
        let names: Vec<&str> = onnx.inputs.iter().map(|input| input.name.as_str()).collect();
        bail!(
            "the network has {} inputs ({}); one that classifies images has a single one: export it without the others",
            names.len(),
            names.join(", ")
        );
    };
    let colours = |axis: usize| matches!(input.shape.get(axis), Some(None | Some(3)));
    ensure!(
        input.shape.len() == 4 && (colours(1) || colours(3)),
        "the input {:?} is no image: its shape is {}, and that of images in colour is [batch, 3, height, width] or [batch, \
         height, width, 3]",
        input.name,
        input.shape_text()
    );
    Ok(input)
}

fn element(input: &TensorInfo) -> anyhow::Result<Element> {
    let name = input.element_name();
    match name.parse() {
        Ok(element) => Ok(element),
        Err(_) => bail!(
            "the input {:?} is of {name}, and imgcls gives float32, float16 or uint8; export the network with one of them",
            input.name
        ),
    }
}

/// The layout that the shape shows, if one axis alone has three channels.
fn layout_of(input: &TensorInfo) -> Option<Layout> {
    let &[_, first, _, last] = input.shape.as_slice() else { return None };
    match (first, last) {
        (Some(3), last) if last != Some(3) => Some(Layout::Nchw),
        (first, Some(3)) if first != Some(3) => Some(Layout::Nhwc),
        _ => None,
    }
}

/// The number of channels, and the size if it is fixed.
fn axes(input: &TensorInfo, layout: Layout) -> Option<(Option<u64>, Option<Size>)> {
    let &[_, first, second, third] = input.shape.as_slice() else { return None };
    let (channels, height, width) = match layout {
        Layout::Nchw => (first, second, third),
        Layout::Nhwc => (third, first, second),
    };
    let side = |axis: Option<u64>| axis.and_then(|axis| u32::try_from(axis).ok());
    Some((channels, side(height).zip(side(width)).map(|(height, width)| Size { height, width })))
}

/// The output with the scores: the one called `logits`, else the first that is not `features`.
pub(super) fn output(onnx: &OnnxFile) -> anyhow::Result<&TensorInfo> {
    let named = onnx.outputs.iter().find(|output| output.name == "logits");
    let output = named.or_else(|| onnx.outputs.iter().find(|output| output.name != "features"));
    let Some(output) = output else { bail!("the network has no output") };
    ensure!(
        output.shape.is_empty() || output.shape.len() == 2,
        "the output {:?} has the shape {}, and that of a classifier is [batch, classes]",
        output.name,
        output.shape_text()
    );
    Ok(output)
}

/// The head: what the graph ends in counts before what an export says, since nothing may be normalised twice.
fn head(
    given: Option<Sourced<Head>>,
    has_threshold: bool,
    output: &TensorInfo,
) -> anyhow::Result<Option<Sourced<Head>>> {
    let is_flag = given.as_ref().is_some_and(|given| given.source.starts_with("--"));
    let is_multi_label = has_threshold || given.as_ref().is_some_and(|given| given.value.is_multi_label());
    let normalised = match output.operator.as_str() {
        "Softmax" if is_multi_label && !is_flag => Head::MultiLabel,
        "Softmax" => Head::None,
        "Sigmoid" => Head::MultiLabel,
        // A threshold says that several classes can be right.
        _ => {
            return Ok(given.map(|given| match given.value {
                Head::None if has_threshold => Sourced::new(Head::MultiLabel, format!("{}; --threshold", given.source)),
                _ => given,
            }));
        }
    };
    if let Some(given) = given.filter(|given| is_flag && matches!(given.value, Head::Softmax | Head::Sigmoid)) {
        bail!(
            "{} {} would normalise the scores twice: the network already ends in {}; leave it out or give --activation none",
            given.source,
            given.value.as_str(),
            output.operator
        );
    }
    Ok(Some(Sourced::new(normalised, format!("the network ends in {}, so nothing is applied again", output.operator))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn onnx(shape: &[Option<u64>], operator: &str) -> OnnxFile {
        let tensor = |name: &str, shape: &[Option<u64>], operator: &str| TensorInfo {
            name: name.to_owned(),
            element: 1,
            shape: shape.to_vec(),
            operator: operator.to_owned(),
        };
        OnnxFile {
            inputs: vec![tensor("x", shape, "")],
            outputs: vec![tensor("y", &[None, Some(3)], operator)],
            ..OnnxFile::default()
        }
    }

    fn flag<T>(value: T) -> Sourced<T> {
        Sourced::new(value, "--flag")
    }

    fn full() -> Draft {
        Draft {
            labels: Some(flag(Labels::Names(vec!["a".to_owned()]))),
            resize: Some(flag(Resize::ShortestEdge)),
            size: Some(flag(Size::square(256))),
            crop: Some(flag(Some(Size::square(224)))),
            filter: Some(flag(Filter::Bilinear)),
            mean: Some(flag([0.0; 3])),
            std: Some(flag([1.0; 3])),
            activation: Some(flag(Head::Softmax)),
            ..Draft::default()
        }
    }

    const NCHW: [Option<u64>; 4] = [None, Some(3), Some(224), Some(224)];

    #[test]
    fn every_missing_flag_is_named_in_one_line() {
        let error = complete(Draft::default(), &onnx(&NCHW, "Gemm")).unwrap_err().to_string();
        for flag in ["--resize", "--filter", "--mean", "--std", "--labels", "--preset"] {
            assert!(error.contains(flag), "{flag}: {error}");
        }
        assert!(!error.contains("--layout") && !error.contains('\n'), "{error}");
        let dynamic = complete(full(), &onnx(&[None; 4], "Gemm")).unwrap_err().to_string();
        assert!(dynamic.contains("--layout") && !dynamic.contains("--mean"), "{dynamic}");
    }

    #[test]
    fn facts_of_the_file_complete_the_draft() {
        let Complete { layout, crop, normalisation, head, .. } = complete(full(), &onnx(&NCHW, "Gemm")).unwrap();
        assert_eq!((layout.value, crop.unwrap().value), (Layout::Nchw, Size::square(224)));
        assert!((normalisation.unwrap().rescale.value - 1.0 / 255.0).abs() < 1e-12);
        assert_eq!(head.unwrap().value, Head::Softmax);
        let squash = Draft { resize: Some(flag(Resize::Squash)), size: None, crop: None, ..full() };
        let squash = complete(squash, &onnx(&[None, Some(32), Some(48), Some(3)], "Gemm")).unwrap();
        assert_eq!((squash.layout.value, squash.size.unwrap().value), (Layout::Nhwc, Size { height: 32, width: 48 }));
    }

    #[test]
    fn contradictions_with_the_file_are_refused() {
        let error =
            |draft: Draft, shape: &[Option<u64>]| complete(draft, &onnx(shape, "Gemm")).unwrap_err().to_string();
        let crop = Draft { crop: Some(flag(Some(Size::square(240)))), ..full() };
        assert!(error(crop, &NCHW).contains("has 224 × 224 pixels"));
        assert!(error(Draft { layout: Some(flag(Layout::Nhwc)), ..full() }, &NCHW).contains("which is NCHW"));
        assert!(error(full(), &[None, Some(10)]).contains("is no image"));
        assert!(error(full(), &[None, Some(1), Some(28), Some(28)]).contains("is no image"));
        let two = OnnxFile { inputs: vec![onnx(&NCHW, "").inputs.remove(0); 2], ..onnx(&NCHW, "") };
        assert!(complete(full(), &two).unwrap_err().to_string().contains("2 inputs"));
        let threshold = Draft { threshold: Some(flag(0.5)), activation: Some(flag(Head::Softmax)), ..full() };
        assert!(error(threshold, &NCHW).contains("--activation sigmoid"));
    }

    #[test]
    fn scores_are_never_normalised_twice() {
        let head = |given: Option<Sourced<Head>>, operator: &str| {
            complete(Draft { activation: given, ..full() }, &onnx(&NCHW, operator))
                .map(|complete| complete.head.map(|head| head.value))
        };
        let said = |head| Some(Sourced::new(head, "config.json"));
        assert_eq!(head(said(Head::Softmax), "Softmax").unwrap(), Some(Head::None));
        assert_eq!(head(said(Head::Sigmoid), "Sigmoid").unwrap(), Some(Head::MultiLabel));
        assert_eq!(head(None, "Gemm").unwrap(), None);
        assert_eq!(head(Some(flag(Head::None)), "Softmax").unwrap(), Some(Head::None));
        let twice = Some(Sourced::new(Head::Softmax, "--activation"));
        assert!(head(twice, "Softmax").unwrap_err().to_string().contains("twice"));
    }
}
