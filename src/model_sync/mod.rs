//! Keeps the models of a machine equal to those of its stack: downloads the packages that pointers in the input bucket
//! name, and makes them the current versions of the models directory. A worker notices that by itself and switches.
//!
//! A package is verified by the digest in the pointer before it is installed. Nothing is installed by halves, and a model
//! that is here stays in use while the bucket cannot be read.

mod unpack;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::config::Backend;
use crate::model::{Library, Pointer, Reference, Staging};
use crate::protocol::{MAX_POINTER_BYTES, ModelPointer, model_package_key, model_pointer_key};
use crate::transport::queued::object::ObjectStore;
use crate::transport::{self};

/// How often the pointers are read.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Versions of a model that stay on the machine: the current one, and earlier ones for a way back without a download.
const KEPT_VERSIONS: usize = 3;
/// The archive in the folder in which it is unpacked. Names of packages' files do not begin with a dot.
const ARCHIVE: &str = ".package.tar";

/// The models to keep equal, and their places.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend of the service.
    pub backend: Backend,
    /// The bucket that has the packages: the input bucket.
    pub bucket: String,
    /// The names of the models.
    pub models: Vec<String>,
    /// The models directory.
    pub models_dir: PathBuf,
}

/// The models of this machine, which follow the pointers in the bucket.
pub struct ModelSync {
    store: Arc<dyn ObjectStore>,
    library: Library,
    models: Vec<Followed>,
}

/// One model, and what is known about it.
struct Followed {
    name: String,
    /// The pointer that was followed last.
    pointer: Option<ModelPointer>,
    /// The error that was logged last. The same one is not logged again.
    logged_error: Option<String>,
}

impl ModelSync {
    /// Opens the bucket. Nothing is downloaded yet.
    ///
    /// # Errors
    /// The bucket cannot be used.
    pub async fn open(config: Config) -> anyhow::Result<ModelSync> {
        let store = Box::pin(transport::open_bucket(&config.backend, &config.bucket)).await?;
        let models = config.models.into_iter().map(|name| Followed { name, pointer: None, logged_error: None });
        Ok(ModelSync { store, library: Library::new(config.models_dir), models: models.collect() })
    }

    /// Downloads what is missing. A model of which a version is here already may stay behind for now.
    ///
    /// # Errors
    /// A model is neither here nor can it be downloaded.
    pub async fn download(&mut self) -> anyhow::Result<()> {
        for model in &mut self.models {
            let Err(error) = model.follow(&*self.store, &self.library).await else { continue };
            let here = Reference { name: model.name.clone(), version: None };
            if !matches!(self.library.resolve(&here), Ok(Some(_))) {
                return Err(error);
            }
            model.log(&error);
        }
        Ok(())
    }

    /// Follows the pointers until it is dropped.
    pub async fn run(mut self) -> Infallible {
        loop {
            for model in &mut self.models {
                match model.follow(&*self.store, &self.library).await {
                    Ok(()) => model.logged_error = None,
                    Err(error) => model.log(&error),
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Followed {
    /// Reads the pointer, and makes its version the current one of this machine.
    async fn follow(&mut self, store: &dyn ObjectStore, library: &Library) -> anyhow::Result<()> {
        let pointer = read_pointer(store, &self.name).await?;
        if self.pointer.as_ref() == Some(&pointer) {
            return Ok(());
        }
        let is_here = {
            let wanted = Reference { name: self.name.clone(), version: Some(pointer.version.clone()) };
            matches!(library.resolve(&wanted), Ok(Some(_)))
        };
        if !is_here {
            let staging = download(store, library, &self.name, &pointer).await?;
            let (library, name, version) = (library.clone(), self.name.clone(), pointer.version.clone());
            let install = move || library.install(staging, &name, &version, Pointer::Move).map(drop);
            tokio::task::spawn_blocking(install).await.context("the installation of a model ended early")??;
        }
        self.make_current(library, &pointer.version).await?;
        self.pointer = Some(pointer);
        Ok(())
    }

    /// Moves the pointer of this machine, and deletes versions that are not needed any more.
    async fn make_current(&self, library: &Library, version: &str) -> anyhow::Result<()> {
        let (library, name, version) = (library.clone(), self.name.clone(), version.to_owned());
        let switch = move || {
            if library.history(&name)?.first() != Some(&version) {
                library.use_version(&name, &version)?;
            }
            tracing::info!(model = name, version, "this is the current version of the model in the bucket");
            for old in library.versions(&name)?.into_iter().skip(KEPT_VERSIONS) {
                let old = Reference { name: old.name, version: Some(old.version) };
                if let Err(error) = library.remove(&old, false) {
                    tracing::warn!("cannot delete the old version {old} of a model: {error:#}");
                }
            }
            anyhow::Ok(())
        };
        tokio::task::spawn_blocking(switch).await.context("the switch of a model ended early")?
    }

    fn log(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.logged_error.as_ref() != Some(&text) {
            tracing::warn!(model = self.name, "cannot follow the current version of the model: {text}");
            self.logged_error = Some(text);
        }
    }
}

async fn read_pointer(store: &dyn ObjectStore, name: &str) -> anyhow::Result<ModelPointer> {
    let key = model_pointer_key(name);
    let bucket = store.bucket();
    let Some(text) = store.get(&key, MAX_POINTER_BYTES).await? else {
        bail!("bucket {bucket:?} has no model {name:?}; `imgcls provision --model {name}` uploads it");
    };
    let pointer = std::str::from_utf8(&text).ok().and_then(ModelPointer::parse);
    pointer
        .with_context(|| format!("object {key:?} of bucket {bucket:?} names no package; `imgcls provision` repairs it"))
}

/// Downloads a package into a folder in the models directory, and verifies it.
async fn download(
    store: &dyn ObjectStore,
    library: &Library,
    name: &str,
    pointer: &ModelPointer,
) -> anyhow::Result<Staging> {
    let key = model_package_key(name, pointer);
    let staging = library.stage()?;
    let path = staging.path().join(ARCHIVE);
    let cannot_write = || format!("cannot write {}", path.display());
    let mut archive = File::create(&path).with_context(cannot_write)?;
    let Some(mut object) = store.read(&key, pointer.bytes).await? else {
        bail!("bucket {:?} has no object {key:?}; `imgcls provision` uploads it again", store.bucket());
    };
    let mut hasher = Sha256::new();
    while let Some(piece) = object.next().await {
        let piece = piece.with_context(|| format!("cannot read object {key:?}"))?;
        hasher.update(&piece);
        archive.write_all(&piece).with_context(cannot_write)?;
    }
    let digest = format!("{:x}", hasher.finalize());
    ensure!(
        digest == pointer.digest,
        "object {key:?} of bucket {:?} has the digest {digest}, not that of its name: delete it, and run `imgcls \
         provision` again",
        store.bucket()
    );
    drop(archive);
    let (name, version) = (name.to_owned(), pointer.version.clone());
    let unpack = move || unpack::package(staging, ARCHIVE, &name, &version);
    tokio::task::spawn_blocking(unpack).await.context("the unpacking of a model ended early")?
}
