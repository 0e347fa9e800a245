//! An image in JSON: `{"image": "<base64 or data URI>"}`, or `{"image_url": "<URL>"}`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;

use super::body::BodyReader;
use super::fetch::fetch;
use super::image::{ImageBuffer, ReceivedImage};
use super::unsupported::unsupported;
use crate::model;
use crate::protocol::cut_filename;
use crate::web::error::Problem;
use crate::web::query::{TOP_K, wrong_top_k};

/// Bodies above this size are decoded on a thread that may block.
const MAX_BYTES_IN_LINE: usize = 256 << 10;

/// Encoders write padding or leave it out.
const CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

/// The body of a request in JSON. A member that is unknown or given twice is an error, so that no option is lost by a typo.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow, default)]
    image: Option<Cow<'a, str>>,
    #[serde(default)]
    image_url: Option<String>,
    #[serde(default)]
    callback_url: Option<String>,
    #[serde(default)]
    filename: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    top_k: Option<u32>,
}

/// An image in JSON, and its options.
pub(super) struct ReceivedJson {
    pub(super) image: ReceivedImage,
    /// True if the image takes just its own size.
    pub(super) is_exact: bool,
    pub(super) top_k: Option<u32>,
    pub(super) model: Option<String>,
    pub(super) callback_url: Option<String>,
}

/// A body in JSON, as it was decoded.
struct Decoded {
    image: Image,
    top_k: Option<u32>,
    model: Option<String>,
    callback_url: Option<String>,
}

enum Image {
    Here(ReceivedImage),
    At { url: String, filename: Option<String> },
}

/// Returns true for the media type of JSON, or of a format that is based on it.
pub(super) fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// The bytes that an image of `max_upload_bytes` has in JSON: four characters for three bytes, and some more for line breaks
/// and escaped slashes.
pub(super) fn max_body_bytes(max_upload_bytes: u64) -> u64 {
    max_upload_bytes + max_upload_bytes / 2
}

/// Reads the image of a body in JSON.
///
/// # Errors
/// 400 for a body that is not that JSON or not base64, 413 before an image above the limit is decoded, 415 for bytes that
/// are not an image.
pub(super) async fn receive_json(reader: &mut BodyReader<'_>, expected_bytes: u64) -> Result<ReceivedJson, Problem> {
    let mut buffer = ImageBuffer::new(expected_bytes);
    while let Some(chunk) = reader.chunk().await? {
        buffer.push(reader, chunk).await?;
    }
    let body = buffer.into_bytes();
    // Beside the body there are its text without escapes and line breaks, and the image.
    reader.reserve(3 * body.len()).await?;
    let max_upload_bytes = reader.rules.max_upload_bytes;
    let decoded = if body.len() <= MAX_BYTES_IN_LINE {
        decode(&body, max_upload_bytes)?
    } else {
        let decoded = tokio::task::spawn_blocking(move || decode(&body, max_upload_bytes)).await;
        decoded.map_err(|_panic| Problem::unavailable("the image could not be decoded; send it again"))??
    };
    let Decoded { image, top_k, model, callback_url } = decoded;
    let (image, is_exact) = match image {
        Image::Here(image) => (image, true),
        Image::At { url, filename } => (fetch(reader, &url, filename).await?, false),
    };
    Ok(ReceivedJson { image, is_exact, top_k, model, callback_url })
}

fn decode(body: &[u8], max_upload_bytes: u64) -> Result<Decoded, Problem> {
    let Body { image, image_url, callback_url, filename, model, top_k } =
        serde_json::from_slice(body).map_err(|error| {
            let error = error.to_string();
            let advice =
                "send {\"image\": \"<base64 or data URI>\"}, with filename, model, top_k and callback_url as you like";
            Problem::malformed(format!("the body is not the expected JSON: {}; {advice}", cut_filename(&error)))
        })?;
    if let Some(top_k) = top_k.filter(|top_k| !TOP_K.contains(top_k)) {
        return Err(wrong_top_k(&top_k.to_string()));
    }
    let image = match (image, image_url) {
        (Some(image), None) => Image::Here(decode_image(&image, filename.unwrap_or_default(), max_upload_bytes)?),
        (None, Some(url)) => Image::At { url, filename },
        _ => return Err(Problem::malformed("the body needs one of image and image_url, and not both")),
    };
    Ok(Decoded { image, top_k, model, callback_url })
}

fn decode_image(image: &str, filename: String, max_upload_bytes: u64) -> Result<ReceivedImage, Problem> {
    let bytes = image_bytes(image, max_upload_bytes)?;
    let Some(content_type) = model::sniff(&bytes) else { return Err(unsupported(&bytes, &filename, "")) };
    Ok(ReceivedImage { bytes, content_type, filename, field: String::new() })
}

fn image_bytes(text: &str, max_upload_bytes: u64) -> Result<Bytes, Problem> {
    let encoded = base64_of(text)?;
    let encoded: Cow<'_, str> = if encoded.contains(|c: char| c.is_ascii_whitespace()) {
        Cow::Owned(encoded.split_ascii_whitespace().collect())
    } else {
        Cow::Borrowed(encoded)
    };
    let digits = encoded.trim_end_matches('=').len() as u64;
    if digits / 4 * 3 > max_upload_bytes {
        return Err(Problem::too_large(max_upload_bytes));
    }
    let engine = if encoded.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let bytes = engine
        .decode(encoded.as_bytes())
        .map_err(|error| Problem::malformed(format!("the member image is not base64: {error}")))?;
    if bytes.len() as u64 > max_upload_bytes {
        return Err(Problem::too_large(max_upload_bytes));
    }
    Ok(bytes.into())
}

/// Returns the base64 in a text that is base64 or a data URI.
fn base64_of(text: &str) -> Result<&str, Problem> {
    let Some((scheme, rest)) = text.split_once(':') else { return Ok(text) };
    if !scheme.trim_start().eq_ignore_ascii_case("data") {
        let detail = "the member image is an address, which is not fetched; send the bytes in base64 or as a data URI";
        return Err(Problem::malformed(detail));
    }
    let data = rest.split_once(',').filter(|(head, _)| {
        let coding = head.rsplit(';').next().unwrap_or_default();
        coding.trim().eq_ignore_ascii_case("base64")
    });
    let not_base64 = || Problem::malformed("the data URI is not in base64; send data:image/jpeg;base64,...");
    data.map(|(_, data)| data).ok_or_else(not_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest text that is taken for a JPEG.
    const JPEG: &[u8] = b"\xff\xd8\xff\xe0 0123456789";

    fn here(image: Image) -> ReceivedImage {
        match image {
            Image::Here(image) => image,
            Image::At { url, .. } => panic!("the body names {url}"),
        }
    }

    fn decoded(image: &str) -> Result<Bytes, u16> {
        let body = serde_json::json!({ "image": image }).to_string();
        decode(body.as_bytes(), 20).map(|decoded| here(decoded.image).bytes).map_err(|problem| problem.status.as_u16())
    }

    #[test]
    fn base64_is_decoded_in_every_form_that_encoders_write() {
        let jpeg = Bytes::from_static(JPEG);
        let (standard, url_safe) = (STANDARD.encode(JPEG), URL_SAFE.encode(JPEG));
        for image in [
            standard.clone(),
            url_safe,
            standard.trim_end_matches('=').to_owned(),
            format!("{}\r\n{}\n", &standard[..8], &standard[8..]),
            format!("data:image/jpeg;base64,{standard}"),
            format!("DATA:;charset=x;BASE64,{standard}"),
        ] {
            assert_eq!(decoded(&image), Ok(jpeg.clone()), "{image}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_their_fault() {
        for (image, status) in [
            ("", 415),
            ("aGVsbG8=", 415),
            ("not base64!", 400),
            ("/9j/4A==x", 400),
            ("data:image/jpeg,/9j/4A", 400),
            ("data:", 400),
            ("https://images.example/cat.jpg", 400),
            ("s3://bucket/key", 400),
        ] {
            assert_eq!(decoded(image), Err(status), "{image}");
        }
        assert_eq!(decoded(&STANDARD.encode([0xff; 21])), Err(413));
        assert_eq!(decoded(&STANDARD.encode([0xff; 400])), Err(413));
    }

    #[test]
    fn body_that_is_not_the_expected_json_is_malformed() {
        let image = STANDARD.encode(JPEG);
        for body in [
            String::new(),
            "[]".to_owned(),
            "{}".to_owned(),
            "{\"image_url\": 7}".to_owned(),
            format!("{{\"image\": \"{image}\", \"image_url\": \"https://images.example/\"}}"),
            "7".to_owned(),
            "{\"image\": 7}".to_owned(),
            format!("{{\"image\": \"{image}\", \"image\": \"{image}\"}}"),
            format!("{{\"image\": \"{image}\", \"topk\": 1}}"),
            format!("{{\"image\": \"{image}\", \"top_k\": 0}}"),
            format!("{{\"image\": \"{image}\", \"top_k\": -1}}"),
            format!("{{\"image\": \"{image}\", \"top_k\": \"{}\"}}", "x".repeat(10_000)),
            format!("{{\"image\": \"{image}\"}} {{}}"),
            "[".repeat(100_000),
            "{\"image\": \"\\ud800\"}".to_owned(),
        ] {
            let problem = decode(body.as_bytes(), 1_000).err().unwrap();
            assert_eq!(problem.kind, "malformed", "{}", cut_filename(&body));
            assert!(problem.detail.len() < 500, "{problem}");
        }
        let options = format!("{{\"image\": \"{image}\", \"filename\": \"a.jpg\", \"model\": \"m\", \"top_k\": 3}}");
        let received = decode(options.as_bytes(), 1_000).ok().unwrap();
        assert_eq!((received.top_k, received.model.as_deref()), (Some(3), Some("m")));
        assert_eq!(here(received.image).filename, "a.jpg");
    }
}
