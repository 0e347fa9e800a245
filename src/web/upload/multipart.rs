//! A parser for multipart forms as clients really send them (decision 17).
//!
//! [`FormReader`] does no I/O: bytes go in as they arrive, events come out. It takes time in proportion to the bytes,
//! however small the pieces are, and holds at most the head of one part ([`MAX_HEAD_BYTES`]) or the length of a
//! delimiter.
//!
//! It is more tolerant than RFC 7578: lines may end with LF alone, the boundary may contain `=` without quotes, names
//! of headers and parameters are matched without regard to case, and a part needs no Content-Disposition.

use bytes::{Bytes, BytesMut};
use memchr::memmem::{self, Finder};

use super::header_values::{PartNames, media_type};

/// Largest size of all headers of one part.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most white space that may follow a delimiter on its line.
const MAX_PADDING_BYTES: usize = 256;
const MAX_PARTS: usize = 1_000;

/// The headers of a part.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PartHead {
    /// The name of the field, or an empty string when the part has none.
    pub(super) name: String,
    /// `None` when the part does not name a file.
    pub(super) filename: Option<String>,
    /// In lower case, without parameters; empty when the part has none.
    pub(super) content_type: String,
}

/// One step through a form. Every `PartBegins` is followed by a `PartEnds`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    PartBegins(PartHead),
    /// The next bytes of the part; never empty.
    Data(Bytes),
    PartEnds,
}

/// Why a body is not a multipart form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    #[error("the headers of a part are longer than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    #[error("it has more than {MAX_PARTS} parts")]
    TooManyParts,
    #[error("the boundary of the Content-Type does not occur in the body")]
    NoDelimiter,
    #[error("the body ends in the middle of a part: the closing boundary is missing")]
    Truncated,
}

/// Reads one multipart body.
pub(super) struct FormReader {
    /// A line feed, two dashes and the boundary.
    delimiter: Finder<'static>,
    /// Bytes that have arrived and were not returned yet. It begins with a line feed that is not part of the body, so
    /// that a delimiter at the very beginning is found like any other.
    buffer: BytesMut,
    /// The offset where the search continues.
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

/// The content that follows the bytes of a delimiter.
enum Follows {
    /// The head of a part, after this many bytes.
    Part(usize),
    EndOfForm,
    /// More content: the bytes only resembled a delimiter.
    Content,
    Unknown,
}

/// The outcome of one step of [`FormReader::next`].
enum Step {
    Event(Event),
    Continue,
    NeedsMore,
}

impl FormReader {
    /// Reads a form with the `boundary` of its Content-Type.
    pub(super) fn new(boundary: &[u8]) -> FormReader {
        let delimiter = [b"\n--", boundary].concat();
        FormReader {
            delimiter: Finder::new(&delimiter).into_owned(),
            buffer: BytesMut::from(&b"\n"[..]),
            searched: 0,
            state: State::Preamble,
            parts: 0,
        }
    }

    /// Adds the next bytes of the body. Bytes after the form are ignored.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Returns the next event, or `None` when more bytes are needed. `is_last` says that there are no more.
    ///
    /// # Errors
    /// When the body is not a form, or exceeds one of the limits.
    pub(super) fn next(&mut self, is_last: bool) -> Result<Option<Event>, FormError> {
        loop {
            match self.state {
                State::Preamble | State::Content => match self.content(is_last)? {
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Continue => {}
                    Step::NeedsMore => return Ok(None),
                },
                State::Head => return self.head(is_last),
                State::End => {
                    self.buffer.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// Searches for a delimiter. Everything before it is the content of a part, or the preamble.
    fn content(&mut self, is_last: bool) -> Result<Step, FormError> {
        let Some(at) = self.delimiter.find(&self.buffer[self.searched..]).map(|at| at + self.searched) else {
            if is_last {
                return Err(self.truncated());
            }
            // A delimiter, with the carriage return before it, may begin in the last bytes.
            let kept = self.delimiter.needle().len();
            let length = self.buffer.len().saturating_sub(kept);
            self.searched = self.buffer.len() - length - kept.saturating_sub(1).min(self.buffer.len() - length);
            return Ok(self.take(length));
        };
        let end = if at > 0 && self.buffer[at - 1] == b'\r' { at - 1 } else { at };
        let after = at + self.delimiter.needle().len();
        match follows(&self.buffer[after..], is_last) {
            Follows::Unknown => {
                self.searched = at - end;
                Ok(self.take(end))
            }
            Follows::Content => {
                self.searched = at + 1;
                Ok(Step::Continue)
            }
            _ if end > 0 => {
                self.searched = at - end;
                Ok(self.take(end))
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
        let previous = std::mem::replace(&mut self.state, next);
        if previous == State::Content { Step::Event(Event::PartEnds) } else { Step::Continue }
    }

    /// Takes the first bytes out of the buffer.
    fn take(&mut self, length: usize) -> Step {
        let taken = self.buffer.split_to(length);
        match (taken.is_empty(), self.state) {
            (false, State::Content) => Step::Event(Event::Data(taken.freeze())),
            (false, _) => Step::Continue,
            (true, _) => Step::NeedsMore,
        }
    }

    fn head(&mut self, is_last: bool) -> Result<Option<Event>, FormError> {
        let Some(end) = end_of_head(&self.buffer, &mut self.searched) else {
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(FormError::HeadTooLong);
            }
            return if is_last { Err(FormError::Truncated) } else { Ok(None) };
        };
        if end > MAX_HEAD_BYTES {
            return Err(FormError::HeadTooLong);
        }
        let head = self.buffer.split_to(end);
        self.searched = 0;
        self.state = State::Content;
        Ok(Some(Event::PartBegins(part_head(&head))))
    }

    fn truncated(&self) -> FormError {
        if self.state == State::Preamble { FormError::NoDelimiter } else { FormError::Truncated }
    }
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
        // Some clients omit the last two dashes.
        [] | [b'\r' | b'-'] if is_last => Follows::EndOfForm,
        [] | [b'\r'] => Follows::Unknown,
        [b'-'] if padding == 0 => Follows::Unknown,
        _ => Follows::Content,
    }
}

/// Returns the offset where the content of a part begins: after the first empty line. `searched` is the offset where
/// the search continues.
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
                let PartNames { name, filename } = PartNames::of_disposition(&value);
                (head.name, head.filename) = (name, filename);
            }
            "content-type" => head.content_type = media_type(&value),
            _ => {}
        }
    }
    head
}

/// Returns the headers with their names in lower case. A line that begins with white space continues the one before.
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

/// Returns whether a body begins with a delimiter of a form. For explaining a form whose Content-Type does not say so.
pub(super) fn looks_like_form(text: &[u8]) -> bool {
    text.starts_with(b"--") && memmem::find(&text[..text.len().min(1_024)], b"ontent-").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field's name, the file name, the media type and the content of a part.
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
    fn pieces_of_any_size_give_the_same_parts() {
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
    fn bare_line_feeds_and_missing_last_dashes_are_accepted() {
        let expected = Ok(vec![part("f", Some("a"), "", b"x\r\ny")]);
        for end in ["--", "--\n", "", "\n", "-", " "] {
            let body = format!("--b\nContent-Disposition: form-data; name=f;\n filename=a\n\nx\r\ny\n--b{end}");
            // After a whole line a part would follow.
            let expected = if end == "\n" { Err(FormError::Truncated) } else { expected.clone() };
            for piece in 1..=body.len() {
                assert_eq!(read(b"b", body.as_bytes(), piece), expected, "{end:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn malformed_forms_are_refused_with_their_fault() {
        for (body, error) in [
            (&b""[..], FormError::NoDelimiter),
            (b"nonsense", FormError::NoDelimiter),
            (b"--other\r\n\r\nx\r\n--other--", FormError::NoDelimiter),
            (b"--b\r\nContent-Disposition: form-data", FormError::Truncated),
            (b"--b\r\n\r\nhalf an image", FormError::Truncated),
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
    fn head_that_arrives_byte_by_byte_costs_linear_time() {
        let mut reader = FormReader::new(b"b");
        reader.push(b"--b\r\n");
        let mut searched = 0;
        for _ in 0..MAX_HEAD_BYTES {
            reader.push(b"x");
            assert_eq!(reader.next(false), Ok(None));
            assert!(reader.searched >= searched, "it searches some bytes again");
            searched = reader.searched;
        }
        assert_eq!(searched, MAX_HEAD_BYTES);
        reader.push(b"x");
        assert_eq!(reader.next(false), Err(FormError::HeadTooLong));
    }

    #[test]
    fn content_is_returned_as_it_arrives() {
        let mut reader = FormReader::new(b"b");
        reader.push(b"--b\r\n\r\n");
        let mut returned = 0;
        for sent in 1..10_000_usize {
            reader.push(b"\n");
            while let Some(event) = reader.next(false).unwrap() {
                returned += if let Event::Data(data) = event { data.len() } else { 0 };
            }
            assert!(sent - returned <= 5 && reader.buffer.len() <= 5, "{sent} sent, {returned} returned");
        }
    }
}
