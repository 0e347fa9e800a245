//! Builds sessions: the loaded library, the options, and the cache of optimised graphs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{anyhow, ensure};
use ort::environment::Environment;
use ort::ep;
use ort::logging::LogLevel;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};
use sha2::{Digest as _, Sha256};

use super::file::hex;
use super::find::{self, RuntimeLibrary};
use super::package::ModelPackage;
use super::runtime::{self, Checked};
use super::seal::{self, Key};

/// The options of every session of a package.
pub(super) struct Options<'a> {
    pub environment: &'a Environment,
    pub threads: usize,
    /// All inputs have the same size.
    pub has_fixed_size: bool,
}

impl Options<'_> {
    fn builder(&self, optimisation: GraphOptimizationLevel) -> anyhow::Result<SessionBuilder> {
        self.try_builder(optimisation).map_err(|error| anyhow!("ONNX Runtime refuses an option: {error}"))
    }

    fn try_builder(&self, optimisation: GraphOptimizationLevel) -> ort::Result<SessionBuilder> {
        // With a fixed image size, inferences reuse the arena. Otherwise it would keep the largest buffers forever. A
        // memory pattern would need additional memory for each batch size, and is not faster.
        Ok(ort::session::Session::builder(self.environment)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_execution_providers([ep::CPU::default().with_arena_allocator(self.has_fixed_size).build()])?
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

/// A session or the reason why there is none, and where its graph comes from, for the log.
pub(super) type Opened = (anyhow::Result<ort::session::Session>, &'static str);

/// Builds the session.
///
/// # Errors
/// If an option is refused. That the model cannot be loaded is the first part of the result.
pub(super) fn open(package: &ModelPackage, options: &Options, cache_dir: Option<&Path>) -> anyhow::Result<Opened> {
    match cache_dir {
        // The optimised graph would contain the weights, which may be too many for one file.
        Some(folder) if !package.has_external_data() => open_cached(package, options, folder),
        _ => Ok((commit(package, options.builder(GraphOptimizationLevel::All)), "graph optimised at start-up")),
    }
}

/// Reads and verifies the model, and builds the session.
fn commit(package: &ModelPackage, builder: anyhow::Result<SessionBuilder>) -> anyhow::Result<ort::session::Session> {
    let mut builder = builder?;
    let built = if package.has_external_data() {
        // The runtime reads the files beside the model file itself, so they are verified immediately before.
        package.verify()?;
        builder.commit_from_file(package.file())
    } else {
        builder.commit_from_memory(&package.read()?)
    };
    built.map_err(|error| anyhow!("{}", error.to_string().replace('\n', " ")))
}

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

/// The environment of the loaded library. A process can have only one.
pub(super) fn environment(library: &RuntimeLibrary, cache: Option<&Path>) -> anyhow::Result<Environment> {
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

/// The library returns its version only to unsafe code, so it is taken from the file name, or else from the build info.
pub(super) fn runtime_version(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.split_once(".so.") {
        Some((_, version)) => version.to_owned(),
        None => ort::info().trim_start_matches("ORT Build Info: ").to_owned(),
    }
}
