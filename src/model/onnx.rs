//! One ONNX Runtime session: a batch of tensors → scores of the classes.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use half::f16;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, SessionInputValue};
use ort::value::{Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef};

use super::choice::ModelChoice;
use super::description::Activation;
use super::find;
use super::graph::{self, Options};
use super::head::{Head, head_of};
use super::input::{Element, Input, Layout};
use super::package::ModelPackage;
use super::pixels::Pixels;
use super::preprocess;
use super::tensor::{Tensor, Values};

/// A further output of networks: the values that the last layer computes the classes from. It is never the output of
/// the classes, unless a package says so.
const FEATURES: &str = "features";

/// A session, owned by one thread. Two sessions with one thread each are faster than one session with two threads.
pub struct Session {
    inner: ort::session::Session,
    /// Selects the one output that is computed.
    run_options: RunOptions<HasSelectedOutputs>,
    input_name: String,
    element: Element,
    layout: Layout,
    channels: usize,
    output_element: TensorElementType,
    /// The number of values of the output for each image. `None` accepts any number.
    outputs: Option<usize>,
    activation: Activation,
    /// The batch size, if the model file fixes it.
    fixed_batch: Option<usize>,
    /// Buffers for the concatenated tensors of a batch, reused for the next batch. Only one of them is used.
    floats: Vec<f32>,
    halves: Vec<f16>,
    pixels: Vec<u8>,
    description: String,
}

impl Session {
    /// Loads the library (once per process), builds the session, checks it against model.toml and runs it.
    ///
    /// # Errors
    /// A message of one line that says what is wrong, with which file, and what to do.
    pub fn open(package: &ModelPackage, choice: &ModelChoice) -> anyhow::Result<Session> {
        let begun = Instant::now();
        let mut session = Session::build(package, choice, package.output().name.as_deref(), Some(package.classes()))?;
        session.activation = package.output().activation;
        let built = begun.elapsed();
        session.warm_up(package)?;
        session.description += &times(built, begun.elapsed());
        Ok(session)
    }

    /// Like [`Session::open`], but computes another output, of any number of values for each image. Only
    /// [`Session::outputs`] makes sense for it.
    ///
    /// # Errors
    /// The errors of [`Session::open`], and if there is no such output.
    pub fn open_output(package: &ModelPackage, choice: &ModelChoice, output: &str) -> anyhow::Result<Session> {
        Session::build(package, choice, Some(output), None)
    }

    fn build(
        package: &ModelPackage,
        choice: &ModelChoice,
        output: Option<&str>,
        outputs: Option<usize>,
    ) -> anyhow::Result<Session> {
        let library = find::runtime(choice)?;
        let environment = graph::environment(&library, choice.cache_dir.as_deref())?;
        let threads = choice.intra_threads.unwrap_or(1).max(1);
        let has_fixed_size = package.input_size().is_some();
        let options = Options { environment: &environment, threads, has_fixed_size };
        let (session, source) = graph::open(package, &options, choice.cache_dir.as_deref())?;
        let session = session.with_context(|| format!("ONNX Runtime cannot load {}", package.file().display()))?;
        let shapes = Shapes::of(&session, package.input(), output, outputs)
            .with_context(|| format!("{} does not fit its model.toml", package.file().display()))?;
        Ok(Session {
            run_options: RunOptions::new()?.with_outputs(OutputSelector::no_default().with(shapes.output)),
            input_name: package.input().name.clone(),
            element: package.input().element,
            layout: package.input().layout,
            channels: package.input().channels.count(),
            output_element: shapes.output_element,
            outputs,
            activation: Activation::None,
            fixed_batch: shapes.fixed_batch,
            floats: Vec::new(),
            halves: Vec::new(),
            pixels: Vec::new(),
            description: describe(threads, &graph::runtime_version(&library.path), source),
            inner: session,
        })
    }

    /// The scores of the classes, from 0 to 1, for each tensor. All tensors must have the same height and width.
    ///
    /// # Errors
    /// If the runtime fails, the tensors differ in size, or a score is not a finite number.
    pub fn infer(&mut self, batch: &[&Tensor]) -> anyhow::Result<Vec<Vec<f32>>> {
        self.run(batch, self.activation)
    }

    /// The outputs as the model computes them, for each tensor. All tensors must have the same height and width.
    ///
    /// # Errors
    /// The errors of [`Session::infer`].
    pub fn outputs(&mut self, batch: &[&Tensor]) -> anyhow::Result<Vec<Vec<f32>>> {
        self.run(batch, Activation::None)
    }

    /// Execution provider, threads, runtime version and start-up time, for the log.
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    fn run(&mut self, batch: &[&Tensor], activation: Activation) -> anyhow::Result<Vec<Vec<f32>>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let size = (first.height, first.width);
        ensure!(
            batch.iter().all(|tensor| (tensor.height, tensor.width) == size),
            "the tensors of a batch differ in size"
        );
        let mut scores = Vec::with_capacity(batch.len());
        for part in batch.chunks(self.fixed_batch.unwrap_or(batch.len())) {
            self.run_part(part, self.fixed_batch.unwrap_or(part.len()), size, activation, &mut scores)?;
        }
        Ok(scores)
    }

    fn run_part(
        &mut self,
        part: &[&Tensor],
        batch_size: usize,
        (height, width): (usize, usize),
        activation: Activation,
        scores: &mut Vec<Vec<f32>>,
    ) -> anyhow::Result<()> {
        let shape = match self.layout {
            Layout::Nchw => [batch_size, self.channels, height, width],
            Layout::Nhwc => [batch_size, height, width, self.channels],
        };
        let input = match self.element {
            Element::Float32 => input(part, shape, &mut self.floats, floats)?,
            Element::Float16 => input(part, shape, &mut self.halves, halves)?,
            Element::Uint8 => input(part, shape, &mut self.pixels, pixels)?,
        };
        let found = self.inner.run_with_options(ort::inputs![self.input_name.as_str() => input], &self.run_options)?;
        let (shape, values) = match self.output_element {
            TensorElementType::Float16 => {
                let (shape, values) = found[0].try_extract_tensor::<f16>()?;
                (shape, Cow::Owned(values.iter().map(|value| value.to_f32()).collect::<Vec<f32>>()))
            }
            _ => {
                let (shape, values) = found[0].try_extract_tensor::<f32>()?;
                (shape, Cow::Borrowed(values))
            }
        };
        let each = self.outputs.unwrap_or(values.len() / batch_size);
        ensure!(
            each > 0 && values.len() == batch_size * each,
            "the model returned {shape} for {batch_size} images of {each} classes"
        );
        scores.extend(values.chunks_exact(each).take(part.len()).map(|outputs| activation.scores(outputs)));
        ensure!(
            scores.iter().rev().take(part.len()).flatten().all(|score| score.is_finite()),
            "the model returned scores that are not finite"
        );
        Ok(())
    }

    /// Runs the model, because the first inference allocates memory and no image should wait for it. If the outputs look
    /// like scores already, runs it with a few more images to find out whether the activation would be applied twice.
    fn warm_up(&mut self, package: &ModelPackage) -> anyhow::Result<()> {
        let mut samples = self.sample(package.input(), 0).context("the model cannot run")?;
        if self.activation == Activation::None || head_of(&samples) == Some(Head::Logits) {
            return Ok(());
        }
        for seed in 1..CHECKED_SAMPLES {
            samples.extend(self.sample(package.input(), seed)?);
        }
        let activation = self.activation.name();
        let file = package.file().display();
        match head_of(&samples) {
            Some(Head::Probabilities) => bail!(
                "the outputs of {file} already are probabilities that sum to 1, and {activation} would be applied to \
                 them again; add the model with --activation none, or set activation = \"none\" in its model.toml"
            ),
            Some(Head::Independent) => tracing::warn!(
                %file,
                "the outputs of the model are between 0 and 1 for {CHECKED_SAMPLES} test images; if it applies a \
                 sigmoid itself, {activation} must not be applied again: add it with --activation none"
            ),
            Some(Head::Logits) | None => {}
        }
        Ok(())
    }

    /// The raw outputs for a made image.
    fn sample(&mut self, input: &Input, seed: u32) -> anyhow::Result<Vec<Vec<f32>>> {
        let tensor = preprocess::tensor(&test_image(input, seed), input, u64::MAX)?;
        self.outputs(&[&tensor])
    }
}

/// The number of images by which a start decides whether outputs are scores already.
const CHECKED_SAMPLES: u32 = 4;

/// The size of a made image for a model that takes any size.
const ANY_SIZE: u32 = 224;

/// Squares of random colours.
fn test_image(input: &Input, seed: u32) -> Pixels {
    let (height, width) = input.geometry.output().map_or((ANY_SIZE, ANY_SIZE), |size| (size.height, size.width));
    let value = |x: u32, y: u32, channel: u32| {
        let square = (x * 8 / width) + 8 * (y * 8 / height) + 64 * channel + 192 * seed;
        (square.wrapping_add(1).wrapping_mul(2_654_435_761) >> 24) as u8
    };
    let pixel = |x: u32, y: u32| [0, 1, 2].map(|channel| value(x, y, channel));
    let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    Pixels::whole(data, (width as usize, height as usize), 3)
}

fn floats(values: &Values) -> Option<&[f32]> {
    if let Values::Floats(floats) = values { Some(floats) } else { None }
}

fn halves(values: &Values) -> Option<&[f16]> {
    if let Values::Halves(halves) = values { Some(halves) } else { None }
}

fn pixels(values: &Values) -> Option<&[u8]> {
    if let Values::Pixels(pixels) = values { Some(pixels) } else { None }
}

/// The input of a batch, which borrows from the only tensor or from `kept`.
fn input<'a, T: Copy + Default + PrimitiveTensorElementType + std::fmt::Debug + 'static>(
    part: &[&'a Tensor],
    shape: [usize; 4],
    kept: &'a mut Vec<T>,
    values: fn(&Values) -> Option<&[T]>,
) -> anyhow::Result<SessionInputValue<'a>> {
    let data = concatenate(part, shape.iter().product(), kept, values)?;
    Ok(TensorRef::from_array_view((shape, data))?.into())
}

/// Concatenates the tensors of a batch in `kept` and pads them to `length` values. A batch of one tensor is not copied.
fn concatenate<'a, T: Copy + Default>(
    part: &[&'a Tensor],
    length: usize,
    kept: &'a mut Vec<T>,
    values: fn(&Values) -> Option<&[T]>,
) -> anyhow::Result<&'a [T]> {
    const MISMATCH: &str = "a tensor was prepared for another kind of model";
    if let &[tensor] = part {
        let values = values(&tensor.values).context(MISMATCH)?;
        if values.len() == length {
            return Ok(values);
        }
    }
    kept.clear();
    for tensor in part {
        kept.extend_from_slice(values(&tensor.values).context(MISMATCH)?);
    }
    kept.resize(length, T::default());
    Ok(kept)
}

/// The facts that a session needs of the inputs and outputs of the model file.
struct Shapes {
    /// The name of the output.
    output: String,
    output_element: TensorElementType,
    /// The batch size, if the file fixes it.
    fixed_batch: Option<usize>,
}

impl Shapes {
    /// Checks the inputs and outputs of the model file against the package.
    fn of(
        session: &ort::session::Session,
        input: &Input,
        output: Option<&str>,
        outputs: Option<usize>,
    ) -> anyhow::Result<Shapes> {
        let batch = check_input(session.inputs(), input)?;
        let output = find_output(session.outputs(), output)?;
        let Some(output_element @ (TensorElementType::Float32 | TensorElementType::Float16)) =
            output.dtype().tensor_type()
        else {
            bail!("the output {:?} is {}, not a tensor of float32 or float16", output.name(), output.dtype())
        };
        let shape = shape_of(output);
        if let (Some(found), Some(wanted)) = (values_per_image(&shape), outputs) {
            ensure!(found == wanted, "the output is {shape:?}, not one score for each of the {wanted} labels");
        }
        // An output without a batch axis is that of one image.
        let fixed_batch =
            if shape.len() == 1 { Some(1) } else { usize::try_from(batch).ok().filter(|&batch| batch > 0) };
        Ok(Shapes { output: output.name().to_owned(), output_element, fixed_batch })
    }
}

/// Checks the input of the model file. Returns its batch axis, which is negative if it is free.
fn check_input(inputs: &[Outlet], input: &Input) -> anyhow::Result<i64> {
    let [found] = inputs else { bail!("it has {} inputs, not 1", inputs.len()) };
    ensure!(found.name() == input.name, "the input is {:?}, not {:?}", found.name(), input.name);
    let element = match input.element {
        Element::Float32 => TensorElementType::Float32,
        Element::Float16 => TensorElementType::Float16,
        Element::Uint8 => TensorElementType::Uint8,
    };
    let kind = found.dtype();
    ensure!(kind.tensor_type() == Some(element), "the input {:?} is {kind}, not a tensor of {element}", found.name());
    let shape = shape_of(found);
    let &[batch, first, second, third] = shape.as_slice() else { bail!("the input has {} axes, not 4", shape.len()) };
    let (channels, height, width) = match input.layout {
        Layout::Nchw => (first, second, third),
        Layout::Nhwc => (third, first, second),
    };
    let count = input.channels.count();
    ensure!(accepts(channels, i64::try_from(count).ok()), "the input has {channels} channels, not {count}");
    let size = input.geometry.output();
    let wanted = size.map_or_else(|| "any size".to_owned(), |size| format!("{} × {}", size.height, size.width));
    ensure!(
        accepts(height, size.map(|size| size.height.into())) && accepts(width, size.map(|size| size.width.into())),
        "the input is {height} × {width}, not {wanted}"
    );
    Ok(batch)
}

fn find_output<'a>(outputs: &'a [Outlet], wanted: Option<&str>) -> anyhow::Result<&'a Outlet> {
    let is_wanted = |outlet: &&Outlet| match wanted {
        Some(wanted) => outlet.name() == wanted,
        None => outlet.name() != FEATURES,
    };
    let names = || outputs.iter().map(Outlet::name).collect::<Vec<_>>().join(", ");
    outputs.iter().find(is_wanted).with_context(|| match wanted {
        Some(wanted) => format!("it has no output {wanted:?}; there are: {}", names()),
        None => "it has no output".to_owned(),
    })
}

/// The number of values for each image, if the shape fixes it. All axes after the first one count, because some networks
/// end with axes of one pixel. An output of one axis has no batch axis.
fn values_per_image(shape: &[i64]) -> Option<usize> {
    let axes = if shape.len() > 1 { &shape[1..] } else { shape };
    if axes.is_empty() {
        return None;
    }
    axes.iter().try_fold(1_usize, |product, &axis| product.checked_mul(usize::try_from(axis).ok()?))
}

/// A free axis (negative) accepts any size. A fixed axis accepts only the wanted size, so it does not fit a model that
/// takes any size.
fn accepts(axis: i64, wanted: Option<i64>) -> bool {
    axis < 0 || wanted == Some(axis)
}

fn shape_of(outlet: &Outlet) -> Vec<i64> {
    outlet.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default()
}

fn describe(threads: usize, runtime: &str, source: &str) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("CPUExecutionProvider, {threads} thread{plural}, ONNX Runtime {runtime}, {source}")
}

fn times(built: Duration, ready: Duration) -> String {
    format!(" ({} ms, warm after {} ms)", built.as_millis(), ready.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_axis_must_have_the_wanted_size() {
        assert!(accepts(-1, Some(224)) && accepts(-1, None) && accepts(224, Some(224)));
        assert!(!accepts(240, Some(224)) && !accepts(224, None));
    }

    #[test]
    fn all_axes_but_the_batch_axis_hold_the_classes() {
        assert_eq!(values_per_image(&[-1, 1000]), Some(1000));
        assert_eq!(values_per_image(&[1, 1000, 1, 1]), Some(1000));
        assert_eq!(values_per_image(&[5]), Some(5));
        assert_eq!(values_per_image(&[-1, -1]), None);
        assert_eq!(values_per_image(&[]), None);
    }
}
