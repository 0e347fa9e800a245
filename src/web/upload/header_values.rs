//! Values of the headers Content-Type and Content-Disposition, as clients really send them (decision 17).
//!
//! Boundaries may contain `=` without quotes, names of parameters are matched without regard to case, and file names
//! may be UTF-8, Shift-JIS or Windows-1252.

use encoding_rs::{Encoding, SHIFT_JIS, WINDOWS_1252};
use percent_encoding::percent_decode;

/// RFC 2046 allows 70.
const MAX_BOUNDARY_BYTES: usize = 256;

/// The names in the Content-Disposition of a form's part.
#[derive(Debug, Default)]
pub(super) struct PartNames {
    /// The name of the field, or an empty string when there is none.
    pub(super) name: String,
    /// `None` when the part does not name a file.
    pub(super) filename: Option<String>,
}

impl PartNames {
    pub(super) fn of_disposition(value: &[u8]) -> PartNames {
        let parameters = parameters(value);
        let name = parameter(&parameters, b"name").map(decode_name).unwrap_or_default();
        PartNames { name, filename: filename_of(&parameters) }
    }
}

/// Returns the media type of a Content-Type, in lower case and without parameters.
pub(super) fn media_type(content_type: &[u8]) -> String {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    String::from_utf8_lossy(content_type[..end].trim_ascii()).to_ascii_lowercase()
}

/// Returns the boundary in a Content-Type, quoted or not, or `None` when there is no usable one.
pub(super) fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    let parameters = parameters(content_type);
    let boundary = parameter(&parameters, b"boundary")?;
    ((1..=MAX_BOUNDARY_BYTES).contains(&boundary.len()) && !boundary.contains(&b'\n')).then(|| boundary.to_vec())
}

/// Returns the file name in a Content-Disposition, or an empty string when there is none. `filename*` takes precedence
/// over `filename` (RFC 6266).
pub(super) fn disposition_filename(value: &[u8]) -> String {
    filename_of(&parameters(value)).unwrap_or_default()
}

fn filename_of(parameters: &[(Vec<u8>, Vec<u8>)]) -> Option<String> {
    let extended = parameter(parameters, b"filename*");
    let plain = parameter(parameters, b"filename");
    match (extended, plain) {
        (Some(extended), plain) => match (decode_extended(extended), plain) {
            (Some(name), _) => Some(name),
            // `filename*` does not follow RFC 8187: use `filename`, or its text as it is.
            (None, Some(plain)) => Some(decode_name(plain)),
            (None, None) => Some(decode_name(extended)),
        },
        (None, plain) => plain.map(decode_name),
    }
}

fn parameter<'a>(parameters: &'a [(Vec<u8>, Vec<u8>)], wanted: &[u8]) -> Option<&'a [u8]> {
    parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_slice())
}

/// Parses `; name=value; name="quoted \" value"` and removes the quotes.
fn parameters(value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = memchr::memchr(b';', value).map_or(&[][..], |at| &value[at + 1..]);
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'=' | b';')) {
        if rest[at] == b';' {
            rest = &rest[at + 1..];
            continue;
        }
        let name = rest[..at].trim_ascii().to_vec();
        let (value, remaining) = take_value(rest[at + 1..].trim_ascii_start());
        found.push((name, value));
        rest = remaining;
    }
    found
}

/// Returns the value at the beginning of `text`, and the text after its semicolon.
fn take_value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let after_semicolon =
        |text: &'_ [u8], from: usize| memchr::memchr(b';', &text[from..]).map_or(text.len(), |at| from + at + 1);
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        return (text[..end].trim_ascii().to_vec(), &text[after_semicolon(text, 0)..]);
    };
    // The second byte of a Shift-JIS character may be a backslash. If treating it as an escape leaves the quotes open,
    // it is not one.
    let (value, end) =
        unquote(quoted, true).or_else(|| unquote(quoted, false)).unwrap_or((quoted.to_vec(), quoted.len()));
    (value, &quoted[after_semicolon(quoted, end)..])
}

/// Returns the text up to the closing quote, and the offset of that quote. A backslash escapes only quotes and
/// backslashes: in `C:\cat.jpg` it is part of the name.
fn unquote(quoted: &[u8], has_escapes: bool) -> Option<(Vec<u8>, usize)> {
    let mut value = Vec::new();
    let mut at = 0;
    while let Some(byte) = quoted.get(at) {
        match (byte, quoted.get(at + 1)) {
            (b'"', _) => return Some((value, at)),
            (b'\\', Some(escaped @ (b'"' | b'\\'))) if has_escapes => {
                value.push(*escaped);
                at += 1;
            }
            _ => value.push(*byte),
        }
        at += 1;
    }
    None
}

/// Decodes `charset'language'percent-encoded` (RFC 8187). Returns `None` for any other form.
fn decode_extended(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes: Vec<u8> = percent_decode(encoded).collect();
    Some(match Encoding::for_label(charset) {
        Some(encoding) if encoding != encoding_rs::UTF_8 => encoding.decode_without_bom_handling(&bytes).0.into_owned(),
        _ => decode_name(&bytes),
    })
}

/// Decodes a name in an unknown encoding: as UTF-8 when it is valid, else as Shift-JIS when it looks like it, else as
/// Windows-1252, in which every byte is a character.
fn decode_name(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    if has_common_shift_jis_lead(bytes)
        && let Some(text) = SHIFT_JIS.decode_without_bom_handling_and_without_replacement(bytes)
    {
        return text.into_owned();
    }
    WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned()
}

/// Kana and the common kanji begin with bytes from 0x81 to 0x9F, which are not letters in Western encodings.
fn has_common_shift_jis_lead(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| (0x81..=0x9f).contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_found_quoted_or_not() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("multipart/form-data;boundary=\"a b;c\"", Some("a b;c")),
            ("Multipart/Form-Data; Charset=utf-8; BOUNDARY=----=_Part_7_1234.5678", Some("----=_Part_7_1234.5678")),
            ("multipart/form-data; boundary==_x; charset=utf-8", Some("=_x")),
            ("multipart/form-data; boundary = abc ", Some("abc")),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary", None),
            ("multipart/form-data", None),
        ] {
            assert_eq!(boundary(content_type.as_bytes()).as_deref(), expected.map(str::as_bytes), "{content_type}");
        }
    }

    #[test]
    fn file_names_are_decoded_in_every_form_that_clients_send() {
        for (header, expected) in [
            (&b"attachment; filename=cat.jpg"[..], "cat.jpg"),
            (br#"attachment; filename="a \"b\"; c.jpg"; x=y"#, r#"a "b"; c.jpg"#),
            (b"attachment; filename=\"plain.jpg\"; filename*=UTF-8''%C3%BC%20x.jpg", "\u{fc} x.jpg"),
            (b"attachment; filename*=utf-8''%C3%BC.jpg; filename=\"plain.jpg\"", "\u{fc}.jpg"),
            (b"attachment; FILENAME*=ISO-8859-1'de'%FC.jpg", "\u{fc}.jpg"),
            (b"attachment; filename*=Shift_JIS''%83%4C.jpg", "\u{30ad}.jpg"),
            (b"attachment; filename*=UTF-8'de'n%00l", "n\0l"),
            (b"attachment; filename*=broken", "broken"),
            (b"attachment; filename*=broken; filename=whole.jpg", "whole.jpg"),
            (b"attachment", ""),
            (b"", ""),
            (b"attachment; filename=\"unterminated", "unterminated"),
            (b"attachment; filename=\"C:\\photos\\cat.jpg\"", "C:\\photos\\cat.jpg"),
            (b"attachment; filename=\"Gr\xf6\xdfe.jpg\"", "Gr\u{f6}\u{df}e.jpg"),
            (b"attachment; filename=\"\xc9t\xe9.jpg\"", "\u{c9}t\u{e9}.jpg"),
            (b"attachment; filename=\"caf\xe9\"", "caf\u{e9}"),
            (b"attachment; filename=\"\x8e\xca\x90\x5e.jpg\"", "\u{5199}\u{771f}.jpg"),
            // The second byte of the last character is a backslash.
            (b"attachment; filename=\"\x90\x7d\x95\x5c\"", "\u{56f3}\u{8868}"),
            (b";;;=;=\"", ""),
        ] {
            assert_eq!(disposition_filename(header), expected, "{}", String::from_utf8_lossy(header));
        }
    }
}
