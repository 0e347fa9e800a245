//! Settings from flags, variables and files, through the real binary.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::harness::imgcls;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    imgcls().args(arguments).envs(environment.iter().copied()).output().unwrap()
}

/// Returns the settings that `config show` prints.
fn shown(command: &[&str], environment: &[(&str, &str)]) -> Value {
    let output = run(&[&["config", "show", "--json"], command].concat(), environment);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn setting<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let settings = shown["settings"].as_array().unwrap();
    settings.iter().find(|setting| setting["name"] == name).unwrap_or_else(|| panic!("no {name} in {shown}"))
}

/// Runs a command that fails because of its usage, and returns the single line of the error.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(arguments, environment);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(output.stdout.is_empty(), "{output:?}");
    error
}

struct SettingsFile {
    _folder: tempfile::TempDir,
    path: String,
}

fn file(text: &str) -> SettingsFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.toml");
    std::fs::write(&path, text).unwrap();
    SettingsFile { path: path.to_str().unwrap().to_owned(), _folder: folder }
}

#[test]
fn a_flag_takes_precedence_over_a_variable_over_a_file_over_the_default() {
    let table = file("max-pixels = 1\n[worker]\nmax_pixels = 2\n");
    let top = file("\nmax-pixels = 1_000\n[web]\nmax-pixels = 7\n");
    let (table, top) = (table.path.as_str(), top.path.as_str());
    let variable = [("IMGCLS_MAX_PIXELS", "3")];
    for (arguments, environment, value, kind) in [
        (&["worker"][..], &[][..], "64000000", "default"),
        (&["worker", "--config", top], &[], "1000", "file"),
        (&["worker", "--config", table], &[], "2", "file"),
        (&["worker", "--config", table], &variable, "3", "variable"),
        (&["worker", "--config", table, "--max-pixels", "4"], &variable, "4", "flag"),
        (&["worker", "--max-pixels", "4"], &[], "4", "flag"),
        (&["serve-web", "--config", top], &[], "7", "file"),
        (&["up", "--config", top], &[], "1000", "file"),
    ] {
        let shown = shown(arguments, environment);
        let pixels = setting(&shown, "max-pixels");
        assert_eq!((&pixels["value"], &pixels["source"]["kind"]), (&value.into(), &kind.into()), "{arguments:?}");
    }
    let from_file = &shown(&["worker"], &[("IMGCLS_CONFIG", table)]);
    let source = &setting(from_file, "max-pixels")["source"];
    assert_eq!((&source["file"], &source["line"]), (&table.into(), &3.into()));
    let text = run(&["config", "show", "worker", "--config", table], &[("IMGCLS_MAX_LEASE", "1m")]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.lines().any(|line| line.contains("max-pixels") && line.ends_with("service.toml:3")), "{text}");
    assert!(text.lines().any(|line| line.contains("max-lease") && line.ends_with("IMGCLS_MAX_LEASE")), "{text}");
    assert!(text.lines().any(|line| line.contains("max-batch-size") && line.contains("as measured")), "{text}");
}

#[test]
fn variables_of_the_legacy_system_come_after_our_own() {
    let file = file("request-queue = \"of-the-file\"\n");
    let legacy = ("REQUEST_QUEUE_NAME", "of-legacy");
    for (environment, value, variable) in [
        (vec![], "of-the-file", None),
        (vec![legacy], "of-legacy", Some("REQUEST_QUEUE_NAME")),
        (vec![legacy, ("IMGCLS_REQUEST_QUEUE", "ours")], "ours", Some("IMGCLS_REQUEST_QUEUE")),
        (vec![("REQUEST_QUEUE_NAME", "")], "of-the-file", None),
    ] {
        let shown = shown(&["worker", "--config", &file.path], &environment);
        let queue = setting(&shown, "request-queue");
        assert_eq!((queue["value"].as_str(), queue["source"]["variable"].as_str()), (Some(value), variable));
    }
    let error = refused(&["worker"], &[("RESPONSE_QUEUE_NAME", "a/b")]);
    assert!(error.contains("RESPONSE_QUEUE_NAME=\"a/b\": a queue name has"), "{error}");
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_its_line() {
    for (command, text, expected) in [
        ("worker", "stack = \"a\"\nmax-pixel = 1\n", ":2: \"max-pixel\" is not a setting; `imgcls config show`"),
        ("worker", "[web]\n\nmax-lease = \"1m\"\n", ":3: \"max-lease\" is not a setting of [web]; it belongs in [up]"),
        ("up", "[web]\nbogus = 1\n", ":2: \"bogus\" is not a setting of [web]; `imgcls config show serve-web`"),
        ("up", "[website]\nlisten = 1\n", ":2: there is no table [website]: give [up], [web]"),
        ("up", "max-pixels = 1\nmax_pixels = 2\n", ":2: max-pixels is given twice, also in line 1"),
        ("up", "listen =\n", ":1: this is not TOML"),
        ("up", "listen = { port = 1 }\n", ":1: there is no table [listen]"),
        ("up", "max-pixels = [1]\n", ":1: max-pixels takes one value, not a list"),
        ("up", "max-pixels = [[1]]\n", ":1: max-pixels: give a string, a number"),
        ("up", "config = \"other.toml\"\n", ":1: \"config\" is not a setting"),
        ("provision", "yes = true\n", ":1: \"yes\" is not a setting"),
    ] {
        let file = file(text);
        let error = refused(&[command, "--config", &file.path], &[]);
        assert!(error.contains(&format!("service.toml{expected}")), "{text}: {error}");
    }
    let error = refused(&["up", "--config", "no-such-file.toml"], &[]);
    assert!(error.contains("cannot read the settings in no-such-file.toml"), "{error}");
}

#[test]
fn a_wrong_value_is_reported_with_its_source() {
    let error = refused(&["worker"], &[("IMGCLS_VISIBILITY_TIMEOUT", "1ms")]);
    assert!(error.contains("IMGCLS_VISIBILITY_TIMEOUT=\"1ms\": give a duration between 1s and 12h"), "{error}");
    assert!(error.contains("--visibility-timeout in `imgcls worker --help`"), "{error}");
    let error = refused(&["serve-web"], &[("IMGCLS_WIRE", "v9")]);
    assert!(error.contains("IMGCLS_WIRE=\"v9\": give v1 or legacy"), "{error}");
    let bad = file("[up]\nstack = \"ok\"\nlisten = \"nowhere\"\n");
    let error = refused(&["up", "--config", &bad.path], &[]);
    assert!(error.contains("service.toml:3: listen = \"nowhere\": give an address and a port"), "{error}");
    let aws = file("backend = \"aws\"\n");
    let output = run(&["up", "--config", &aws.path], &[]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("service.toml:1: `up` always runs on this machine"), "{error}");

    // A flag hides a wrong variable. If the flag is wrong too, the error names the flag.
    let environment = [("IMGCLS_MAX_PIXELS", "many")];
    assert_eq!(setting(&shown(&["worker", "--max-pixels", "5"], &environment), "max-pixels")["value"], "5");
    let output = run(&["worker", "--max-pixels", "none"], &environment);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("'none' for '--max-pixels") && !error.contains("IMGCLS_MAX_PIXELS"), "{error}");
}

#[test]
fn switches_take_the_usual_words_in_variables_and_files() {
    for (word, value) in [
        ("1", "true"),
        ("true", "true"),
        ("yes", "true"),
        ("On", "true"),
        ("0", "false"),
        ("false", "false"),
        ("no", "false"),
        ("off", "false"),
    ] {
        let variable = shown(&["autoscale"], &[("IMGCLS_DIRECT", word)]);
        assert_eq!(setting(&variable, "direct")["value"], value, "{word}");
        let quoted = file(&format!("[autoscale]\ndirect = \"{word}\"\n"));
        let quoted = shown(&["autoscale", "--config", &quoted.path], &[]);
        assert_eq!(setting(&quoted, "direct")["value"], value, "{word}");
    }
    for (line, value) in [("true", "true"), ("false", "false"), ("1", "true"), ("0", "false")] {
        let bare = file(&format!("direct = {line}\n"));
        let bare = shown(&["autoscale", "--config", &bare.path], &[]);
        assert_eq!(setting(&bare, "direct")["value"], value, "{line}");
    }
    let error = refused(&["autoscale"], &[("IMGCLS_DIRECT", "maybe")]);
    assert!(error.contains("IMGCLS_DIRECT=\"maybe\": give 1 or 0, true or false, yes or no"), "{error}");
}

#[test]
fn every_service_shows_its_settings_and_the_default_is_up() {
    for (command, own) in [
        ("up", "max-workers"),
        ("serve-web", "wire"),
        ("worker", "admin-listen"),
        ("autoscale", "interval"),
        ("provision", "spot-share"),
    ] {
        let shown = shown(&[command], &[]);
        assert_eq!(shown["command"], command);
        assert_eq!(setting(&shown, "stack")["source"]["kind"], "default");
        setting(&shown, own);
    }
    assert_eq!(shown(&[], &[])["command"], "up");
    assert_eq!(setting(&shown(&["--max-pixels", "9"], &[]), "max-pixels")["value"], "9");
    assert_eq!(run(&["config", "show", "loadgen"], &[]).status.code(), Some(2));
}

#[test]
fn a_flat_file_of_provision_still_reads() {
    let flat = file(
        "max = 8\nspot-share = 50\npolicy = \"target\"\nservice-time = \"20ms\"\nadopt = false\n\
         instance-type = [\"c7i.large\", \"c6i.large\"]\nmax-hourly = 2.5\n",
    );
    let shown = shown(&["provision", "--config", &flat.path, "--max", "3"], &[]);
    let value = |name: &str| setting(&shown, name)["value"].clone();
    assert_eq!((value("max"), value("spot-share"), value("adopt")), ("3".into(), "50".into(), "false".into()));
    assert_eq!(value("instance-type"), serde_json::json!(["c7i.large", "c6i.large"]));
    assert_eq!((value("policy"), value("max-hourly")), ("target".into(), "2.5".into()));
    assert!(shown.get("machines").is_none(), "{shown}");
}

#[test]
fn settings_for_machines_are_checked_when_provision_starts() {
    let service = file(
        "visibility-timeout = \"60s\"\njob-ttl = \"2h\"\n[provision]\nmax = 8\n\
         [web]\nallowed-host = [\"a.example\"]\n[worker]\nmax-pixels = 1000\n[autoscale]\ninterval = \"5s\"\n",
    );
    let shown = shown(&["provision", "plan", "--config", &service.path], &[]);
    assert_eq!(
        (&setting(&shown, "max")["value"], &setting(&shown, "visibility-timeout")["value"]),
        (&"8".into(), &"60s".into())
    );
    let names = |table: &str| -> Vec<String> {
        let settings = shown["machines"][table].as_array().unwrap();
        settings.iter().map(|setting| setting["name"].as_str().unwrap().to_owned()).collect()
    };
    // A setting at the top level that `provision` has too reaches machines through `provision`, so it is not listed here.
    assert_eq!(names("web"), ["allowed-host", "job-ttl"]);
    assert_eq!(names("worker"), ["max-pixels"]);
    assert_eq!(names("autoscale"), ["interval"]);
    let long = format!("[worker]\ncache-dir = \"/{}\"\n", "x".repeat(4_000));
    for (text, expected) in [
        (long.as_str(), ":2: the settings of [worker] take more than 3072 bytes"),
        ("[worker]\nmax-pixels = \"many\"\n", ":2: max-pixels = \"many\": invalid digit"),
        ("[worker]\nvisibility-timeout = \"60s\"\n", ":2: visibility-timeout in [worker] is set by `imgcls provision`"),
        ("[web]\nlisten = \"0.0.0.0:80\"\n", ":2: listen in [web] is set by `imgcls provision`"),
        ("[autoscale]\npolicy = \"step\"\n", ":2: policy in [autoscale] is set by `imgcls provision`"),
    ] {
        let error = refused(&["provision", "plan", "--config", &file(text).path], &[]);
        assert!(error.contains(&format!("service.toml{expected}")), "{text}: {error}");
    }
}

#[test]
fn variable_that_is_not_text_disturbs_no_command() {
    let arguments = ["queue", "depth", "--data-dir", "nowhere"];
    let output = imgcls().args(arguments).env("SOME_VARIABLE", OsStr::from_bytes(b"\xff\xfe")).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("there is no data directory nowhere"), "{error}");
}

#[test]
fn services_take_a_list_of_models_and_other_commands_take_one() {
    let list = file("model = [\"a\", \"b\"]\n");
    for command in ["up", "worker", "serve-web", "autoscale"] {
        for (arguments, environment) in [
            (vec![command, "--model", "a", "--model", "b"], vec![]),
            (vec![command], vec![("IMGCLS_MODEL", "a,b")]),
            (vec![command, "--config", list.path.as_str()], vec![]),
        ] {
            let shown = shown(&arguments, &environment);
            assert_eq!(setting(&shown, "model")["value"], serde_json::json!(["a", "b"]), "{arguments:?}");
        }
    }
    let twice = run(&["classify", "--model", "a", "--model", "b", "x.jpg"], &[]);
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");
}

#[test]
fn no_file_is_read_unless_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.toml", "imgcls.toml", "stack.toml"] {
        std::fs::write(folder.path().join(name), "max-pixels = 1\n").unwrap();
    }
    let show = |folder: &Path| imgcls().args(["config", "show", "--json"]).current_dir(folder).output().unwrap();
    let shown: Value = serde_json::from_slice(&show(folder.path()).stdout).unwrap();
    assert_eq!(setting(&shown, "max-pixels")["source"]["kind"], "default");
}
