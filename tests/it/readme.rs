//! Every command in README.md and docs/api.md works when it is pasted in order into one terminal, and what the pages of docs/
//! name exists.
//!
//! How these pages are read:
//! - A fenced block of the language `sh` is pasted as it is. All blocks run in one shell, in order, and stop at the first
//!   command that fails.
//! - A fenced block of the language `text` directly after it is its output. `…` stands for any text within a line, and for
//!   the rest of the output at its end.
//! - `<!-- test: background -->` on the line before a block says that it keeps running in a terminal of its own. The test
//!   waits until the service is ready, and presses Ctrl-C (SIGINT) before the next such block and at the end.
//! - `<!-- test: skip, REASON -->` says why a block cannot run here. The test checks its syntax and prints the reason.
//! - Any other mark, and a block of another language, fails the test.
//!
//! The test adapts only this:
//! - The working directory is empty except for what a pasted command names: `tests` and `models` are those of the
//!   repository, `target/release/imgcls` is the binary under test, `scripts/up` runs `imgcls up` without setting up and
//!   building first, and `scripts/install` installs that binary without building it.
//! - The home directory is a folder in the working directory.
//! - Port 8080 is replaced by a free one, in the text and by the variables `IMGCLS_LISTEN` and `IMGCLS_URL`.
//! - The cache directory is the tests' own (`XDG_CACHE_HOME`).

use std::collections::HashSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness;

#[test]
fn every_command_of_the_readme_works_when_pasted_in_order() {
    paste_in_order("README.md");
}

#[test]
fn every_command_of_the_http_interface_works_when_pasted_in_order() {
    paste_in_order("docs/api.md");
}

fn paste_in_order(page: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect(page);
    let blocks = blocks(&text).unwrap_or_else(|problem| panic!("{page}:{problem}"));
    assert!(blocks.iter().any(|block| block.mark == Mark::Run), "{page} has no block to run");
    for block in &blocks {
        if let Mark::Skip(reason) = &block.mark {
            eprintln!("{page}:{}: not run: {reason}: {}", block.line, block.commands.lines().next().unwrap_or(""));
            check_syntax(page, block);
        }
    }
    let directory = working_directory();
    let port = harness::free_port();
    let script = directory.path().join("readme.sh");
    std::fs::write(&script, shell_script(&blocks, port)).unwrap();
    let log = directory.path().join("shell.log");
    let outcome = without_settings(Command::new("timeout"))
        .args(["--signal=TERM", "300", "bash"])
        .arg(&script)
        .current_dir(directory.path())
        .env("HOME", directory.path().join("home"))
        .env("IMGCLS_LISTEN", format!("127.0.0.1:{port}"))
        .env("IMGCLS_URL", format!("http://127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    let output_of =
        |at: usize| std::fs::read_to_string(directory.path().join(format!("block-{at}.out"))).unwrap_or_default();
    let started = std::fs::read_to_string(&log).unwrap();
    let last = started.lines().last().and_then(|line| line.parse::<usize>().ok()).unwrap_or(0);
    assert!(
        outcome.success(),
        "{page}:{}: {outcome} in\n{}\noutput:\n{}\nservice:\n{}",
        blocks[last].line,
        blocks[last].commands,
        output_of(last),
        (0..last).rev().find(|at| blocks[*at].mark == Mark::Background).map(output_of).unwrap_or_default()
    );
    for (at, block) in blocks.iter().enumerate() {
        let Some(expected) = &block.output else { continue };
        let output = output_of(at);
        assert!(
            matches_output(expected, &output),
            "{page}:{} shows\n{expected}\nbut the output is\n{output}",
            block.line
        );
    }
}

/// The README shows an image with the label that the model gives it as its alternative text.
#[test]
fn images_of_the_readme_show_their_labels() {
    let readme = readme();
    let shown: Vec<(&str, &str)> = readme
        .split("![")
        .skip(1)
        .filter_map(|rest| rest.split_once("](tests/pictures/"))
        .filter_map(|(label, rest)| Some((label, rest.split_once(')')?.0)))
        .collect();
    assert!(!shown.is_empty(), "README.md shows no image of tests/pictures");
    for (label, name) in shown {
        assert_eq!(label, harness::label_of(name), "README.md: alternative text of {name}");
        assert!(readme.contains(&format!("@tests/pictures/{name}")), "README.md shows {name} and does not classify it");
    }
}

/// Flags of other programs that the docs name.
const OTHER_FLAGS: [(&str, &[&str]); 5] = [
    ("tf2onnx, optimum-cli", &["--keras", "--opset", "--output", "--saved-model", "--task", "--tflite"]),
    (
        "cargo",
        &[
            "--bench",
            "--lib",
            "--locked",
            "--manifest-path",
            "--no-default-features",
            "--nocapture",
            "--release",
            "--test",
            "--workspace",
        ],
    ),
    (
        "curl, aws, podman, prometheus and systemctl",
        &[
            "--attributes",
            "--build-arg",
            "--data-binary",
            "--enable-feature",
            "--http2-prior-knowledge",
            "--now",
            "--policy-document",
            "--policy-name",
            "--queue-url",
            "--read-only",
            "--rm",
            "--target",
            "--tmpfs",
        ],
    ),
    (
        "other scripts",
        &["--advisories", "--binary", "--long", "--minutes", "--replay", "--setup-only", "--uninstall", "--wait"],
    ),
    (
        "scripts/bench, cargo bench",
        &[
            "--agreement",
            "--bulk",
            "--busy-ok",
            "--clients",
            "--docs",
            "--only",
            "--package",
            "--quick",
            "--rounds",
            "--sets",
            "--svg",
        ],
    ),
];

/// Spellings of the legacy load generator, which are accepted and not in the help.
const LEGACY_FLAGS: [&str; 2] = ["--image_folder", "--num_request"];

/// Every flag that README.md and the pages of docs/ name is a flag of the program, or of another that is listed above.
#[test]
fn flags_in_the_docs_exist() {
    let mut known = HashSet::new();
    collect_flags(&[], &mut known);
    assert!(known.contains("--data-dir"), "no flags in the help: {known:?}");
    known.extend(OTHER_FLAGS.iter().flat_map(|(_, flags)| flags.iter().map(|flag| (*flag).to_owned())));
    known.extend(LEGACY_FLAGS.map(str::to_owned));
    let mut unknown = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (line, number) in text.lines().zip(1..) {
            let flags = flags(line).into_iter().filter(|flag| !known.contains(flag));
            unknown.extend(flags.map(|flag| format!("{}:{number}: {flag}", page.display())));
        }
    }
    assert!(unknown.is_empty(), "these flags do not exist:\n{}", unknown.join("\n"));
}

/// Every link in README.md, docs/ and docs/decisions/ to a file of the repository leads somewhere, also within the file.
#[test]
fn links_in_the_docs_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let broken: Vec<String> = [root.to_owned(), root.join("docs"), root.join("docs/decisions")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .flat_map(|page| broken_links(&page))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every source file that a page names with its folder exists: in the repository, in src/, or in tests/it/.
#[test]
fn source_files_in_the_docs_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let spans = text.split('`').skip(1).step_by(2);
        let is_source = |span: &&str| {
            let has_extension = [".rs", ".py", ".sh", ".toml", ".md"].iter().any(|extension| span.ends_with(extension));
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c);
            has_extension && span.contains('/') && !span.starts_with('/') && span.chars().all(is_plain)
        };
        let exists = |span: &&str| ["", "src", "tests/it"].iter().any(|folder| root.join(folder).join(span).exists());
        let found = spans.filter(is_source).filter(|span| !exists(span));
        missing.extend(found.map(|span| format!("{} names {span}, which does not exist", page.display())));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Returns README.md and the other pages that describe the present state. Decision records and the changelog do not.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    docs.chain(["README.md", "SECURITY.md", "CONTRIBUTING.md", "STYLE.md"].map(|name| root.join(name))).collect()
}

/// Returns the links of a page that lead nowhere.
fn broken_links(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let leads_nowhere = |target: &&str| {
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let linked = if path.is_empty() { page.to_owned() } else { page.with_file_name("").join(path) };
        let Ok(linked_text) = std::fs::read(&linked).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) else {
            return !linked.is_dir();
        };
        !anchor.is_empty() && !anchors(&linked_text).iter().any(|known| known == anchor)
    };
    let local = targets.filter(|target| !target.contains("://"));
    local.filter(leads_nowhere).map(|target| format!("{}: link to {target}", page.display())).collect()
}

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|heading| heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// Collects the flags of a command and of its subcommands from their help.
fn collect_flags(command: &[&str], known: &mut HashSet<String>) {
    let output =
        without_settings(Command::new(env!("CARGO_BIN_EXE_imgcls"))).args(command).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "imgcls {command:?} --help");
    known.extend(help.lines().flat_map(flags));
    let subcommands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line of a subcommand is indented by two; a longer indent continues the text before it.
    let subcommands = subcommands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for subcommand in subcommands.filter(|name| !name.is_empty() && *name != "help") {
        collect_flags(&[command, &[subcommand]].concat(), known);
    }
}

/// Returns the flags that a line names.
fn flags(line: &str) -> Vec<String> {
    let starts =
        line.match_indices("--").filter(|(at, _)| !line[..*at].ends_with(|c: char| c == '-' || c.is_alphanumeric()));
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let flag = |(at, _): (usize, &str)| {
        let name: String = line[at + 2..].chars().take_while(|c| is_part(*c)).collect();
        let name = name.trim_end_matches('-');
        name.starts_with(|c: char| c.is_ascii_lowercase()).then(|| format!("--{name}"))
    };
    starts.filter_map(flag).collect()
}

/// A fenced block of shell commands.
#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    commands: String,
    mark: Mark,
    output: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Mark {
    Run,
    Background,
    Skip(String),
}

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md")
}

/// Reads the shell blocks of a document. An error is "LINE: what is wrong".
fn blocks(document: &str) -> Result<Vec<Block>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut mark = None;
    let mut after_block = false; // the line before is the end of a shell block
    let mut lines = document.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if let Some(text) = line.strip_prefix("<!-- test: ") {
            let text = text.strip_suffix(" -->").ok_or_else(|| format!("{number}: the mark does not end with -->"))?;
            mark = Some(read_mark(text).ok_or_else(|| format!("{number}: unknown mark {text:?}"))?);
            after_block = false;
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            if mark.is_some() {
                return Err(format!("{number}: a mark has to be on the line before its block"));
            }
            after_block = false;
            continue;
        };
        let mut body = String::new();
        loop {
            let (line, _) = lines.next().ok_or_else(|| format!("{number}: the block does not end"))?;
            if line == "```" {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        match (language, blocks.last_mut()) {
            ("sh", _) => {
                blocks.push(Block {
                    line: number,
                    commands: body,
                    mark: mark.take().unwrap_or(Mark::Run),
                    output: None,
                });
                after_block = true;
            }
            ("text", Some(block)) if after_block && block.mark == Mark::Run => {
                block.output = Some(body);
                after_block = false;
            }
            ("text", _) => return Err(format!("{number}: output has to follow a block that is run")),
            (other, _) => return Err(format!("{number}: a block is `sh` or `text`, not {other:?}")),
        }
    }
    Ok(blocks)
}

fn read_mark(text: &str) -> Option<Mark> {
    match text.split_once(", ") {
        None if text == "background" => Some(Mark::Background),
        Some(("skip", reason)) if !reason.is_empty() => Some(Mark::Skip(reason.to_owned())),
        _ => None,
    }
}

/// Lays out the directory in which the commands run.
fn working_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |name: &str| directory.path().join(name);
    for name in ["tests", "models"] {
        symlink(root.join(name), path(name)).unwrap();
    }
    std::fs::create_dir_all(path("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_imgcls"), path("target/release/imgcls")).unwrap();
    std::fs::create_dir(path("scripts")).unwrap();
    std::fs::write(path("scripts/up"), "#!/bin/sh\nexec target/release/imgcls up \"$@\"\n").unwrap();
    let install = root.join("scripts/install");
    let install = format!("#!/bin/sh\nexec {} --binary {} \"$@\"\n", install.display(), env!("CARGO_BIN_EXE_imgcls"));
    std::fs::write(path("scripts/install"), install).unwrap();
    for script in ["scripts/up", "scripts/install"] {
        std::fs::set_permissions(path(script), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::create_dir(path("home")).unwrap();
    directory
}

/// Removes the settings of the person who runs the tests from the environment of a command.
fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars() {
        if name.starts_with("IMGCLS_") || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Writes the script that runs the blocks in order. It prints the index of each block as it starts it, and each block's
/// output goes into a file of its own.
fn shell_script(blocks: &[Block], port: u16) -> String {
    use std::fmt::Write as _;
    let mut script = format!(
        r#"set -euo pipefail
set -m # each background block is a process group, which can be interrupted as a whole
service=
stop() {{
  [ -n "$service" ] || return 0
  kill -INT -- "-$service" 2>/dev/null || true
  while kill -0 -- "-$service" 2>/dev/null; do sleep 0.05; done
  service=
}}
trap stop EXIT
ready() {{
  for _ in $(seq 600); do
    if curl -fsS http://127.0.0.1:{port}/readyz >/dev/null 2>&1; then return 0; fi
    if ! kill -0 -- "-$service" 2>/dev/null; then return 1; fi
    sleep 0.1
  done
  return 1
}}
"#
    );
    for (at, block) in blocks.iter().enumerate() {
        let commands = block.commands.replace(":8080", &format!(":{port}"));
        let _ = match block.mark {
            Mark::Skip(_) => Ok(()),
            Mark::Run => write!(script, "echo {at}\n{{\n{commands}}} >block-{at}.out 2>block-{at}.err\n"),
            Mark::Background => {
                write!(script, "stop\necho {at}\n{{\n{commands}}} >block-{at}.out 2>&1 &\nservice=$!\nready\n")
            }
        };
    }
    script
}

fn check_syntax(page: &str, block: &Block) {
    let commands = block.commands.replace("<this repository>", "URL");
    let output = Command::new("bash").args(["-n", "-c", &commands]).output().unwrap();
    assert!(output.status.success(), "{page}:{}: {}", block.line, String::from_utf8_lossy(&output.stderr));
}

/// Returns whether an output is as shown. `…` in what is shown stands for any text; what follows a final `…` is not compared.
fn matches_output(shown: &str, output: &str) -> bool {
    let mut parts = shown.trim_end().split('…');
    let Some(mut rest) = output.trim_end().strip_prefix(parts.next().unwrap_or("")) else { return false };
    let mut is_open = false;
    for part in parts {
        is_open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    is_open || rest.is_empty()
}

mod checker {
    use super::*;

    #[test]
    fn marks_and_output_belong_to_the_block_beside_them() {
        let text = "# A\n\n<!-- test: background -->\n```sh\nup\n```\n\n```sh\nls\n```\n```text\na…\n```\n\
                    <!-- test: skip, needs AWS -->\n```sh\naws\n```\n";
        let found = blocks(text).unwrap();
        assert_eq!(found.iter().map(|block| block.line).collect::<Vec<_>>(), [4, 8, 15]);
        assert_eq!(found[0].mark, Mark::Background);
        assert_eq!((&found[1].mark, found[1].output.as_deref()), (&Mark::Run, Some("a…\n")));
        assert_eq!(found[2].mark, Mark::Skip("needs AWS".to_owned()));
    }

    #[test]
    fn a_block_that_is_neither_run_nor_marked_is_an_error() {
        for (text, line) in [
            ("```console\n$ ls\n```\n", "1:"),
            ("```\nls\n```\n", "1:"),
            ("a\n<!-- test: skip -->\n```sh\nls\n```\n", "2:"),
            ("<!-- test: later, one day -->\n```sh\nls\n```\n", "1:"),
            ("<!-- test: skip, a reason -->\n\n```sh\nls\n```\n", "2:"),
            ("```text\nout\n```\n", "1:"),
            ("```sh\nls\n", "1:"),
        ] {
            let error = blocks(text).unwrap_err();
            assert!(error.starts_with(line), "{text}: {error}");
        }
    }

    #[test]
    fn flags_are_found_in_prose_and_commands() {
        let line = "`--wire seed` and --no-x, a--b, `IMGCLS_X`, <!-- note -->, ---, --min-workers=2 (`--yes`)";
        assert_eq!(flags(line), ["--wire", "--no-x", "--min-workers", "--yes"]);
    }

    #[test]
    fn anchors_are_those_of_headings() {
        let page =
            "# A stack on AWS\n## On AWS: `autoscale`\n### From the Flask and boto3 system, tier by tier\ntext\n";
        let expected = ["a-stack-on-aws", "on-aws-autoscale", "from-the-flask-and-boto3-system-tier-by-tier"];
        assert_eq!(anchors(page), expected);
    }

    #[test]
    fn output_is_compared_around_what_varies() {
        for (shown, output, expected) in [
            ("espresso\n", "espresso", true),
            ("espresso\n", "espresso maker", false),
            ("{\"id\":\"…\",\"status\":\"ok\",…\n", "{\"id\":\"1\",\"status\":\"ok\",\"more\":1}\n", true),
            ("{\"id\":\"…\",\"status\":\"ok\"}\n", "{\"id\":\"1\",\"status\":\"no\"}\n", false),
            ("a…b\n", "a 1 b c", false),
        ] {
            assert_eq!(matches_output(shown, output), expected, "{shown} against {output}");
        }
    }
}
