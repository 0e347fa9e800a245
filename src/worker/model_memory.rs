//! How much memory the models of a worker take, and whether that is allowed.

use anyhow::bail;

use crate::model;

const MIB: u64 = 1 << 20;

/// The memory of one model: its sessions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    /// `name@version` of the model.
    pub model: String,
    pub bytes: u64,
}

/// Checks that models fit together.
///
/// # Errors
/// A message of one line that lists them, if they take more than `limit`.
pub(crate) fn check(shares: &[Share], limit: u64) -> anyhow::Result<()> {
    let total = shares.iter().fold(0_u64, |total, share| total.saturating_add(share.bytes));
    if total <= limit {
        return Ok(());
    }
    let listed: Vec<String> = shares.iter().map(|share| format!("{} {} MiB", share.model, mib(share.bytes))).collect();
    bail!(
        "the models take {} MiB of memory ({}), more than the {} MiB of --model-memory: raise it, list fewer models, or \
         run fewer sessions",
        mib(total),
        listed.join(", "),
        limit / MIB
    )
}

/// Opens sessions, and returns the memory that they take: as much as this process grew, but at least `least`, because
/// memory that was freed before does not make it grow.
///
/// # Errors
/// The error of `open`.
pub(crate) fn measure<T>(least: u64, open: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
    let before = model::resident_bytes();
    let opened = open()?;
    let grown = model::resident_bytes().saturating_sub(before);
    Ok((opened, grown.max(least)))
}

/// The memory that another version of a model will take: as much for each byte of its file as the version in use, which
/// takes `bytes` with a file of `file_bytes`.
pub(crate) fn expected(bytes: u64, file_bytes: u64, next_file_bytes: u64) -> u64 {
    let ratio = bytes as f64 / file_bytes.max(1) as f64;
    ((next_file_bytes as f64 * ratio) as u64).max(next_file_bytes)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_do_not_fit_are_listed_in_one_line() {
        let share = |model: &str, mib: u64| Share { model: model.to_owned(), bytes: mib * MIB };
        let shares = [share("a@1", 30), share("b@2", 20)];
        check(&shares, 50 * MIB).unwrap();
        let error = check(&shares, 50 * MIB - 1).unwrap_err().to_string();
        assert!(
            error.starts_with("the models take 50 MiB of memory (a@1 30 MiB, b@2 20 MiB), more than the 49"),
            "{error}"
        );
        assert!(error.contains("--model-memory") && !error.contains('\n'), "{error}");
        assert!(check(&[share("a@1", 1), Share { bytes: u64::MAX, ..share("b@2", 0) }], u64::MAX - 1).is_err());
    }

    #[test]
    fn another_version_is_expected_to_take_as_much_for_each_byte_of_its_file() {
        assert_eq!(expected(300, 100, 200), 600);
        assert_eq!(expected(0, 0, 200), 200);
        assert_eq!(expected(10, 100, 200), 200);
    }
}
