//! The scripts that install and package, with the program under test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::harness::imgcls;

/// Highest exposure level of a unit, as `systemd-analyze security` measures it: 20 is a score of 2.0.
const MAX_EXPOSURE: &str = "20";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> Output {
    command.env_remove("DESTDIR").output().unwrap()
}

fn succeeds(command: &mut Command) -> String {
    let output = run(command);
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn install(prefix: &Path) -> String {
    let script = root().join("scripts/install");
    succeeds(Command::new(script).args(["--binary", env!("CARGO_BIN_EXE_imgcls")]).arg(prefix))
}

/// Returns every file and directory below a folder.
fn listing(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(listing(&path));
        }
        found.insert(path);
    }
    found
}

#[test]
fn installed_program_runs_from_anywhere_and_is_removed_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("prefix");
    std::fs::create_dir_all(prefix.join("bin")).unwrap();
    std::fs::write(prefix.join("bin/another"), "").unwrap();
    let before = listing(folder.path());
    let said = install(&prefix);
    assert!(said.contains(&format!("{}/bin is not on your path", prefix.display())), "{said}");
    // A second installation over the first one.
    install(&prefix);

    let mut installed = Command::new(prefix.join("bin/imgcls"));
    let image = root().join("tests/pictures/cup.jpg");
    installed.env_clear().env("HOME", folder.path().join("home")).current_dir("/");
    let answer = succeeds(installed.args(["classify", "--json"]).arg(image));
    assert!(answer.contains("espresso"), "{answer}");
    let unit = std::fs::read_to_string(prefix.join("lib/systemd/system/imgcls-up.service")).unwrap();
    assert!(
        unit.contains(&format!("ExecStart={}/bin/imgcls up\n", prefix.display())) && !unit.contains("@COMMON@"),
        "{unit}"
    );
    for file in [
        "share/man/man1/imgcls.1.gz",
        "share/man/man1/imgcls-up.1.gz",
        "share/man/man1/imgcls-queue-redrive.1.gz",
        "share/bash-completion/completions/imgcls",
        "share/zsh/site-functions/_imgcls",
        "share/fish/vendor_completions.d/imgcls.fish",
        "share/doc/imgcls/onnxruntime-LICENSE",
    ] {
        assert!(prefix.join(file).is_file(), "{file}");
    }

    let _ = std::fs::remove_dir_all(folder.path().join("home"));
    succeeds(&mut Command::new(prefix.join("share/imgcls/uninstall")));
    assert_eq!(listing(folder.path()), before);
    let again = run(Command::new(root().join("scripts/install")).arg("--uninstall").arg(&prefix));
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1));
    assert!(error.contains("nothing is installed in"), "{error}");
}

#[test]
fn units_are_valid_and_confined() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIPPED: systemd-analyze is missing; the units were not checked");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    install(folder.path());
    for unit in ["imgcls-up.service", "imgcls-web.service", "imgcls-worker@.service"] {
        let path = folder.path().join("lib/systemd/system").join(unit);
        succeeds(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path));
        let security = ["security", "--offline=yes", "--no-pager", "--threshold", MAX_EXPOSURE];
        succeeds(Command::new("systemd-analyze").args(security).arg(&path));
    }
}

/// The drop-ins of deploy/legacy over units as the legacy system had them.
#[test]
fn legacy_units_run_imgcls_with_a_drop_in() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("usr");
    install(&prefix);
    for (unit, command) in [("pythonfrontend", "serve-web"), ("pythonbackend", "worker")] {
        let drop_in =
            std::fs::read_to_string(root().join(format!("deploy/legacy/{unit}.service.d/imgcls.conf"))).unwrap();
        let start = drop_in.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/imgcls ")).unwrap();
        let words: Vec<&str> = start.split_whitespace().collect();
        assert_eq!(words[0], command);
        // Its flags exist, and the variables of the legacy units are read.
        let mut shown = imgcls();
        shown.args(["config", "show", "--json"]).args(&words).env("REQUEST_QUEUE_NAME", "old-queue");
        let shown: serde_json::Value = serde_json::from_str(&succeeds(shown.env("AWS_REGION", "us-east-1"))).unwrap();
        let settings = shown["settings"].as_array().unwrap();
        let queue = settings.iter().find(|setting| setting["name"] == "request-queue").unwrap();
        assert_eq!(queue["value"], "old-queue", "{queue}");

        if Command::new("systemd-analyze").arg("--version").output().is_err() {
            eprintln!("SKIPPED: systemd-analyze is missing; the drop-in of {unit} was not checked");
            continue;
        }
        let units = folder.path().join("units");
        let drop_ins = units.join(format!("{unit}.service.d"));
        std::fs::create_dir_all(&drop_ins).unwrap();
        let legacy = "[Service]\nExecStart=/usr/bin/python3 app.py\nEnvironment=AWS_REGION=us-east-1\n";
        std::fs::write(units.join(format!("{unit}.service")), legacy).unwrap();
        let here = drop_in.replace("/usr/bin/imgcls", &prefix.join("bin/imgcls").display().to_string());
        std::fs::write(drop_ins.join("imgcls.conf"), here).unwrap();
        let said = succeeds(
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(units.join(format!("{unit}.service"))),
        );
        assert!(!said.contains(unit), "{said}");
    }
}

#[test]
fn manual_pages_have_no_errors() {
    if Command::new("mandoc").arg("-V").stdin(Stdio::null()).output().is_err() {
        eprintln!("SKIPPED: mandoc is missing; the manual pages were not checked");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    succeeds(imgcls().arg("man").arg(folder.path()));
    let pages = listing(folder.path());
    assert!(pages.len() > 30, "{pages:?}");
    succeeds(Command::new("mandoc").args(["-Tlint", "-W", "error"]).args(pages));
}

#[test]
fn completions_name_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeds(imgcls().args(["completions", shell]));
        for word in ["serve-web", "max-workers", "redrive"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = succeeds(imgcls().args(["completions", "bash"]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imgcls");
    std::fs::write(&path, script).unwrap();
    let completed = format!(
        "source {}; COMP_WORDS=(imgcls queue re); COMP_CWORD=2; _imgcls imgcls re queue; echo \"${{COMPREPLY[*]}}\"",
        path.display()
    );
    assert_eq!(succeeds(Command::new("bash").args(["--norc", "-c", &completed])).trim(), "redrive");
}

#[test]
fn version_describes_program_runtime_cpu_and_models() {
    let version = succeeds(imgcls().args(["version", "--json"]));
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["build"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(version["runtime"]["is_pinned"], true);
    assert!(version["cpu"]["cores"].as_u64().unwrap() > 0);
    let models = version["models"].as_array().unwrap();
    let model = models.iter().find(|model| model["name"] == "efficientnet-lite0").unwrap();
    assert!(model["files"][0]["digest"].as_str().unwrap().starts_with("sha256:"), "{model}");
    let text = succeeds(imgcls().arg("version"));
    assert!(
        text.starts_with(&format!("imgcls {}\n", env!("CARGO_PKG_VERSION"))) && text.contains("ONNX Runtime"),
        "{text}"
    );
}
