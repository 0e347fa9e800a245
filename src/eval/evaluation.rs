//! One model on the labelled images.

use anyhow::{bail, ensure};

use super::answer::Answer;
use super::calibration::expected_calibration_error;
use super::threshold::Metric;
use crate::dataset::{self, Confusion, Dataset, Engine, Failures};
use crate::model::{Limits, ModelChoice, ModelPackage};

/// The answers of a model.
pub(super) struct Evaluation {
    pub package: ModelPackage,
    /// Index of the image and its answer, in the order of the images.
    pub answers: Vec<(usize, Answer)>,
    pub failures: Failures,
    pub confusion: Confusion,
    pub images_per_second: f64,
}

impl Evaluation {
    /// Classifies all images of `data` on all cores.
    ///
    /// # Errors
    /// If the model cannot be loaded or fails, has a multi-label head, lacks a class of the data, or no image can be
    /// classified.
    pub(super) fn of(data: &Dataset, choice: &ModelChoice, limits: &Limits) -> anyhow::Result<Evaluation> {
        let mut engine = Engine::open(choice.clone(), limits)?;
        ensure!(
            !engine.package.is_multi_label(),
            "{} gives an image any number of labels, and eval needs a model that gives it one",
            engine.package.model_ref().name
        );
        let classes = dataset::resolve(&engine.package, &data.classes)?;
        let actual = |image: usize| classes[data.images[image].class];
        let classified = engine.run("eval", &data.images, |image, _, scores| Answer::new(&scores, actual(image)))?;
        if classified.found.is_empty() {
            match classified.failures.broken.first() {
                Some((image, reason)) => {
                    bail!("no image can be classified; the first is {}: {reason}", data.images[*image].path.display())
                }
                None => bail!("none of the {} files is an image", data.images.len()),
            }
        }
        let mut confusion = Confusion::default();
        for (_, answer) in &classified.found {
            confusion.record(answer.actual, answer.predicted);
        }
        Ok(Evaluation {
            images_per_second: data.images.len() as f64 / classified.elapsed.as_secs_f64().max(1e-9),
            package: engine.package,
            answers: classified.found,
            failures: classified.failures,
            confusion,
        })
    }

    /// Every metric is a share. `None` if it cannot be computed.
    pub(super) fn measure(&self, metric: Metric) -> Option<f64> {
        let share = |count: usize| (!self.answers.is_empty()).then(|| count as f64 / self.answers.len() as f64);
        match metric {
            Metric::Top1 => self.confusion.accuracy(),
            Metric::Top5 => share(self.answers.iter().filter(|(_, answer)| answer.rank < 5).count()),
            Metric::Ece => expected_calibration_error(self.answers.iter().map(|(_, answer)| answer)),
            Metric::MacroF1 => self.confusion.macro_f1(),
        }
    }

    /// The name of a class as tables show it: the label, with id or index if other classes have the same label.
    pub(super) fn class_name(&self, class: u32) -> String {
        let label = self.package.label(class);
        let is_unique =
            (0..self.package.classes() as u32).filter(|other| self.package.label(*other) == label).count() == 1;
        match self.package.class_id(class) {
            _ if is_unique => label.to_owned(),
            Some(id) => format!("{label} ({id})"),
            None => format!("{label} ({class})"),
        }
    }
}
