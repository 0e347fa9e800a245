//! Injects system faults into a process under test: a wall clock that is stepped, syncs that fail, and look-ups of names whose
//! answers change. A small library, loaded before libc, reads files that the test writes, so that the faults can change while
//! the process runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library adds the seconds in `$SHIM_DIRECTORY/step` to the wall clock, and lets syncs fail while
/// `$SHIM_DIRECTORY/fail-sync` exists. The look-ups of a name get one line after the other of the file
/// `$SHIM_DIRECTORY/addresses-of-<name>`. Everything else, including the time since boot, is that of the system.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim.c");

/// The faults of some processes, in a directory of their own.
pub struct Shim {
    directory: tempfile::TempDir,
}

impl Shim {
    pub fn new() -> Shim {
        Shim { directory: tempfile::tempdir().unwrap() }
    }

    /// Returns the variables that a process needs to see these faults.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![("LD_PRELOAD".to_owned(), text(library())), ("SHIM_DIRECTORY".to_owned(), text(self.directory.path()))]
    }

    /// Steps the wall clock: it is `seconds` ahead of the true one from now on.
    pub fn step(&self, seconds: i64) {
        let new = self.directory.path().join("step.new");
        std::fs::write(&new, seconds.to_string()).unwrap();
        std::fs::rename(new, self.directory.path().join("step")).unwrap();
    }

    /// Sets the answers of a process to look-ups of a name: one after the other, and the last one again and again.
    pub fn answer_look_ups(&self, name: &str, answers: &[&str]) {
        let lines: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        std::fs::write(self.directory.path().join(format!("addresses-of-{name}")), lines).unwrap();
    }

    /// Lets every sync fail from now on.
    pub fn fail_syncs(&self) {
        std::fs::write(self.directory.path().join("fail-sync"), "").unwrap();
    }
}

/// Builds the library once, with the C compiler that built SQLite.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = directory.join(format!("shim-{}.so", std::process::id()));
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let built = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(SOURCE).status();
        assert!(built.expect("a C compiler").success());
        library
    })
}
