//! The standard output of every command.

use std::io::{self, ErrorKind, Write as _};
use std::sync::OnceLock;

use super::nonblocking::{Descriptor, NonBlockingWriter};

static STDOUT: OnceLock<NonBlockingWriter> = OnceLock::new();

/// Prints the result of a command. Blocks while the reader is slow, as programs in a pipeline do. A reader that went
/// away, as `head` does, is not an error.
///
/// # Errors
/// When standard output cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Writes one line of a long-running process to standard output. Never blocks or fails: a line that cannot be written
/// is dropped.
pub fn announce(line: &str) {
    stdout().write_line(format!("{line}\n").as_bytes());
}

/// Waits until the lines of [`announce`] are written, for at most `limit`.
pub(super) fn flush(limit: std::time::Duration) {
    if let Some(stdout) = STDOUT.get() {
        stdout.flush(limit);
    }
}

fn stdout() -> &'static NonBlockingWriter {
    STDOUT.get_or_init(|| NonBlockingWriter::start("stdout", Descriptor(io::stdout()), None))
}
