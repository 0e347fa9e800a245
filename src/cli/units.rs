//! Durations and sizes that were given without a unit: how they were read.

use std::any::TypeId;
use std::time::Duration;

use clap::Arg;

use crate::config::{Setting, Source};

/// Settings whose values have their unit in their name.
const WITH_UNIT: [&str; 1] = ["seconds"];
/// Sizes whose names do not end in `-bytes`.
const OTHER_SIZES: [&str; 1] = ["model-memory"];

/// Returns a line about a value without a unit that somebody gave. `arg` is the declaration of the setting.
pub(super) fn warning(arg: &Arg, setting: &Setting) -> Option<String> {
    if setting.source == Source::Default || WITH_UNIT.contains(&setting.name.as_str()) {
        return None;
    }
    let value = setting.values.first()?.to_str()?;
    let (unit, suffix) = if arg.get_value_parser().type_id() == TypeId::of::<Duration>() {
        ("seconds", "s")
    } else if setting.name.ends_with("-bytes") || OTHER_SIZES.contains(&setting.name.as_str()) {
        ("bytes", "B")
    } else {
        return None;
    };
    // Zero is zero in every unit.
    let number = value.parse::<f64>().ok().filter(|number| *number != 0.0)?;
    Some(format!(
        "{}: {value} has no unit and is read as {number} {unit}; write {value}{suffix}",
        setting.source_text()
    ))
}
