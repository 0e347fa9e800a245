//! One ONNX Runtime session: a batch of tensors → class probabilities.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use ort::environment::Environment;
use ort::ep;
use ort::logging::LogLevel;
use ort::session::SessionInputValue;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorElementType, TensorRef};
use sha2::{Digest as _, Sha256};

use super::choice::ModelChoice;
use super::file::hex;
use super::find::{self, RuntimeLibrary};
use super::package::{Form, Geometry, Input, ModelPackage, Output};
use super::runtime::{self, Checked};
use super::seal::{self, Key};
use super::tensor::{Tensor, Values};

/// A session, owned by one thread. Two sessions with one thread each are faster than one session with two threads.
pub struct Session {
    inner: ort::session::Session,
    input_name: String,
    form: Form,
    classes: usize,
    output: Output,
    /// The batch size, if the model file fixes it.
    fixed_batch: Option<usize>,
    /// Buffers for the concatenated tensors of a batch, reused for the next batch. One of the two stays empty.
    floats: Vec<f32>,
    pixels: Vec<u8>,
    description: String,
}

impl Session {
    /// Loads the library (once per process), builds the session, checks it against model.toml and runs it once.
    ///
    /// # Errors
    /// A message of one line that says what is wrong, with which file, and what to do.
    pub fn open(package: &ModelPackage, choice: &ModelChoice) -> anyhow::Result<Session> {
        let begun = Instant::now();
        let library = find::runtime(choice)?;
        let environment = environment(&library, choice.cache_dir.as_deref())?;
        let threads = choice.intra_threads.unwrap_or(1).max(1);
        let options = Options { environment: &environment, threads, geometry: package.input().geometry };
        let (session, graph) = match &choice.cache_dir {
            Some(folder) => open_cached(package, &options, folder)?,
            None => (commit(package, options.builder(GraphOptimizationLevel::All)), "graph optimised at start-up"),
        };
        let session = session.with_context(|| format!("ONNX Runtime cannot load {}", package.file().display()))?;
        let fixed_batch = check_shapes(&session, package)
            .with_context(|| format!("{} does not fit its model.toml", package.file().display()))?;
        let mut session = Session {
            input_name: package.input().name.clone(),
            form: package.input().form,
            classes: package.classes(),
            output: package.output(),
            fixed_batch,
            floats: Vec::new(),
            pixels: Vec::new(),
            description: String::new(),
            inner: session,
        };
        let built = begun.elapsed();
        session.warm_up(package.input())?;
        session.description = describe(threads, &runtime_version(&library.path), graph, built, begun.elapsed());
        Ok(session)
    }

    /// The class probabilities of each tensor. All tensors must have the same height and width.
    ///
    /// # Errors
    /// If the runtime fails, or the tensors differ in size.
    pub fn infer(&mut self, batch: &[&Tensor]) -> anyhow::Result<Vec<Vec<f32>>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let size = (first.height, first.width);
        ensure!(
            batch.iter().all(|tensor| (tensor.height, tensor.width) == size),
            "the tensors of a batch differ in size"
        );
        let mut probabilities = Vec::with_capacity(batch.len());
        for part in batch.chunks(self.fixed_batch.unwrap_or(batch.len())) {
            self.run(part, self.fixed_batch.unwrap_or(part.len()), size, &mut probabilities)?;
        }
        Ok(probabilities)
    }

    /// Execution provider, threads, runtime version and start-up time, for the log.
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    fn run(
        &mut self,
        part: &[&Tensor],
        batch_size: usize,
        (height, width): (usize, usize),
        probabilities: &mut Vec<Vec<f32>>,
    ) -> anyhow::Result<()> {
        let input: SessionInputValue = match self.form {
            Form::Floats => {
                let shape = [batch_size, 3, height, width];
                let data = concatenate(part, shape.iter().product(), &mut self.floats, floats)?;
                TensorRef::from_array_view((shape, data))?.into()
            }
            Form::Pixels => {
                let shape = [batch_size, height, width, 4];
                let data = concatenate(part, shape.iter().product(), &mut self.pixels, pixels)?;
                TensorRef::from_array_view((shape, data))?.into()
            }
        };
        let outputs = self.inner.run(ort::inputs![self.input_name.as_str() => input])?;
        let (shape, scores) = outputs[0].try_extract_tensor::<f32>()?;
        ensure!(
            scores.len() == batch_size * self.classes,
            "the model returned {shape} for {batch_size} images of {} classes",
            self.classes
        );
        probabilities.extend(scores.chunks_exact(self.classes).take(part.len()).map(|scores| match self.output {
            Output::Logits => softmax(scores),
            Output::Probabilities => scores.to_vec(),
        }));
        ensure!(
            probabilities.iter().rev().take(part.len()).flatten().all(|score| score.is_finite()),
            "the model returned scores that are not finite"
        );
        Ok(())
    }

    /// Runs one inference, because the first one allocates memory and no image should wait for it.
    fn warm_up(&mut self, input: &Input) -> anyhow::Result<()> {
        let side = match input.geometry {
            Geometry::ShortSide { crop, .. } => crop as usize,
            Geometry::Native => 224,
        };
        let values = match input.form {
            Form::Floats => Values::Floats(vec![0.0; 3 * side * side]),
            Form::Pixels => Values::Pixels(vec![0; 4 * side * side]),
        };
        let tensor = Tensor { values, height: side, width: side };
        self.infer(&[&tensor]).context("the model cannot run")?;
        Ok(())
    }
}

fn floats(values: &Values) -> Option<&[f32]> {
    if let Values::Floats(floats) = values { Some(floats) } else { None }
}

fn pixels(values: &Values) -> Option<&[u8]> {
    if let Values::Pixels(pixels) = values { Some(pixels) } else { None }
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

fn softmax(scores: &[f32]) -> Vec<f32> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut exponentials: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    for value in &mut exponentials {
        *value /= sum;
    }
    exponentials
}

/// The environment of the loaded library. A process can have only one.
fn environment(library: &RuntimeLibrary, cache: Option<&Path>) -> anyhow::Result<Environment> {
    static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let (checked, library) = (loaded.is_none().then(|| runtime::check(library, cache)).transpose()?, &library.path);
    if let Some((path, environment)) = loaded.as_ref() {
        ensure!(
            path == library,
            "this process has loaded {} and cannot load {} too",
            path.display(),
            library.display()
        );
        return Ok(environment.clone());
    }
    let builder = ort::init_from(library).map_err(|error| match error {
        ort::LoadDynamicError::BadVersion { version_str, .. } => anyhow!(
            "{} is ONNX Runtime {version_str}; 1.{} or newer is required, scripts/setup installs {}",
            library.display(),
            ort::MINOR_VERSION,
            find::RUNTIME_VERSION
        ),
        error => {
            let error = error.to_string().replace('\n', " ");
            anyhow!("{} is not an ONNX Runtime library ({error}); scripts/setup installs one", library.display())
        }
    })?;
    let environment = builder
        .with_name("imgcls")
        .with_telemetry(false)
        .with_logger(Arc::new(|level, category: &str, _: &str, _: &str, message: &str| log(level, category, message)))
        .build()?;
    environment.set_log_level(LogLevel::Warning);
    if let Some(Checked::Other { sha256 }) = checked {
        tracing::info!(path = %library.display(), sha256, "this ONNX Runtime is not the one of scripts/setup");
    }
    *loaded = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

fn log(level: LogLevel, category: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::warn!(target: "ort", category, "{message}"),
        LogLevel::Warning => tracing::info!(target: "ort", category, "{message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::debug!(target: "ort", category, "{message}"),
    }
}

/// The options of every session of a package.
struct Options<'a> {
    environment: &'a Environment,
    threads: usize,
    geometry: Geometry,
}

impl Options<'_> {
    fn builder(&self, optimisation: GraphOptimizationLevel) -> anyhow::Result<SessionBuilder> {
        self.try_builder(optimisation).map_err(|error| anyhow!("ONNX Runtime refuses an option: {error}"))
    }

    fn try_builder(&self, optimisation: GraphOptimizationLevel) -> ort::Result<SessionBuilder> {
        // With a fixed image size, inferences reuse the arena. Otherwise it would keep the largest buffers forever. A
        // memory pattern would need additional memory for each batch size, and is not faster.
        let has_fixed_size = matches!(self.geometry, Geometry::ShortSide { .. });
        Ok(ort::session::Session::builder(self.environment)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_execution_providers([ep::CPU::default().with_arena_allocator(has_fixed_size).build()])?
            .with_memory_pattern(false)?
            .with_parallel_execution(false)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_optimization_level(optimisation)?
            .with_log_level(LogLevel::Error)?)
    }
}

fn commit(package: &ModelPackage, builder: anyhow::Result<SessionBuilder>) -> anyhow::Result<ort::session::Session> {
    Ok(builder?.commit_from_memory(&package.read()?)?)
}

type Opened = (anyhow::Result<ort::session::Session>, &'static str);

/// Builds the session from the optimised graph in the cache, if it is sealed with the key of the cache directory.
/// Otherwise optimises the graph and stores it. A cache that cannot be written only costs time at the next start.
fn open_cached(package: &ModelPackage, options: &Options, folder: &Path) -> anyhow::Result<Opened> {
    let optimise = || commit(package, options.builder(GraphOptimizationLevel::All));
    let key = match Key::of(folder) {
        Ok(key) => key,
        Err(error) => {
            // This is logged once, not for each session.
            static WARNED: std::sync::Once = std::sync::Once::new();
            WARNED.call_once(|| {
                tracing::warn!(folder = %folder.display(), %error, "cannot use the cache directory for graphs");
            });
            return Ok((optimise(), "graph optimised at start-up"));
        }
    };
    let path = folder.join(format!("{}.onnx", cache_key(package)));
    if let Some(graph) = key.read(&path) {
        let cached = options.builder(GraphOptimizationLevel::Disable)?.commit_from_memory(&graph);
        if let Ok(session) = cached {
            return Ok((Ok(session), "graph from the cache"));
        }
        tracing::warn!(path = %path.display(), "cannot load the cached graph; it is recreated");
    }
    let fresh = folder.join(seal::unique("graph"));
    if let Err(error) = seal::write_private(&fresh, &[]) {
        tracing::warn!(folder = %folder.display(), %error, "cannot cache the optimised graph");
        return Ok((optimise(), "graph optimised at start-up"));
    }
    let builder = options.builder(GraphOptimizationLevel::All)?;
    let builder = builder.with_optimized_model_path(&fresh).map_err(|error| anyhow!("{error}"));
    let session = commit(package, builder);
    if session.is_ok()
        && let Err(error) = std::fs::read(&fresh).and_then(|graph| key.write(&path, graph))
    {
        tracing::warn!(path = %path.display(), %error, "cannot cache the optimised graph");
    }
    let _ = std::fs::remove_file(&fresh);
    Ok((session, "graph optimised at start-up and cached"))
}

/// An optimised graph depends on the model file, the runtime and the CPU features.
fn cache_key(package: &ModelPackage) -> String {
    let mut hash = Sha256::new();
    for part in [&package.digest(), ort::info(), &cpu_features()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize()[..16])
}

/// The architecture and the CPU features that optimised graphs and `imgcls tune` depend on.
pub(super) fn cpu_features() -> String {
    let mut features = String::from(std::env::consts::ARCH);
    macro_rules! note {
        ($detected:ident: $($feature:tt)*) => {
            $(if std::arch::$detected!($feature) { let _ = write!(features, " {}", $feature); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    note!(is_x86_feature_detected: "sse4.1" "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni"
        "avx512bf16" "avxvnni");
    #[cfg(target_arch = "aarch64")]
    note!(is_aarch64_feature_detected: "neon" "dotprod" "i8mm" "fp16" "bf16" "sve");
    features
}

/// Checks the inputs and outputs of the model file against the package. Returns the batch size, if the file fixes it.
fn check_shapes(session: &ort::session::Session, package: &ModelPackage) -> anyhow::Result<Option<usize>> {
    let input = package.input();
    let [found_input] = session.inputs() else { bail!("it has {} inputs, not 1", session.inputs().len()) };
    ensure!(found_input.name() == input.name, "the input is {:?}, not {:?}", found_input.name(), input.name);
    let side = match input.geometry {
        Geometry::ShortSide { crop, .. } => Some(i64::from(crop)),
        Geometry::Native => None,
    };
    let (element, planes) = match input.form {
        Form::Floats => (TensorElementType::Float32, 3),
        Form::Pixels => (TensorElementType::Uint8, 4),
    };
    let shape = shape_of(found_input, element)?;
    let &[batch, first, second, third] = shape.as_slice() else { bail!("the input has {} axes, not 4", shape.len()) };
    let (channels, height, width) = match input.form {
        Form::Floats => (first, second, third),
        Form::Pixels => (third, first, second),
    };
    ensure!(accepts(channels, Some(planes)), "the input has {channels} channels, not {planes}");
    let wanted = side.map_or_else(|| "any size".to_owned(), |side| format!("{side} × {side}"));
    ensure!(accepts(height, side) && accepts(width, side), "the input is {height} × {width}, not {wanted}");
    let Some(found_output) = session.outputs().first() else { bail!("it has no output") };
    let shape = shape_of(found_output, TensorElementType::Float32)?;
    let classes = shape.last().copied().unwrap_or(0);
    ensure!(
        shape.len() == 2 && accepts(classes, i64::try_from(package.classes()).ok()),
        "the output is {shape:?}, not one score for each of the {} labels",
        package.classes()
    );
    Ok(usize::try_from(batch).ok().filter(|&batch| batch > 0))
}

/// A free axis (negative) accepts any size. A fixed axis accepts only the wanted size, so it does not fit a model that
/// takes any size.
fn accepts(axis: i64, wanted: Option<i64>) -> bool {
    axis < 0 || wanted == Some(axis)
}

fn shape_of(outlet: &Outlet, element: TensorElementType) -> anyhow::Result<Vec<i64>> {
    let kind = outlet.dtype();
    ensure!(kind.tensor_type() == Some(element), "{:?} is {kind}, not a tensor of {element}", outlet.name());
    Ok(kind.tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default())
}

fn describe(threads: usize, runtime: &str, graph: &str, built: Duration, ready: Duration) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!(
        "CPUExecutionProvider, {threads} thread{plural}, ONNX Runtime {runtime}, {graph} ({} ms, warm after {} ms)",
        built.as_millis(),
        ready.as_millis()
    )
}

/// The library returns its version only to unsafe code, so it is taken from the file name, or else from the build info.
fn runtime_version(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.split_once(".so.") {
        Some((_, version)) => version.to_owned(),
        None => ort::info().trim_start_matches("ORT Build Info: ").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_for_scores_of_any_size() {
        let probabilities = softmax(&[1000.0, 1001.0, -1000.0]);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(probabilities[1] > probabilities[0] && probabilities[2] < 1e-6);
    }

    #[test]
    fn fixed_axis_must_have_the_wanted_size() {
        assert!(accepts(-1, Some(224)) && accepts(-1, None) && accepts(224, Some(224)));
        assert!(!accepts(240, Some(224)) && !accepts(224, None));
    }
}
