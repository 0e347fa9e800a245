//! Typical mistakes at the command line: each is one line of error that says what is wrong and what to do, with the right exit
//! code; and the same line as JSON.

use std::process::Output;

use serde_json::Value;

use crate::harness::imgcls;

const FAILED: i32 = 1;
const USAGE: i32 = 2;

struct Mistake {
    /// The words of the command line, separated by spaces.
    words: &'static str,
    variable: Option<(&'static str, &'static str)>,
    /// A part of the first line of the error.
    error: &'static str,
    code: i32,
}

const fn mistake(words: &'static str, error: &'static str, code: i32) -> Mistake {
    Mistake { words, variable: None, error, code }
}

const fn with(name: &'static str, value: &'static str, words: &'static str, error: &'static str, code: i32) -> Mistake {
    Mistake { words, variable: Some((name, value)), error, code }
}

const MISTAKES: [Mistake; 40] = [
    mistake("upp", "unrecognized subcommand 'upp'", USAGE),
    mistake("up --lisen :80", "unexpected argument '--lisen' found", USAGE),
    mistake("up --listen 8080", "give an address and a port: 127.0.0.1:8080, localhost:8080, or :8080", USAGE),
    mistake("up --listen example.org:80", "give an address and a port", USAGE),
    mistake("up --port http", "invalid value 'http' for '--port <PORT>'", USAGE),
    mistake("up --port 70000", "invalid value '70000' for '--port <PORT>'", USAGE),
    mistake("up --visibility-timeout soon", "\"soon\" is not a duration such as 30s or 1h", USAGE),
    mistake("up --max-upload-bytes 20parsecs", "\"20parsecs\" is not a size such as 20MiB", USAGE),
    mistake("up --min-workers 3 --max-workers 2", "see --min-workers and --max-workers", USAGE),
    mistake(
        "up --region us-east-1",
        "`up` always runs on this machine; on AWS or NATS run `serve-web` and `worker`",
        USAGE,
    ),
    mistake("up --config missing.toml", "cannot read the settings in missing.toml", USAGE),
    mistake("up --rate-burst 3", "--rate-burst is a part of --rate-limit: give that, too", USAGE),
    mistake("up --port 0 --data-dir /proc/x", "give another directory with --data-dir", FAILED),
    mistake("serve-web --tls-cert cert.pem", "TLS needs both --tls-cert and --tls-key", USAGE),
    mistake("worker --request-queue a/b", "a queue name has 1 to 80 letters, digits", USAGE),
    mistake("autoscale --auto-scaling-group g", "resized with --backend aws alone; with local the workers", USAGE),
    with("IMGCLS_DIRECT", "1", "autoscale --backend nats", "IMGCLS_DIRECT: Auto Scaling groups are resized", USAGE),
    mistake("worker --model nothing", "model \"nothing\" is not found", FAILED),
    mistake("classify", "the following required arguments were not provided", USAGE),
    mistake("classify - -", "standard input can be read once: give - only once", USAGE),
    mistake("eval missing", "give a folder with one folder of images per class, or a CSV table", FAILED),
    mistake("loadgen --arrivals day", "--arrivals day needs --rate, the mean of the day", USAGE),
    mistake("loadgen --url ftp://x", "unknown scheme \"ftp\"", USAGE),
    mistake("loadgen --threshold p99<fast", "\"fast\" is not a duration", USAGE),
    mistake("loadgen --num-request 1 --url http://127.0.0.1:1", "is \"imgcls up\" running?", FAILED),
    mistake("simulate", "give --rate, the requests per second that arrive", USAGE),
    mistake("plan --rate 5 --service-time 1s", "the following required arguments were not provided", USAGE),
    mistake("plan --rate 5 --service-time 1s --goal p99>1s", "a goal limits a latency, such as p99<2s", USAGE),
    mistake("queue redrive", "the following required arguments were not provided", USAGE),
    mistake("queue depth", "there is no data directory imgcls-data: nothing ran there; see --data-dir", FAILED),
    mistake("keys create", "the following required arguments were not provided", USAGE),
    mistake("keys create --name a --scope boss", "invalid value 'boss' for '--scope", USAGE),
    mistake("model add missing.onnx", "cannot read missing.onnx; give an ONNX file or a folder", FAILED),
    mistake("config show tune", "tune has no settings to show: give up, serve-web", USAGE),
    mistake("completions tcsh", "invalid value 'tcsh' for '<SHELL>'", USAGE),
    mistake("provision plan --region us-east-1", "no AWS credentials: set AWS_ACCESS_KEY_ID", FAILED),
    with("IMGCLS_LISTEN", "nowhere", "up", "IMGCLS_LISTEN=\"nowhere\": give an address and a port", USAGE),
    with("IMGCLS_MAX_PIXELS", "many", "worker", "IMGCLS_MAX_PIXELS=\"many\":", USAGE),
    with("IMGCLS_LONG", "perhaps", "classify a.jpg", "IMGCLS_LONG=\"perhaps\": give 1 or 0", USAGE),
    with("IMGCLS_COLOR", "blue", "version", "IMGCLS_COLOR=\"blue\": give auto or always or never", USAGE),
];

fn run(mistake: &Mistake, further: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = imgcls();
    command.current_dir(folder.path()).env("AWS_EC2_METADATA_DISABLED", "true").args(mistake.words.split_whitespace());
    command.args(further).envs(mistake.variable).output().unwrap()
}

#[test]
fn mistakes_are_answered_with_one_line_and_an_exit_code() {
    for mistake in &MISTAKES {
        let output = run(mistake, &[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(mistake.code), "{}: {text}", mistake.words);
        let mut lines = text.lines().skip_while(|line| line.contains(" INFO "));
        let first = lines.next().unwrap_or_default();
        assert!(first.contains(mistake.error), "{}: {text}", mistake.words);
        assert!(first.starts_with("error: ") || first.starts_with("imgcls: "), "{}: {text}", mistake.words);
        if mistake.code == FAILED {
            assert_eq!(lines.next(), None, "{}: {text}", mistake.words);
        }
        assert!(output.stdout.is_empty(), "{}", mistake.words);
    }
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    for (mistake, flag) in [
        (mistake("queue depth", "there is no data directory", FAILED), "--json"),
        (mistake("queue purge", "required arguments were not provided: <QUEUE>", USAGE), "--json"),
        (mistake("loadgen --json --arrivals day", "--arrivals day needs --rate", USAGE), "--json"),
        (with("IMGCLS_JSON", "1", "queue dead --limit none", "invalid value 'none'", USAGE), "--data-dir=."),
        (with("IMGCLS_LIMIT", "none", "queue dead", "IMGCLS_LIMIT=\"none\"", USAGE), "--json"),
    ] {
        let flags: &[&str] = if mistake.words.contains(flag) { &[] } else { &[flag] };
        let output = run(&mistake, flags);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(mistake.code), "{text}");
        let error: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", mistake.words));
        let error = &error["error"];
        assert_eq!(error["exit_code"], mistake.code);
        assert_eq!(error["kind"], if mistake.code == USAGE { "usage" } else { "failed" });
        assert!(error["message"].as_str().unwrap().contains(mistake.error), "{text}");
    }
}

#[test]
fn value_without_a_unit_is_accepted_with_a_warning() {
    let warnings = |words: &'static str, variable| {
        let output = run(&Mistake { words, variable, error: "", code: 0 }, &[]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = warnings("worker --model nothing --visibility-timeout 45 --max-upload-bytes 1000", None);
    assert!(text.contains("--visibility-timeout: 45 has no unit and is read as 45 seconds; write 45s"), "{text}");
    assert!(text.contains("--max-upload-bytes: 1000 has no unit and is read as 1000 bytes; write 1000B"), "{text}");
    let text = warnings("worker --model nothing", Some(("IMGCLS_MAX_LEASE", "120")));
    assert!(text.contains("IMGCLS_MAX_LEASE: 120 has no unit"), "{text}");
    let text = warnings("worker --model nothing --visibility-timeout 45s --max-batch-delay 0", None);
    assert!(!text.contains("no unit"), "{text}");
}
