//! The version of a package, which follows from its content.

use sha2::{Digest as _, Sha256};

use crate::file::hex;

/// The version of an added package: the beginning of a digest over `model.toml`, which contains the digest of every other
/// file. The version itself and the tables `[provenance]` and `[measured]` are left out, so that the same model has the
/// same version wherever it came from.
///
/// # Errors
/// If the text is not TOML.
pub fn content_version(description: &str) -> anyhow::Result<String> {
    let mut table: toml::Table =
        toml::from_str(description).map_err(|error| anyhow::anyhow!("{}", error.message().replace('\n', " ")))?;
    for key in ["version", "provenance", "measured"] {
        table.remove(key);
    }
    // The keys of a table are sorted, so that neither their order nor comments count.
    Ok(hex(&Sha256::digest(toml::to_string(&sorted(table))?)[..6]))
}

fn sorted(table: toml::Table) -> toml::Table {
    let mut entries: Vec<(String, toml::Value)> = table.into_iter().collect();
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    let nested = |value| match value {
        toml::Value::Table(table) => toml::Value::Table(sorted(table)),
        other => other,
    };
    entries.into_iter().map(|(key, value)| (key, nested(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_follows_from_the_content_alone() {
        let version = |text: &str| content_version(text).unwrap();
        let one = version("name = \"m\"\nversion = \"1\"\n[files.fp32]\nsha256 = \"ab\"\npath = \"x\"\n");
        let same = "# a comment\nversion = \"2\"\nname = \"m\"\n[files.fp32]\npath = \"x\"\nsha256 = \"ab\"\n[provenance]\nsource = \"y\"\n";
        assert_eq!(one, version(same));
        assert_ne!(one, version(&same.replace("ab", "cd")));
        assert_eq!(one.len(), 12);
        assert!(content_version("not toml").is_err());
    }
}
