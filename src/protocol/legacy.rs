//! The original system's forms: a request with the whole image in the message, an answer by file name, an output
//! object beside the image's name.
//!
//! Spoken in both directions: workers answer the original's web tier, and a web tier with `--wire seed` asks the
//! original's workers. There the name on the wire is [`legacy_name`], so that an answer can be told to be one job's.

use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{ErrorCode, ErrorInfo, legacy_output_key};

/// The original's request: the whole image in the message, answered by file name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyRequest {
    /// Base64 of the file.
    pub image_data: String,
    pub filename: String,
}

/// What our workers send in place of a label, since the original's form knows no failure.
const ERROR_PREFIX: &str = "error: ";
/// An output object larger than this is none of ours.
pub const MAX_LEGACY_OUTPUT_BYTES: u64 = 64 << 10;

impl LegacyRequest {
    pub fn new(image: &[u8], filename: String) -> Self {
        LegacyRequest { image_data: STANDARD.encode(image), filename }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("two strings; this is a bug")
    }
}

/// How many bytes the request for an image of `image_bytes` under `filename` has, without making it.
pub fn legacy_request_bytes(image_bytes: usize, filename: &str) -> usize {
    let empty = LegacyRequest { image_data: String::new(), filename: filename.to_owned() };
    empty.to_json().len() + image_bytes.div_ceil(3) * 4
}

/// The file name that a job has on the original's wire: its id, and an extension by the image's type.
pub fn legacy_name(id: Uuid, content_type: &str) -> String {
    let extension = match content_type {
        "image/jpeg" => "jpg",
        other => other.strip_prefix("image/").unwrap_or("img"),
    };
    format!("{id}.{extension}")
}

/// The job that a file name on the original's wire stands for. None for the names of the original's own users.
pub fn legacy_job_id(filename: &str) -> Option<Uuid> {
    let stem = legacy_output_key(filename);
    let id: Uuid = stem.parse().ok()?;
    // A digest in hexadecimal would be read as an id too.
    (id.get_version_num() == 7 && id.to_string() == stem).then_some(id)
}

/// The original's reply: `{"test_0.JPEG": "bathtub"}`.
pub fn legacy_reply(filename: &str, label: &str) -> String {
    serde_json::json!({ filename: label }).to_string()
}

/// The same for an image that could not be classified.
pub fn legacy_error_reply(filename: &str, reason: &str) -> String {
    legacy_reply(filename, &format!("{ERROR_PREFIX}{reason}"))
}

/// File name and answer of a reply in the original's form: an object of one string. The answer is still as it came;
/// see [`legacy_answer`].
pub fn read_legacy_reply(body: &str) -> Option<(String, String)> {
    let Value::Object(members) = serde_json::from_str(body).ok()? else { return None };
    let mut members = members.into_iter();
    match (members.next(), members.next()) {
        (Some((filename, Value::String(answer))), None) => Some((filename, answer)),
        _ => None,
    }
}

/// The output object of the original's form.
pub fn legacy_output(filename: &str, label: &str) -> String {
    format!("(({filename}, {label}))")
}

/// The answer in an output object: after the name, if it is there; other systems of the family store the label alone.
pub fn read_legacy_output(body: &str) -> &str {
    match body.split_once(',') {
        Some((name, answer)) if legacy_job_id(name.trim_matches(is_wrapping)).is_some() => answer,
        _ => body,
    }
}

/// The label in an answer, or why there is none. The original's worker really sends `" bathtub)\n"`.
///
/// # Errors
/// What one of our workers sent in place of a label.
pub fn legacy_answer(answer: &str) -> Result<String, ErrorInfo> {
    let label = trim_label(answer);
    let Some(reason) = label.strip_prefix(ERROR_PREFIX) else { return Ok(label.to_owned()) };
    let code = reason.split_once(": ").and_then(|(code, _)| ErrorCode::from_wire(code));
    let message = if code.is_some() { reason.split_once(": ").map_or(reason, |(_, message)| message) } else { reason };
    Err(ErrorInfo { code: code.unwrap_or(ErrorCode::Internal), message: message.to_owned() })
}

/// Without the white space around it and the parentheses that have no partner: `crane (bird)` keeps its own.
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
    fn labels_come_clean_out_of_what_workers_send() {
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
    fn what_our_workers_send_in_place_of_a_label_is_a_failure() {
        let (_, answer) = read_legacy_reply(&legacy_error_reply("a.jpg", "undecodable: cut: short")).unwrap();
        let error = legacy_answer(&answer).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Undecodable, "cut: short"));
        let error = legacy_answer("error: nobody knows: why").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Internal, "nobody knows: why"));
    }

    #[test]
    fn only_names_that_a_web_tier_made_stand_for_jobs() {
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
    fn outputs_are_read_with_the_name_and_without() {
        for body in [format!("(({ID}.jpg, tub, bath))"), format!("({ID}.jpg, tub, bath)\n"), "tub, bath".to_owned()] {
            assert_eq!(legacy_answer(read_legacy_output(&body)).as_deref(), Ok("tub, bath"), "{body}");
        }
    }

    #[test]
    fn the_size_of_a_request_is_known_before_it_is_made() {
        for len in [0, 1, 2, 3, 1000] {
            let request = LegacyRequest::new(&vec![7; len], legacy_name(ID.parse().unwrap(), "image/png"));
            assert_eq!(legacy_request_bytes(len, &request.filename), request.to_json().len());
        }
    }
}
