//! Which modules may import which. The rooms (the top-level modules) are arranged on floors, and a room uses only rooms
//! on lower floors, never another one on its own floor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::rust_tokens::{Token, tokens};

/// Every room under `src/`, by floor. A room that does not exist yet may be listed; every existing room must be.
const FLOORS: [(u8, &[&str]); 8] = [
    (0, &["model"]),
    (1, &["clock", "protocol", "retry", "scaling_policy", "spreadsheet", "stats", "threshold", "workload"]),
    (
        2,
        &[
            "aws",
            "config",
            "http_client",
            "keys",
            "plot",
            "readiness",
            "service_manager",
            "shutdown",
            "sqlite",
            "telemetry",
        ],
    ),
    (3, &["instance", "names", "outbound", "result_cache", "transport"]),
    (4, &["autoscaler", "dataset", "loadgen", "model_sync", "provision", "retention", "web", "worker"]),
    (
        5,
        &[
            "batch_command",
            "data",
            "eval",
            "fit",
            "keys_command",
            "model_command",
            "pile",
            "queue_command",
            "simulate",
            "status",
            "thumbnail",
            "tune",
            "up",
            "version_command",
        ],
    ),
    (6, &["cli"]),
    (7, &["main"]),
];

/// Crates that may be named only in the listed places, each of which is the beginning of a path under `src/`. A crate
/// name that ends in `*` matches every crate that begins like it.
const CRATES: [(&str, &[&str]); 8] = [
    ("async_nats", &["transport/nats/"]),
    ("ort", &["model/"]),
    ("turbojpeg", &["model/libjpeg.rs", "model/turbo.rs"]),
    ("clap", &["cli/", "main.rs"]),
    ("plotters", &["plot/", "simulate/plot.rs", "eval/heat_map.rs"]),
    ("rusqlite", &["sqlite/", "transport/local/", "result_cache/"]),
    ("opentelemetry*", &["telemetry/otlp.rs", "telemetry/otlp_metrics.rs", "telemetry/trace.rs"]),
    ("aws_*", &["aws/", "transport/aws/", "instance/aws.rs", "provision/aws", "autoscaler/aws.rs"]),
];

/// The length of a source file above which it is cut.
const MAX_LINES: usize = 700;

/// The lints deny unsafe code, so a file that needs it has to allow it. All of it belongs in one file, except for the one
/// variable that `main` sets before any other thread runs.
#[test]
fn unsafe_code_is_allowed_in_one_file_and_for_one_call_of_main() {
    let allowed = |(path, text): (String, String)| text.contains("allow(unsafe_code)").then_some(path);
    assert_eq!(sources().into_iter().filter_map(allowed).collect::<Vec<_>>(), ["main.rs", "model/libjpeg.rs"]);
    let (_, main) = sources().into_iter().find(|(path, _)| path == "main.rs").expect("src/main.rs");
    assert_eq!((main.matches("unsafe_code").count(), main.matches("unsafe {").count()), (1, 1));
}

/// A new backend states its facts in `config/backend.rs`. Other rooms ask for a fact, so that they need no line for it.
#[test]
fn only_the_facts_of_backends_and_their_registry_tell_backends_apart() {
    let is_arm = |line: &&str| line.contains("Backend::") && line.contains("=>") && !line.contains("BackendKind::");
    let with_arms = sources().into_iter().filter(|(_, text)| text.lines().any(|line| is_arm(&line)));
    let files: Vec<String> = with_arms.map(|(path, _)| path).collect();
    assert_eq!(files, ["config/backend.rs", "transport/registry.rs"]);
}

#[test]
fn every_room_uses_only_rooms_on_lower_floors() {
    let sources = sources();
    assert!(sources.iter().any(|(path, _)| path == "main.rs"), "no sources found: {sources:?}");
    let violations: Vec<String> = sources.iter().flat_map(|(path, text)| violations(path, text)).collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn the_legend_names_every_room_on_its_floor() {
    let sources = sources();
    let lib = sources.iter().find(|(path, _)| path == "lib.rs").map(|(_, text)| text.as_str()).expect("src/lib.rs");
    let mut rooms: Vec<&str> = sources.iter().map(|(path, _)| room(path)).filter(|room| *room != "lib").collect();
    rooms.sort_unstable();
    rooms.dedup();
    let faults = legend_faults(lib, &rooms);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_source_file_has_more_than_700_lines() {
    let long = sources().into_iter().filter_map(|(path, text)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("src/{path} has {lines} lines"))
    });
    assert_eq!(long.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn no_files_of_a_room_use_each_other_in_a_circle() {
    assert_eq!(circles(&sources()), Vec::<String>::new());
}

/// Returns the path under `src/` and the text of every source file.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("a path under the root").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("a readable source")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort();
    found
}

/// Returns one line for each name that the source at `path` (under `src/`) uses and may not use.
fn violations(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let own = room(path);
    let mut found = Vec::new();
    for (line, used) in rooms_used(path, &tokens) {
        match (floor(own), floor(&used)) {
            _ if used == own => {}
            (_, None) => found.push(format!("src/{path}:{line}: `{used}` is not in the table of floors")),
            (None, _) if own == "lib" => {}
            (None, _) => found.push(format!("src/{path}: `{own}` is not in the table of floors")),
            (Some(mine), Some(its)) if its >= mine => {
                found.push(format!("src/{path}:{line}: `{own}` (floor {mine}) uses `{used}` (floor {its})"));
            }
            _ => {}
        }
    }
    for (line, name) in crates_named(&tokens) {
        let rule = CRATES.iter().find(|(pattern, _)| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *pattern,
        });
        if let Some((_, allowed)) = rule
            && !allowed.iter().any(|beginning| path.starts_with(beginning))
        {
            found.push(format!("src/{path}:{line}: `{name}` may be named only in {}", allowed.join(", ")));
        }
    }
    found
}

/// Returns what is wrong with the legend in the docs of `lib.rs`: it names each room once, under the heading of its
/// floor, with a text that says what the room is, and names nothing else.
fn legend_faults(lib: &str, rooms: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut listed = Vec::new();
    let mut heading = None;
    for line in lib.lines() {
        if let Some(rest) = line.strip_prefix("//! # Floor ") {
            heading = rest.split(':').next().and_then(|number| number.parse::<u8>().ok());
        } else if let Some((name, legend)) = line.strip_prefix("//! - [`").and_then(|rest| rest.split_once("`]")) {
            if listed.contains(&name) {
                faults.push(format!("the docs of lib.rs list `{name}` twice"));
            }
            listed.push(name);
            if legend.trim_start_matches(':').trim().is_empty() {
                faults.push(format!("the docs of lib.rs say nothing about `{name}`"));
            }
            if floor(name) != heading {
                faults.push(format!("lib.rs lists `{name}` on floor {heading:?}, the table on {:?}", floor(name)));
            }
            if !rooms.contains(&name) {
                faults.push(format!("the docs of lib.rs list `{name}`, which is not a room"));
            }
        }
    }
    for room in rooms {
        if floor(room).is_none() {
            faults.push(format!("`{room}` is not in the table of floors"));
        }
        if *room != "main" && !listed.contains(room) {
            faults.push(format!("the docs of lib.rs do not list `{room}`"));
        }
    }
    faults
}

/// Returns the circles of files inside rooms, each as a line that names its files. A file uses another file of its room
/// when a path leads to the module of that file, or to an item in it. A path that ends in a folder's `mod.rs` counts for
/// that file. `mod.rs` itself is left out: it declares the modules of its folder and re-exports what they offer, so that
/// all of them may use what it defines.
fn circles(sources: &[(String, String)]) -> Vec<String> {
    let modules: BTreeMap<Vec<&str>, &str> =
        sources.iter().map(|(path, _)| (module_path(path), path.as_str())).collect();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in sources {
        let own = module_path(path);
        let is_parent = modules.keys().any(|module| module.len() > own.len() && module.starts_with(&own));
        if own.len() < 2 || is_parent {
            continue;
        }
        for used in paths_used(&own, &tokens(text)) {
            // The longest beginning of the path that is a module. What follows it is an item in that module.
            let module = (2..=used.len()).rev().find_map(|length| {
                let beginning: Vec<&str> = used[..length].iter().map(String::as_str).collect();
                modules.get(&beginning).copied()
            });
            if let Some(module) = module
                && used.first().map(String::as_str) == own.first().copied()
                && module != path
            {
                uses.entry(path).or_default().insert(module);
            }
        }
    }
    // `reaches` holds the files that each file uses, directly or through others.
    let mut reaches = uses.clone();
    loop {
        let before: usize = reaches.values().map(BTreeSet::len).sum();
        let next: BTreeMap<&str, BTreeSet<&str>> = reaches
            .iter()
            .map(|(file, used)| {
                let further = used.iter().filter_map(|used| reaches.get(used)).flatten();
                (*file, used.iter().chain(further).copied().collect())
            })
            .collect();
        reaches = next;
        if reaches.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let found: BTreeSet<String> = reaches
        .iter()
        .filter(|(file, reached)| reached.contains(*file))
        .map(|(file, reached)| {
            let back = |other: &&&str| reaches.get(**other).is_some_and(|further| further.contains(file));
            let circle: Vec<&str> = reached.iter().filter(back).copied().collect();
            circle.join(", ")
        })
        .collect();
    found.into_iter().collect()
}

/// The module path of the file at `path` under `src/`: `web/http/mod.rs` is `web::http`.
fn module_path(path: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    if parts.len() > 1 && parts.last() == Some(&"mod") {
        parts.pop();
    }
    parts
}

/// Returns the paths that begin with `crate`, `super` or `self` in the module at `own`, counted from the crate's root.
/// Use trees are expanded. Unit tests are left out: they may use a file that uses theirs, such as the one that prints its
/// results.
fn paths_used(own: &[&str], tokens: &[(usize, Token)]) -> Vec<Vec<String>> {
    let mut module: Vec<String> = own.iter().map(ToString::to_string).collect();
    let mut opened = Vec::new();
    let mut found = Vec::new();
    for (at, (_, current)) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| &tokens[before].1);
        match current {
            Token::Other('{') => {
                let inline = match (at.checked_sub(2).map(|keyword| &tokens[keyword].1), before) {
                    (Some(keyword), Some(Token::Ident(name))) if keyword.is("mod") => Some(name.clone()),
                    _ => None,
                };
                opened.push(inline.is_some());
                module.extend(inline);
            }
            Token::Other('}') if opened.pop() == Some(true) => {
                module.pop();
            }
            Token::Ident(name)
                if before != Some(&Token::Sep)
                    && ["crate", "super", "self"].contains(&name.as_str())
                    && !module[own.len()..].iter().any(|inline| inline == "tests") =>
            {
                expand(tokens, at, &module, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Adds every path of the use tree that begins at `at`, each after `prefix`. Returns the index after the tree.
fn expand(tokens: &[(usize, Token)], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(|(_, token)| token) {
            // The crate of the model is the room of the same name.
            Some(token) if token.is("crate") => {
                path.truncate(usize::from(path.first().is_some_and(|room| room == "model")));
            }
            Some(token) if token.is("super") => drop(path.pop()),
            Some(token) if token.is("self") => {}
            Some(Token::Ident(name)) => path.push(name.clone()),
            Some(Token::Other('{')) => {
                at += 1;
                while !matches!(tokens.get(at), None | Some((_, Token::Other('}')))) {
                    // At least one token is consumed each time, so the loop ends.
                    at = expand(tokens, at, &path, found).max(at + 1);
                    while !matches!(tokens.get(at), None | Some((_, Token::Other('}' | ',')))) {
                        at += 1;
                    }
                    at += usize::from(matches!(tokens.get(at), Some((_, Token::Other(',')))));
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !matches!(tokens.get(at), Some((_, Token::Sep))) {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

fn room(path: &str) -> &str {
    path.split('/').next().and_then(|first| first.split('.').next()).expect("split yields at least one part")
}

fn floor(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, rooms)| rooms.contains(&room)).map(|(floor, _)| *floor)
}

/// Returns line and name of every use of a module in the crate's root: `crate::x`, `crate::{x, y::z}`, `super::x` if it
/// leads to the root, `imgcls::x` in `main.rs`, and the crate of the model.
fn rooms_used(path: &str, tokens: &[(usize, Token)]) -> Vec<(usize, String)> {
    // Number of modules between the root and the code at the current token.
    let mut depth = match path {
        "lib.rs" | "main.rs" => 0,
        _ => path.split('/').filter(|part| *part != "mod.rs").count(),
    };
    let mut is_module = Vec::new();
    let mut found = Vec::new();
    let token = |at: usize| tokens.get(at).map(|(_, token)| token);
    for (at, (_, current)) in tokens.iter().enumerate() {
        match current {
            Token::Other('{') => {
                let opens = at >= 2 && tokens[at - 2].1.is("mod");
                depth += usize::from(opens);
                is_module.push(opens);
            }
            Token::Other('}') => depth -= usize::from(is_module.pop().unwrap_or(false)),
            _ => {}
        }
        let begins = at == 0 || token(at - 1) != Some(&Token::Sep);
        if token(at + 1) != Some(&Token::Sep) || !begins {
            continue;
        }
        if current.is("imgcls_model") {
            found.push((tokens[at].0, "model".to_owned()));
        } else if current.is("crate") && room(path) == "model" {
            // A crate of its own, whose root is the room.
        } else if current.is("crate") || current.is("imgcls") {
            heads(tokens, at + 2, &mut found);
        } else if current.is("super") {
            let mut end = at;
            while token(end + 1) == Some(&Token::Sep) && token(end + 2).is_some_and(|token| token.is("super")) {
                end += 2;
            }
            if (end - at) / 2 + 1 == depth {
                heads(tokens, end + 2, &mut found);
            }
        }
    }
    found
}

/// Collects the first name of every path in the use tree that begins at `at`.
fn heads(tokens: &[(usize, Token)], at: usize, found: &mut Vec<(usize, String)>) {
    match tokens.get(at) {
        Some((line, Token::Ident(name))) => found.push((*line, name.clone())),
        Some((line, Token::Other('*'))) => found.push((*line, "*".to_owned())),
        Some((_, Token::Other('{'))) => {
            let (mut depth, mut begins) = (0, true);
            for (next, (_, token)) in tokens.iter().enumerate().skip(at + 1) {
                match token {
                    Token::Other('}') if depth == 0 => break,
                    Token::Other(',') if depth == 0 => begins = true,
                    _ if begins => {
                        heads(tokens, next, found);
                        begins = false;
                    }
                    _ => {}
                }
                match token {
                    Token::Other('{') => depth += 1,
                    Token::Other('}') => depth -= 1,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Returns line and name of every identifier that may be a crate: the first one of a path, and every one after `use` or
/// `extern crate`.
fn crates_named(tokens: &[(usize, Token)]) -> Vec<(usize, &str)> {
    let token = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map(|(_, token)| token);
    let mut found = Vec::new();
    for (at, (line, current)) in tokens.iter().enumerate() {
        let Token::Ident(name) = current else { continue };
        let before = token(at.checked_sub(1));
        let continues = before == Some(&Token::Sep)
            && matches!(token(at.checked_sub(2)), Some(Token::Ident(_) | Token::Other('>')));
        let heads_path = token(at.checked_add(1)) == Some(&Token::Sep) && !continues;
        if heads_path || before.is_some_and(|before| before.is("use") || before.is("crate")) {
            found.push((*line, name.as_str()));
        }
    }
    found
}

/// Runs the checker on made-up sources: it has to find every violation, and nothing else.
mod checker {
    use super::*;

    #[test]
    fn use_of_a_room_on_the_same_or_a_higher_floor_is_found_in_every_notation() {
        for (path, text) in [
            ("transport/mod.rs", "use crate::worker;"),
            ("transport/mod.rs", "use crate::{config, worker::Config};"),
            ("transport/mod.rs", "use crate::{\n    config::{self, Names},\n    worker::{Config, run},\n};"),
            ("transport/local.rs", "fn f() { let x = crate::worker::run(); }"),
            ("transport/mod.rs", "pub use crate::pile::Put;"),
            ("transport/mod.rs", "pub(crate) use super::pile::Put;"),
            ("transport/local.rs", "use super::super::pile::Put;"),
            ("transport/mod.rs", "mod tests { use super::super::pile::Put; }"),
            ("web/mod.rs", "use crate::worker::Config;"),
            ("up.rs", "use crate::cli;"),
            ("scaling_policy/mod.rs", "type T = fn() -> crate::shutdown::CancellationToken;"),
            ("transport/mod.rs", "use crate::{ /* { */ config, worker };"),
            ("transport/mod.rs", "const Q: char = '\"'; use crate::worker; const R: char = '\"';"),
            ("transport/mod.rs", "use crate::*;"),
            ("transport/mod.rs", "use crate::nowhere::X;"),
            ("cellar.rs", "use crate::config;"),
            ("model/mod.rs", "use imgcls::config;"),
        ] {
            assert_eq!(violations(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn lower_floors_the_own_room_comments_and_strings_are_allowed() {
        for (path, text) in [
            ("model/decode.rs", "use crate::budget::Budget; use super::exif;"),
            ("protocol/mod.rs", "use imgcls_model::Prediction;"),
            ("worker/mod.rs", "use crate::{config::Names, model, transport::{self, Transport}};"),
            ("transport/local.rs", "use super::Queue; use crate::transport::Depth; mod tests { use super::*; }"),
            ("transport/mod.rs", "//! See crate::worker.\n/// [`crate::worker::run`]\n// use crate::web;\nfn f() {}"),
            ("transport/mod.rs", "/* use crate::worker; /* crate::web */ crate::up */ fn f<'a>(x: &'a str) {}"),
            ("transport/mod.rs", r##"const S: &str = "crate::worker \" crate::web"; const T: &str = r#"crate::up"#;"##),
            ("transport/mod.rs", "pub(crate) fn f() {}\nmod worker { }\nfn g() { worker::run(); }"),
            ("main.rs", "use imgcls::cli::Cli; use clap::Parser;"),
            ("model/onnx.rs", "use ort::session::Session;"),
            ("transport/local/schema.rs", "use rusqlite::Connection;"),
            ("up.rs", "fn f(ort: u8, clap: u8) -> u8 { ort + clap }"),
            ("aws/mod.rs", "use aws_config::Region;"),
            ("transport/aws/sqs.rs", "use aws_sdk_sqs::Client;"),
        ] {
            assert_eq!(violations(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn crate_named_outside_its_places_is_found() {
        for (path, text) in [
            ("worker/infer.rs", "use ort::session::Session;"),
            ("worker/infer.rs", "use ort as onnx;"),
            ("worker/infer.rs", "use {bytes::Bytes, ort::Session};"),
            ("worker/infer.rs", "let e = ::ort::init();"),
            ("up.rs", "#[derive(clap::Parser)] struct Args;"),
            ("transport/queued/dir.rs", "fn f() -> rusqlite::Result<()> { Ok(()) }"),
            ("web/mod.rs", "use aws_sdk_s3::Client;"),
            ("transport/mod.rs", "use aws_sdk_sqs::Client;"),
            ("transport/mod.rs", "use aws_smithy_types::DateTime;"),
        ] {
            assert_eq!(violations(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn legend_without_a_room_or_with_one_on_a_wrong_floor_is_found() {
        let good =
            "//! # Floor 2: words\n//! - [`config`]: names\n//! # Floor 3: ports\n//! - [`transport`]: the port\n";
        assert_eq!(legend_faults(good, &["config", "main", "transport"]), Vec::<String>::new());
        assert_eq!(legend_faults(good, &["config", "model", "transport"]).len(), 1);
        assert_eq!(legend_faults(&good.replace("Floor 3", "Floor 4"), &["config", "transport"]).len(), 1);
        assert_eq!(legend_faults(&good.replace(": the port", ""), &["config", "transport"]).len(), 1);
        assert_eq!(legend_faults(good, &["cellar", "config", "transport"]).len(), 2);
        assert_eq!(legend_faults(good, &["config"]).len(), 1);
        let twice = format!("{good}//! - [`transport`]: again\n");
        assert_eq!(legend_faults(&twice, &["config", "transport"]).len(), 1);
    }

    fn circles_of(files: &[(&str, &str)]) -> usize {
        let files: Vec<(String, String)> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        circles(&files).len()
    }

    #[test]
    fn a_circle_of_files_is_found_however_its_paths_are_written() {
        for (job, lease) in [
            ("use super::lease::Lease;", "use super::job::Job;"),
            ("use crate::worker::lease;", "fn f() { crate::worker::job::run(); }"),
            ("use super::{admin::X, lease::{self, Lease}};", "use crate::{config, worker::{admin, job::Job}};"),
            ("use super::{\n    admin,\n    lease,\n};", "mod inner { use super::super::job::Job; }"),
            ("use super::admin::X;", "use super::job::Job;"),
        ] {
            let files = [
                ("worker/mod.rs", "mod admin;\nmod job;\nmod lease;"),
                ("worker/admin.rs", "use super::lease as other;"),
                ("worker/job.rs", job),
                ("worker/lease.rs", lease),
            ];
            assert!(circles_of(&files) > 0, "{job} {lease}");
        }
        let nested =
            [("web/http/idle.rs", "use crate::web::jobs::Job;"), ("web/jobs.rs", "use super::http::idle::{Idle};")];
        assert_eq!(circles_of(&nested), 1);
    }

    #[test]
    fn files_that_use_each_other_one_way_are_no_circle() {
        let files = [
            ("worker/mod.rs", "mod job; use job::Job; use self::lease::Lease;"),
            ("worker/admin.rs", "use super::{job::Job, lease::Lease};"),
            (
                "worker/job.rs",
                "use super::{Config, lease::Lease};\n// use super::admin;\nfn f(&self) { self.admin(); }",
            ),
            (
                "worker/lease.rs",
                "use crate::transport::job::Job; mod tests { use super::*; use super::super::Config; }",
            ),
            ("transport/job.rs", "pub struct Job;"),
        ];
        assert_eq!(circles_of(&files), 0);
    }
}
