//! What a stack uploads: the bundle, and the packages of models.

use anyhow::{bail, ensure};

use super::Config;
use super::bundle::Bundle;
use super::package::{Package, PackageRef};
use super::plan::Plan;
use crate::model::ModelChoice;

/// The objects that the machines of a stack download.
pub(super) struct Artifacts {
    pub bundle: Bundle,
    pub packages: Vec<Package>,
}

impl Artifacts {
    /// The bundle, and a package for each model that the user names. Without a name, the default model is in the bundle.
    ///
    /// # Errors
    /// A part is missing or cannot be read, or two models have the same name.
    pub(super) fn of(config: &Config) -> anyhow::Result<Artifacts> {
        let packages = config.models.iter().map(Package::of).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<&str> = packages.iter().map(|package| package.reference.name.as_str()).collect();
        if let Some(twice) = (1..names.len()).find(|index| names[..*index].contains(&names[*index])) {
            bail!("two of the models have the name {:?}: give one --model of that name", names[twice]);
        }
        let in_bundle = if packages.is_empty() { vec![ModelChoice::default()] } else { Vec::new() };
        let bundle = bundle(config, &in_bundle)?;
        ensure!(
            !packages.is_empty() || !bundle.reference.models.is_empty(),
            "the bundle has no model: give --model, or a bundle that `imgcls provision export --bundle-to FILE` wrote"
        );
        Ok(Artifacts { bundle, packages })
    }

    /// The bundle alone, with all models in it. CloudFormation uploads no packages, and a bundle that is exported is used
    /// elsewhere.
    ///
    /// # Errors
    /// As [`Artifacts::of`].
    pub(super) fn in_one_bundle(config: &Config) -> anyhow::Result<Artifacts> {
        let default = [ModelChoice::default()];
        let models = if config.models.is_empty() { &default[..] } else { &config.models };
        Ok(Artifacts { bundle: bundle(config, models)?, packages: Vec::new() })
    }

    pub(super) fn package_refs(&self) -> Vec<PackageRef> {
        self.packages.iter().map(|package| package.reference.clone()).collect()
    }

    /// Checks that a saved plan was made with these artifacts.
    ///
    /// # Errors
    /// It was made with others.
    pub(super) fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        ensure!(
            self.bundle.reference == plan.stack.bundle && self.package_refs() == plan.stack.packages,
            "the plan was made with another build of imgcls or other models: make a new plan"
        );
        Ok(())
    }
}

fn bundle(config: &Config, models: &[ModelChoice]) -> anyhow::Result<Bundle> {
    match &config.bundle {
        Some(path) => Bundle::of_archive(path),
        None => Bundle::of_this_program(&config.runtime, models),
    }
}
