//! Errors as people and programs read them: one line.

use std::ffi::OsString;

use serde_json::json;

use super::parse::switch;

/// Returns true if a command line asks for JSON, by `--json` or its variable. It need not be a valid one.
pub fn wants_json(arguments: &[OsString]) -> bool {
    let is_given = arguments.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    is_given || std::env::var("IMGCLS_JSON").is_ok_and(|value| switch(&value) == Ok(true))
}

/// The error and its reasons in one line. A reason that the error itself quotes is not repeated.
pub fn error_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for reason in error.chain().map(|reason| one_line(&reason.to_string())) {
        if line.is_empty() {
            line = reason;
        } else if !line.contains(&reason) {
            line = format!("{line}: {reason}");
        }
    }
    line
}

/// The error as a JSON object: `{"error": {"kind", "message", "exit_code"}}`.
pub fn error_json(error: &anyhow::Error, exit_code: u8) -> String {
    let usage = error.downcast_ref::<clap::Error>().map(|error| usage_line(&error.to_string()));
    let message = usage.unwrap_or_else(|| error_line(error));
    let kind = if exit_code == 2 { "usage" } else { "failed" };
    json!({"error": {"kind": kind, "message": message, "exit_code": exit_code}}).to_string()
}

/// The message of clap without the usage and the pointer to the help.
fn usage_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let parts =
        text.split("\n\n").filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"));
    one_line(&parts.collect::<Vec<_>>().join(" "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn reason_is_printed_once() {
        let error = anyhow!("disk full").context("cannot write a.csv: disk full").context("no table");
        assert_eq!(error_line(&error), "no table: cannot write a.csv: disk full");
        assert_eq!(
            error_line(&anyhow!("permission\n  denied").context("cannot read")),
            "cannot read: permission denied"
        );
    }

    #[test]
    fn usage_is_left_out_of_json() {
        let text = "error: unexpected argument '--lisen' found\n\n  tip: a similar argument exists: '--listen'\n\n\
                    Usage: imgcls up [OPTIONS]\n\nFor more information, try '--help'.\n";
        let expected = "unexpected argument '--lisen' found tip: a similar argument exists: '--listen'";
        assert_eq!(usage_line(text), expected);
    }

    #[test]
    fn json_is_asked_for_before_the_end_of_flags() {
        let wants = |words: &[&str]| wants_json(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(wants(&["imgcls", "queue", "depth", "--json"]));
        assert!(!wants(&["imgcls", "classify", "--", "--json"]));
    }
}
