//! Standard output of every command.

use std::io::{self, ErrorKind, Write as _};
use std::sync::OnceLock;

use super::lines::{Descriptor, LineWriter};

static LINES: OnceLock<LineWriter> = OnceLock::new();

/// Prints the result of a command, and waits for its reader as programs in a pipeline do. A reader that went away, as
/// `head` does, has read what it wanted and is no error.
///
/// # Errors
/// Where standard output cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Tells whoever reads standard output one line from a long-running process. Never blocks or fails: a line that nobody
/// reads is dropped.
pub fn tell(line: &str) {
    lines().write_line(format!("{line}\n").as_bytes());
}

/// Waits until the lines of [`tell`] are written, at most `limit`.
pub(super) fn flush(limit: std::time::Duration) {
    if let Some(lines) = LINES.get() {
        lines.flush(limit);
    }
}

fn lines() -> &'static LineWriter {
    LINES.get_or_init(|| LineWriter::start("stdout", Descriptor(io::stdout()), None))
}
