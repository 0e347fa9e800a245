//! The uploads of a stack: the bundle, and the packages of models.

use std::path::PathBuf;

use anyhow::{bail, ensure};

use super::bundle::Bundle;
use super::package::{Package, PackageRef};
use super::plan::Plan;
use crate::model::ModelChoice;

/// The sources of the artifacts of a stack.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The ONNX Runtime library to bundle, if one is named.
    pub runtime: ModelChoice,
    /// The models of the machines, the first of which is that of requests that name none. If there are none, the default
    /// model is part of the bundle.
    pub models: Vec<ModelChoice>,
    /// A bundle to use instead of this program.
    pub bundle: Option<PathBuf>,
}

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
    pub(super) fn of(sources: &Sources) -> anyhow::Result<Artifacts> {
        let packages = sources.models.iter().map(Package::of).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<&str> = packages.iter().map(|package| package.reference.name.as_str()).collect();
        if let Some(twice) = (1..names.len()).find(|index| names[..*index].contains(&names[*index])) {
            bail!("two of the models have the name {:?}: give one --model of that name", names[twice]);
        }
        let in_bundle = if packages.is_empty() { vec![ModelChoice::default()] } else { Vec::new() };
        let bundle = bundle(sources, &in_bundle)?;
        if packages.is_empty() {
            check_has_model(&bundle)?;
        }
        Ok(Artifacts { bundle, packages })
    }

    /// The bundle alone, with all models in it. CloudFormation uploads no packages, and a bundle that is exported is used
    /// elsewhere.
    ///
    /// # Errors
    /// As [`Artifacts::of`].
    pub(super) fn in_one_bundle(sources: &Sources) -> anyhow::Result<Artifacts> {
        let default = [ModelChoice::default()];
        let models = if sources.models.is_empty() { &default[..] } else { &sources.models };
        let bundle = bundle(sources, models)?;
        check_has_model(&bundle)?;
        Ok(Artifacts { bundle, packages: Vec::new() })
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

fn check_has_model(bundle: &Bundle) -> anyhow::Result<()> {
    ensure!(
        !bundle.reference.models.is_empty(),
        "the bundle has no model: give one that `imgcls provision export --bundle-to FILE` wrote"
    );
    Ok(())
}

fn bundle(sources: &Sources, models: &[ModelChoice]) -> anyhow::Result<Bundle> {
    match &sources.bundle {
        Some(path) => Bundle::of_archive(path),
        None => Bundle::of_this_program(&sources.runtime, models),
    }
}
