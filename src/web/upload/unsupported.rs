//! Explains to a client why its body is not an image that can be classified.

use super::multipart::looks_like_form;
use crate::model;
use crate::protocol::cut_filename;
use crate::web::error::Problem;

const SEND_THE_BYTES: &str = "send the bytes of the image file instead, as the body (curl --data-binary @cat.jpg) or \
    as the file of a form (curl -F image=@cat.jpg)";

/// Makes the problem for a file that is not an image. It says what the file is, as far as its first bytes and its
/// headers show.
pub(super) fn unsupported(start: &[u8], filename: &str, content_type: &str) -> Problem {
    let named = if filename.is_empty() { String::new() } else { format!("{:?}: ", cut_filename(filename)) };
    let text = start.trim_ascii_start();
    let is_json = content_type.ends_with("json") || matches!(text.first(), Some(b'{' | b'['));
    Problem::unsupported_type(if start.is_empty() {
        format!("{named}the image is empty: it has zero bytes")
    } else if is_json {
        format!(
            "{named}JSON is accepted only by POST /v1/classify and /v1/jobs, as {{\"image\": \"<base64>\"}} with the \
             Content-Type application/json; {SEND_THE_BYTES}"
        )
    } else if text.starts_with(b"data:") || looks_like_base64(text) {
        format!("{named}base64 is not accepted; {SEND_THE_BYTES}")
    } else if let Some(kind) = model::foreign_kind(start) {
        format!("{named}the file is {kind}")
    } else if looks_like_form(start) {
        format!("{named}this is a form, but the Content-Type is not multipart/form-data with its boundary")
    } else {
        let is_text = std::str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true);
        let kind = match (is_text, content_type) {
            (true, "" | "application/octet-stream" | "application/x-www-form-urlencoded") => {
                " is text, which".to_owned()
            }
            (_, "" | "application/octet-stream" | "application/x-www-form-urlencoded") => String::new(),
            (_, content_type) => format!(", sent as {},", cut_filename(content_type)),
        };
        let formats = model::format_names();
        format!("{named}the file{kind} does not begin like any accepted image type: {formats}")
    })
}

/// Returns whether `text` begins like an image file in base64.
fn looks_like_base64(text: &[u8]) -> bool {
    // The length of the first box of a HEIC or AVIF varies.
    if text.starts_with(b"AAAA") && text.get(8..10) == Some(b"eX") {
        return true;
    }
    [&b"/9j/"[..], b"iVBORw0KGgo", b"R0lGODlh", b"R0lGODdh", b"UklGR", b"SUkqA", b"TU0AK", b"AAAADGpQ", b"AAAADEpY"]
        .iter()
        .any(|signature| text.starts_with(signature))
}
