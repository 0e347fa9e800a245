//! The variables of this process that settings are read from, besides those that clap reads.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::config::AWS_VARIABLES;

/// The variables that select AWS when `--backend` is absent.
pub(in crate::cli) fn aws_variables() -> BTreeMap<String, String> {
    let values = AWS_VARIABLES.iter().filter_map(|name| Some((*name, value(name)?)));
    values.map(|(name, value)| (name.to_owned(), value.to_string_lossy().into_owned())).collect()
}

/// The value of a variable, if it is set.
pub(super) fn value(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name)
}
