//! Faults of the system that a process under test sees: a wall clock that was stepped, a disk that cannot be synced. A
//! small library that is loaded before libc; what it does is said in files, so that it can change while the process runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `clock_gettime` is the wall clock plus the seconds in `$IMGCLS_SHIM/step`; syncs fail while `$IMGCLS_SHIM/fail-sync`
/// is there. Everything else, the time since boot too, is the system's.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *path(char *buffer, size_t size, const char *name) {
    const char *directory = getenv("SHIM_DIRECTORY");
    snprintf(buffer, size, "%s/%s", directory ? directory : "/nonexistent", name);
    return buffer;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (result == 0 && id == CLOCK_REALTIME) {
        char buffer[4096];
        FILE *file = fopen(path(buffer, sizeof buffer, "step"), "r");
        long step = 0;
        if (file) {
            if (fscanf(file, "%ld", &step) == 1) time->tv_sec += step;
            fclose(file);
        }
    }
    return result;
}

static int fails(void) {
    char buffer[4096];
    if (access(path(buffer, sizeof buffer, "fail-sync"), F_OK) != 0) { errno = 0; return 0; }
    errno = EIO;
    return 1;
}

int fdatasync(int fd) { return fails() ? -1 : syscall(SYS_fdatasync, fd); }
int fsync(int fd) { return fails() ? -1 : syscall(SYS_fsync, fd); }
"#;

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
        let (source, library) = (directory.join("shim.c"), directory.join(format!("shim-{}.so", std::process::id())));
        std::fs::write(&source, SOURCE).unwrap();
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let built = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("a C compiler").success());
        library
    })
}
