//! Texts in CSV that no spreadsheet runs.
//!
//! A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return would be a formula, so it gets an apostrophe before
//! it. A text that begins with apostrophes and then one of these gets one more, so that a program can undo it: remove one
//! apostrophe from each text that begins with apostrophes and one of these characters.

use std::borrow::Cow;

/// The text as no spreadsheet takes it for a formula.
pub(crate) fn no_formula(text: &str) -> Cow<'_, str> {
    if text.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_get_an_apostrophe_that_can_be_removed() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x"] {
            assert_eq!(no_formula(formula), format!("'{formula}"));
        }
        for plain in ["", "a=b", "1-2", "'a'", "'", "img-1.jpg", " =1", "日本"] {
            assert_eq!(no_formula(plain), plain);
        }
    }
}
