//! Colours of help, messages and logs.

use std::ffi::OsString;

use clap::{ColorChoice, ValueEnum};

use crate::telemetry::Color;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    Auto,
    Always,
    Never,
}

impl ColorArg {
    pub fn color(self) -> Color {
        match self {
            ColorArg::Auto => Color::Auto,
            ColorArg::Always => Color::Always,
            ColorArg::Never => Color::Never,
        }
    }
}

/// The choice for help and errors, which clap prints before the command line is parsed. Anything but `always` and `never`
/// is automatic.
pub(super) fn of_command_line(arguments: &[OsString]) -> ColorChoice {
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    let mut given = std::env::var("IMGCLS_COLOR").ok();
    while let Some(word) = words.next() {
        if word == "--color" {
            given = words.next().map(std::borrow::Cow::into_owned);
        } else if let Some(value) = word.strip_prefix("--color=") {
            given = Some(value.to_owned());
        }
    }
    match given.as_deref() {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}
