//! Multipart forms and file names as clients really send them (decision 17).
//!
//! [`FormReader`] is pure: bytes go in as they arrive, events come out. It takes time in proportion to the bytes, however
//! small the pieces are, and holds at most one head of a part ([`MAX_HEAD_BYTES`]) or the length of a delimiter.
//!
//! It is more tolerant than RFC 7578 where clients are: lines may end with LF alone, the boundary may hold `=` without
//! quotes, names of headers and parameters are matched without regard to case, a part needs no Content-Disposition, and
//! file names may be UTF-8, Shift-JIS or Windows-1252.

use bytes::{Bytes, BytesMut};
use encoding_rs::{Encoding, SHIFT_JIS, WINDOWS_1252};
use memchr::memmem::{self, Finder};
use percent_encoding::percent_decode;

/// Bytes of all headers of one part.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// White space that may follow a delimiter on its line.
const MAX_PADDING_BYTES: usize = 256;
/// RFC 2046 allows 70.
const MAX_BOUNDARY_BYTES: usize = 256;
const MAX_PARTS: usize = 1_000;

/// What the headers of a part say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PartHead {
    /// Name of the field; empty where there is none.
    pub name: String,
    /// None where the part names no file.
    pub filename: Option<String>,
    /// In lower case, without parameters; empty where there is none.
    pub content_type: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    PartBegins(PartHead),
    /// The next bytes of the part; never empty.
    Data(Bytes),
    PartEnds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    #[error("the headers of a part are longer than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    #[error("it has more than {MAX_PARTS} parts")]
    TooManyParts,
    #[error("the boundary of the Content-Type does not occur in the body")]
    NoDelimiter,
    #[error("the body ends in the middle of a part: the closing boundary is missing")]
    EndsEarly,
}

/// Reads one multipart body.
pub struct FormReader {
    /// A line feed, two dashes and the boundary.
    delimiter: Finder<'static>,
    /// What has arrived and is not told yet. It begins with a line feed that is none of the body's, so that a delimiter at
    /// the very beginning looks like any other.
    buffer: BytesMut,
    /// The search goes on here.
    searched: usize,
    state: State,
    parts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    Head,
    Content,
    End,
}

/// What follows the bytes of a delimiter.
enum Follows {
    /// The head of a part, after so many bytes.
    Part(usize),
    EndOfForm,
    /// It only looked like a delimiter.
    Content,
    Unknown,
}

impl FormReader {
    pub fn new(boundary: &[u8]) -> FormReader {
        let delimiter = [b"\n--", boundary].concat();
        FormReader {
            delimiter: Finder::new(&delimiter).into_owned(),
            buffer: BytesMut::from(&b"\n"[..]),
            searched: 0,
            state: State::Preamble,
            parts: 0,
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        // What follows the form means nothing.
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next event, or None where more bytes are needed. `is_last`: no more bytes come.
    pub fn next(&mut self, is_last: bool) -> Result<Option<Event>, FormError> {
        loop {
            match self.state {
                State::Preamble | State::Content => match self.content(is_last)? {
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Again => {}
                    Step::More => return Ok(None),
                },
                State::Head => return self.head(is_last),
                State::End => {
                    self.buffer.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// Looks for a delimiter; everything before it is the content of a part, or preamble.
    fn content(&mut self, is_last: bool) -> Result<Step, FormError> {
        let Some(at) = self.delimiter.find(&self.buffer[self.searched..]).map(|at| at + self.searched) else {
            if is_last {
                return Err(self.ended_early());
            }
            // A delimiter may begin in the last bytes, and a carriage return before it belongs to it.
            let kept = self.delimiter.needle().len();
            let told = self.buffer.len().saturating_sub(kept);
            self.searched = self.buffer.len() - told - kept.saturating_sub(1).min(self.buffer.len() - told);
            return Ok(self.tell(told));
        };
        let end = if at > 0 && self.buffer[at - 1] == b'\r' { at - 1 } else { at };
        let after = at + self.delimiter.needle().len();
        match follows(&self.buffer[after..], is_last) {
            Follows::Unknown => {
                self.searched = at - end;
                Ok(self.tell(end))
            }
            Follows::Content => {
                self.searched = at + 1;
                Ok(Step::Again)
            }
            _ if end > 0 => {
                self.searched = at - end;
                Ok(self.tell(end))
            }
            Follows::EndOfForm => Ok(self.end_part(State::End)),
            Follows::Part(length) => {
                self.parts += 1;
                if self.parts > MAX_PARTS {
                    return Err(FormError::TooManyParts);
                }
                drop(self.buffer.split_to(after + length));
                self.searched = 0;
                Ok(self.end_part(State::Head))
            }
        }
    }

    fn end_part(&mut self, next: State) -> Step {
        let was = std::mem::replace(&mut self.state, next);
        if was == State::Content { Step::Event(Event::PartEnds) } else { Step::Again }
    }

    /// Takes the first bytes out of the buffer.
    fn tell(&mut self, length: usize) -> Step {
        let told = self.buffer.split_to(length);
        match (told.is_empty(), self.state) {
            (false, State::Content) => Step::Event(Event::Data(told.freeze())),
            (false, _) => Step::Again,
            (true, _) => Step::More,
        }
    }

    fn head(&mut self, is_last: bool) -> Result<Option<Event>, FormError> {
        let Some(end) = end_of_head(&self.buffer, &mut self.searched) else {
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(FormError::HeadTooLong);
            }
            return if is_last { Err(FormError::EndsEarly) } else { Ok(None) };
        };
        if end > MAX_HEAD_BYTES {
            return Err(FormError::HeadTooLong);
        }
        let head = self.buffer.split_to(end);
        self.searched = 0;
        self.state = State::Content;
        Ok(Some(Event::PartBegins(part_head(&head))))
    }

    fn ended_early(&self) -> FormError {
        if self.state == State::Preamble { FormError::NoDelimiter } else { FormError::EndsEarly }
    }
}

enum Step {
    Event(Event),
    Again,
    More,
}

fn follows(rest: &[u8], is_last: bool) -> Follows {
    if rest.starts_with(b"--") {
        return Follows::EndOfForm;
    }
    let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &rest[padding..] {
        _ if padding > MAX_PADDING_BYTES => Follows::Content,
        [b'\n', ..] => Follows::Part(padding + 1),
        [b'\r', b'\n', ..] => Follows::Part(padding + 2),
        // Some clients forget the last two dashes.
        [] | [b'\r' | b'-'] if is_last => Follows::EndOfForm,
        [] | [b'\r'] => Follows::Unknown,
        [b'-'] if padding == 0 => Follows::Unknown,
        _ => Follows::Content,
    }
}

/// Where the content of a part begins: after the first empty line. `searched` is where the search goes on next time.
fn end_of_head(buffer: &[u8], searched: &mut usize) -> Option<usize> {
    if *searched == 0 {
        match buffer {
            [b'\n', ..] => return Some(1),
            [b'\r', b'\n', ..] => return Some(2),
            [b'\r'] => return None,
            _ => {}
        }
    }
    let mut from = *searched;
    while let Some(at) = memchr::memchr(b'\n', &buffer[from..]).map(|at| at + from) {
        match &buffer[at + 1..] {
            [b'\n', ..] => return Some(at + 2),
            [b'\r', b'\n', ..] => return Some(at + 3),
            [] | [b'\r'] => {
                *searched = at;
                return None;
            }
            _ => from = at + 1,
        }
    }
    *searched = buffer.len();
    None
}

fn part_head(bytes: &[u8]) -> PartHead {
    let mut head = PartHead::default();
    for (name, value) in header_lines(bytes) {
        match name.as_str() {
            "content-disposition" => {
                let parameters = parameters(&value);
                head.name = parameter(&parameters, b"name").map(decode_name).unwrap_or_default();
                head.filename = filename_of(&parameters);
            }
            "content-type" => head.content_type = media_type(&value),
            _ => {}
        }
    }
    head
}

/// Names in lower case. A line that begins with white space continues the one before.
fn header_lines(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut lines: Vec<(String, Vec<u8>)> = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let (Some(b' ' | b'\t'), Some((_, value))) = (line.first(), lines.last_mut()) {
            value.push(b' ');
            value.extend_from_slice(line.trim_ascii());
        } else if let Some(colon) = memchr::memchr(b':', line) {
            let name = String::from_utf8_lossy(line[..colon].trim_ascii()).to_ascii_lowercase();
            lines.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }
    lines
}

/// The media type of a Content-Type, in lower case and without parameters.
pub fn media_type(content_type: &[u8]) -> String {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    String::from_utf8_lossy(content_type[..end].trim_ascii()).to_ascii_lowercase()
}

/// The boundary that a Content-Type names, quoted or not. None where there is none that can be used.
pub fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    let parameters = parameters(content_type);
    let boundary = parameter(&parameters, b"boundary")?;
    ((1..=MAX_BOUNDARY_BYTES).contains(&boundary.len()) && !boundary.contains(&b'\n')).then(|| boundary.to_vec())
}

/// The file name of a Content-Disposition (RFC 6266): `filename*` before `filename`; empty where there is none.
pub fn disposition_filename(value: &[u8]) -> String {
    filename_of(&parameters(value)).unwrap_or_default()
}

fn filename_of(parameters: &[(Vec<u8>, Vec<u8>)]) -> Option<String> {
    let extended = parameter(parameters, b"filename*");
    let plain = parameter(parameters, b"filename");
    match (extended, plain) {
        (Some(extended), plain) => match (decode_extended(extended), plain) {
            (Some(name), _) => Some(name),
            // Not in the form of RFC 8187: the other one, or the text as it is.
            (None, Some(plain)) => Some(decode_name(plain)),
            (None, None) => Some(decode_name(extended)),
        },
        (None, plain) => plain.map(decode_name),
    }
}

fn parameter<'a>(parameters: &'a [(Vec<u8>, Vec<u8>)], wanted: &[u8]) -> Option<&'a [u8]> {
    parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_slice())
}

/// `; name=value; name="quoted \" value"`, unquoted.
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

/// The value that `text` begins with, and what follows its semicolon.
fn take_value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let after_semicolon =
        |text: &'_ [u8], from: usize| memchr::memchr(b';', &text[from..]).map_or(text.len(), |at| from + at + 1);
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        return (text[..end].trim_ascii().to_vec(), &text[after_semicolon(text, 0)..]);
    };
    // The second byte of a Shift-JIS character may be a backslash: where taking it for an escape leaves the quotes
    // open, it is none.
    let (value, end) =
        unquote(quoted, true).or_else(|| unquote(quoted, false)).unwrap_or((quoted.to_vec(), quoted.len()));
    (value, &quoted[after_semicolon(quoted, end)..])
}

/// The text up to the closing quotes, and where those are. A backslash escapes quotes and backslashes only: in
/// `C:\cat.jpg` it stands for itself.
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

/// `charset'language'percent-encoded` (RFC 8187).
fn decode_extended(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes: Vec<u8> = percent_decode(encoded).collect();
    Some(match Encoding::for_label(charset) {
        Some(encoding) if encoding != encoding_rs::UTF_8 => encoding.decode_without_bom_handling(&bytes).0.into_owned(),
        _ => decode_name(&bytes),
    })
}

/// A name in an encoding that nobody told: UTF-8 where it is valid, else Shift-JIS where it looks like it, else
/// Windows-1252, in which every byte means something.
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

/// Kana and the common kanji begin with bytes from 0x81 to 0x9F, which are no letters in Western encodings.
fn has_common_shift_jis_lead(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| (0x81..=0x9f).contains(byte))
}

/// Whether `text` holds a delimiter of a form: for a body whose Content-Type does not say that it is one.
pub fn looks_like_form(text: &[u8]) -> bool {
    text.starts_with(b"--") && memmem::find(&text[..text.len().min(1_024)], b"ontent-").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name of the field, file name, media type, content of each part.
    type Part = (String, Option<String>, String, Vec<u8>);

    fn read(boundary: &[u8], body: &[u8], piece: usize) -> Result<Vec<Part>, FormError> {
        let mut reader = FormReader::new(boundary);
        let mut parts: Vec<Part> = Vec::new();
        let mut is_open = false;
        let mut pieces = body.chunks(piece.max(1));
        loop {
            let next = pieces.next();
            reader.push(next.unwrap_or_default());
            while let Some(event) = reader.next(next.is_none())? {
                match event {
                    Event::PartBegins(head) => {
                        assert!(!is_open);
                        is_open = true;
                        parts.push((head.name, head.filename, head.content_type, Vec::new()));
                    }
                    Event::Data(data) => {
                        assert!(is_open && !data.is_empty());
                        parts.last_mut().unwrap().3.extend_from_slice(&data);
                    }
                    Event::PartEnds => {
                        assert!(is_open);
                        is_open = false;
                    }
                }
            }
            if next.is_none() {
                assert!(!is_open);
                return Ok(parts);
            }
        }
    }

    fn part(name: &str, filename: Option<&str>, content_type: &str, content: &[u8]) -> Part {
        (name.to_owned(), filename.map(str::to_owned), content_type.to_owned(), content.to_vec())
    }

    #[test]
    fn forms_are_read_alike_in_pieces_of_any_size() {
        let body = b"preamble\r\n--=_b.1\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nvalue\r\n--=_b.1 \t\r\n\
            CONTENT-DISPOSITION: Form-Data; NAME=f; FileName=\"x\\\"y.jpg\"\r\ncontent-type: IMAGE/JPEG; q=1\r\n\r\n\
            \xff\xd8\xff\r\n--=_b.\r\n\r\n--=_b.1x\r\r\n--=_b.1\r\n\r\nno headers\r\n--=_b.1\r\nX: y\r\n\r\n\r\n--=_b.1--\r\nepilogue\r\n--=_b.1\r\n";
        let expected = vec![
            part("a", None, "", b"value"),
            part("f", Some("x\"y.jpg"), "image/jpeg", b"\xff\xd8\xff\r\n--=_b.\r\n\r\n--=_b.1x\r"),
            part("", None, "", b"no headers"),
            part("", None, "", b""),
        ];
        for piece in (1..=body.len()).rev() {
            assert_eq!(read(b"=_b.1", body, piece).as_ref(), Ok(&expected), "pieces of {piece}");
        }
    }

    #[test]
    fn lines_may_end_with_line_feeds_alone_and_the_last_dashes_may_be_missing() {
        let expected = Ok(vec![part("f", Some("a"), "", b"x\r\ny")]);
        for end in ["--", "--\n", "", "\n", "-", " "] {
            let body = format!("--b\nContent-Disposition: form-data; name=f;\n filename=a\n\nx\r\ny\n--b{end}");
            // After a whole line a part would follow.
            let expected = if end == "\n" { Err(FormError::EndsEarly) } else { expected.clone() };
            for piece in 1..=body.len() {
                assert_eq!(read(b"b", body.as_bytes(), piece), expected, "{end:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_form_is_told() {
        for (body, error) in [
            (&b""[..], FormError::NoDelimiter),
            (b"nonsense", FormError::NoDelimiter),
            (b"--other\r\n\r\nx\r\n--other--", FormError::NoDelimiter),
            (b"--b\r\nContent-Disposition: form-data", FormError::EndsEarly),
            (b"--b\r\n\r\nhalf an image", FormError::EndsEarly),
        ] {
            assert_eq!(read(b"b", body, 7), Err(error), "{}", String::from_utf8_lossy(body));
        }
        let long = [b"--b\r\nX: ".as_slice(), &vec![b'x'; 20_000], b"\r\n\r\nx\r\n--b--"].concat();
        let many = b"--b\r\n\r\nx\r\n".repeat(1_001);
        for piece in [1, 1_000, 30_000] {
            assert_eq!(read(b"b", &long, piece), Err(FormError::HeadTooLong), "pieces of {piece}");
            assert_eq!(read(b"b", &many, piece), Err(FormError::TooManyParts), "pieces of {piece}");
        }
    }

    #[test]
    fn a_head_that_drips_costs_linear_time() {
        let mut reader = FormReader::new(b"b");
        reader.push(b"--b\r\n");
        let mut searched = 0;
        for _ in 0..MAX_HEAD_BYTES {
            reader.push(b"x");
            assert_eq!(reader.next(false), Ok(None));
            assert!(reader.searched >= searched, "it searches again what it had searched");
            searched = reader.searched;
        }
        assert_eq!(searched, MAX_HEAD_BYTES);
        reader.push(b"x");
        assert_eq!(reader.next(false), Err(FormError::HeadTooLong));
    }

    #[test]
    fn content_that_drips_is_told_at_once() {
        let mut reader = FormReader::new(b"b");
        reader.push(b"--b\r\n\r\n");
        let mut told = 0;
        for sent in 1..10_000_usize {
            reader.push(b"\n");
            while let Some(event) = reader.next(false).unwrap() {
                told += if let Event::Data(data) = event { data.len() } else { 0 };
            }
            assert!(sent - told <= 5 && reader.buffer.len() <= 5, "{sent} sent, {told} told");
        }
    }

    #[test]
    fn boundaries_are_found_as_clients_write_them() {
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
    fn file_names_are_read_as_clients_send_them() {
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
            (b"attachment; filename=\"C:\\pictures\\cat.jpg\"", "C:\\pictures\\cat.jpg"),
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
