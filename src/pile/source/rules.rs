//! Which files of a folder, a list or an archive are classified, by their names.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

use globset::{Candidate, GlobBuilder, GlobMatcher};

use crate::model;

/// A pattern of `--include` or `--exclude`. Without a slash it matches the name of a file or folder, otherwise the path
/// below the folder that was named.
#[derive(Debug, Clone)]
pub struct Pattern(GlobMatcher);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let in_any_folder = if text.contains('/') { text.to_owned() } else { format!("**/{text}") };
        let glob = GlobBuilder::new(in_any_folder.trim_start_matches('/')).literal_separator(true).build();
        glob.map(|glob| Pattern(glob.compile_matcher())).map_err(|error| error.kind().to_string())
    }
}

/// The choice of files. Files that the user names one by one are always classified.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// If there are any, only files that match one of them are classified, whatever their extension.
    pub include: Vec<Pattern>,
    /// Files that match are left out; folders that match are not entered.
    pub exclude: Vec<Pattern>,
}

impl Rules {
    /// Returns whether a file is an image to classify. `relative` is its path below the folder or in the archive.
    pub(super) fn takes(&self, relative: &Path) -> bool {
        if is_hidden(relative) {
            return false;
        }
        let candidate = Candidate::new(relative);
        if matches(&self.exclude, &candidate) {
            return false;
        }
        if self.include.is_empty() { model::has_image_extension(relative) } else { matches(&self.include, &candidate) }
    }

    /// Returns whether a folder is entered.
    pub(super) fn enters(&self, relative: &Path) -> bool {
        !is_hidden(relative) && !matches(&self.exclude, &Candidate::new(relative))
    }

    /// Like [`Rules::takes`] for a file whose folders are only parts of its path: in an archive, or in a watched folder.
    pub(in crate::pile) fn takes_in_archive(&self, relative: &Path) -> bool {
        let mut folders = relative.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        folders.all(|folder| self.enters(folder)) && self.takes(relative)
    }
}

fn matches(patterns: &[Pattern], candidate: &Candidate<'_>) -> bool {
    patterns.iter().any(|Pattern(pattern)| pattern.is_match_candidate(candidate))
}

/// Names that begin with a dot are thumbnails, rubbish bins and resource forks.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(include: &[&str], exclude: &[&str]) -> Rules {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Rules { include: parse(include), exclude: parse(exclude) }
    }

    fn taken<'a>(rules: &Rules, paths: &[&'a str]) -> Vec<&'a str> {
        paths.iter().copied().filter(|path| rules.takes_in_archive(Path::new(path))).collect()
    }

    const PATHS: [&str; 7] =
        ["a.JPG", "sub/b.png", "sub/deep/c.webp", "thumbs/d.jpg", "notes.txt", ".hidden/e.jpg", "._a.jpg"];

    #[test]
    fn known_extensions_are_taken_without_regard_to_case_and_hidden_names_left_out() {
        assert_eq!(taken(&rules(&[], &[]), &PATHS), ["a.JPG", "sub/b.png", "sub/deep/c.webp", "thumbs/d.jpg"]);
    }

    #[test]
    fn pattern_without_a_slash_matches_names_and_one_with_a_slash_paths() {
        assert_eq!(taken(&rules(&["*.txt"], &[]), &PATHS), ["notes.txt"]);
        assert_eq!(taken(&rules(&["sub/*"], &[]), &PATHS), ["sub/b.png"]);
        assert_eq!(taken(&rules(&["sub/**"], &["deep"]), &PATHS), ["sub/b.png"]);
        assert_eq!(taken(&rules(&[], &["thumbs", "*.{png,webp}"]), &PATHS), ["a.JPG"]);
        assert!("[".parse::<Pattern>().is_err());
    }
}
