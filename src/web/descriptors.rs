//! The open files that this process may have: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit is raised to this, or to the hard limit where that is lower. It is not raised without bound: some
/// programs that a process starts close every descriptor up to the limit.
const WANTED_FILES: u64 = 65_536;
/// For the queue, the store, the log, and the pipes of worker processes.
const OTHER_FILES: u64 = 256;
/// Connections at a time where the flag says nothing and the files allow it.
const DEFAULT_MAX_CONNECTIONS: usize = 1_024;

/// Raises the soft limit of open files. Returns what it is then.
pub fn raise_limit() -> u64 {
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

/// How many connections are served at a time, where `asked` for or not. `files_each`: descriptors that the request of
/// one connection holds.
pub fn max_connections(asked: Option<usize>, max_files: u64, files_each: u64) -> usize {
    // A limit that small leaves too little for either; a quarter then goes to connections.
    let files = max_files.saturating_sub(OTHER_FILES).max(max_files / 4);
    let possible = usize::try_from(files / files_each).unwrap_or(usize::MAX).max(1);
    match asked {
        None => DEFAULT_MAX_CONNECTIONS.min(possible),
        Some(asked) if asked <= possible => asked,
        Some(asked) => {
            tracing::warn!(
                asked,
                possible,
                max_files,
                "--max-connections is more than the limit of open files allows; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
            );
            possible
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_the_limit_of_open_files() {
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
