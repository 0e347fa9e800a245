//! An image from a request: raw, gzip-encoded, or in a multipart form, with every limit checked before anything is parsed.
//!
//! Memory follows what has arrived: it is reserved from the [`Budget`] before it is allocated, and what a client announces
//! is only an upper bound.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::budget::{Budget, Reservation};
use super::error::Problem;
use super::forms::{self, Event, FormReader, PartHead};
use super::gzip::{Gunzip, Unpacked};
use super::metrics::METRICS;
use super::stream::MIN_BYTES_PER_SECOND;
use crate::model;
use crate::protocol::cut_filename;

/// What a multipart body may have around the image: boundaries, part headers, small fields.
const MULTIPART_ENVELOPE_BYTES: u64 = 64 << 10;
/// After a refusal the client may still be sending and would not read the answer: so much of the rest is taken.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// An upload may be slower than [`MIN_BYTES_PER_SECOND`] for so long.
const SLOW_START: Duration = Duration::from_secs(10);
/// Enough of a file to tell what it is.
const SIGNATURE_BYTES: usize = 64;
/// Files of a form that are named when none of them is an image.
const MAX_NAMED_FILES: usize = 8;

/// An image that is small enough and starts like one.
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

/// Reads the image of a request: the raw body, or the one image of a multipart form, whatever its field is called.
pub async fn receive(request: Request, rules: &UploadRules) -> Result<Upload, Problem> {
    let _timer = METRICS.stage("uploaded").start_timer();
    let (parts, body) = request.into_parts();
    let form = form_boundary(&parts.headers)?;
    let is_packed = is_gzip(&parts.headers)?;
    // A form may hold other files beside the image. What is wrong with it is told better than that it is too large.
    let max_bytes = match form {
        Some(_) => 2 * rules.max_upload_bytes + MULTIPART_ENVELOPE_BYTES,
        None => rules.max_upload_bytes,
    };
    let mut reader = BodyReader::new(body, rules, max_bytes, is_packed);
    let announced = content_length(&parts.headers);
    let received = if announced.is_some_and(|bytes| bytes > max_bytes) {
        // A client that asked first (`Expect: 100-continue`) has sent nothing yet: the answer alone stops it.
        reader.has_ended |= parts.headers.contains_key(header::EXPECT);
        Err(Problem::too_large(rules.max_upload_bytes))
    } else {
        let expected = announced.filter(|_| !is_packed).unwrap_or(max_bytes);
        match form {
            Some(boundary) => receive_form(&mut reader, &boundary, expected.min(rules.max_upload_bytes)).await,
            None => receive_raw(&mut reader, &parts, expected).await,
        }
    };
    match received {
        Ok((bytes, content_type, filename)) => {
            let mut reservation = reader.reservation;
            reservation.complete();
            let filename = cut_filename(&filename).to_owned();
            Ok(Upload { bytes, filename, content_type, _reservation: reservation })
        }
        Err(problem) => {
            reader.drain().await;
            Err(problem)
        }
    }
}

/// Takes the body of a request that is refused before anything of it was read, so that the client reads the answer.
pub async fn discard(request: Request, rules: &UploadRules) {
    let mut reader = BodyReader::new(request.into_body(), rules, rules.max_upload_bytes, false);
    reader.drain().await;
}

/// The bytes of an image, its media type by signature, and its name.
type Received = (Bytes, &'static str, String);

async fn receive_raw(reader: &mut BodyReader<'_>, parts: &Parts, expected_bytes: u64) -> Result<Received, Problem> {
    let filename = match parts.headers.get(header::CONTENT_DISPOSITION) {
        Some(value) => forms::disposition_filename(value.as_bytes()),
        None => parts.extensions.get::<PathName>().map(|PathName(name)| name.clone()).unwrap_or_default(),
    };
    let mut image = Image::new(expected_bytes);
    while let Some(chunk) = reader.chunk().await? {
        image.push(reader, chunk).await?;
    }
    let bytes = image.into_bytes();
    match model::sniff(&bytes) {
        Some(content_type) => Ok((bytes, content_type, filename)),
        None => Err(unsupported(&bytes, "", &content_type(&parts.headers))),
    }
}

/// A file name from the address of the request, for clients that say none elsewhere.
#[derive(Debug, Clone)]
pub struct PathName(pub String);

/// The first part that starts like an image is taken, whatever its headers say; a second one is refused, so that nobody
/// believes that both were classified.
async fn receive_form(reader: &mut BodyReader<'_>, boundary: &[u8], expected_bytes: u64) -> Result<Received, Problem> {
    let mut form = FormReader::new(boundary);
    let mut parts = FormParts { expected_bytes, part: None, image: None, files: Vec::new(), fields: Vec::new() };
    loop {
        let chunk = reader.chunk().await?;
        form.push(chunk.as_deref().unwrap_or_default());
        while let Some(event) = form.next(chunk.is_none()).map_err(malformed_form)? {
            parts.take(reader, event).await?;
        }
        if chunk.is_none() {
            return parts.finish();
        }
    }
}

fn malformed_form(error: forms::FormError) -> Problem {
    Problem::malformed(format!("not a multipart form: {error}"))
}

/// What has been read of a form.
struct FormParts {
    expected_bytes: u64,
    part: Option<Part>,
    image: Option<Received>,
    /// Why each file that is no image is none.
    files: Vec<Problem>,
    /// Names of fields that hold no file.
    fields: Vec<String>,
}

/// The part that is being read.
struct Part {
    head: PartHead,
    bytes: u64,
    /// Its first bytes, until they tell whether it is an image.
    start: Vec<u8>,
    /// Where it is one.
    image: Option<Image>,
}

impl FormParts {
    async fn take(&mut self, reader: &mut BodyReader<'_>, event: Event) -> Result<(), Problem> {
        match event {
            Event::PartBegins(head) => self.part = Some(Part { head, bytes: 0, start: Vec::new(), image: None }),
            Event::Data(data) => {
                let has_image = self.image.is_some();
                let Some(part) = &mut self.part else { return Ok(()) };
                part.push(reader, data, has_image, self.expected_bytes).await?;
            }
            Event::PartEnds => {
                if let Some(mut part) = self.part.take() {
                    part.look(reader, self.image.is_some(), self.expected_bytes).await?;
                    self.end_part(part);
                }
            }
        }
        Ok(())
    }

    fn end_part(&mut self, part: Part) {
        let PartHead { name, filename, content_type } = part.head;
        if let Some(image) = part.image {
            let bytes = image.into_bytes();
            if let Some(content_type) = model::sniff(&bytes) {
                self.image = Some((bytes, content_type, filename.unwrap_or_default()));
            }
            return;
        }
        // A browser sends a file input that nothing was chosen for as a file without name and bytes.
        let is_file = match &filename {
            Some(filename) => !filename.is_empty() || part.bytes > 0,
            None => content_type.starts_with("image/"),
        };
        if is_file && self.files.len() < MAX_NAMED_FILES {
            let filename = filename.filter(|filename| !filename.is_empty()).unwrap_or(name);
            self.files.push(unsupported(&part.start, &filename, &content_type));
        } else if !is_file && self.fields.len() < MAX_NAMED_FILES {
            self.fields.push(cut_filename(&name).to_owned());
        }
    }

    fn finish(self) -> Result<Received, Problem> {
        if let Some(image) = self.image {
            return Ok(image);
        }
        if !self.files.is_empty() {
            let details: Vec<&str> = self.files.iter().map(|problem| problem.detail.as_str()).collect();
            return Err(Problem::unsupported_type(details.join("; ")));
        }
        Err(Problem::malformed(format!(
            "the form has no file; send one in any field (fields without a file: {})",
            if self.fields.is_empty() { "none".to_owned() } else { cut_filename(&self.fields.join(", ")).to_owned() }
        )))
    }
}

impl Part {
    async fn push(
        &mut self,
        reader: &mut BodyReader<'_>,
        data: Bytes,
        has_image: bool,
        expected_bytes: u64,
    ) -> Result<(), Problem> {
        self.bytes += data.len() as u64;
        if self.bytes > reader.rules.max_upload_bytes {
            return Err(Problem::too_large(reader.rules.max_upload_bytes));
        }
        if let Some(image) = &mut self.image {
            return image.push(reader, data).await;
        }
        let wanted = SIGNATURE_BYTES.saturating_sub(self.start.len());
        if wanted == 0 {
            return Ok(());
        }
        if self.start.is_empty() && data.len() >= SIGNATURE_BYTES {
            self.start.extend_from_slice(&data[..SIGNATURE_BYTES]);
            self.begin_image(has_image, expected_bytes)?;
            return match &mut self.image {
                Some(image) => image.push(reader, data).await,
                None => Ok(()),
            };
        }
        let (start, rest) = data.split_at(wanted.min(data.len()));
        self.start.extend_from_slice(start);
        if self.start.len() == SIGNATURE_BYTES {
            self.look(reader, has_image, expected_bytes).await?;
            if let Some(image) = &mut self.image
                && !rest.is_empty()
            {
                image.push(reader, Bytes::copy_from_slice(rest)).await?;
            }
        }
        Ok(())
    }

    /// Decides by the first bytes whether this part is an image, and keeps them then.
    async fn look(&mut self, reader: &mut BodyReader<'_>, has_image: bool, expected_bytes: u64) -> Result<(), Problem> {
        if self.image.is_some() {
            return Ok(());
        }
        self.begin_image(has_image, expected_bytes)?;
        if let Some(image) = &mut self.image {
            image.push(reader, Bytes::copy_from_slice(&self.start)).await?;
        }
        Ok(())
    }

    fn begin_image(&mut self, has_image: bool, expected_bytes: u64) -> Result<(), Problem> {
        if model::sniff(&self.start).is_none() {
            return Ok(());
        }
        if has_image {
            return Err(Problem::malformed(
                "the form holds more than one image; one request classifies one image: send POST /v1/classify once per file",
            ));
        }
        self.image = Some(Image::new(expected_bytes));
        Ok(())
    }
}

/// The bytes of an image as they arrive. A small one comes in one piece and is not copied.
struct Image {
    expected_bytes: usize,
    first: Bytes,
    bytes: Vec<u8>,
}

impl Image {
    /// `expected_bytes`: no memory is allocated beyond it unless more arrives.
    fn new(expected_bytes: u64) -> Image {
        let expected_bytes = usize::try_from(expected_bytes).unwrap_or(usize::MAX);
        Image { expected_bytes, first: Bytes::new(), bytes: Vec::new() }
    }

    async fn push(&mut self, reader: &mut BodyReader<'_>, chunk: Bytes) -> Result<(), Problem> {
        if self.first.is_empty() && self.bytes.is_empty() {
            reader.reserve(chunk.len()).await?;
            self.first = chunk;
            return Ok(());
        }
        let needed = self.first.len() + self.bytes.len() + chunk.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.expected_bytes.min(2 * needed));
            reader.reserve(capacity).await?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn into_bytes(self) -> Bytes {
        if self.bytes.is_empty() { self.first } else { self.bytes.into() }
    }
}

/// Reads a body piece by piece within its limits.
struct BodyReader<'a> {
    body: Body,
    rules: &'a UploadRules,
    /// Of what arrives, and of what is in it when it was packed.
    max_bytes: u64,
    received_bytes: u64,
    /// When the upload is given up unless more comes. Bytes extend it at [`MIN_BYTES_PER_SECOND`], to [`SLOW_START`] ahead
    /// at most, however much has come. Time that it waited for others does not count.
    deadline: Instant,
    reservation: Reservation,
    has_ended: bool,
    gunzip: Option<Gunzip>,
}

impl<'a> BodyReader<'a> {
    fn new(body: Body, rules: &'a UploadRules, max_bytes: u64, is_packed: bool) -> Self {
        BodyReader {
            body,
            rules,
            max_bytes,
            received_bytes: 0,
            deadline: Instant::now() + SLOW_START,
            reservation: rules.budget.begin(),
            has_ended: false,
            gunzip: is_packed.then(|| Gunzip::new(max_bytes)),
        }
    }

    /// Sees to it that `bytes` in all are reserved.
    async fn reserve(&mut self, bytes: usize) -> Result<(), Problem> {
        let asked = Instant::now();
        let reserved = self.reservation.grow_to(bytes as u64).await;
        self.deadline += asked.elapsed();
        reserved.map_err(|_| no_memory())
    }

    /// The next bytes of the body, unpacked; never empty.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(mut gunzip) = self.gunzip.take() else { return self.frame().await };
        let chunk = loop {
            match gunzip.next()? {
                Unpacked::Bytes(bytes) => break Some(bytes),
                Unpacked::End => break None,
                Unpacked::NeedsMore => gunzip.push(self.frame().await?),
            }
        };
        self.gunzip = Some(gunzip);
        // A small piece may unpack to a thousand times its size; others get their turn.
        tokio::task::yield_now().await;
        Ok(chunk)
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let patience = self.rules.body_timeout.min(self.time_left());
            let frame = tokio::select! {
                biased;
                () = self.reservation.refused() => return Err(no_memory()),
                frame = tokio::time::timeout(patience, self.body.frame()) => frame,
            };
            let Some(frame) = frame.map_err(|_| self.end(Problem::body_timeout()))? else {
                self.has_ended = true;
                return Ok(None);
            };
            let frame = frame.map_err(|error| self.end(Problem::malformed(format!("the body broke off: {error}"))))?;
            // Trailers carry nothing for us.
            let Ok(data) = frame.into_data() else { continue };
            self.received_bytes += data.len() as u64;
            if self.received_bytes > self.max_bytes {
                return Err(Problem::too_large(self.rules.max_upload_bytes));
            }
            if self.time_left().is_zero() {
                return Err(self.end(Problem::body_timeout()));
            }
            let earned = Duration::from_micros(data.len() as u64 * 1_000_000 / MIN_BYTES_PER_SECOND);
            self.deadline = (self.deadline + earned).min(Instant::now() + SLOW_START);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Until the upload is slower than it may be.
    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// After these nothing more can be read.
    fn end(&mut self, problem: Problem) -> Problem {
        self.has_ended = true;
        problem
    }

    /// Takes what the client still sends, within a second and twice the limit, so that it reads our answer. The memory
    /// of what had arrived is given back before.
    async fn drain(&mut self) {
        self.reservation = self.rules.budget.begin();
        if !self.has_ended {
            read_off(&mut self.body, (2 * self.max_bytes).saturating_sub(self.received_bytes)).await;
        }
    }
}

/// Reads what a refused client still sends, at most `max_bytes` and for a second: closing the connection at once would make
/// the client's system throw the answer away. A client that is slower loses the connection with the answer.
pub async fn read_off(body: &mut Body, max_bytes: u64) {
    let rest = async {
        let mut left = max_bytes;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
}

fn no_memory() -> Problem {
    Problem::full("all memory for uploads is taken (--max-buffered-bytes); send it again in a moment")
}

/// Why something is not taken: what it is, as far as its first bytes and its headers tell.
fn unsupported(start: &[u8], filename: &str, content_type: &str) -> Problem {
    let named = if filename.is_empty() { String::new() } else { format!("{:?}: ", cut_filename(filename)) };
    let as_bytes = "send the bytes of the image file instead, as the body (curl --data-binary @cat.jpg) or as the file of \
                    a form (curl -F image=@cat.jpg)";
    let text = start.trim_ascii_start();
    let is_json = content_type.ends_with("json") || matches!(text.first(), Some(b'{' | b'['));
    Problem::unsupported_type(if start.is_empty() {
        format!("{named}the image is empty: zero bytes came")
    } else if is_json {
        format!("{named}JSON is not taken; {as_bytes}")
    } else if text.starts_with(b"data:") || looks_like_base64(text) {
        format!("{named}base64 is not taken; {as_bytes}")
    } else if forms::looks_like_form(start) {
        format!("{named}this is a form, but the Content-Type is not multipart/form-data with its boundary")
    } else {
        let is_text = std::str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true);
        let sort = match (is_text, content_type) {
            (true, "" | "application/octet-stream" | "application/x-www-form-urlencoded") => {
                " is text, which".to_owned()
            }
            (_, "" | "application/octet-stream" | "application/x-www-form-urlencoded") => String::new(),
            (_, content_type) => format!(", sent as {},", cut_filename(content_type)),
        };
        format!("{named}the file{sort} starts like no image type that is taken: JPEG, PNG, WebP, GIF, BMP, TIFF")
    })
}

/// Of the images that are taken: a JPEG, PNG, GIF, WebP, BMP or TIFF in base64 begins with one of these.
fn looks_like_base64(text: &[u8]) -> bool {
    [&b"/9j/"[..], b"iVBORw0KGgo", b"R0lGODlh", b"R0lGODdh", b"UklGR", b"SUkqA", b"TU0AK"]
        .iter()
        .any(|signature| text.starts_with(signature))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(header::CONTENT_TYPE).map(|value| forms::media_type(value.as_bytes())).unwrap_or_default()
}

/// The boundary, where the body is multipart.
fn form_boundary(headers: &HeaderMap) -> Result<Option<Vec<u8>>, Problem> {
    let media_type = content_type(headers);
    if !media_type.starts_with("multipart/") {
        return Ok(None);
    }
    let value = headers.get(header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    match forms::boundary(value) {
        Some(boundary) => Ok(Some(boundary)),
        None => {
            Err(Problem::malformed(format!("the Content-Type says {media_type} without a boundary that can be used")))
        }
    }
}

/// # Errors
/// 415 for every other coding.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let mut is_gzip = false;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        for coding in value.as_bytes().split(|byte| *byte == b',') {
            match coding.trim_ascii().to_ascii_lowercase().as_slice() {
                b"" | b"identity" => {}
                b"gzip" | b"x-gzip" if !is_gzip => is_gzip = true,
                other => return Err(Problem::unsupported_coding(&String::from_utf8_lossy(other))),
            }
        }
    }
    Ok(is_gzip)
}
