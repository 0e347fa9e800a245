//! Faults of the system that a process under test sees: a wall clock that was stepped, a disk that cannot be synced. A
//! small library that is loaded before libc; what it does is said in files, so that it can change while the process runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `clock_gettime` is the wall clock plus the seconds in `$SHIM_DIRECTORY/step`; syncs fail while
/// `$SHIM_DIRECTORY/fail-sync` is there. Everything else, the time since boot too, is the system's.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim.c");

/// What processes get into their environment, and the directory that says what they see.
pub struct Shim {
    directory: tempfile::TempDir,
}

impl Shim {
    pub fn new() -> Shim {
        Shim { directory: tempfile::tempdir().unwrap() }
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![("LD_PRELOAD".to_owned(), text(library())), ("SHIM_DIRECTORY".to_owned(), text(self.directory.path()))]
    }

    /// Steps the wall clock to so many seconds beside the true one.
    pub fn step(&self, seconds: i64) {
        let new = self.directory.path().join("step.new");
        std::fs::write(&new, seconds.to_string()).unwrap();
        std::fs::rename(new, self.directory.path().join("step")).unwrap();
    }

    pub fn fail_syncs(&self) {
        std::fs::write(self.directory.path().join("fail-sync"), "").unwrap();
    }
}

/// Built once with the C compiler that built SQLite.
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
