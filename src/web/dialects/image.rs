//! Images in JSON: base64 and data URLs.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::call::of_image;
use crate::web::error::Problem;
use crate::web::upload::{Upload, UploadRules};

/// Clients write base64 with and without padding.
const CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

/// Decodes an image that is base64, or a data URL of it.
///
/// # Errors
/// 400 for other text, above all for addresses, which are never fetched; 413, 415 and 503 as for every upload.
pub(super) fn decode(text: &str, rules: &UploadRules) -> Result<Upload, Problem> {
    let encoded = without_breaks(payload(text)?);
    let decoded_bytes = base64::decoded_len_estimate(encoded.len());
    // The estimate is at most two bytes too large.
    if decoded_bytes as u64 > rules.max_upload_bytes + 2 {
        return Err(Problem::too_large(rules.max_upload_bytes));
    }
    let reservation = rules.reserve(decoded_bytes)?;
    let engine = if encoded.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let bytes = engine
        .decode(encoded.as_bytes())
        .map_err(|error| Problem::malformed(format!("the image is not base64: {error}")))?;
    Upload::of_image(Bytes::from(bytes), reservation, rules)
}

/// Decodes several images.
///
/// # Errors
/// Those of [`decode`], with the number of the image, and 400 for none.
pub(super) fn decode_all<'a>(
    texts: impl ExactSizeIterator<Item = &'a str>,
    rules: &UploadRules,
) -> Result<Vec<Upload>, Problem> {
    let count = texts.len();
    if count == 0 {
        return Err(Problem::malformed("the request has no image"));
    }
    let named = |at, problem| if count == 1 { problem } else { of_image(problem, at, count) };
    texts.enumerate().map(|(at, text)| decode(text, rules).map_err(|problem| named(at, problem))).collect()
}

/// Returns the base64 in `text`.
fn payload(text: &str) -> Result<&str, Problem> {
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    match scheme {
        None => Ok(text.trim()),
        Some(scheme) if scheme.eq_ignore_ascii_case("data") => match text.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => Ok(data.trim()),
            _ => Err(Problem::malformed("a data URL has to be in base64: data:image/jpeg;base64,...")),
        },
        Some(_) => Err(Problem::malformed(
            "an image by its address is not supported here; send its bytes, in base64 or as a data URL",
        )),
    }
}

/// Removes the line breaks that some encoders write.
fn without_breaks(encoded: &str) -> Cow<'_, str> {
    if encoded.contains(|c: char| c.is_ascii_whitespace()) {
        Cow::Owned(encoded.split_ascii_whitespace().collect())
    } else {
        Cow::Borrowed(encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_base64_or_a_data_url_and_never_an_address() {
        for (text, expected) in [
            (" /9j/ \n", Some("/9j/")),
            ("data:image/jpeg;base64,/9j/", Some("/9j/")),
            ("DATA:image/svg+xml;charset=x;BASE64,AA==", Some("AA==")),
            ("data:image/jpeg,abc", None),
            ("data:", None),
            ("https://example.com/cat.jpg", None),
            ("file:///etc/passwd", None),
            ("", Some("")),
        ] {
            assert_eq!(payload(text).ok(), expected, "{text}");
        }
        assert_eq!(without_breaks("ab\r\ncd\n"), "abcd");
    }
}
