//! The FIFO of a queue.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{self, OFlags};
use rustix::io::Errno;

/// Opens a FIFO for notifying. Returns `None` if nobody can be waiting.
pub(super) fn open_writer(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path) {
        Ok(fifo) => Ok(Some(fifo)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // No process has it open for reading.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a FIFO for waiting, and creates it if it is missing. It replaces another kind of file, which an earlier release
/// left under that name.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only the listener for Linux opens FIFOs"))]
pub(super) fn open_reader(path: &Path) -> io::Result<File> {
    for _ in 0..2 {
        match fs::mkfifoat(fs::CWD, path, fs::Mode::from_raw_mode(0o600)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // Opened for reading and writing, it does not wait for another process to open it.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        if fifo.metadata()?.file_type().is_fifo() {
            return Ok(fifo);
        }
        std::fs::remove_file(path)?;
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Wakes one process that waits at an open FIFO.
pub(super) fn notify(fifo: Option<&File>) -> io::Result<()> {
    match fifo.map(|mut fifo| fifo.write(&[1])) {
        None | Some(Ok(_)) => Ok(()),
        // It is full of notifications, or every process that had it open is gone.
        Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => Ok(()),
        Some(Err(error)) => Err(error),
    }
}
