//! Home-made words stay out of the repository: the field has a word for each of them (`STYLE.md`).
//!
//! Run this check alone with `cargo test --test it english`. It needs neither git nor the program. Each finding is one
//! line: the file, the line, the word and the standard word. A word that has to stay, because it is the name of
//! something that exists outside the source (a metric label, a directory on a user's disk, a flag value), gets a line
//! in [`EXCEPTIONS`] with the reason.
//!
//! Some home-made words have a common meaning too. They are searched only in forms that have no other meaning here:
//! - "room" and "place" as capacity ("no room", "free places"); "rooms" of the source tree stay (`docs/GLOSSARY.md`).
//! - "rest" as a pause ("rests of up to 2 s"); the rest of a buffer and a fleet at rest are plain English.
//! - "original" as the name of the Python system ("the original's form"); an original size is plain English.
//! - "seed" next to "wire", "form" or "worker"; the seed of a random number generator stays.
//! - "ending" as a noun; "a name ending in .jpg" is plain English.
//!
//! Not searched at all, because no pattern tells the home-made use from the usual one: "look", "work", "leave",
//! "lazy", "hang", "direct", "end", "pull", "turn", "line", "activity", "asked", "said", "called", "carry", "ring" and
//! "tells". Reviews catch those.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// A home-made word or phrase and what to write instead.
struct Word {
    /// Alternatives, separated by `|`. Each is a sequence of lower-case words; `snake_case` and `CamelCase` names are
    /// cut into their words before they are compared, and a sequence may continue on the next line.
    phrases: &'static str,
    standard: &'static str,
    /// The phrase is plain English directly after one of these words.
    unless_after: &'static [&'static str],
    /// The phrase is plain English directly before one of these words.
    unless_before: &'static [&'static str],
}

const fn word(phrases: &'static str, standard: &'static str) -> Word {
    Word { phrases, standard, unless_after: &[], unless_before: &[] }
}

static WORDS: &[Word] = &[
    word("bell|bells|doorbell|doorbells|rang|rung", "notification, notifier, notify"),
    word("ear|ears|deaf", "subscription, subscribe; polling fallback"),
    word("strike|strikes|struck", "notify"),
    word("baton|batons", "wake token"),
    word("linger|lingers|lingered|lingering|hurry|hurries|hurried", "defer, flush, flush delay"),
    word("no room|has room|have room|free place|free places|place free|places taken", "capacity, permit"),
    word("past the file", "datagram fast path, bypassing the database"),
    word(
        "hand back|hands back|handed back|handing back|hand it back|hands it back|hand them back|hands them back",
        "release (the message becomes visible again)",
    ),
    Word {
        unless_after: &["is", "are", "was", "were"],
        unless_before: &["in", "with", "at"],
        ..word("ending|endings", "outcome")
    },
    word("settle|settles|settling", "complete"),
    Word { unless_before: &["for", "still"], ..word("stands|stood", "exists, is committed, is durable") },
    word("patience", "deadline"),
    word("rests|rested", "backoff"),
    word("brake|brakes", "circuit breaker"),
    word("tally|tallies|tallied", "statistics"),
    word("wish|wishes|wished", "options"),
    word("grounds", "dependencies"),
    word("fate|fates", "disposition"),
    word("mend|mends|mended|mending", "repair"),
    word("anew", "again, recreate"),
    word("sweep|sweeps|sweeping|swept|sweeper", "garbage-collect, remove"),
    word(
        "the original s|the originals|original worker|original workers|original web|original system|original tiers|\
         original wire|original form|from the original|by the original|seed wire|wire seed|seed form|seed worker|\
         seed workers|seed system",
        "legacy",
    ),
    word("picture|pictures|machine image|machine images", "image; AMI or VM image for what boots"),
    Word {
        unless_after: &["dead", "case", "small", "capital", "ascii", "first", "of", "two", "one", "single", "ten"],
        unless_before: &["digits", "and", "or", "case", "in"],
        ..word("letter|letters", "dead letters, dead-letter messages")
    },
    word("bears|bear to|bears to|hears|hear of|heard of", "allows, accepts; is notified, learns"),
    word("whoever|whomever|whosever", "the caller, the process, the one that"),
    word("who looks|who waits|who bears|who asks|who holds|who finds", "the caller, the waiter, the one that"),
];

/// Uses that stay: where (the beginning of a path, or "" for everywhere), what the line contains, and why.
///
/// An exception covers every finding on a line that contains the text. One that covers nothing fails
/// `every_exception_is_needed`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("", "bells/", "directory in a user's data directory; renaming it would separate old and new processes"),
    ("", "\"bells\"", "the same directory"),
    ("", "imgcls_worker_endings_total", "metric name that dashboards use"),
    ("", "\"ending\"", "label of that metric"),
    ("", "ending=\"", "label of that metric"),
    ("deploy/grafana", "{{ending}}", "label of that metric"),
    ("", "imgcls.ending", "trace attribute that dashboards use"),
    ("", "handed_back", "metric label value that dashboards use"),
    ("", "--wire seed", "flag value that users have in their units"),
    ("tests/it/", "\"--wire\", \"seed\"", "the same flag value"),
    ("tests/it/", "[\"letters\"]", "key of the JSON report of `imgcls queue redrive`, which programs read"),
    ("", "set_zero_linger", "socket option"),
    ("", "starts with a letter", "a letter of the alphabet"),
    ("", "counts settle", "they stop changing"),
    ("src/web/assets/", "letter-spacing", "CSS property"),
    ("src/queue_command/redrive.rs", "rename = \"letters\"", "key of the JSON output of `queue redrive`"),
    ("", "tests/pictures", "directory of the test images, named in package lists and by users"),
    ("", "make_test_pictures", "script that writes that directory"),
    ("", "make_bench_pictures", "script that writes the images of the benchmark"),
    ("", "wrong_pictures", "key of the load generator's JSON report, which programs read"),
    ("", "--pictures", "flag of scripts/bench and of a benchmark"),
    ("scripts/bench", "pictures", "that flag and a key of the JSON report"),
    ("scripts/", "\"tests\" / \"pictures\"", "directory of the test images"),
    ("src/model/heif/hevc.rs", "decode_picture", "function of the decoder"),
    ("src/model/heif/av1.rs", "get_picture", "function of the decoder"),
    ("src/model/heif/av1.rs", "Picture", "type of the decoder"),
];

/// Places that are searched, relative to the root of the repository.
const SEARCHED: &[&str] = &[
    "src",
    "tests",
    "benches",
    "scripts",
    "deploy",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "STYLE.md",
    "CHANGELOG.md",
];

/// Parts of these that are not searched, and why.
const NOT_SEARCHED: &[(&str, &str)] = &[
    ("tests/it/english.rs", "names every home-made word"),
    ("tests/pictures", "images, and file names inside them"),
    ("tests/golden", "recorded output; the source that prints it is searched"),
    ("docs/benchmarks/", "recorded output"),
];

#[test]
fn home_made_words_are_replaced_by_the_standard_ones() {
    let findings: Vec<String> = files()
        .iter()
        .flat_map(|(path, text)| findings(path, text))
        .filter(|finding| exceptions(finding).is_empty())
        .map(|finding| finding.to_string())
        .collect();
    assert!(findings.is_empty(), "{}\n{} home-made words (STYLE.md)", findings.join("\n"), findings.len());
}

/// First words of comments that are mostly half a sentence. Write "Returns `None` when ...", "True if ...", "The ...".
const FRAGMENT_STARTS: [&str; 9] = ["What", "Whatever", "Where", "Whether", "Who", "Whose", "Whoever", "None", "Of"];

/// The usual doc of a field that is an `Option`: "`None` if the part does not name a file". It has no verb of its own, but
/// the field is its subject, and Rust code everywhere is documented like this.
const OPTION_STARTS: [&str; 7] =
    ["`None` if ", "`None` when ", "`None` while ", "`None` until ", "`None` before ", "`None` after ", "`None` once "];

/// A comment states something in whole sentences. One that begins with these words is mostly half a sentence: "What is
/// asked for", "None where it is missing".
#[test]
fn comments_do_not_begin_as_fragments() {
    let findings: Vec<String> = files().iter().flat_map(|(path, text)| fragments(path, text)).collect();
    assert!(findings.is_empty(), "{}\n{} fragments (STYLE.md)", findings.join("\n"), findings.len());
}

#[test]
fn every_exception_is_needed() {
    let files = files();
    let used: Vec<usize> =
        files.iter().flat_map(|(path, text)| findings(path, text)).flat_map(|finding| exceptions(&finding)).collect();
    let unused: Vec<String> = (0..EXCEPTIONS.len())
        .filter(|at| !used.contains(at))
        .map(|at| format!("tests/it/english.rs: the exception for {:?} covers nothing; remove it", EXCEPTIONS[at].1))
        .collect();
    assert!(unused.is_empty(), "{}", unused.join("\n"));
}

/// A home-made word in a file. Line 0 is the path itself.
struct Finding<'a> {
    path: &'a str,
    line: usize,
    text: &'a str,
    phrase: String,
    standard: &'static str,
}

impl std::fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { path, line, phrase, standard, .. } = self;
        match line {
            0 => write!(f, "{path}: the path says \"{phrase}\"; write: {standard}"),
            _ => write!(f, "{path}:{line}: \"{phrase}\"; write: {standard}"),
        }
    }
}

/// Returns the indexes in [`EXCEPTIONS`] of the exceptions that cover a finding.
fn exceptions(finding: &Finding) -> Vec<usize> {
    let covers = |(place, text, _): &(&str, &str, &str)| {
        finding.path.starts_with(place) && (finding.text.contains(text) || finding.path.contains(text))
    };
    (0..EXCEPTIONS.len()).filter(|at| covers(&EXCEPTIONS[*at])).collect()
}

/// Returns every home-made word in the path and the text of a file.
fn findings<'a>(path: &'a str, text: &'a str) -> Vec<Finding<'a>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first_line, words) in [(0, words(path, 0)), (1, words(text, 1))] {
        for (at, (first, line)) in words.iter().enumerate() {
            for (word, length) in longest_matches(first, &words[at..]) {
                let neighbour = |at: Option<usize>| at.and_then(|at| words.get(at)).map_or("", |(word, _)| word);
                if word.unless_after.contains(&neighbour(at.checked_sub(1)))
                    || word.unless_before.contains(&neighbour(Some(at + length)))
                {
                    continue;
                }
                let phrase: Vec<&str> = words[at..at + length].iter().map(|(word, _)| word.as_str()).collect();
                let text = if first_line == 0 { path } else { lines[line - 1] };
                found.push(Finding { path, line: *line, text, phrase: phrase.join(" "), standard: word.standard });
            }
        }
    }
    found
}

/// A phrase, cut into its words, and the entry that it belongs to.
type Phrase = (Vec<&'static str>, &'static Word);

/// Every phrase by its first word, the longest first.
static PHRASES: LazyLock<HashMap<&str, Vec<Phrase>>> = LazyLock::new(|| {
    let mut by_first: HashMap<&str, Vec<Phrase>> = HashMap::new();
    for word in WORDS {
        for phrase in word.phrases.split('|') {
            let parts: Vec<&str> = phrase.split_whitespace().collect();
            by_first.entry(parts[0]).or_default().push((parts, word));
        }
    }
    for phrases in by_first.values_mut() {
        phrases.sort_by_key(|(parts, _)| std::cmp::Reverse(parts.len()));
    }
    by_first
});

/// Returns the entries that have a phrase at the start of `words`, each with the length of its longest one.
fn longest_matches(first: &str, words: &[(String, usize)]) -> Vec<(&'static Word, usize)> {
    let mut found: Vec<(&'static Word, usize)> = Vec::new();
    for (parts, word) in PHRASES.get(first).into_iter().flatten() {
        let matches = parts.len() <= words.len() && parts.iter().zip(words).all(|(part, (word, _))| part == word);
        if matches && found.iter().all(|(earlier, _)| !std::ptr::eq(*earlier, *word)) {
            found.push((word, parts.len()));
        }
    }
    found
}

/// Cuts a text into lower-case words with their lines. `snake_case` and `CamelCase` names are several words.
fn words(text: &str, first_line: usize) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut word = String::new();
        let mut was_lower = false;
        for letter in line.chars() {
            let starts_word = letter.is_uppercase() && was_lower;
            if (!letter.is_alphabetic() || starts_word) && !word.is_empty() {
                found.push((std::mem::take(&mut word), first_line + at));
            }
            if letter.is_alphabetic() {
                word.extend(letter.to_lowercase());
            }
            was_lower = letter.is_lowercase();
        }
        if !word.is_empty() {
            found.push((word, first_line + at));
        }
    }
    found
}

/// Returns the comments of a Rust source that begin as half a sentence, one line each.
fn fragments(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut follows_comment = false;
    for (at, line) in text.lines().enumerate() {
        let comment = comment_text(line);
        if let Some(comment) = comment
            && !follows_comment
            && let Some(first) = comment.split_whitespace().next()
            && FRAGMENT_STARTS.contains(&first.trim_matches(|c: char| !c.is_alphabetic()))
            && !OPTION_STARTS.iter().any(|start| comment.starts_with(start))
            && !comment.ends_with('?')
        {
            found.push(format!("{path}:{}: comment begins with \"{first}\"; write a whole sentence", at + 1));
        }
        follows_comment = comment.is_some();
    }
    found
}

/// Returns the text of a line that is nothing but a comment.
fn comment_text(line: &str) -> Option<&str> {
    let line = line.trim_start();
    ["///", "//!", "//"].iter().find_map(|mark| line.strip_prefix(mark)).map(str::trim)
}

/// Returns path and text of every file that is searched, in the order of their paths.
fn files() -> Vec<(String, String)> {
    fn walk(root: &Path, path: &Path, found: &mut Vec<(String, String)>) {
        let name = path.strip_prefix(root).expect("a path under the root").to_string_lossy().into_owned();
        if NOT_SEARCHED.iter().any(|(place, _)| name.starts_with(place)) || name.contains("__pycache__") {
            return;
        }
        if path.is_dir() {
            let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{name}: {error}"));
            for entry in entries {
                walk(root, &entry.expect("a readable entry").path(), found);
            }
        } else if let Ok(bytes) = fs::read(path)
            && let Ok(text) = String::from_utf8(bytes)
            && !name.ends_with(".svg")
        {
            found.push((name, text));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for place in SEARCHED {
        let path = root.join(place);
        assert!(path.exists(), "{place} is to be searched and does not exist");
        walk(root, &path, &mut found);
    }
    found.sort();
    found
}

/// The check itself, on made-up sources.
mod checker {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        findings(path, text).iter().map(|finding| format!("{}: {}", finding.line, finding.phrase)).collect()
    }

    #[test]
    fn words_are_found_in_prose_names_paths_and_across_lines() {
        assert_eq!(found("a.rs", "// ring the bell"), ["1: bell"]);
        assert_eq!(found("a.rs", "fn wake_bells() {}\nstruct DoorBell;"), ["1: bells", "2: bell"]);
        assert_eq!(found("a.rs", "// it is handed\n// back at once"), ["1: handed back"]);
        assert_eq!(found("queues/letters.rs", ""), ["0: letters"]);
        assert_eq!(found("a.rs", "let worker_ending = 1;"), ["1: ending"]);
    }

    #[test]
    fn plain_english_is_left_alone() {
        for text in [
            "use ring::digest;",
            "the rest of the buffer",
            "a name ending in .jpg",
            "FIFO stands for first in, first out",
            "dead letters",
            "lower-case letters, digits",
            "the original size",
            "the seed of the generator",
            "what the label recalls",
            "upstanding, earlier, bearing",
        ] {
            assert_eq!(found("a.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn exceptions_cover_a_line_and_nothing_else() {
        let all = findings("src/a.rs", "the directory bells/ holds\nthe bells of all");
        assert_eq!(all.iter().map(|finding| !exceptions(finding).is_empty()).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn only_the_first_line_of_a_comment_can_begin_as_a_fragment() {
        let text = "/// What is asked for.\nfn a() {}\n// The reply names\n// None of them.\n//! `None` when missing";
        assert_eq!(fragments("a.rs", text), ["a.rs:1: comment begins with \"What\"; write a whole sentence"]);
        assert_eq!(fragments("a.md", text), Vec::<String>::new());
    }

    #[test]
    fn an_option_may_say_when_it_is_none() {
        assert_eq!(fragments("a.rs", "/// `None` if the part names no file."), Vec::<String>::new());
        assert_eq!(fragments("a.rs", "/// None where it is missing.").len(), 1);
    }
}
