//! The messages of the legacy system: a request with the whole image in the message, a reply by file name, and an
//! output object named after the image.
//!
//! Both directions are supported: workers answer the legacy web tier, and a web tier with `--wire seed` sends requests
//! to legacy workers. In that case the file name on the wire is [`legacy_name`], so that a reply can be assigned to its
//! job.

use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::error::{ErrorCode, ErrorInfo};
use super::filename::cut_filename;

/// A request of the legacy system: the whole image in the message, answered by file name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyRequest {
    /// The file as base64.
    pub image_data: String,
    /// The file name, which the reply repeats.
    pub filename: String,
}

/// Marks a failure where the legacy messages have a label, because they have no field for errors.
const ERROR_PREFIX: &str = "error: ";
/// Maximum size of an output object; larger objects are not ours.
pub const MAX_LEGACY_OUTPUT_BYTES: u64 = 64 << 10;

impl LegacyRequest {
    /// A request for this image under this file name.
    pub fn new(image: &[u8], filename: String) -> Self {
        LegacyRequest { image_data: STANDARD.encode(image), filename }
    }

    /// The body of the message.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("two strings; this is a bug")
    }
}

/// The size in bytes of the request for an image of `image_bytes` under `filename`, without encoding it.
pub fn legacy_request_bytes(image_bytes: usize, filename: &str) -> usize {
    let empty = LegacyRequest { image_data: String::new(), filename: filename.to_owned() };
    empty.to_json().len() + image_bytes.div_ceil(3) * 4
}

/// The file name of a job on the legacy wire: its id, and an extension for the image type.
pub fn legacy_name(id: Uuid, content_type: &str) -> String {
    let extension = match content_type {
        "image/jpeg" => "jpg",
        other => other.strip_prefix("image/").unwrap_or("img"),
    };
    format!("{id}.{extension}")
}

/// The job that a file name on the legacy wire refers to. Returns `None` for file names of users of the legacy system.
pub fn legacy_job_id(filename: &str) -> Option<Uuid> {
    let stem = legacy_output_key(filename);
    let id: Uuid = stem.parse().ok()?;
    // A hexadecimal digest would also parse as an id, so the text must be the canonical form.
    (id.get_version_num() == 7 && id.to_string() == stem).then_some(id)
}

/// The output key of the legacy system: the file name up to its first dot. The name must be a [`legacy_safe_name`].
pub fn legacy_output_key(safe_name: &str) -> &str {
    safe_name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("unnamed")
}

/// Converts a file name from outside to a safe flat object key: the last path component without control characters,
/// never empty, never a dot name, at most 255 bytes.
///
/// Only the legacy system uses file names as keys, because the scripts of its users look up results by name.
pub fn legacy_safe_name(filename: &str) -> String {
    let last = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last.chars().filter(|c| !c.is_control()).collect();
    let cut = cut_filename(clean.trim());
    if cut.trim_matches('.').is_empty() { "unnamed".to_owned() } else { cut.to_owned() }
}

/// A reply of the legacy system: `{"test_0.JPEG": "bathtub"}`.
pub fn legacy_reply(filename: &str, label: &str) -> String {
    serde_json::json!({ filename: label }).to_string()
}

/// A reply of the legacy system for an image that could not be classified.
pub fn legacy_error_reply(filename: &str, reason: &str) -> String {
    legacy_reply(filename, &format!("{ERROR_PREFIX}{reason}"))
}

/// Reads file name and answer from a legacy reply, an object with one string. Pass the answer to [`legacy_answer`].
pub fn read_legacy_reply(body: &str) -> Option<(String, String)> {
    let Value::Object(members) = serde_json::from_str(body).ok()? else { return None };
    let mut members = members.into_iter();
    match (members.next(), members.next()) {
        (Some((filename, Value::String(answer))), None) => Some((filename, answer)),
        _ => None,
    }
}

/// The output object of the legacy system.
pub fn legacy_output(filename: &str, label: &str) -> String {
    format!("(({filename}, {label}))")
}

/// Reads the answer from an output object: the part after the name, or everything, because some variants of the legacy
/// system store only the label.
pub fn read_legacy_output(body: &str) -> &str {
    match body.split_once(',') {
        Some((name, answer)) if legacy_job_id(name.trim_matches(is_wrapping)).is_some() => answer,
        _ => body,
    }
}

/// Reads the label from an answer. The legacy worker sends `" bathtub)\n"` for bathtub.
///
/// # Errors
/// The failure, if one of our workers sent it instead of a label.
pub fn legacy_answer(answer: &str) -> Result<String, ErrorInfo> {
    let label = trim_label(answer);
    let Some(reason) = label.strip_prefix(ERROR_PREFIX) else { return Ok(label.to_owned()) };
    let code = reason.split_once(": ").and_then(|(code, _)| ErrorCode::from_wire(code));
    let message = if code.is_some() { reason.split_once(": ").map_or(reason, |(_, message)| message) } else { reason };
    Err(ErrorInfo { code: code.unwrap_or(ErrorCode::Internal), message: message.to_owned() })
}

/// Removes surrounding white space and unbalanced parentheses, but keeps those of `crane (bird)`.
fn trim_label(answer: &str) -> &str {
    let mut label = answer.trim();
    loop {
        let (opened, closed) = (label.matches('(').count(), label.matches(')').count());
        let trimmed = match closed.cmp(&opened) {
            Ordering::Greater => label.strip_suffix(')'),
            Ordering::Less => label.strip_prefix('('),
            Ordering::Equal => label.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')),
        };
        match trimmed {
            Some(trimmed) => label = trimmed.trim(),
            None => return label,
        }
    }
}

fn is_wrapping(c: char) -> bool {
    c.is_whitespace() || c == '('
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01936d5c-7e00-7abc-8def-0123456789ab";

    #[test]
    fn labels_are_cleaned() {
        for (sent, label) in [
            (" bathtub)\n", "bathtub"),
            ("bathtub", "bathtub"),
            ("(bathtub)", "bathtub"),
            (" crane (bird))\n", "crane (bird)"),
            (" maillot, one-piece)\n", "maillot, one-piece"),
            (" )\n", ""),
        ] {
            assert_eq!(legacy_answer(sent).as_deref(), Ok(label), "{sent:?}");
        }
    }

    #[test]
    fn error_in_place_of_a_label_is_a_failure() {
        let (_, answer) = read_legacy_reply(&legacy_error_reply("a.jpg", "undecodable: cut: short")).unwrap();
        let error = legacy_answer(&answer).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Undecodable, "cut: short"));
        let error = legacy_answer("error: unknown: why").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Internal, "unknown: why"));
    }

    #[test]
    fn only_names_made_by_a_web_tier_refer_to_jobs() {
        let id: Uuid = ID.parse().unwrap();
        for content_type in ["image/jpeg", "image/png", "image/webp"] {
            assert_eq!(legacy_job_id(&legacy_name(id, content_type)), Some(id));
        }
        assert_eq!(legacy_name(id, "image/jpeg"), format!("{ID}.jpg"));
        for foreign in ["test_0.JPEG", "", ".", "01936d5c7e007abc8def0123456789ab.jpg", &ID.to_uppercase()] {
            assert_eq!(legacy_job_id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn outputs_may_have_a_name() {
        for body in [format!("(({ID}.jpg, tub, bath))"), format!("({ID}.jpg, tub, bath)\n"), "tub, bath".to_owned()] {
            assert_eq!(legacy_answer(read_legacy_output(&body)).as_deref(), Ok("tub, bath"), "{body}");
        }
    }

    #[test]
    fn request_size_is_predicted_exactly() {
        for len in [0, 1, 2, 3, 1000] {
            let request = LegacyRequest::new(&vec![7; len], legacy_name(ID.parse().unwrap(), "image/png"));
            assert_eq!(legacy_request_bytes(len, &request.filename), request.to_json().len());
        }
    }

    #[test]
    fn unsafe_file_names_become_safe_keys() {
        assert_eq!(legacy_safe_name("../../etc/passwd"), "passwd");
        assert_eq!(legacy_safe_name("a\0b\nc.jpg"), "abc.jpg");
        assert_eq!(legacy_safe_name(".."), "unnamed");
        assert_eq!(legacy_safe_name("C:\\x\\cat.jpg"), "cat.jpg");
        assert_eq!(legacy_safe_name(""), "unnamed");
        assert_eq!(legacy_safe_name(&"ü".repeat(2000)).len(), 254);
        assert_eq!(legacy_output_key("test_0.tar.JPEG"), "test_0");
        assert_eq!(legacy_output_key(".hidden"), "unnamed");
    }
}
