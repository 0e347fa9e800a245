//! The command line as a person or a script uses it, through the real binary.

use std::process::{Command, Output};

use clap::{Arg, CommandFactory as _};
use imgcls::cli::Cli;

/// Runs the program to its end, with no variable set but the given ones.
fn imgcls(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IMGCLS_") || name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(environment.iter().copied()).output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn flags(command: &clap::Command) -> impl Iterator<Item = (&str, &Arg)> {
    command
        .get_arguments()
        .filter_map(|argument| Some((argument.get_long()?, argument)))
        .filter(|(long, _)| !["help", "version"].contains(long))
}

/// Flags that confirm or delete: a variable that is set for another reason must not do that.
const WITHOUT_VARIABLE: [&str; 5] = ["yes", "delete-data", "force", "overwrite", "restart"];

/// Flags that `up` shares with other commands and refuses, so that its help does not show them.
const REFUSED_BY_UP: [&str; 7] =
    ["backend", "region", "endpoint-url", "nats-url", "nats-credentials", "nats-ca", "nats-replicas"];

/// Every command that has no subcommands, with its words.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    let mut found = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name().to_owned();
        let inner: Vec<_> = command
            .get_subcommands()
            .map(|inner| (vec![name.clone(), inner.get_name().to_owned()], inner.clone()))
            .collect();
        if inner.is_empty() {
            found.push((vec![name], command.clone()));
        }
        found.extend(inner);
    }
    found
}

#[test]
fn every_flag_has_a_variable_of_its_name_unless_it_confirms_or_deletes() {
    for (words, command) in commands() {
        for (long, argument) in flags(&command) {
            let variable = format!("IMGCLS_{}", long.to_uppercase().replace('-', "_"));
            let expected = (!WITHOUT_VARIABLE.contains(&long)).then_some(variable);
            let env = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            assert_eq!(env, expected, "{} --{long}", words.join(" "));
        }
    }
}

#[test]
fn a_flag_has_the_same_default_in_every_command() {
    let commands = commands();
    let all: Vec<(&str, &Arg)> = commands.iter().flat_map(|(_, command)| flags(command)).collect();
    for (long, argument) in &all {
        let (_, first) = all.iter().find(|(other, _)| other == long).expect("found at least itself");
        assert_eq!(argument.get_default_values(), first.get_default_values(), "--{long}");
    }
}

#[test]
fn help_names_every_flag_and_its_variable() {
    for (words, command) in commands() {
        let name = words.join(" ");
        let arguments: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let output = imgcls(&arguments, &[]);
        // Long lines are wrapped between words.
        let help = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(0));
        for (long, argument) in flags(&command) {
            if (name.as_str() == "up") && REFUSED_BY_UP.contains(&long) {
                assert!(!help.contains(&format!("--{long}")), "{name} --{long}");
                continue;
            }
            assert!(help.contains(&format!("--{long}")), "{name} --{long}");
            if let Some(variable) = argument.get_env() {
                // The value of a secret is hidden.
                let end = if argument.is_hide_env_values_set() { "]" } else { "=" };
                let shown = format!("[env: {}{end}", variable.to_string_lossy());
                assert!(help.contains(&shown), "{name} --{long}\n{help}");
            }
        }
    }
}

#[test]
fn wrong_usage_has_exit_code_2_and_names_the_help_on_standard_error() {
    for arguments in [
        vec!["up", "--frobnicate"],
        vec!["frobnicate"],
        vec!["up", "--visibility-timeout", "soon"],
        vec!["up", "--min-workers", "3", "--max-workers", "2"],
        vec!["up", "--max-workers", "0", "--min-workers", "0"],
        vec!["up", "--backend", "aws"],
        vec!["worker", "--request-queue", "a/b"],
        vec!["serve-web", "--wire", "legacy", "--result-queue-mode", "own"],
        vec!["serve-web", "--wire", "seed", "--result-queue-mode", "own"],
        vec!["queue", "redrive"],
        vec!["queue", "redrive", "--all", "01936d5c-7e00-7abc-8def-0123456789ab"],
        vec![],
    ] {
        let output = imgcls(&arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("--help"), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert!(stderr(&imgcls(&["up", "--frobnicate"], &[])).contains("Usage: imgcls up"));
    let both = stderr(&imgcls(&["up", "--min-workers", "3", "--max-workers", "2"], &[]));
    assert!(both.contains("--min-workers") && both.contains("--max-workers"), "{both}");
}

#[test]
fn the_first_log_line_names_what_selected_aws_and_the_last_what_is_missing() {
    let url = "http://127.0.0.1:1";
    for command in ["serve-web", "worker"] {
        for (variable, value) in
            [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_ENDPOINT_URL", url)]
        {
            let output = imgcls(&[command], &[(variable, value), ("AWS_EC2_METADATA_DISABLED", "true")]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            let [first, last] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
            assert!(first.contains(&format!("said_by=\"{variable}\"")), "{first}");
            assert!(last.contains("no AWS credentials") && last.contains("--backend local"), "{last}");
        }
    }
}

#[test]
fn an_address_in_use_is_one_line_that_names_the_flag() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address").to_string();
    let data_dir = tempfile::tempdir().expect("a directory");
    let data_dir = data_dir.path().to_str().expect("a path in UTF-8");
    let output = imgcls(&["up", "--listen", &address, "--data-dir", data_dir], &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&address) && text.contains("--listen"), "{text}");
}
