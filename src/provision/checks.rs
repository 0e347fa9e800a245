//! The results of a preflight.

use serde::Serialize;

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// The subject, such as `vCPU quota`.
    pub of: String,
    pub verdict: Verdict,
    /// The finding; for a problem also what to do.
    pub found: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Ok,
    /// The stack cannot work, or not with all of its machines.
    Broken,
    /// It could not be found out.
    Unknown,
}

impl Check {
    pub(super) fn new(of: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Check {
        Check { of: of.into(), verdict, found: found.into() }
    }

    pub(super) fn of<E: std::fmt::Display>(of: &str, outcome: Result<String, E>) -> Check {
        match outcome {
            Ok(found) => Check::new(of, Verdict::Ok, found),
            Err(error) => Check::new(of, Verdict::Broken, format!("{error:#}")),
        }
    }
}

/// For a region that the account has not enabled.
pub(super) fn not_enabled(region: &str) -> String {
    format!(
        "the account has not enabled region {region}: enable it (aws account enable-region --region-name {region}), or give another --region"
    )
}

/// The facts about an instance type that a preflight uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InstanceType {
    pub vcpus: u32,
    /// An account on the free plan may start it.
    pub is_in_free_plan: bool,
}
