//! The choice among the files of a model by the instructions of this CPU.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

use super::description::FileEntry;

/// The value of `requires` of a file whose 8-bit sums are correct and fast only with instructions for 8-bit dot products.
const INT8_DOT_PRODUCT: &str = "int8-dot-product";

/// The value of `requires` of a file for CPUs without these instructions.
const NO_INT8_DOT_PRODUCT: &str = "no-int8-dot-product";

/// Picks the variant to run. Returns its name and the reason.
///
/// # Errors
/// If there is no such variant, or none for this CPU.
pub(super) fn pick(
    files: &BTreeMap<String, FileEntry>,
    wanted: Option<&str>,
    int8_dot_product: bool,
) -> anyhow::Result<(String, String)> {
    let names = || files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = wanted {
        ensure!(files.contains_key(wanted), "no variant {wanted:?}; there are: {}", names());
        return Ok((wanted.to_owned(), "as requested".to_owned()));
    }
    let requiring = |requirement: Option<&str>| {
        files.iter().find(|(_, entry)| entry.requires.as_deref() == requirement).map(|(name, _)| name.clone())
    };
    let (own, found) = if int8_dot_product {
        (INT8_DOT_PRODUCT, "this CPU has 8-bit dot products")
    } else {
        (NO_INT8_DOT_PRODUCT, "this CPU has no 8-bit dot products")
    };
    if let Some(name) = requiring(Some(own)) {
        return Ok((name, found.to_owned()));
    }
    let reason = if int8_dot_product { "it runs on every CPU" } else { found };
    match requiring(None) {
        Some(name) => Ok((name, reason.to_owned())),
        None => bail!("the model has no variant for this CPU ({found}); choose one with --variant: {}", names()),
    }
}

/// Reports whether a file runs correctly on this CPU.
pub(super) fn is_supported(entry: &FileEntry, int8_dot_product: bool) -> bool {
    match entry.requires.as_deref() {
        None => true,
        Some(INT8_DOT_PRODUCT) => int8_dot_product,
        Some(NO_INT8_DOT_PRODUCT) => !int8_dot_product,
        Some(_) => false,
    }
}

/// Without these instructions 8-bit sums are slow and can saturate.
pub(super) fn cpu_has_int8_dot_product() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The instructions of this CPU that inference and decoding use.
pub fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
        ("avxvnni", std::is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features: [(&str, bool); 0] = [];
    features.into_iter().filter_map(|(name, is_present)| is_present.then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, Option<&str>)]) -> BTreeMap<String, FileEntry> {
        let entry = |requires: Option<&str>| FileEntry {
            path: String::new(),
            sha256: String::new(),
            requires: requires.map(str::to_owned),
            input: None,
            external: Vec::new(),
        };
        entries.iter().map(|(name, requires)| ((*name).to_owned(), entry(*requires))).collect()
    }

    #[test]
    fn cpu_determines_the_variant_unless_one_is_requested() {
        let both = files(&[("int8", Some(INT8_DOT_PRODUCT)), ("fp16", None)]);
        assert_eq!(pick(&both, None, true).unwrap().0, "int8");
        assert_eq!(pick(&both, None, false).unwrap().0, "fp16");
        assert_eq!(pick(&both, Some("int8"), false).unwrap().0, "int8");
        let error = pick(&both, Some("fp8"), true).unwrap_err().to_string();
        assert_eq!(error, "no variant \"fp8\"; there are: fp16, int8");
        let only_int8 = files(&[("int8", Some(INT8_DOT_PRODUCT))]);
        assert!(pick(&only_int8, None, false).unwrap_err().to_string().contains("--variant"));
    }

    #[test]
    fn file_for_cpus_without_dot_products_is_used_only_there() {
        let three = files(&[("int8", Some(INT8_DOT_PRODUCT)), ("int7", Some(NO_INT8_DOT_PRODUCT)), ("fp16", None)]);
        assert_eq!(pick(&three, None, true).unwrap().0, "int8");
        assert_eq!(pick(&three, None, false).unwrap().0, "int7");
        assert!(is_supported(&three["int7"], false) && !is_supported(&three["int7"], true));
        assert!(is_supported(&three["fp16"], false) && !is_supported(&three["int8"], false));
    }
}
