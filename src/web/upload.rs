//! An image from a request: raw or multipart, with every limit checked before anything is parsed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::error::Problem;
use super::metrics::METRICS;
use crate::model;
use crate::protocol::cut_filename;

/// What a multipart body may have around the image: boundaries, part headers, small fields.
const MULTIPART_ENVELOPE_BYTES: u64 = 64 << 10;
/// After a refusal the client may still be sending and would not read the answer: so much of the rest is taken.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// An image that is small enough and starts like one.
#[derive(Debug)]
pub struct Upload {
    pub bytes: Bytes,
    /// The client's name for it, cut to what the wire carries; may be empty. Data, never a path.
    pub filename: String,
    /// By signature, whatever the client said.
    pub content_type: &'static str,
    /// The memory it takes, given back when the upload is dropped.
    _reservation: Reservation,
}

/// How uploads are taken.
#[derive(Clone)]
pub struct UploadRules {
    pub max_upload_bytes: u64,
    /// Longest pause between two pieces of a body.
    pub body_timeout: Duration,
    pub budget: Budget,
}

/// The memory that all uploads of this process share.
#[derive(Clone)]
pub struct Budget(Arc<Semaphore>);

const BUDGET_UNIT_BYTES: u64 = 1 << 10;

impl Budget {
    pub fn new(max_buffered_bytes: u64) -> Self {
        let units = max_buffered_bytes.div_ceil(BUDGET_UNIT_BYTES);
        Budget(Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))))
    }
}

/// A share of the [`Budget`].
#[derive(Debug, Default)]
struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
    reserved_bytes: u64,
}

impl Reservation {
    /// Sees to it that `bytes` in all are reserved.
    fn grow_to(&mut self, bytes: u64, budget: &Budget) -> Result<(), Problem> {
        if bytes <= self.reserved_bytes {
            return Ok(());
        }
        let units = (bytes - self.reserved_bytes).div_ceil(BUDGET_UNIT_BYTES);
        let full = || Problem::full("all memory for uploads is taken; come again in a moment");
        let units_u32 = u32::try_from(units).map_err(|_| full())?;
        let more = Arc::clone(&budget.0).try_acquire_many_owned(units_u32).map_err(|_| full())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.reserved_bytes += units * BUDGET_UNIT_BYTES;
        Ok(())
    }
}

/// Reads the image of a request: the raw body, or the first file of a multipart form, whatever its field is called.
pub async fn receive(request: Request, rules: &UploadRules) -> Result<Upload, Problem> {
    let _timer = METRICS.stage("uploaded").start_timer();
    let (parts, body) = request.into_parts();
    let boundary = multipart_boundary(&parts.headers)?;
    let envelope = if boundary.is_some() { MULTIPART_ENVELOPE_BYTES } else { 0 };
    let reader = Arc::new(Mutex::new(BodyReader::new(body, rules.clone(), envelope)));
    let announced = content_length(&parts.headers);
    if announced.is_some_and(|bytes| bytes > rules.max_upload_bytes + envelope) {
        // A client that asked first (`Expect: 100-continue`) has sent nothing yet: the answer alone stops it.
        if !parts.headers.contains_key(header::EXPECT) {
            reader.lock().await.drain().await;
        }
        return Err(Problem::too_large(rules.max_upload_bytes));
    }
    let received = match boundary {
        Some(boundary) => receive_multipart(&reader, &boundary, announced).await,
        None => receive_raw(&reader, &parts.headers, announced).await,
    };
    if received.is_err() {
        reader.lock().await.drain().await;
    }
    let (bytes, filename) = received?;
    let Some(content_type) = model::sniff(&bytes) else { return Err(unsupported(&bytes)) };
    let reservation = std::mem::take(&mut reader.lock().await.reservation);
    Ok(Upload { bytes, filename: cut_filename(&filename).to_owned(), content_type, _reservation: reservation })
}

async fn receive_raw(
    reader: &Mutex<BodyReader>,
    headers: &HeaderMap,
    announced: Option<u64>,
) -> Result<(Bytes, String), Problem> {
    let filename = headers
        .get(header::CONTENT_DISPOSITION)
        .map(|value| disposition_filename(&String::from_utf8_lossy(value.as_bytes())))
        .unwrap_or_default();
    let mut reader = reader.lock().await;
    reader.reserve(announced.unwrap_or(0))?;
    let Some(first) = reader.chunk().await? else { return Ok((Bytes::new(), filename)) };
    // A small image comes in one piece and is not copied.
    let Some(second) = reader.chunk().await? else { return Ok((first, filename)) };
    let announced = usize::try_from(announced.unwrap_or(0)).unwrap_or(0);
    let mut bytes = BytesMut::with_capacity(announced.max(first.len() + second.len()));
    bytes.extend_from_slice(&first);
    bytes.extend_from_slice(&second);
    while let Some(chunk) = reader.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes.freeze(), filename))
}

async fn receive_multipart(
    reader: &Arc<Mutex<BodyReader>>,
    boundary: &str,
    announced: Option<u64>,
) -> Result<(Bytes, String), Problem> {
    let limit = reader.lock().await.rules.max_upload_bytes;
    reader.lock().await.reserve(announced.unwrap_or(0))?;
    let chunks = stream::unfold(Arc::clone(reader), |reader| async move {
        let chunk = reader.lock().await.chunk().await.transpose()?;
        Some((chunk, reader))
    });
    let mut form = multer::Multipart::new(chunks.boxed(), boundary);
    let mut seen = Vec::new();
    while let Some(mut field) = form.next_field().await.map_err(|error| multipart_problem(error, limit))? {
        let name = field.name().unwrap_or_default().to_owned();
        let Some(filename) = field.file_name().filter(|filename| !filename.is_empty()).map(str::to_owned) else {
            seen.push(name);
            continue;
        };
        let mut bytes = BytesMut::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
        while let Some(chunk) = field.chunk().await.map_err(|error| multipart_problem(error, limit))? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Problem::too_large(limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        return Ok((bytes.freeze(), filename));
    }
    Err(Problem::malformed(format!(
        "the form has no file; send one in any field (fields without a file: {})",
        if seen.is_empty() { "none".to_owned() } else { cut_filename(&seen.join(", ")).to_owned() }
    )))
}

fn multipart_problem(error: multer::Error, limit: u64) -> Problem {
    match error {
        multer::Error::StreamReadFailed(inner) => match inner.downcast::<Problem>() {
            Ok(problem) => *problem,
            Err(other) => Problem::malformed(format!("the body broke off: {other}")),
        },
        multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => Problem::too_large(limit),
        other => Problem::malformed(format!("not a multipart form: {other}")),
    }
}

/// Reads a body piece by piece within its limits.
struct BodyReader {
    body: Body,
    rules: UploadRules,
    max_bytes: u64,
    received: u64,
    reservation: Reservation,
    ended: bool,
}

impl BodyReader {
    fn new(body: Body, rules: UploadRules, envelope: u64) -> Self {
        let max_bytes = rules.max_upload_bytes + envelope;
        BodyReader { body, rules, max_bytes, received: 0, reservation: Reservation::default(), ended: false }
    }

    /// Reserves the whole at once where its size is known, so that two halves never wait for each other.
    fn reserve(&mut self, bytes: u64) -> Result<(), Problem> {
        self.reservation.grow_to(bytes, &self.rules.budget)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = tokio::time::timeout(self.rules.body_timeout, self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| self.end(Problem::body_timeout()))? else {
                self.ended = true;
                return Ok(None);
            };
            let frame = frame.map_err(|error| self.end(Problem::malformed(format!("the body broke off: {error}"))))?;
            // Trailers carry nothing for us.
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len() as u64;
            if self.received > self.max_bytes {
                return Err(Problem::too_large(self.rules.max_upload_bytes));
            }
            self.reserve(self.received)?;
            return Ok(Some(data));
        }
    }

    /// After these nothing more can be read.
    fn end(&mut self, problem: Problem) -> Problem {
        self.ended = true;
        problem
    }

    /// Takes what the client still sends, within a second and twice the limit, so that it reads our answer.
    async fn drain(&mut self) {
        let rest = async {
            while !self.ended && self.received <= 2 * self.max_bytes {
                match self.body.frame().await {
                    Some(Ok(frame)) => self.received += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Some(Err(_)) | None => self.ended = true,
                }
            }
        };
        // Out of patience: the connection is closed with the answer.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, rest).await;
    }
}

fn unsupported(bytes: &Bytes) -> Problem {
    if bytes.is_empty() {
        return Problem::unsupported_type("the image is empty: zero bytes came");
    }
    Problem::unsupported_type("the file starts like no image type that is taken: JPEG, PNG, WebP, GIF, BMP, TIFF")
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn multipart_boundary(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    if !content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data") {
        return Ok(None);
    }
    multer::parse_boundary(content_type)
        .map(Some)
        .map_err(|_| Problem::malformed("the Content-Type says multipart/form-data without a boundary"))
}

/// The file name of a `Content-Disposition` (RFC 6266): `filename*` before `filename`; empty where there is none.
fn disposition_filename(value: &str) -> String {
    let parameters = split_parameters(value);
    let find = |wanted: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, v)| v);
    if let Some(extended) = find("filename*")
        && let Some((charset, rest)) = extended.split_once('\'')
        && charset.eq_ignore_ascii_case("utf-8")
        && let Some((_language, encoded)) = rest.split_once('\'')
    {
        return percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned();
    }
    find("filename").cloned().unwrap_or_default()
}

/// `; name=value; name="quoted \" value"`, unquoted.
fn split_parameters(value: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim().trim_start_matches(';').trim().to_owned();
        let (text, remaining) = take_value(after.trim_start());
        parameters.push((name, text));
        rest = remaining;
    }
    parameters
}

fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), text.get(end + 1..).unwrap_or(""));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, quoted.get(at + 1..).unwrap_or("")),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_read_as_clients_send_them() {
        for (header, expected) in [
            ("attachment; filename=cat.jpg", "cat.jpg"),
            (r#"attachment; filename="a \"b\"; c.jpg"; x=y"#, r#"a "b"; c.jpg"#),
            ("attachment; filename=\"plain.jpg\"; filename*=UTF-8''%C3%BC%20x.jpg", "ü x.jpg"),
            ("attachment; filename*=UTF-8'de'n%00l", "n\0l"),
            ("attachment; filename*=broken", ""),
            ("attachment", ""),
            ("", ""),
            ("attachment; filename=\"unterminated", "unterminated"),
            (";;;=;=\"", ""),
        ] {
            assert_eq!(disposition_filename(header), expected, "{header}");
        }
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = Budget::new(10 << 10);
        let mut first = Reservation::default();
        first.grow_to(8 << 10, &budget).unwrap();
        first.grow_to(4 << 10, &budget).unwrap();
        let mut second = Reservation::default();
        assert_eq!(second.grow_to(3 << 10, &budget).unwrap_err().kind, "full");
        drop(first);
        second.grow_to(10 << 10, &budget).unwrap();
    }
}
