//! The limit of open files of this process: each connection takes at least one descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit is raised to this, or to the hard limit when that is lower. It is not raised further, because some
/// programs that a process starts close every descriptor up to the limit.
const WANTED_FILES: u64 = 65_536;
/// Descriptors for the queue, the store, the log, and the pipes of worker processes.
const OTHER_FILES: u64 = 256;
/// The number of connections when the flag is not set and the limit of open files allows it.
const DEFAULT_MAX_CONNECTIONS: usize = 1_024;

/// Raises the soft limit of open files and returns the new one.
pub(crate) fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (limit.current, limit.maximum) else { return u64::MAX };
    let wanted = hard.unwrap_or(WANTED_FILES).min(WANTED_FILES);
    if wanted <= soft {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: hard }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, wanted, "cannot raise the limit of open files");
            soft
        }
    }
}

/// Returns how many connections are served at a time. `requested` is the flag, if it was given, and
/// `files_per_connection` the number of descriptors that the request of one connection holds.
pub(crate) fn max_connections(requested: Option<usize>, max_files: u64, files_per_connection: u64) -> usize {
    // When the limit is too small for both, a quarter of it goes to connections.
    let files = max_files.saturating_sub(OTHER_FILES).max(max_files / 4);
    let possible = usize::try_from(files / files_per_connection).unwrap_or(usize::MAX).max(1);
    match requested {
        None => DEFAULT_MAX_CONNECTIONS.min(possible),
        Some(requested) if requested <= possible => requested,
        Some(requested) => {
            tracing::warn!(
                requested,
                possible,
                max_files,
                "--max-connections exceeds the limit of open files; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
            );
            possible
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_connections_follows_the_limit_of_open_files() {
        assert_eq!(max_connections(None, 65_536, 1), 1_024);
        assert_eq!(max_connections(None, u64::MAX, 2), 1_024);
        assert_eq!(max_connections(None, 1_024, 1), 768);
        assert_eq!(max_connections(None, 1_024, 2), 384);
        assert_eq!(max_connections(None, 64, 1), 16);
        assert_eq!(max_connections(None, 0, 1), 1);
        assert_eq!(max_connections(Some(10), 1_024, 1), 10);
        assert_eq!(max_connections(Some(5_000), 1_024, 1), 768);
        assert_eq!(max_connections(Some(5_000), 65_536, 1), 5_000);
    }
}
