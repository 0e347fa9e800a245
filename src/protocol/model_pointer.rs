//! The packages of models in the input bucket of a stack, and the pointer to the version that its machines run.
//!
//! `models/<name>/<version>/<digest>.tar` is a package: an archive that never changes. `models/<name>/current` is a
//! pointer: one line that names version, digest and size of a package. Replacing it swaps the model.

use std::fmt;

/// Prefix of all keys about models.
pub const MODELS_FOLDER: &str = "models/";
/// Maximum size of a pointer; larger objects are not ours.
pub const MAX_POINTER_BYTES: u64 = 1 << 10;
/// Length of a digest in hexadecimal.
const DIGEST_LENGTH: usize = 64;

/// The version of a model that machines run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPointer {
    /// The version of the package.
    pub version: String,
    /// SHA-256 of the archive, in hexadecimal.
    pub digest: String,
    /// The size of the archive.
    pub bytes: u64,
}

impl ModelPointer {
    /// Parses the content of a pointer. Returns `None` if it is not one.
    pub fn parse(text: &str) -> Option<ModelPointer> {
        let mut words = text.split_whitespace();
        let (version, digest, bytes) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        let is_digest = digest.len() == DIGEST_LENGTH && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_digest || version.contains('/') || words.next().is_some() {
            return None;
        }
        Some(ModelPointer { version: version.to_owned(), digest: digest.to_owned(), bytes })
    }
}

impl fmt::Display for ModelPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.version, self.digest, self.bytes)
    }
}

/// The key of the pointer to the current version of a model.
pub fn model_pointer_key(name: &str) -> String {
    format!("{MODELS_FOLDER}{name}/current")
}

/// The key of the package that a pointer names.
pub fn model_package_key(name: &str, pointer: &ModelPointer) -> String {
    format!("{MODELS_FOLDER}{name}/{}/{}.tar", pointer.version, pointer.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_round_trip_and_anything_else_is_refused() {
        let pointer = ModelPointer { version: "3f2a9c01b7de".to_owned(), digest: "a1".repeat(32), bytes: 5_000_000 };
        let text = pointer.to_string();
        assert_eq!(text, format!("3f2a9c01b7de {} 5000000\n", "a1".repeat(32)));
        assert_eq!(ModelPointer::parse(&text), Some(pointer.clone()));
        assert_eq!(model_package_key("birds", &pointer), format!("models/birds/3f2a9c01b7de/{}.tar", "a1".repeat(32)));
        assert_eq!(model_pointer_key("birds"), "models/birds/current");
        for wrong in ["", "1", "1 ab 5", &text.replace("a1", "g1"), &text.replace("3f", "../3f"), &text.repeat(2)] {
            assert_eq!(ModelPointer::parse(wrong), None, "{wrong}");
        }
    }
}
