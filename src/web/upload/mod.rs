//! Receives the images of a request: raw, gzip-encoded, in a multipart form, or in JSON. Limits are checked before anything
//! is parsed.
//!
//! Memory follows the bytes that have arrived: it is reserved from the budget before it is allocated, and the announced
//! length is only an upper bound. [`body`] reads a body within its limits, [`form`] finds the images in a form with the
//! parser in [`multipart`], and [`json`] decodes the image in JSON. [`fetch`] fetches one that is named by URL, and
//! [`object`] reads one in a bucket. [`whole`] reads bodies of other kinds.

mod body;
mod fetch;
mod form;
mod gzip;
mod header_values;
mod image;
mod json;
mod multipart;
mod object;
mod rules;
mod unsupported;
mod whole;

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;

use self::body::BodyReader;
use self::form::{Images, ReceivedForm, receive_form};
use self::image::{ImageBuffer, ReceivedImage};
use self::json::{ReceivedJson, receive_json};
pub(super) use self::rules::{ReadBuckets, UploadRules};
use self::unsupported::unsupported;
pub(super) use self::whole::WholeBody;
use super::budget::Reservation;
use super::error::Problem;
use super::metrics::METRICS;
use crate::model;
use crate::protocol::cut_filename;

/// The limit for everything in a form or in JSON besides the image: boundaries, part headers, small fields.
const ENVELOPE_BYTES: u64 = 64 << 10;
/// All images of a form together have at most the bytes of this many of the largest size.
const MAX_FORM_IMAGES: u64 = 4;

/// A received file that is within the limits and begins like an image.
pub(super) struct Upload {
    pub(super) bytes: Bytes,
    /// The client's name for the file, cut to what the wire carries; may be empty. It is data, never a path.
    pub(super) filename: String,
    /// The name of the form's field; empty outside of a form.
    pub(super) field: String,
    /// The media type by signature, whatever the client said.
    pub(super) content_type: &'static str,
    /// The model that a field of the form names, as the client wrote it.
    pub(super) model: Option<String>,
    /// The memory of `bytes`, released when the upload is dropped.
    _reservation: Reservation,
}

/// A file name from the address of the request, for clients that send no other.
#[derive(Debug, Clone)]
pub(super) struct PathName(pub(super) String);

/// The images of a request.
pub(super) struct Received {
    /// The images in the order of the request. One that cannot be used has its problem; that happens only in a list.
    pub(super) files: Vec<Result<Upload, Problem>>,
    /// True if the request has several files, each of which gets an answer of its own.
    pub(super) is_list: bool,
    /// The number of predictions, if the body names it.
    pub(super) top_k: Option<u32>,
    /// The model, if the body names one, as the client wrote it.
    pub(super) model: Option<String>,
    /// The address that is called at the end, if the body names one.
    pub(super) callback_url: Option<String>,
}

/// Reads the one image of a request: the raw body, or the image of a multipart form, whatever the field's name.
///
/// # Errors
/// A problem that says what is wrong with the request. The rest of its body was then read, within bounds, so that the
/// client reads the answer.
pub(super) async fn receive(request: Request, rules: &UploadRules) -> Result<Upload, Problem> {
    let received = receive_images(request, rules, Images::One).await?;
    let Received { files, model, .. } = received;
    let nothing = || Err(Problem::malformed("the request has no image"));
    files.into_iter().next().unwrap_or_else(nothing).map(|upload| Upload { model, ..upload })
}

/// Reads the images of a request: the raw body, the files of a multipart form, or an image in JSON.
///
/// # Errors
/// As [`receive`]. In a list, a file that cannot be used is no error of the request.
pub(super) async fn receive_all(request: Request, rules: &UploadRules) -> Result<Received, Problem> {
    receive_images(request, rules, Images::Several).await
}

/// Returns true if the body of a request is JSON.
pub(super) fn is_json_request(headers: &HeaderMap) -> bool {
    json::is_json(&content_type(headers))
}

/// The format of a body.
enum Format {
    Raw,
    Form { boundary: Vec<u8> },
    Json,
}

async fn receive_images(request: Request, rules: &UploadRules, images: Images) -> Result<Received, Problem> {
    let _timer = METRICS.stage("uploaded").start_timer();
    let (parts, body) = request.into_parts();
    let format = match form_boundary(&parts.headers)? {
        Some(boundary) => Format::Form { boundary },
        None if images == Images::Several && json::is_json(&content_type(&parts.headers)) => Format::Json,
        None => Format::Raw,
    };
    let is_gzip = is_gzip(&parts.headers)?;
    // A form may contain other files besides the image. Its real fault is a better answer than that it is too large.
    let max_bytes = match (&format, images) {
        (Format::Form { .. }, Images::Several) => MAX_FORM_IMAGES * rules.max_upload_bytes + ENVELOPE_BYTES,
        (Format::Form { .. }, Images::One) => 2 * rules.max_upload_bytes + ENVELOPE_BYTES,
        (Format::Json, _) => json::max_body_bytes(rules.max_upload_bytes) + ENVELOPE_BYTES,
        (Format::Raw, _) => rules.max_upload_bytes,
    };
    let mut reader = BodyReader::new(body, rules, max_bytes, is_gzip);
    let received = match reader.expected_bytes(&parts.headers) {
        Err(problem) => Err(problem),
        Ok(expected) => match format {
            Format::Form { boundary } => {
                let expected = expected.min(rules.max_upload_bytes);
                receive_form(&mut reader, &boundary, expected, images).await.map(Contents::from)
            }
            Format::Json => receive_json(&mut reader, expected).await.map(Contents::from),
            Format::Raw => receive_raw(&mut reader, &parts, expected).await.map(Contents::from),
        },
    };
    let (contents, reservation) = reader.end(received).await?;
    Ok(contents.with_memory(reservation))
}

/// The contents of a body that has arrived completely.
struct Contents {
    files: Vec<Result<ReceivedImage, Problem>>,
    is_list: bool,
    /// True if the images take just their own size.
    is_exact: bool,
    top_k: Option<u32>,
    model: Option<String>,
    callback_url: Option<String>,
}

impl From<ReceivedImage> for Contents {
    fn from(image: ReceivedImage) -> Self {
        Contents {
            files: vec![Ok(image)],
            is_list: false,
            is_exact: false,
            top_k: None,
            model: None,
            callback_url: None,
        }
    }
}

impl From<ReceivedForm> for Contents {
    fn from(ReceivedForm { files, is_list, model, callback_url }: ReceivedForm) -> Self {
        Contents { files, is_list, is_exact: false, top_k: None, model, callback_url }
    }
}

impl From<ReceivedJson> for Contents {
    fn from(ReceivedJson { image, is_exact, top_k, model, callback_url }: ReceivedJson) -> Self {
        Contents { files: vec![Ok(image)], is_list: false, is_exact, top_k, model, callback_url }
    }
}

impl Contents {
    /// Gives each image its part of the memory that was reserved. The last one of a form keeps the rest, since buffers may be
    /// larger than what arrived in them.
    fn with_memory(self, mut memory: Reservation) -> Received {
        let Contents { files, is_list, is_exact, top_k, model, callback_url } = self;
        let mut left = files.iter().filter(|file| file.is_ok()).count();
        let mut upload = |image: ReceivedImage| {
            let ReceivedImage { bytes, content_type, filename, field } = image;
            left -= 1;
            let bytes_kept = if left == 0 && !is_exact { memory.bytes() } else { bytes.len() as u64 };
            let reservation = memory.split_off(bytes_kept);
            let filename = cut_filename(&filename).to_owned();
            Upload { bytes, filename, field, content_type, model: None, _reservation: reservation }
        };
        let files = files.into_iter().map(|file| file.map(&mut upload)).collect();
        Received { files, is_list, top_k, model, callback_url }
    }
}

async fn receive_raw(
    reader: &mut BodyReader<'_>,
    parts: &Parts,
    expected_bytes: u64,
) -> Result<ReceivedImage, Problem> {
    let filename = match parts.headers.get(header::CONTENT_DISPOSITION) {
        Some(value) => header_values::disposition_filename(value.as_bytes()),
        None => parts.extensions.get::<PathName>().map(|PathName(name)| name.clone()).unwrap_or_default(),
    };
    let mut image = ImageBuffer::new(expected_bytes);
    while let Some(chunk) = reader.chunk().await? {
        image.push(reader, chunk).await?;
    }
    let bytes = image.into_bytes();
    match model::sniff(&bytes) {
        Some(content_type) => Ok(ReceivedImage { bytes, content_type, filename, field: String::new() }),
        None => Err(unsupported(&bytes, "", &content_type(&parts.headers))),
    }
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(header::CONTENT_TYPE).map(|value| header_values::media_type(value.as_bytes())).unwrap_or_default()
}

/// Returns the boundary of a multipart body, or `None` for any other body.
fn form_boundary(headers: &HeaderMap) -> Result<Option<Vec<u8>>, Problem> {
    let media_type = content_type(headers);
    if !media_type.starts_with("multipart/") {
        return Ok(None);
    }
    let value = headers.get(header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    match header_values::boundary(value) {
        Some(boundary) => Ok(Some(boundary)),
        None => Err(Problem::malformed(format!("the Content-Type says {media_type} without a usable boundary"))),
    }
}

/// Returns whether the body is compressed with gzip.
///
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
