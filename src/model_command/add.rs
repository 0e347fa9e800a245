//! `imgcls model add`: recognise, complete, write, try, install. The package appears only when all of it has worked.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use super::complete::{self, Complete};
use super::description::Provenance;
use super::draft::{Draft, Labels, Size, Sourced};
use super::recognise::{hugging_face, keras, teachable_machine, timm, torchvision, ultralytics};
use super::source::{self, Export, Source};
use super::trial::{self, Sample};
use super::{Config, package};
use crate::model::{Library, ModelChoice, OnnxFile, Pointer, Prediction, Reference, Staging};

/// Settings of `imgcls model add`.
#[derive(Debug, Clone)]
pub struct Add {
    /// An ONNX file or a folder.
    pub source: PathBuf,
    /// The name, or `None` for one that follows from the source.
    pub name: Option<String>,
    /// Values that a framework uses for many networks.
    pub preset: Option<Preset>,
    /// The values that flags give. They take precedence.
    pub flags: Draft,
    /// Print `model.toml` and add nothing.
    pub is_dry_run: bool,
    /// Services that name the model switch to this version at once.
    pub is_used_at_once: bool,
    /// The image that is classified at the end, or `None` for a photograph that is built in.
    pub sample: Option<PathBuf>,
}

/// The name of a preset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset(pub String);

impl Preset {
    fn draft(&self) -> anyhow::Result<Draft> {
        match self.0.as_str() {
            name if name.starts_with(torchvision::PREFIX) => torchvision::preset(name),
            name if name.starts_with(keras::PREFIX) => keras::preset(name),
            teachable_machine::PRESET => Ok(teachable_machine::draft("preset teachable-machine")),
            name => bail!(
                "there is no preset {name:?}; there are torchvision-NAME, keras-tf, keras-caffe, keras-torch and \
                 teachable-machine (docs/models.md)"
            ),
        }
    }
}

/// Adds a model.
pub(super) fn run(config: &Config, add: &Add) -> anyhow::Result<bool> {
    let library = config.library()?;
    // A dry run writes nothing into the models directory.
    let staged = if add.is_dry_run { Library::new(std::env::temp_dir()) } else { library.clone() };
    let added = match source::find(&add.source)? {
        Source::Export(export) => of_export(config, add, &export, &staged)?,
        Source::Package(folder) => of_package(config, add, &folder, &staged)?,
    };
    if add.is_dry_run {
        config.print(&added.report, &added.description)?;
        return Ok(true);
    }
    let Added { mut report, staging, .. } = added;
    let pointer = if add.is_used_at_once { Pointer::Move } else { Pointer::Keep };
    report.folder = Some(library.install(staging, &report.name, &report.version, pointer)?);
    let in_use = library.history(&report.name)?.into_iter().next().unwrap_or_default();
    report.is_current = in_use == report.version;
    let text = report.text(&in_use);
    config.print(&report, &text)?;
    Ok(true)
}

/// A package that works, and is not installed yet.
struct Added {
    report: Report,
    staging: Staging,
    description: String,
}

fn of_export(config: &Config, add: &Add, export: &Export, library: &Library) -> anyhow::Result<Added> {
    let name = name_of(add, &export.names)?;
    let onnx = OnnxFile::read(&export.model)?;
    let draft = draft_of(add, export, &onnx)?;
    let mut model = complete::complete(draft, &onnx)?;
    let output = complete::output(&onnx)?;
    let expected_classes = output.shape.last().copied().flatten();

    let staging = library.stage()?;
    let folder = staging.path();
    let choice = ModelChoice { cache_dir: None, ..config.choice(text_of(folder)?) };
    let files = package::write_files(folder, export, &onnx, &model.labels.value)?;
    let mut provenance =
        Provenance { source: export.model.display().to_string(), producer: onnx.producer.clone(), memory_bytes: None };
    // The raw outputs are needed first: they show whether they are scores already.
    let known = model.head.take();
    package::write_description(folder, &name, &model, &files, &provenance)?;
    let outputs = trial::outputs(&choice, expected_classes)?;
    refuse_repeated_label(&choice, &model.labels)?;
    provenance.memory_bytes = Some(outputs.memory_bytes);
    model.set_head(Some(trial::head(known, &outputs.values)?))?;
    let (version, description) = package::write_description(folder, &name, &model, &files, &provenance)?;
    let sample = trial::classify(&choice, add.sample.as_deref())?;
    let report = Report {
        facts: facts(export, &onnx),
        settings: settings(&model, &sample),
        ..Report::new(name, version, sample, Some(outputs.memory_bytes))
    };
    Ok(Added { report, staging, description })
}

fn of_package(config: &Config, add: &Add, from: &Path, library: &Library) -> anyhow::Result<Added> {
    ensure!(
        add.flags == Draft::default() && add.preset.is_none(),
        "{} is a package with a model.toml already, so that only --name applies; change model.toml instead",
        from.display()
    );
    let staging = library.stage()?;
    let folder = staging.path();
    let notices = source::notices(from)?;
    let (name, version, description) = package::copy_package(from, folder, add.name.as_deref(), &notices)?;
    Reference::parse(&name)?;
    let choice = ModelChoice { cache_dir: None, ..config.choice(text_of(folder)?) };
    let outputs = trial::outputs(&choice, None)?;
    let sample = trial::classify(&choice, add.sample.as_deref())?;
    let report = Report {
        facts: format!("{}: a package with a model.toml", from.display()),
        ..Report::new(name, version, sample, Some(outputs.memory_bytes))
    };
    Ok(Added { report, staging, description })
}

/// The known values: those of the flags, then of the preset, then of the export.
fn draft_of(add: &Add, export: &Export, onnx: &OnnxFile) -> anyhow::Result<Draft> {
    let preset = add.preset.as_ref().map(Preset::draft).transpose()?.unwrap_or_default();
    let given = add.flags.clone().or(preset);
    // A recogniser that fails does not matter if the flags say everything.
    let recognised = match recognise(export, onnx) {
        Ok(draft) => draft,
        Err(_) if complete::complete(given.clone().or(labels_file(export)), onnx).is_ok() => Draft::default(),
        Err(error) => return Err(error),
    };
    let recognised = match &recognised.labels {
        // `LABEL_0` is what transformers writes where nobody gave names.
        Some(Sourced { value: Labels::Names(names), .. }) if is_placeholder(names) => {
            labels_file(export).or(recognised)
        }
        _ => recognised,
    };
    Ok(given.or(recognised).or(labels_file(export)))
}

fn recognise(export: &Export, onnx: &OnnxFile) -> anyhow::Result<Draft> {
    let exported: Option<Size> = complete::exported_size(onnx);
    if let Some(draft) = ultralytics::recognise(&onnx.metadata)? {
        return Ok(draft);
    }
    // transformers wraps networks of timm and then saves timm's configuration in its own.
    let is_wrapped =
        export.preprocessor.as_ref().is_none_or(|preprocessor| preprocessor.get("pretrained_cfg").is_some());
    if let Some(config) = export.config.as_ref().or(export.preprocessor.as_ref()).filter(|_| is_wrapped)
        && let Some(draft) = timm::recognise(config, exported)?
    {
        return Ok(draft);
    }
    if let Some(draft) = hugging_face::recognise(export.config.as_ref(), export.preprocessor.as_ref())? {
        return Ok(draft);
    }
    Ok(export.teachable_machine.map(teachable_machine::draft).unwrap_or_default())
}

fn labels_file(export: &Export) -> Draft {
    let labels = export.labels.clone().map(|path| Sourced::new(Labels::File(path), "labels.txt"));
    Draft { labels, ..Draft::default() }
}

fn is_placeholder(names: &[String]) -> bool {
    names.iter().enumerate().all(|(index, name)| *name == format!("LABEL_{index}"))
}

/// A name from the flag or from the source.
fn name_of(add: &Add, candidates: &[String]) -> anyhow::Result<String> {
    if let Some(name) = &add.name {
        let reference = Reference::parse(name)?;
        ensure!(
            reference.version.is_none(),
            "--name {name}: the version follows from the content; give the name alone"
        );
        return Ok(reference.name);
    }
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let cleaned = candidates.iter().map(|candidate| {
        let name: String =
            candidate.chars().map(|character| if is_allowed(character) { character } else { '-' }).collect();
        name.trim_matches(|character: char| !character.is_ascii_alphanumeric()).chars().take(64).collect::<String>()
    });
    let mut valid = cleaned.filter(|name| Reference::parse(name).is_ok());
    valid.next().context("no name follows from SOURCE; give one with --name")
}

/// A label that two classes have. Frameworks' own configurations may have such names: two classes of ImageNet are called
/// crane.
fn refuse_repeated_label(choice: &ModelChoice, labels: &Sourced<Labels>) -> anyhow::Result<()> {
    let is_of_a_framework = !matches!(labels.value, Labels::File(_));
    match trial::repeated_label(choice)? {
        Some(repeated) if !is_of_a_framework => bail!(
            "{repeated} ({}), so that answers could not be told apart; give each class a name of its own, or lines of an id and a \
             name",
            labels.source
        ),
        _ => Ok(()),
    }
}

fn text_of(folder: &Path) -> anyhow::Result<String> {
    let text =
        folder.to_str().with_context(|| format!("{} is not UTF-8; give another --models-dir", folder.display()))?;
    // A path of one component would be looked up as a name.
    Ok(if folder.components().count() == 1 { format!("./{text}") } else { text.to_owned() })
}

fn facts(export: &Export, onnx: &OnnxFile) -> String {
    let input = onnx.inputs.first();
    let output = complete::output(onnx).ok();
    let tensor = |kind: &str, tensor: Option<&crate::model::TensorInfo>| {
        tensor.map_or(String::new(), |tensor| {
            format!(", {kind} {:?} {} {}", tensor.name, tensor.element_name(), tensor.shape_text())
        })
    };
    let opset = onnx.opsets.get("").copied().unwrap_or_default();
    let producer = if onnx.producer.is_empty() { "an unnamed program" } else { &onnx.producer };
    format!(
        "{}: {} weights, operator set {opset}, written by {producer}{}{}",
        export.model.display(),
        onnx.precision,
        tensor("input", input),
        tensor("output", output)
    )
}

/// The report of the command.
#[derive(Serialize)]
struct Report {
    name: String,
    version: String,
    is_current: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    #[serde(rename = "source")]
    facts: String,
    settings: Vec<Setting>,
    classes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    sample: SampleReport,
}

#[derive(Serialize)]
struct Setting {
    key: &'static str,
    value: String,
    source: String,
}

#[derive(Serialize)]
struct SampleReport {
    image: String,
    predictions: Vec<Prediction>,
}

impl Report {
    fn new(name: String, version: String, sample: Sample, memory_bytes: Option<u64>) -> Report {
        let Sample { image, predictions, classes, .. } = sample;
        Report {
            name,
            version,
            is_current: false,
            folder: None,
            facts: String::new(),
            settings: Vec::new(),
            classes,
            memory_bytes,
            sample: SampleReport { image, predictions },
        }
    }

    fn text(&self, in_use: &str) -> String {
        let Report { name, version, facts, settings, sample, .. } = self;
        let mut text = format!("{facts}\n");
        let width = settings.iter().map(|setting| setting.value.chars().count()).max().unwrap_or(0).min(44);
        for Setting { key, value, source } in settings {
            let _ = writeln!(text, "  {key:<10} {value:<width$}  {source}");
        }
        let answers: Vec<String> = sample.predictions.iter().map(answer).collect();
        let _ = writeln!(text, "  sample     {}: {}", sample.image, answers.join(", "));
        if self.is_current {
            let _ =
                writeln!(text, "added {name}@{version}, which is in use; try `imgcls classify --model {name} FILE`");
        } else {
            let _ = writeln!(
                text,
                "added {name}@{version}; {name}@{in_use} stays in use until `imgcls model use {name}@{version}`"
            );
        }
        text
    }
}

fn answer(prediction: &Prediction) -> String {
    format!("{} {:.1} %", prediction.label, prediction.score.unwrap_or_default() * 100.0)
}

/// The settings in the order of the pipeline, for people and programs.
fn settings(model: &Complete, sample: &Sample) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |key, value: String, source: &str| settings.push(Setting { key, value, source: source.to_owned() });
    let more = if sample.classes > sample.first_labels.len() { ", …" } else { "" };
    let names = format!("{}: {}{more}", sample.classes, sample.first_labels.join(", "));
    add("labels", names, &model.labels.source);
    add("resize", model.resize.value.as_str().to_owned(), &model.resize.source);
    if let Some(size) = &model.size {
        let is_edge = model.resize.value == super::draft::Resize::ShortestEdge;
        add("size", if is_edge { size.value.shortest().to_string() } else { size.value.to_string() }, &size.source);
    }
    if let Some(filter) = &model.filter {
        add("filter", filter.value.as_str().to_owned(), &filter.source);
    }
    if let Some(crop) = &model.crop {
        add("crop", crop.value.to_string(), &crop.source);
    }
    if let Some(fill) = &model.fill {
        add("fill", format!("{:?}", fill.value), &fill.source);
    }
    if let Some(position) = &model.position {
        add("position", position.value.as_str().to_owned(), &position.source);
    }
    if let Some(rounding) = &model.rounding {
        add("rounding", rounding.value.as_str().to_owned(), &rounding.source);
    }
    match &model.normalisation {
        Some(normalisation) => {
            add("rescale", short(normalisation.rescale.value), &normalisation.rescale.source);
            add("mean", normalisation.mean.value.map(short).join(", "), &normalisation.mean.source);
            add("std", normalisation.std.value.map(short).join(", "), &normalisation.std.source);
        }
        None => add("rescale", "bytes 0 to 255".to_owned(), "the type uint8 of the input"),
    }
    add("channels", model.channels.value.as_str().to_owned(), &model.channels.source);
    add("layout", format!("{} {}", model.layout.value.as_str(), model.element.as_str()), &model.layout.source);
    if let Some(head) = &model.head {
        add("activation", head.value.as_str().to_owned(), &head.source);
    }
    if let Some(threshold) = &model.threshold {
        add("threshold", short(threshold.value), &threshold.source);
    }
    settings
}

/// A number with six digits at most, and 1/255 as such.
fn short(number: f64) -> String {
    if (number * 255.0 - 1.0).abs() < 1e-9 {
        return "1/255".to_owned();
    }
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_follows_from_the_source() {
        let add = |name: Option<&str>| Add {
            source: PathBuf::new(),
            name: name.map(str::to_owned),
            preset: None,
            flags: Draft::default(),
            is_dry_run: false,
            is_used_at_once: false,
            sample: None,
        };
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            name_of(&add(None), &names).ok()
        };
        assert_eq!(of(&["my cats (2)", "x"]).as_deref(), Some("my-cats--2"));
        assert_eq!(of(&["…", "fallback"]).as_deref(), Some("fallback"));
        assert_eq!(of(&["..", ""]), None);
        assert!(name_of(&add(Some("../x")), &[]).is_err() && name_of(&add(Some("a@1")), &[]).is_err());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([1.0 / 255.0, 0.485, 123.68, 1.0, 0.0].map(short), ["1/255", "0.485", "123.68", "1", "0"]);
    }
}
