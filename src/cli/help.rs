//! The order of the help: the common flags first, the others under headings, and examples.
//!
//! The declarations of flags say nothing about it, so that a flag is one field. A flag that no table names here stays among
//! the common ones. `-h` shows the common flags, `--help` all of them.

use clap::builder::StyledStr;
use clap::{Arg, Command};

use super::examples;

/// The common flags of the commands that have more than a page of flags, in the order of the help. All other flags of these
/// commands are under headings.
const COMMON: [(&str, &[&str]); 8] = [
    (
        "up",
        &[
            "listen",
            "port",
            "data-dir",
            "model",
            "min-workers",
            "max-workers",
            "auth",
            "max-upload-bytes",
            "keep-images",
            "config",
        ],
    ),
    (
        "serve-web",
        &["listen", "port", "region", "data-dir", "model", "auth", "tls-cert", "tls-key", "max-upload-bytes", "config"],
    ),
    (
        "worker",
        &[
            "region",
            "data-dir",
            "model",
            "sessions",
            "variant",
            "max-batch-size",
            "max-pixels",
            "admin-listen",
            "log-format",
            "config",
        ],
    ),
    (
        "autoscale",
        &[
            "region",
            "data-dir",
            "policy",
            "slo",
            "service-time",
            "min-workers",
            "max-workers",
            "direct",
            "interval",
            "config",
        ],
    ),
    (
        "provision",
        &["region", "stack", "min", "max", "policy", "instance-type", "spot-share", "model", "max-hourly", "yes"],
    ),
    (
        "loadgen",
        &[
            "url",
            "num-request",
            "concurrency",
            "rate",
            "duration",
            "arrivals",
            "image-folder",
            "expect",
            "threshold",
            "json",
        ],
    ),
    (
        "simulate",
        &["arrivals", "rate", "duration", "service-time", "from-loadgen", "policy", "min", "max", "plot", "json"],
    ),
    (
        "plan",
        &[
            "goal",
            "arrivals",
            "rate",
            "duration",
            "service-time",
            "from-loadgen",
            "measured-sessions",
            "instance-type",
            "out",
            "plot",
        ],
    ),
];

/// Flags by their subject. The headings appear in the order of the flags of a command.
const TOPICS: [(&str, &[&str]); 14] = [
    (
        "Backend and names",
        &[
            "backend",
            "region",
            "endpoint-url",
            "nats-url",
            "nats-credentials",
            "nats-ca",
            "nats-replicas",
            "data-dir",
            "stack",
            "request-queue",
            "result-queue",
            "input-bucket",
            "output-bucket",
            "read-bucket",
            "watch",
            "auto-scaling-group",
            "result-queue-mode",
            "wire",
        ],
    ),
    (
        "Jobs and the queue",
        &[
            "visibility-timeout",
            "max-receive-count",
            "job-ttl",
            "max-lease",
            "inline-bytes",
            "max-queue-depth",
            "sync-timeout",
        ],
    ),
    ("Limits on images", &["max-upload-bytes", "max-pixels", "decode-timeout", "max-decode-bytes"]),
    (
        "The model",
        &[
            "models-dir",
            "variant",
            "label-set",
            "ort-dylib",
            "intra-threads",
            "cache-dir",
            "cache",
            "cache-bytes",
            "model-memory",
            "shadow",
            "shadow-share",
            "sync-models",
            "sessions",
            "max-batch-size",
            "max-batch-delay",
        ],
    ),
    (
        "Connections",
        &[
            "idle-timeout",
            "body-timeout",
            "write-timeout",
            "drain-delay",
            "max-connections",
            "max-connections-per-address",
            "max-buffered-bytes",
            "trusted-proxy",
            "allowed-host",
            "cors-origin",
        ],
    ),
    (
        "Keys, limits per client and TLS",
        &[
            "auth",
            "admin-listen",
            "rate-limit",
            "rate-burst",
            "max-requests-per-client",
            "tls-cert",
            "tls-key",
            "allow",
        ],
    ),
    (
        "Calls to addresses that clients name",
        &["allow-callbacks", "allow-image-urls", "webhook", "webhook-secret", "allow-calls-to"],
    ),
    ("Stored data", &["keep-images", "keep-results", "max-data-bytes", "keep-images-days", "keep-results-days"]),
    (
        "Number of workers",
        &[
            "policy",
            "slo",
            "tolerance",
            "scale-in-stabilization",
            "scale-out-above",
            "scale-out-period",
            "scale-in-below",
            "scale-in-period",
            "service-time",
            "min-workers",
            "max-workers",
            "boot-time",
            "metric-period",
            "metric-delay",
            "deaths-per-hour",
        ],
    ),
    (
        "Machines of the stack",
        &[
            "existing-launch-template",
            "web-instances",
            "web-instance-type",
            "certificate",
            "balancer-subnets",
            "target-group",
            "image",
            "bundle",
            "adopt",
            "ssm",
            "tag",
            "permissions-boundary",
            "no-refresh",
            "no-wait",
        ],
    ),
    ("Prices", &["prices", "instance-type", "worker-instance-type", "spot-share", "max-hourly"]),
    ("Problems of the stack", &["notify", "max-image-age", "budget"]),
    ("Arrivals", &["burst-rate", "burst-length", "burst-every", "day-length", "trace", "seed"]),
    ("Settings and log", &["config", "log-format", "drain-on-stdin-close", "color"]),
];

/// Flags that say which service a short command is about.
const SHARED: [&str; 2] = ["data-dir", "region"];

/// Flags that a command shares with others and refuses.
const REFUSED: [(&str, &[&str]); 1] =
    [("up", &["backend", "region", "endpoint-url", "nats-url", "nats-credentials", "nats-ca", "nats-replicas"])];

/// Returns the command line with headings, an order of flags and examples.
pub(super) fn arranged(cli: Command) -> Command {
    let cli = cli.mut_args(|arg| with_heading(arg, &[], true));
    cli.mut_subcommands(|command| {
        let top = command.get_name().to_owned();
        of_command(command, &top, &top)
    })
}

fn of_command(command: Command, top: &str, words: &str) -> Command {
    let common = entry(&COMMON, top);
    let refused = entry(&REFUSED, top);
    let command = command.mut_args(|arg| {
        let arg = with_heading(arg, common, common.is_empty() || words != top);
        let is_refused = arg.get_long().is_some_and(|name| refused.contains(&name));
        if is_refused { arg.hide(true) } else { arg }
    });
    let command = with_examples(command, words);
    let (top, words) = (top.to_owned(), words.to_owned());
    command.mut_subcommands(move |inner| {
        let words = format!("{words} {}", inner.get_name());
        of_command(inner, &top, &words)
    })
}

/// Puts a flag among the common ones, or under the heading of its subject. `keeps_own` is true for a command of few flags,
/// and for one below another: then a flag without a subject is common.
fn with_heading(arg: Arg, common: &[&str], keeps_own: bool) -> Arg {
    let Some(name) = arg.get_long() else { return arg };
    if let Some(at) = common.iter().position(|known| *known == name) {
        return arg.display_order(at);
    }
    if name == "json" || (keeps_own && SHARED.contains(&name)) {
        return arg;
    }
    let topic = TOPICS.iter().find(|(_, names)| names.contains(&name));
    match topic {
        Some((heading, _)) => arg.help_heading(*heading).hide_short_help(true),
        None if keeps_own => arg,
        None => arg.help_heading("Further options").hide_short_help(true),
    }
}

/// Adds the examples of a command to the end of its help.
fn with_examples(command: Command, words: &str) -> Command {
    let Some(examples) = examples::of(words) else { return command };
    let examples: String = examples.iter().map(|line| format!("\n  {line}")).collect();
    let examples = format!("Examples:{examples}");
    let short = format!("{examples}\n`imgcls {words} --help` lists every flag.");
    let long = match command.get_after_help() {
        // These commands have examples of their own.
        Some(own) if own.to_string().contains("Examples:") => return command,
        Some(own) => format!("{own}\n\n{examples}"),
        None => examples,
    };
    command.after_help(StyledStr::from(short)).after_long_help(StyledStr::from(long))
}

fn entry(table: &[(&str, &'static [&'static str])], command: &str) -> &'static [&'static str] {
    match table.iter().find(|(name, _)| *name == command) {
        Some(&(_, flags)) => flags,
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn names(command: &Command, found: &mut Vec<String>) {
        found.extend(command.get_arguments().filter_map(Arg::get_long).map(str::to_owned));
        command.get_subcommands().for_each(|inner| names(inner, found));
    }

    #[test]
    fn every_flag_of_the_tables_exists() {
        let cli = Cli::command();
        let mut all = Vec::new();
        names(&cli, &mut all);
        for name in TOPICS.iter().flat_map(|(_, names)| *names) {
            assert!(all.iter().any(|known| known == name), "no command has --{name}");
        }
        for (command, flags) in COMMON.iter().chain(&REFUSED) {
            let mut own = Vec::new();
            names(cli.find_subcommand(command).expect("a command"), &mut own);
            for name in *flags {
                assert!(own.iter().any(|known| known == name), "`{command}` has no --{name}");
            }
            assert!(flags.len() <= 10, "{command}");
        }
    }

    /// Flags that delete, replace or confirm.
    const DESTRUCTIVE: [&str; 5] = ["delete-data", "force", "overwrite", "restart", "yes"];

    #[test]
    fn no_destructive_flag_has_a_variable() {
        fn check(command: &Command, found: &mut usize) {
            for arg in
                command.get_arguments().filter(|arg| arg.get_long().is_some_and(|name| DESTRUCTIVE.contains(&name)))
            {
                assert!(arg.get_env().is_none(), "{} of `{}`", arg, command.get_name());
                *found += 1;
            }
            command.get_subcommands().for_each(|inner| check(inner, found));
        }
        let mut found = 0;
        check(&Cli::command(), &mut found);
        assert!(found >= DESTRUCTIVE.len(), "{found}");
    }

    #[test]
    fn short_help_shows_common_flags_and_examples() {
        let mut cli = arranged(Cli::command());
        cli.build();
        let up = cli.find_subcommand_mut("up").expect("a command");
        let (short, long) = (up.render_help().to_string(), up.render_long_help().to_string());
        assert!(short.contains("--listen") && !short.contains("--max-lease"), "{short}");
        assert!(short.lines().count() < 60 && short.contains("Examples:\n  imgcls up"), "{short}");
        assert!(long.contains("--max-lease") && long.contains("\nConnections:\n"), "{long}");
        assert!(!long.contains("--endpoint-url"), "{long}");
    }
}
