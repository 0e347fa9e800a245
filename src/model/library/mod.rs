//! The models directory: packages that `imgcls model add` installed.
//!
//! `<dir>/<name>/<version>/` is a package, which never changes. `<dir>/<name>/current` names the versions that were in
//! use, one a line, the current one first. It is replaced by a rename, so that a reader sees the old list or the new one.
//! Commands that change the directory hold a lock; readers need none.

mod reference;
mod version;

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

pub use self::reference::Reference;
pub use self::version::content_version;

use self::reference::{CURRENT, check_part};
use super::seal::unique;

const LOCK: &str = ".lock";
const STAGING: &str = ".imgcls-staging-";
const DESCRIPTION: &str = "model.toml";
/// A folder in which nothing was written for so long belongs to a command that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// The number of earlier versions that `rollback` can return to.
const MAX_HISTORY: usize = 50;

/// Says whether the pointer to the current version moves when a version is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointer {
    /// The installed version becomes the current one, and services that name the model switch to it.
    Move,
    /// It waits for `imgcls model use`. The first version of a model becomes the current one anyhow.
    Keep,
}

/// The models directory.
#[derive(Debug, Clone)]
pub struct Library {
    folder: PathBuf,
}

/// A version of a model in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// True if the model without a version means this one.
    pub is_current: bool,
    /// The folder of the package.
    pub folder: PathBuf,
}

/// A folder in the models directory in which a package is written before it is installed. Dropping it deletes it.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Library {
    /// The directory at a path, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Library {
        Library { folder: folder.into() }
    }

    /// The path of the directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a package, or `None` if the directory has no model of this name. Costs the read of one small file.
    ///
    /// # Errors
    /// If there is such a model, but not the wanted version, or none is current.
    pub fn resolve(&self, reference: &Reference) -> anyhow::Result<Option<PathBuf>> {
        let model = self.folder.join(&reference.name);
        let version = match &reference.version {
            Some(version) => version.clone(),
            None => match self.history(&reference.name)?.into_iter().next() {
                Some(version) => version,
                None if self.versions_on_disk(&reference.name)?.is_empty() => return Ok(None),
                None => bail!(
                    "no version of {} is in use; choose one with `imgcls model use {}@VERSION`, `imgcls model list` has them",
                    reference.name,
                    reference.name
                ),
            },
        };
        let package = model.join(&version);
        if package.join(DESCRIPTION).is_file() {
            return Ok(Some(package));
        }
        let versions = self.versions_on_disk(&reference.name)?;
        if versions.is_empty() {
            return Ok(None);
        }
        bail!(
            "model {} has no version {version} in {}; it has: {}",
            reference.name,
            self.folder.display(),
            versions.join(", ")
        )
    }

    /// Every version of every model, by name; of one model the current one first.
    ///
    /// # Errors
    /// If the directory cannot be read. One that does not exist has no models.
    pub fn list(&self) -> anyhow::Result<Vec<Installed>> {
        let mut found = Vec::new();
        for name in names_in(&self.folder)? {
            found.extend(self.versions(&name)?);
        }
        Ok(found)
    }

    /// The versions of a model: the current one, then those in use before, then the others.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn versions(&self, name: &str) -> anyhow::Result<Vec<Installed>> {
        let history = self.history(name)?;
        let mut versions = self.versions_on_disk(name)?;
        let place = |version: &String| history.iter().position(|used| used == version).unwrap_or(usize::MAX);
        versions.sort_by_key(|version| (place(version), version.clone()));
        let installed = |version: String| Installed {
            name: name.to_owned(),
            is_current: history.first() == Some(&version),
            folder: self.folder.join(name).join(&version),
            version,
        };
        Ok(versions.into_iter().map(installed).collect())
    }

    /// The versions that were in use, the current one first. Empty if there is no such model.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn history(&self, name: &str) -> anyhow::Result<Vec<String>> {
        check_part("name of a model", name)?;
        let path = self.folder.join(name).join(CURRENT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let versions: Vec<String> = lines.map(str::to_owned).take(MAX_HISTORY).collect();
        for version in &versions {
            check_part("version of a model", version).with_context(|| format!("{}", path.display()))?;
        }
        Ok(versions)
    }

    /// Creates a folder for a new package.
    ///
    /// # Errors
    /// If the models directory cannot be written.
    pub fn stage(&self) -> anyhow::Result<Staging> {
        self.remove_abandoned();
        let path = self.folder.join(format!("{STAGING}{}", unique("package")));
        let created = fs::create_dir_all(&self.folder).and_then(|()| fs::create_dir(&path));
        created.with_context(|| format!("cannot write {}; give another --models-dir", self.folder.display()))?;
        Ok(Staging { path })
    }

    /// Deletes folders that killed commands left behind.
    fn remove_abandoned(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_staging = entry.file_name().to_string_lossy().starts_with(STAGING);
            let age = entry.metadata().and_then(|folder| folder.modified()).ok().and_then(|time| time.elapsed().ok());
            if is_staging && age.is_some_and(|age| age > ABANDONED) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Moves a complete package to its place, durably and at once. A version that exists is kept: it has the same content.
    /// Returns the folder of the package.
    ///
    /// # Errors
    /// If the name or the version is not allowed, the package is incomplete, or the directory cannot be written.
    pub fn install(&self, staging: Staging, name: &str, version: &str, pointer: Pointer) -> anyhow::Result<PathBuf> {
        check_part("name of a model", name)?;
        check_part("version of a model", version)?;
        ensure!(staging.path.join(DESCRIPTION).is_file(), "the package has no {DESCRIPTION}; this is a bug");
        let model = self.folder.join(name);
        let package = model.join(version);
        let _lock = self.lock()?;
        let cannot_write = || format!("cannot write {}; check its permissions and the free space", package.display());
        fs::create_dir_all(&model).with_context(cannot_write)?;
        if !package.join(DESCRIPTION).is_file() {
            sync_tree(&staging.path).with_context(cannot_write)?;
            fs::rename(&staging.path, &package).with_context(cannot_write)?;
            sync_folder(&model).and_then(|()| sync_folder(&self.folder)).with_context(cannot_write)?;
        }
        let history = self.history(name)?;
        if pointer == Pointer::Move || history.is_empty() {
            self.write_history(name, &put_first(history, version))?;
        }
        // The folder is gone if it was renamed; else the version existed, and the copy of it is deleted.
        drop(staging);
        Ok(package)
    }

    /// Makes a version the current one. Returns the version that was current before.
    ///
    /// # Errors
    /// If there is no such version, or the directory cannot be written.
    pub fn use_version(&self, name: &str, version: &str) -> anyhow::Result<Option<String>> {
        let _lock = self.lock()?;
        self.expect_version(name, version)?;
        let history = self.history(name)?;
        let before = history.first().cloned();
        self.write_history(name, &put_first(history, version))?;
        Ok(before)
    }

    /// Returns to the version that was in use before the current one. Returns the version left and the one now in use.
    ///
    /// # Errors
    /// If there is no earlier version, or the directory cannot be written.
    pub fn rollback(&self, name: &str) -> anyhow::Result<(String, String)> {
        let _lock = self.lock()?;
        self.expect_model(name)?;
        let mut history = self.history(name)?;
        let [left, earlier, ..] = history.as_slice() else {
            bail!(
                "model {name} has no earlier version to return to; `imgcls model list` shows its versions, `imgcls model use` \
                 chooses one"
            );
        };
        let (left, earlier) = (left.clone(), earlier.clone());
        self.expect_version(name, &earlier)?;
        history.remove(0);
        self.write_history(name, &history)?;
        Ok((left, earlier))
    }

    /// Deletes one version, or with no version the whole model. Returns the versions that were deleted.
    ///
    /// # Errors
    /// If there is no such version, it is the current one and `force` is not set, or files cannot be deleted.
    pub fn remove(&self, reference: &Reference, force: bool) -> anyhow::Result<Vec<String>> {
        let name = &reference.name;
        let _lock = self.lock()?;
        self.expect_model(name)?;
        let Some(version) = &reference.version else {
            let versions = self.versions_on_disk(name)?;
            self.discard(&self.folder.join(name))?;
            return Ok(versions);
        };
        self.expect_version(name, version)?;
        let history = self.history(name)?;
        let remaining: Vec<String> = history.iter().filter(|used| *used != version).cloned().collect();
        let is_current = history.first() == Some(version);
        if is_current && !force {
            bail!(
                "{reference} is in use: choose another version with `imgcls model use` first, remove the whole model with \
                 `imgcls model remove {name}`, or give --force"
            );
        }
        if is_current && remaining.is_empty() {
            ensure!(
                self.versions_on_disk(name)?.len() == 1,
                "{reference} is in use, and no earlier version can take its place; choose one with `imgcls model use` first"
            );
            self.discard(&self.folder.join(name))?;
            return Ok(vec![version.clone()]);
        }
        // The pointer changes first, so that it never names a version that is gone.
        if remaining.len() != history.len() {
            self.write_history(name, &remaining)?;
        }
        self.discard(&self.folder.join(name).join(version))?;
        Ok(vec![version.clone()])
    }

    /// Deletes a folder. It disappears at once, even if the deletion is interrupted.
    fn discard(&self, folder: &Path) -> anyhow::Result<()> {
        let removed = self.folder.join(format!("{STAGING}{}", unique("removed")));
        fs::rename(folder, &removed)
            .and_then(|()| fs::remove_dir_all(&removed))
            .with_context(|| format!("cannot delete {}", folder.display()))
    }

    fn expect_model(&self, name: &str) -> anyhow::Result<()> {
        ensure!(
            !self.versions_on_disk(name)?.is_empty(),
            "there is no model {name:?} in {}; `imgcls model list` shows the models",
            self.folder.display()
        );
        Ok(())
    }

    fn expect_version(&self, name: &str, version: &str) -> anyhow::Result<()> {
        self.expect_model(name)?;
        check_part("version of a model", version)?;
        ensure!(
            self.folder.join(name).join(version).join(DESCRIPTION).is_file(),
            "model {name} has no version {version}; it has: {}",
            self.versions_on_disk(name)?.join(", ")
        );
        Ok(())
    }

    fn versions_on_disk(&self, name: &str) -> anyhow::Result<Vec<String>> {
        check_part("name of a model", name)?;
        let model = self.folder.join(name);
        let mut versions = names_in(&model)?;
        versions.retain(|version| model.join(version).join(DESCRIPTION).is_file());
        Ok(versions)
    }

    /// Replaces the pointer file durably.
    fn write_history(&self, name: &str, versions: &[String]) -> anyhow::Result<()> {
        let model = self.folder.join(name);
        let path = model.join(CURRENT);
        let fresh = model.join(format!(".{}", unique(CURRENT)));
        let text: String = versions.iter().take(MAX_HISTORY).map(|version| format!("{version}\n")).collect();
        let written = File::create(&fresh)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&fresh, &path))
            .and_then(|()| sync_folder(&model));
        if written.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        written.with_context(|| format!("cannot write {}; check its permissions and the free space", path.display()))
    }

    /// Takes the lock of the directory, and waits while another command holds it. Dropping the file releases it.
    fn lock(&self) -> anyhow::Result<File> {
        let path = self.folder.join(LOCK);
        let lock = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path))
            .and_then(|file| file.lock().map(|()| file));
        lock.with_context(|| format!("cannot lock {}; give another --models-dir", path.display()))
    }
}

fn put_first(mut history: Vec<String>, version: &str) -> Vec<String> {
    history.retain(|used| used != version);
    history.insert(0, version.to_owned());
    history
}

/// The names of the folders in a folder that are names of models or versions, sorted. Empty if it does not exist.
fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if check_part("name", &name).is_ok() && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Flushes every file of a folder, and the folder, to the disk.
fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { File::open(&path)?.sync_all()? }
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(library: &Library, name: &str, version: &str, pointer: Pointer) -> PathBuf {
        let staging = library.stage().unwrap();
        fs::write(staging.path().join(DESCRIPTION), format!("version = {version:?}\n")).unwrap();
        library.install(staging, name, version, pointer).unwrap()
    }

    fn current(library: &Library, name: &str) -> String {
        library.history(name).unwrap().into_iter().next().unwrap_or_default()
    }

    #[test]
    fn pointer_moves_with_use_and_rollback() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::new(folder.path().join("models"));
        assert_eq!(library.resolve(&Reference::parse("m").unwrap()).unwrap(), None);
        let first = install(&library, "m", "1", Pointer::Keep);
        assert_eq!(current(&library, "m"), "1", "the first version is in use at once");
        install(&library, "m", "2", Pointer::Move);
        install(&library, "m", "3", Pointer::Keep);
        assert_eq!(current(&library, "m"), "2");
        assert_eq!(library.use_version("m", "3").unwrap().as_deref(), Some("2"));
        assert_eq!(library.rollback("m").unwrap(), ("3".to_owned(), "2".to_owned()));
        assert_eq!(library.rollback("m").unwrap(), ("2".to_owned(), "1".to_owned()));
        assert!(library.rollback("m").unwrap_err().to_string().contains("no earlier version"));
        assert_eq!(library.resolve(&Reference::parse("m").unwrap()).unwrap(), Some(first.clone()));
        assert_eq!(library.resolve(&Reference::parse("m@1").unwrap()).unwrap(), Some(first));
        let error = library.resolve(&Reference::parse("m@9").unwrap()).unwrap_err().to_string();
        assert!(error.contains("1, 2, 3"), "{error}");
        assert!(library.use_version("m", "9").is_err() && library.use_version("x", "1").is_err());
        let versions: Vec<String> = library.versions("m").unwrap().into_iter().map(|found| found.version).collect();
        assert_eq!(versions, ["1", "2", "3"]);
    }

    #[test]
    fn version_in_use_is_removed_only_by_force_or_with_the_whole_model() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::new(folder.path());
        install(&library, "m", "1", Pointer::Move);
        install(&library, "m", "2", Pointer::Move);
        let remove = |text: &str, force| library.remove(&Reference::parse(text).unwrap(), force);
        assert!(remove("m@2", false).unwrap_err().to_string().contains("is in use"));
        assert_eq!(remove("m@2", true).unwrap(), ["2"]);
        assert_eq!(current(&library, "m"), "1");
        install(&library, "m", "3", Pointer::Keep);
        assert!(remove("m@1", true).unwrap_err().to_string().contains("no earlier version"));
        assert_eq!(remove("m@3", false).unwrap(), ["3"]);
        assert_eq!(remove("m", false).unwrap(), ["1"]);
        assert!(remove("m", false).unwrap_err().to_string().contains("there is no model"));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK], "nothing else is left");
    }

    #[test]
    fn commands_at_the_same_time_leave_a_whole_directory() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::new(folder.path());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let library = &library;
                scope.spawn(move || {
                    for round in 0..5 {
                        install(library, "m", &format!("v{}", (thread + round) % 3), Pointer::Move);
                        let _ = library.rollback("m");
                        let used = library.resolve(&Reference::parse("m").unwrap()).unwrap();
                        assert!(used.unwrap().join(DESCRIPTION).is_file());
                    }
                });
            }
        });
        assert_eq!(library.versions("m").unwrap().len(), 3);
    }

    #[test]
    fn unfinished_package_is_deleted_and_never_listed() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::new(folder.path());
        let staging = library.stage().unwrap();
        fs::write(staging.path().join(DESCRIPTION), "x").unwrap();
        assert!(library.list().unwrap().is_empty());
        drop(staging);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
