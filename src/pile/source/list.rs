//! Lists of paths: one on each line, or separated by NUL bytes as `find -print0` writes them.

use std::ffi::OsString;
use std::io::{self, BufRead, Read as _};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Longer than any path that a system opens.
const MAX_PATH_BYTES: u64 = 64 << 10;

/// Calls `each` with every path of a list. NUL bytes separate the paths if there is one in the first bytes that can be
/// read, and line ends do otherwise. Empty lines are left out.
///
/// # Errors
/// The list cannot be read, or has a line that is too long for a path.
pub(super) fn read(
    mut list: impl BufRead,
    mut each: impl FnMut(PathBuf) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let separator = if list.fill_buf()?.contains(&0) { 0 } else { b'\n' };
    loop {
        let mut path = Vec::new();
        list.by_ref().take(MAX_PATH_BYTES).read_until(separator, &mut path)?;
        if path.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if path.len() as u64 == MAX_PATH_BYTES {
            return Err(io::Error::other(format!("it has a line of more than {MAX_PATH_BYTES} bytes")));
        }
        if path.last() == Some(&separator) {
            path.pop();
        }
        if separator == b'\n' && path.last() == Some(&b'\r') {
            path.pop();
        }
        if !path.is_empty() && each(PathBuf::from(OsString::from_vec(path))).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[u8]) -> io::Result<Vec<String>> {
        let mut paths = Vec::new();
        let _ = read(list, |path| {
            paths.push(path.to_string_lossy().into_owned());
            ControlFlow::Continue(())
        })?;
        Ok(paths)
    }

    #[test]
    fn paths_are_separated_by_line_ends_or_nul_bytes() {
        assert_eq!(paths(b"a.jpg\n\nb c.jpg\r\nd.jpg").unwrap(), ["a.jpg", "b c.jpg", "d.jpg"]);
        assert_eq!(paths(b"a\nb.jpg\0c.jpg\0").unwrap(), ["a\nb.jpg", "c.jpg"]);
        assert_eq!(paths(b"").unwrap(), <[&str; 0]>::default());
        assert!(paths(&vec![b'x'; 70_000]).is_err());
    }
}
