//! The version of the server, which is checked at connection. An older one does not do all that the queues rely on: it
//! confirms, for example, acknowledgements to a queue that was deleted.

/// The oldest version of nats-server that the tests pass with.
const OLDEST: (u64, u64) = (2, 11);

/// Says what is wrong with a server of this version, in one line. `None` if it may be used: also if the version cannot be read,
/// since forks and proxies name theirs otherwise. `servers` are its addresses without logins.
pub(super) fn refusal(servers: &str, version: &str) -> Option<String> {
    let is_old = parsed(version).is_some_and(|found| found < OLDEST);
    let (major, minor) = OLDEST;
    is_old.then(|| {
        format!(
            "NATS at {servers} has version {version}, and {major}.{minor} or later is needed: install a newer nats-server \
             there, or give the address of one as --nats-url"
        )
    })
}

/// Reads the first two numbers of a version. What it can read is a word that a message may show.
fn parsed(version: &str) -> Option<(u64, u64)> {
    let is_word = version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+_".contains(&byte));
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
    let is_version = is_word && patch.starts_with(|first: char| first.is_ascii_digit());
    if is_version { Some((major.parse().ok()?, minor.parse().ok()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_older_than_the_tests_pass_with_are_refused() {
        let cases = [
            ("2.11.0", true),
            ("2.11.0-RC.3", true),
            ("2.12.0-preview.1", true),
            ("2.15.1", true),
            ("3.0.0", true),
            ("10.2.0", true),
            ("v2.11.4", true),
            ("2.10.25", false),
            ("2.10.25-binary", false),
            ("2.9.10", false),
            ("v2.10.0", false),
            ("1.4.1", false),
            ("0.0.0", false),
            // These cannot be read.
            ("", true),
            ("garbage", true),
            ("2", true),
            ("2.10", true),
            ("2.10.x", true),
            ("2.-1.0", true),
            ("2.10.0 or so", true),
            ("2.10.0\nready", true),
            ("99999999999999999999.1.0", true),
        ];
        for (version, may_be_used) in cases {
            assert_eq!(refusal("nats://h:4222", version).is_none(), may_be_used, "{version:?}");
        }
    }
}
