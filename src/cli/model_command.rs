//! `imgcls model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::fit::FitArgs;
use super::model::{ModelsDirArgs, RunArgs};
use super::shared::OutputArgs;
use crate::model::{ModelChoice, Reference};
use crate::model_command::{
    self, Action, Add, Channels, Draft, Filter, Head, Labels, Layout, Position, Preset, Resize, Rounding, Size, Sourced,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    imgcls model add exported/            a folder of transformers, optimum, timm, or of Teachable Machine\n  \
    imgcls model add yolo11n-cls.onnx     the metadata of ultralytics says everything\n  \
    imgcls model add net.onnx --preset torchvision-resnet18 --labels imagenet\n  \
    imgcls model list\n  \
    imgcls classify --model net photo.jpg\n\
    Exit codes: 0 done, 1 failed or a check found something, 2 usage. docs/models.md explains every export.")]
pub struct ModelCommandArgs {
    #[command(subcommand)]
    pub command: ModelGroup,
}

#[derive(Debug, Subcommand)]
pub enum ModelGroup {
    #[command(flatten)]
    Manage(ModelCommand),
    /// Train a model of own classes on the features of another
    Fit(Box<FitArgs>),
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Add a model as it was exported: an ONNX file, or a folder
    ///
    /// What the export says about labels and preprocessing is used and printed with its source; a flag takes
    /// precedence. What nothing says is refused with the name of the flag. The model is run on photographs before it
    /// appears.
    Add(Box<AddArgs>),
    /// List the models and their versions: in use, size on disk, memory, input size, classes
    List {
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print what is known about a model: versions, files, preprocessing and where each value came from
    Show {
        /// NAME or NAME@VERSION
        #[arg(value_parser = reference)]
        model: Reference,
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Verify the digests of a model, load it and run it; without a name, of all models
    Check {
        /// NAME or NAME@VERSION
        #[arg(value_parser = reference)]
        model: Option<Reference>,
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a version the one in use; services that name the model switch to it without a stop
    Use {
        /// NAME@VERSION
        #[arg(value_parser = reference)]
        model: Reference,
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Return to the version that was in use before
    Rollback {
        /// NAME
        #[arg(value_parser = name)]
        model: String,
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a version, or with NAME alone a model with all its versions
    Remove {
        /// NAME or NAME@VERSION
        #[arg(value_parser = reference)]
        model: Reference,
        /// Delete the version in use too; the one before takes its place
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        models_dir: ModelsDirArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// An ONNX file, or the folder of an export
    pub source: PathBuf,
    /// Name of the model [default: that of SOURCE]
    #[arg(long, env = "IMGCLS_NAME")]
    pub name: Option<String>,
    /// Preprocessing that a framework documents: torchvision-NAME (such as torchvision-resnet50-v2), keras-tf,
    /// keras-caffe, keras-torch, teachable-machine
    #[arg(long, env = "IMGCLS_PRESET")]
    pub preset: Option<String>,
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Image that is classified at the end [default: a photograph of a cat]
    #[arg(long, env = "IMGCLS_SAMPLE")]
    pub sample: Option<PathBuf>,
    /// Switch to this version at once, also if another one is in use
    #[arg(long, env = "IMGCLS_USE")]
    pub r#use: bool,
    /// Print the model.toml, and add nothing
    #[arg(long, env = "IMGCLS_DRY_RUN")]
    pub dry_run: bool,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else searched for near the binary]
    #[arg(long, env = "IMGCLS_ORT_DYLIB")]
    pub ort_dylib: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How the network was trained to see images. A flag takes precedence over what the export says.
#[derive(Debug, Args)]
pub struct DraftArgs {
    /// File with one line for each class in the order of the outputs, or `imagenet` for the 1,000 of ImageNet
    #[arg(long, env = "IMGCLS_LABELS")]
    pub labels: Option<PathBuf>,
    /// shortest-edge (keeps the aspect ratio), squash, cover (cuts off what does not fit), letterbox or none
    #[arg(long, env = "IMGCLS_RESIZE", value_parser = |text: &str| text.parse::<Resize>())]
    pub resize: Option<Resize>,
    /// Pixels that images are resized to: 256, or HEIGHTxWIDTH
    #[arg(long, env = "IMGCLS_SIZE", value_parser = size)]
    pub size: Option<Size>,
    /// Pixels that are cut from the centre: 224, HEIGHTxWIDTH, or none
    #[arg(long, env = "IMGCLS_CROP", value_parser = crop)]
    pub crop: Option<Crop>,
    /// nearest, box, bilinear, hamming, bicubic or lanczos, as Pillow has them; or opencv-bilinear
    #[arg(long, env = "IMGCLS_FILTER", value_parser = |text: &str| text.parse::<Filter>())]
    pub filter: Option<Filter>,
    /// Letterbox: colour around the image, 0 to 255: 114 or R,G,B
    #[arg(long, env = "IMGCLS_FILL", value_parser = colour)]
    pub fill: Option<Numbers>,
    /// Letterbox: centre or top-left
    #[arg(long, env = "IMGCLS_POSITION", value_parser = |text: &str| text.parse::<Position>())]
    pub position: Option<Position>,
    /// Letterbox: how the size becomes whole pixels: half-even, up or down [default: half-even]
    #[arg(long, env = "IMGCLS_ROUNDING", value_parser = |text: &str| text.parse::<Rounding>())]
    pub rounding: Option<Rounding>,
    /// Factor of values from 0 to 255; 1 keeps them [default: 1/255]
    #[arg(long, env = "IMGCLS_RESCALE", value_parser = factor)]
    pub rescale: Option<f64>,
    /// Subtracted after rescaling: one number, or three in the order of the channels
    #[arg(long, env = "IMGCLS_MEAN", value_parser = numbers, allow_negative_numbers = true)]
    pub mean: Option<Numbers>,
    /// Divided by after that: one number, or three in the order of the channels
    #[arg(long, env = "IMGCLS_STD", value_parser = numbers)]
    pub std: Option<Numbers>,
    /// rgb or bgr [default: rgb]
    #[arg(long, env = "IMGCLS_CHANNELS", value_parser = channels)]
    pub channels: Option<Channels>,
    /// nchw or nhwc [default: the shape of the input shows it]
    #[arg(long, env = "IMGCLS_LAYOUT", value_parser = |text: &str| text.parse::<Layout>())]
    pub layout: Option<Layout>,
    /// softmax (one class is right), sigmoid (each class is right or not), or none (the outputs are scores)
    #[arg(long, env = "IMGCLS_ACTIVATION", value_parser = activation)]
    pub activation: Option<Head>,
    /// Several labels an image: score from which a class is a label, 0 to 1 [default: 0.5]
    #[arg(long, env = "IMGCLS_THRESHOLD", value_parser = share)]
    pub threshold: Option<f64>,
}

/// A crop, or none.
#[derive(Debug, Clone, Copy)]
pub struct Crop(Option<Size>);

/// A number for each channel.
#[derive(Debug, Clone, Copy)]
pub struct Numbers([f64; 3]);

impl ModelCommand {
    pub fn config(&self) -> model_command::Config {
        let (models_dir, output) = self.common();
        model_command::Config {
            models_dir: models_dir.folder(),
            run: self.run(models_dir),
            json: output.json,
            action: self.action(),
        }
    }

    fn common(&self) -> (&ModelsDirArgs, &OutputArgs) {
        match self {
            ModelCommand::Add(args) => (&args.models_dir, &args.output),
            ModelCommand::List { models_dir, output }
            | ModelCommand::Show { models_dir, output, .. }
            | ModelCommand::Check { models_dir, output, .. }
            | ModelCommand::Use { models_dir, output, .. }
            | ModelCommand::Rollback { models_dir, output, .. }
            | ModelCommand::Remove { models_dir, output, .. } => (models_dir, output),
        }
    }

    fn run(&self, models_dir: &ModelsDirArgs) -> ModelChoice {
        match self {
            ModelCommand::Add(args) => ModelChoice { ort_dylib: args.ort_dylib.clone(), ..ModelChoice::default() },
            ModelCommand::Check { run, .. } => run.choice(None, models_dir),
            _ => ModelChoice::default(),
        }
    }

    fn action(&self) -> Action {
        match self {
            ModelCommand::Add(args) => Action::Add(Box::new(args.add())),
            ModelCommand::List { .. } => Action::List,
            ModelCommand::Show { model, .. } => Action::Show { reference: model.clone() },
            ModelCommand::Check { model, .. } => Action::Check { reference: model.clone() },
            ModelCommand::Use { model, .. } => Action::Use { reference: model.clone() },
            ModelCommand::Rollback { model, .. } => Action::Rollback { name: model.clone() },
            ModelCommand::Remove { model, force, .. } => Action::Remove { reference: model.clone(), force: *force },
        }
    }
}

impl AddArgs {
    fn add(&self) -> Add {
        Add {
            source: self.source.clone(),
            name: self.name.clone(),
            preset: self.preset.clone().map(Preset),
            flags: self.draft.draft(),
            is_dry_run: self.dry_run,
            is_used_at_once: self.r#use,
            sample: self.sample.clone(),
        }
    }
}

impl DraftArgs {
    fn draft(&self) -> Draft {
        let labels = self.labels.as_ref().map(|path| match path.to_str() {
            Some("imagenet") => Labels::ImageNet,
            _ => Labels::File(path.clone()),
        });
        Draft {
            labels: labels.map(|labels| Sourced::new(labels, "--labels")),
            resize: self.resize.map(|resize| Sourced::new(resize, "--resize")),
            size: self.size.map(|size| Sourced::new(size, "--size")),
            crop: self.crop.map(|crop| Sourced::new(crop.0, "--crop")),
            filter: self.filter.map(|filter| Sourced::new(filter, "--filter")),
            fill: self.fill.map(|fill| Sourced::new(fill.0.map(|value| value as u8), "--fill")),
            position: self.position.map(|position| Sourced::new(position, "--position")),
            rounding: self.rounding.map(|rounding| Sourced::new(rounding, "--rounding")),
            rescale: self.rescale.map(|rescale| Sourced::new(rescale, "--rescale")),
            mean: self.mean.map(|mean| Sourced::new(mean.0, "--mean")),
            std: self.std.map(|std| Sourced::new(std.0, "--std")),
            channels: self.channels.map(|channels| Sourced::new(channels, "--channels")),
            layout: self.layout.map(|layout| Sourced::new(layout, "--layout")),
            activation: self.activation.map(|activation| Sourced::new(activation, "--activation")),
            threshold: self.threshold.map(|threshold| Sourced::new(threshold, "--threshold")),
        }
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    Reference::parse(text).map_err(|error| error.to_string())
}

fn name(text: &str) -> Result<String, String> {
    match reference(text)? {
        Reference { name, version: None } => Ok(name),
        Reference { .. } => Err("give the name without a version".to_owned()),
    }
}

fn size(text: &str) -> Result<Size, String> {
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|side| (1..=4096).contains(side));
    let sides = match text.split_once(['x', 'X', '×']) {
        Some((height, width)) => side(height).zip(side(width)),
        None => side(text).map(|side| (side, side)),
    };
    let (height, width) = sides.ok_or("give pixels, 1 to 4096, such as 224 or 224x320 (height, width)")?;
    Ok(Size { height, width })
}

fn crop(text: &str) -> Result<Crop, String> {
    if text == "none" { Ok(Crop(None)) } else { size(text).map(|size| Crop(Some(size))) }
}

fn numbers(text: &str) -> Result<Numbers, String> {
    let numbers: Option<Vec<f64>> =
        text.split(',').map(|number| number.trim().parse().ok().filter(|number: &f64| number.is_finite())).collect();
    match numbers.as_deref() {
        Some(&[number]) => Ok(Numbers([number; 3])),
        Some(&[first, second, third]) => Ok(Numbers([first, second, third])),
        _ => Err("give one number, or three such as 0.485,0.456,0.406".to_owned()),
    }
}

fn colour(text: &str) -> Result<Numbers, String> {
    match numbers(text) {
        Ok(found) if found.0.iter().all(|value| (0.0..=255.0).contains(value) && value.fract() == 0.0) => Ok(found),
        _ => Err("give one whole number from 0 to 255, or three such as 114,114,114".to_owned()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    let number = match text.split_once('/') {
        Some((one, other)) => {
            one.trim().parse::<f64>().ok().zip(other.trim().parse::<f64>().ok()).map(|(one, other)| one / other)
        }
        None => text.parse().ok(),
    };
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or("give a number above 0, such as 1/255 or 1".to_owned())
}

fn activation(text: &str) -> Result<Head, String> {
    [Head::Softmax, Head::Sigmoid, Head::None]
        .into_iter()
        .find(|head| head.as_str() == text)
        .ok_or("give softmax, sigmoid or none".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| (0.0..=1.0).contains(number)).ok_or("give a number from 0 to 1".to_owned())
}

/// RGBX, which `model.toml` allows too, is only for models that were made for this program.
fn channels(text: &str) -> Result<Channels, String> {
    text.parse().ok().filter(|channels| *channels != Channels::Rgbx).ok_or("give rgb or bgr".to_owned())
}
