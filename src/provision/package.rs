//! The packages of models that lie in the input bucket. Machines download them by name and digest, and follow the
//! pointer to the current version, so that a swap needs no new machines.

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::archive::{self, Entry, Measured};
use crate::model::{self, ModelChoice, ModelSummary, Reference};
use crate::protocol::{ModelPointer, model_package_key, model_pointer_key};

/// A single upload may have 5 GB; a package is in memory while it is uploaded.
const MAX_PACKAGE_BYTES: u64 = 2 << 30;

/// Identifies a package. A plan needs nothing else of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PackageRef {
    /// The name of the model, by which requests choose it.
    pub name: String,
    pub version: String,
    /// SHA-256 of the archive, in hexadecimal.
    pub digest: String,
    /// The size of the archive.
    pub bytes: u64,
}

/// A package and the files that it is made from.
pub(super) struct Package {
    pub reference: PackageRef,
    entries: Vec<Entry>,
}

impl PackageRef {
    pub(super) fn pointer(&self) -> ModelPointer {
        ModelPointer { version: self.version.clone(), digest: self.digest.clone(), bytes: self.bytes }
    }

    /// The key of the archive in the input bucket.
    pub(super) fn key(&self) -> String {
        model_package_key(&self.name, &self.pointer())
    }

    /// The key of the pointer in the input bucket.
    pub(super) fn pointer_key(&self) -> String {
        model_pointer_key(&self.name)
    }
}

impl Package {
    /// Finds the package of a model.
    ///
    /// # Errors
    /// There is no such model, or a file of it cannot be read.
    pub(super) fn of(choice: &ModelChoice) -> anyhow::Result<Package> {
        let summary = ModelSummary::read(choice)?;
        let (name, version) = (summary.name, summary.version);
        // Both are parts of keys, of paths on the machines, and of settings.
        Reference::parse(&format!("{name}@{version}")).context("a stack cannot have this model")?;
        let entries = archive::files_of(&model::model_folder(choice)?, "")?;
        let measured = archive::measure(&entries);
        let Measured { digest, bytes } =
            measured.with_context(|| format!("cannot read the package of model {name:?}"))?;
        ensure!(
            bytes <= MAX_PACKAGE_BYTES,
            "the package of model {name:?} has {bytes} bytes, more than the {MAX_PACKAGE_BYTES} that a stack takes: \
             give a smaller model"
        );
        Ok(Package { reference: PackageRef { name, version, digest, bytes }, entries })
    }

    /// The archive.
    ///
    /// # Errors
    /// A file cannot be read, or has changed since the digest was computed.
    pub(super) fn packed(&self) -> anyhow::Result<Vec<u8>> {
        let PackageRef { name, digest, bytes, .. } = &self.reference;
        let mut packed = Vec::with_capacity(usize::try_from(*bytes).unwrap_or_default());
        archive::write(&self.entries, &mut packed)
            .with_context(|| format!("cannot read the package of model {name:?}"))?;
        if format!("{:x}", Sha256::digest(&packed)) != *digest {
            bail!("the package of model {name:?} changed while it was read; run this again");
        }
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_of_the_shipped_model_is_reproducible() {
        let package = Package::of(&ModelChoice::default()).unwrap();
        let PackageRef { name, version, digest, bytes } = package.reference.clone();
        assert_eq!((name.as_str(), version.as_str(), digest.len()), ("efficientnet-lite0", "1", 64));
        assert_eq!(package.packed().unwrap().len() as u64, bytes);
        assert_eq!(Package::of(&ModelChoice::default()).unwrap().reference, package.reference);
        assert_eq!(package.reference.key(), format!("models/efficientnet-lite0/1/{digest}.tar"));
    }
}
