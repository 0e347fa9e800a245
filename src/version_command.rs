//! `imgcls version`: what runs here, as exactly as a report of a fault needs it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use crate::model::{self, Library, ModelChoice, ModelSummary, RuntimeFacts};
use crate::telemetry::output;

/// Settings of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The places where models and the runtime library are searched for.
    pub choice: ModelChoice,
    /// Print JSON instead of text.
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    build: Build,
    runtime: Found<RuntimeFacts>,
    cpu: Cpu,
    models: Vec<Model>,
}

/// The program. Its digest says which build it is.
#[derive(Serialize)]
struct Build {
    executable: PathBuf,
    sha256: String,
    architecture: &'static str,
    system: &'static str,
    jpeg: &'static str,
}

#[derive(Serialize)]
struct Cpu {
    cores: usize,
    features: Vec<&'static str>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    version: String,
    folder: PathBuf,
    #[serde(flatten)]
    files: Found<Files>,
}

#[derive(Serialize)]
struct Files {
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    variant: String,
    digest: String,
}

/// A part of the answer, or the reason why it is missing.
#[derive(Serialize)]
#[serde(untagged)]
enum Found<T> {
    Yes(T),
    No { error: String },
}

impl<T> From<anyhow::Result<T>> for Found<T> {
    fn from(result: anyhow::Result<T>) -> Found<T> {
        match result {
            Ok(found) => Found::Yes(found),
            Err(error) => Found::No { error: format!("{error:#}") },
        }
    }
}

/// Prints version and digest of the program, the runtime library, the CPU and the models. A part that cannot be read is
/// reported as such.
///
/// # Errors
/// If the file of this program cannot be read, or the answer cannot be printed.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: build()?,
        runtime: model::runtime_facts(&config.choice).into(),
        cpu: Cpu { cores: model::cores(), features: model::cpu_features() },
        models: models(&config.choice),
    };
    let text = if config.json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.text() };
    output::print(&text).context("cannot print the version")
}

fn build() -> anyhow::Result<Build> {
    let executable = std::env::current_exe().context("cannot find the file of this program")?;
    let sha256 = model::file_sha256(&executable).with_context(|| format!("cannot read {}", executable.display()))?;
    Ok(Build {
        executable,
        sha256,
        architecture: std::env::consts::ARCH,
        system: std::env::consts::OS,
        jpeg: model::JPEG_DECODER,
    })
}

/// The versions in use: those in the models directory, and of those beside the program the ones that they do not hide.
fn models(choice: &ModelChoice) -> Vec<Model> {
    let installed = choice.models_dir.iter().filter_map(|folder| Library::new(folder).list().ok()).flatten();
    let mut found: Vec<(String, PathBuf)> =
        installed.filter(|version| version.is_current).map(|version| (version.name, version.folder)).collect();
    for (name, folder) in model::shipped_models().unwrap_or_default() {
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, folder));
        }
    }
    found.into_iter().map(|(name, folder)| describe(name, folder)).collect()
}

fn describe(name: String, folder: PathBuf) -> Model {
    let choice = ModelChoice { model: Some(folder.to_string_lossy().into_owned()), ..ModelChoice::default() };
    match ModelSummary::read(&choice) {
        Ok(summary) => {
            let files = summary.files.into_iter().map(|file| File { variant: file.variant, digest: file.digest });
            let files = Found::Yes(Files { files: files.collect() });
            Model { name: summary.name, version: summary.version, folder, files }
        }
        Err(error) => Model { name, version: String::new(), folder, files: Found::No { error: format!("{error:#}") } },
    }
}

impl Report {
    fn text(&self) -> String {
        let Build { sha256, architecture, system, jpeg, .. } = &self.build;
        let mut text = format!("imgcls {}\n", self.version);
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("build", &format!("{architecture}-{system}, sha256 {sha256}"));
        line("JPEG", jpeg);
        match &self.runtime {
            Found::Yes(RuntimeFacts { path, version, sha256, is_pinned }) => {
                let origin = if *is_pinned { "as pinned" } else { "not the pinned one" };
                line("runtime", &format!("ONNX Runtime {version}, {origin}, sha256 {sha256}, {}", path.display()));
            }
            Found::No { error } => line("runtime", error),
        }
        line("CPU", &format!("{} cores, {}", self.cpu.cores, self.cpu.features.join(" ")));
        for Model { name, version, files, .. } in &self.models {
            match files {
                Found::Yes(Files { files }) => {
                    for File { variant, digest } in files {
                        line("model", &format!("{name} {version} {variant} {digest}"));
                    }
                }
                Found::No { error } => line("model", &format!("{name}: {error}")),
            }
        }
        text
    }
}
