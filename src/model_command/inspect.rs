//! `imgcls model list`, `show` and `check`: what models there are, and whether they work.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Config, package, trial};
use crate::model::{self, Installed, Library, ModelChoice, ModelPackage, ModelSummary, Reference};

/// A version of a model, as `list` prints it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    version: String,
    is_current: bool,
    /// `added`, or `shipped` for the models beside the executable.
    origin: &'static str,
    folder: PathBuf,
    disk_bytes: u64,
    /// Memory of one session: measured when the model was added, else estimated from its file.
    memory_bytes: Option<u64>,
    is_memory_measured: bool,
    /// Height and width, or nothing if images keep their size.
    input_size: Option<[u32; 2]>,
    classes: Option<usize>,
    /// The fault of a package that cannot be read.
    error: Option<String>,
}

/// Prints every version of every model.
pub(super) fn list(config: &Config) -> anyhow::Result<bool> {
    let mut models: Vec<Listed> = Vec::new();
    if let Some(folder) = &config.models_dir {
        let installed = Library::new(folder).list()?;
        models.extend(installed.into_iter().map(|version| listed(config, version, "added")));
    }
    for (name, folder) in model::shipped_models()? {
        let is_hidden = models.iter().any(|model| model.name == name && model.is_current);
        let version = description(&folder).ok().and_then(|table| text(&table, "version")).unwrap_or_default();
        models.push(listed(config, Installed { name, version, is_current: !is_hidden, folder }, "shipped"));
    }
    let mut out = format!(
        "{:<28} {:<12} {:<7} {:>9} {:>9} {:>11} {:>7}\n",
        "NAME", "VERSION", "IN USE", "DISK", "MEMORY", "INPUT", "CLASSES"
    );
    for model in &models {
        let in_use = match (model.is_current, model.origin) {
            (true, "shipped") => "shipped",
            (true, _) => "yes",
            (false, _) => "",
        };
        let memory = model.memory_bytes.map_or_else(String::new, |bytes| {
            format!("{}{}", if model.is_memory_measured { "" } else { "≈" }, size(bytes))
        });
        let input = model.input_size.map_or_else(|| "any".to_owned(), |[height, width]| format!("{height} × {width}"));
        let classes = model.classes.map_or_else(String::new, |classes| classes.to_string());
        let _ = write!(
            out,
            "{:<28} {:<12} {in_use:<7} {:>9} {memory:>9} {input:>11} {classes:>7}",
            model.name,
            model.version,
            size(model.disk_bytes)
        );
        match &model.error {
            Some(error) => drop(writeln!(out, "  {error}")),
            None => out.push('\n'),
        }
    }
    config.print(&models, &out)?;
    Ok(true)
}

/// Describes a version by its small files alone: digests are for `check`.
fn listed(config: &Config, version: Installed, origin: &'static str) -> Listed {
    let Installed { name, version, is_current, folder } = version;
    let (summary, error) = match choice(config, &folder).and_then(|choice| ModelSummary::read(&choice)) {
        Ok(summary) => (Some(summary), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let table = description(&folder).unwrap_or_default();
    let measured = table.get("measured").and_then(|measured| measured.get("memory_bytes"));
    let measured = measured.and_then(toml::Value::as_integer).and_then(|bytes| u64::try_from(bytes).ok());
    // A session keeps the weights in float32, partly twice. The largest variant counts.
    let largest = summary.iter().flat_map(|summary| &summary.files).map(|file| file.bytes).max();
    Listed {
        name,
        version,
        is_current,
        origin,
        disk_bytes: folder_bytes(&folder),
        memory_bytes: measured.or_else(|| largest.map(|bytes| bytes.saturating_mul(3))),
        is_memory_measured: measured.is_some(),
        input_size: summary.as_ref().and_then(|summary| summary.input_size),
        classes: summary.map(|summary| summary.classes),
        error,
        folder,
    }
}

/// Prints what is known about one model.
pub(super) fn show(config: &Config, reference: &Reference) -> anyhow::Result<bool> {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        listed: &'a Listed,
        versions: Vec<String>,
        description: toml::Table,
    }
    let folder = folder_of(config, reference)?;
    let path = folder.join(package::DESCRIPTION);
    let toml = package::read_text(&path)?;
    let description = package::parse(&toml).with_context(|| format!("{}", path.display()))?;
    let versions: Vec<Installed> = match &config.models_dir {
        Some(models_dir) => Library::new(models_dir).versions(&reference.name)?,
        None => Vec::new(),
    };
    let version = text(&description, "version").unwrap_or_default();
    let is_added = versions.iter().any(|known| known.folder == folder);
    let is_current = !is_added || versions.first().is_some_and(|first| first.is_current && first.version == version);
    let installed = Installed { name: reference.name.clone(), version, is_current, folder };
    let listed = listed(config, installed, if is_added { "added" } else { "shipped" });
    let mut out = format!("{}@{} in {}\n", listed.name, listed.version, listed.folder.display());
    let names: Vec<String> = versions.iter().map(|known| known.version.clone()).collect();
    if !names.is_empty() {
        let state = if listed.is_current { "in use" } else { "not in use" };
        let _ = writeln!(out, "{state}; versions, the one in use first: {}", names.join(", "));
    }
    let _ = writeln!(
        out,
        "{} on disk, {} of memory a session\n",
        size(listed.disk_bytes),
        size(listed.memory_bytes.unwrap_or(0))
    );
    out.push_str(&toml);
    config.print(&Shown { listed: &listed, versions: names, description }, &out)?;
    Ok(true)
}

/// Verifies digests, then loads and runs models. Returns false if something is wrong with one of them.
pub(super) fn check(config: &Config, reference: Option<&Reference>) -> anyhow::Result<bool> {
    #[derive(Serialize)]
    struct Checked {
        model: String,
        is_good: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }
    let models: Vec<(String, PathBuf)> = match reference {
        Some(reference) => vec![(reference.to_string(), folder_of(config, reference)?)],
        None => {
            let installed = config.library()?.list()?;
            let named = installed.into_iter().map(|found| (format!("{}@{}", found.name, found.version), found.folder));
            named.chain(model::shipped_models()?).collect()
        }
    };
    let mut checked = Vec::new();
    let mut out = String::new();
    for (model, folder) in models {
        let result = check_one(config, &folder);
        let _ = match &result {
            Ok(variants) => writeln!(out, "{model}: good ({variants})"),
            Err(error) => writeln!(out, "{model}: {error:#}"),
        };
        checked.push(Checked { model, is_good: result.is_ok(), error: result.err().map(|error| format!("{error:#}")) });
    }
    config.print(&checked, &out)?;
    Ok(checked.iter().all(|checked| checked.is_good))
}

/// Checks one package. Returns the variants that ran.
fn check_one(config: &Config, folder: &Path) -> anyhow::Result<String> {
    let table = description(folder)?;
    for (file, expected) in package::described_files(&table)? {
        let path = folder.join(file);
        let found = package::digest(&path)?;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            bail!(
                "{} is not the file that model.toml describes: its sha256 is {found}, not {expected}; remove the version and add \
                 the model again",
                path.display()
            );
        }
    }
    let choice = ModelChoice { cache_dir: None, ..choice(config, folder)? };
    let variants = match &choice.variant {
        Some(variant) => vec![variant.clone()],
        None => ModelPackage::variants(&choice)?,
    };
    for variant in &variants {
        let choice = ModelChoice { variant: Some(variant.clone()), ..choice.clone() };
        let outputs = trial::outputs(&choice, None).with_context(|| format!("variant {variant}"))?;
        if model::head_of(&outputs.values).is_none() {
            bail!("variant {variant} returns values that are not finite (NaN or infinity) for photographs");
        }
        trial::classify(&choice, None).with_context(|| format!("variant {variant}"))?;
    }
    Ok(variants.join(", "))
}

/// The folder of a model: in the models directory, or beside the executable.
fn folder_of(config: &Config, reference: &Reference) -> anyhow::Result<PathBuf> {
    model::model_folder(&config.choice(reference.to_string()))
}

fn choice(config: &Config, folder: &Path) -> anyhow::Result<ModelChoice> {
    let text =
        folder.to_str().with_context(|| format!("{} is not UTF-8; give another --models-dir", folder.display()))?;
    Ok(config.choice(text.to_owned()))
}

fn description(folder: &Path) -> anyhow::Result<toml::Table> {
    let path = folder.join(package::DESCRIPTION);
    let text = package::read_text(&path)?;
    package::parse(&text).with_context(|| format!("{}", path.display()))
}

fn text(table: &toml::Table, key: &str) -> Option<String> {
    table.get(key).and_then(toml::Value::as_str).map(str::to_owned)
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Formats a size in MB, as disks and files are sized.
fn size(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
