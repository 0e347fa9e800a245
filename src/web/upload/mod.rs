//! Receives the image of a request: raw, gzip-encoded, or in a multipart form. Limits are checked before anything is
//! parsed.
//!
//! Memory follows the bytes that have arrived: it is reserved from the budget before it is allocated, and the announced
//! length is only an upper bound. [`body`] reads a body within its limits, [`form`] finds the image in a form with the
//! parser in [`multipart`]. [`whole`] reads bodies of other kinds.

mod body;
mod form;
mod gzip;
mod header_values;
mod image;
mod multipart;
mod rules;
mod unsupported;
mod whole;

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;

use self::body::BodyReader;
use self::form::receive_form;
use self::image::{ImageBuffer, ReceivedImage};
pub(super) use self::rules::UploadRules;
use self::unsupported::unsupported;
pub(super) use self::whole::WholeBody;
use super::budget::Reservation;
use super::error::Problem;
use super::metrics::METRICS;
use crate::model;
use crate::protocol::cut_filename;

/// The limit for the parts of a multipart body besides the image: boundaries, part headers, small fields.
const MULTIPART_ENVELOPE_BYTES: u64 = 64 << 10;

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

/// Reads the image of a request: the raw body, or the one image of a multipart form, whatever the field's name.
///
/// # Errors
/// A problem that says what is wrong with the request. The rest of its body was then read, within bounds, so that the
/// client reads the answer.
pub(super) async fn receive(request: Request, rules: &UploadRules) -> Result<Upload, Problem> {
    let _timer = METRICS.stage("uploaded").start_timer();
    let (parts, body) = request.into_parts();
    let form = form_boundary(&parts.headers)?;
    let is_gzip = is_gzip(&parts.headers)?;
    // A form may contain other files besides the image. Its real fault is a better answer than that it is too large.
    let max_bytes = match form {
        Some(_) => 2 * rules.max_upload_bytes + MULTIPART_ENVELOPE_BYTES,
        None => rules.max_upload_bytes,
    };
    let mut reader = BodyReader::new(body, rules, max_bytes, is_gzip);
    let announced = content_length(&parts.headers);
    let received = if announced.is_some_and(|bytes| bytes > max_bytes) {
        if parts.headers.contains_key(header::EXPECT) {
            reader.expect_nothing();
        }
        Err(Problem::too_large(rules.max_upload_bytes))
    } else {
        let expected = announced.filter(|_| !is_gzip).unwrap_or(max_bytes);
        match form {
            Some(boundary) => receive_form(&mut reader, &boundary, expected.min(rules.max_upload_bytes)).await,
            None => receive_raw(&mut reader, &parts, expected).await,
        }
    };
    match received {
        Ok(ReceivedImage { bytes, content_type, filename, field, model }) => {
            let filename = cut_filename(&filename).to_owned();
            Ok(Upload { bytes, filename, field, content_type, model, _reservation: reader.into_reservation() })
        }
        Err(problem) => {
            reader.drain().await;
            Err(problem)
        }
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
        Some(content_type) => Ok(ReceivedImage { bytes, content_type, filename, field: String::new(), model: None }),
        None => Err(unsupported(&bytes, "", &content_type(&parts.headers))),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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
