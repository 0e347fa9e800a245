//! The uploads of a stack: the bundle, and the packages of models.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::ensure;

use super::bundle::Bundle;
use super::package::{Package, PackageRef};
use super::plan::Plan;
use crate::model::{self, ModelChoice};

/// The sources of the artifacts of a stack.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The ONNX Runtime library to bundle, if one is named.
    pub runtime: ModelChoice,
    /// The models of the machines, the first of which is that of requests that name none. If there are none, the default
    /// model is part of the bundle.
    pub models: Vec<ModelChoice>,
    /// The variant that the settings of the workers name. The bundle has it instead of those that their CPUs would pick.
    pub variant: Option<String>,
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
        refuse_repeated_name(packages.iter().map(|package| package.reference.name.clone()))?;
        let in_bundle = if packages.is_empty() { &[ModelChoice::default()][..] } else { &[] };
        let bundle = bundle(sources, in_bundle)?;
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
        refuse_repeated_name(models.iter().map(model::model_name))?;
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

/// The name of a model is the folder in which machines look for it.
fn refuse_repeated_name(names: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure!(!seen.contains(&name), "two of the models have the name {name:?}: give one --model of that name");
        seen.insert(name);
    }
    Ok(())
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
        None => {
            let of_workers = |model: &ModelChoice| ModelChoice { variant: sources.variant.clone(), ..model.clone() };
            Bundle::of_this_program(&sources.runtime, &models.iter().map(of_workers).collect::<Vec<_>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_models_of_one_name_are_refused_in_the_bucket_and_in_a_bundle() {
        let sources = Sources { models: vec![ModelChoice::default(); 2], ..Sources::default() };
        for artifacts in [Artifacts::of(&sources), Artifacts::in_one_bundle(&sources)] {
            let error = artifacts.err().unwrap().to_string();
            assert!(error.contains("two of the models have the name \"efficientnet-lite0\""), "{error}");
        }
    }
}
