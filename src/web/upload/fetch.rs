//! Fetches the image of a request that names it by URL.
//!
//! The client learns no more of the other server than that its address may not be called, that it did not answer, or the status
//! of a public server: never the content of its answer.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::body::BodyReader;
use super::image::{ImageBuffer, ReceivedImage};
use super::object::read_object;
use crate::model;
use crate::outbound::{CallError, Download, Limits};
use crate::protocol::cut_filename;
use crate::web::error::Problem;

/// The longest fetch, from the look-up of the name to the last byte.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Fetches an image. `filename` is the client's name for it; without one it is the last part of the address.
///
/// # Errors
/// 400 if images are not fetched by URL or the address may not be called, 413 and 415 as for uploads, 422 if it cannot be
/// fetched.
pub(super) async fn fetch(
    reader: &mut BodyReader<'_>,
    url: &str,
    filename: Option<String>,
) -> Result<ReceivedImage, Problem> {
    if let Some(location) = url.strip_prefix("s3://") {
        return read_object(reader, location, filename).await;
    }
    let Some(caller) = reader.rules.caller.clone() else {
        let detail = "this server fetches no images by URL (--allow-image-urls); send the bytes of the image";
        return Err(Problem::malformed(detail));
    };
    let refused = |refusal| Problem::malformed(format!("the URL of the image cannot be fetched: {refusal}"));
    let target = caller.check(url).map_err(refused)?;
    let max_bytes = reader.rules.max_upload_bytes;
    let buffer = ImageBuffer::after(reader.reserved_bytes(), max_bytes);
    let mut arriving = Arriving { reader, buffer };
    match caller.download(&target, Limits { max_bytes, timeout: TIMEOUT }, &mut arriving).await {
        Ok(()) => {}
        Err(Failure::Problem(problem)) => return Err(problem),
        Err(Failure::Call(error)) => {
            tracing::info!(url = target.without_query(), %error, "an image by URL was not fetched");
            return Err(problem(&error, max_bytes));
        }
    }
    let bytes = arriving.buffer.into_bytes();
    let filename = filename.unwrap_or_else(|| {
        let last = target.url().path().rsplit('/').next().unwrap_or_default();
        percent_encoding::percent_decode_str(last).decode_utf8_lossy().into_owned()
    });
    match model::sniff(&bytes) {
        Some(content_type) => Ok(ReceivedImage { bytes, content_type, filename, field: String::new() }),
        None => Err(Problem::unsupported_type(format!(
            "{:?}: the file at the URL does not begin like any accepted image type: {}",
            cut_filename(&filename),
            model::format_names()
        ))),
    }
}

fn problem(error: &CallError, max_bytes: u64) -> Problem {
    match error {
        CallError::TooLarge(_) => Problem::too_large(max_bytes),
        // The same text for both, so that nobody learns which names of the private network exist.
        CallError::Refused(_) | CallError::UnknownHost => {
            Problem::not_fetched("its host is unknown or may not be called")
        }
        CallError::Status(status) => {
            Problem::not_fetched(&format!("its server answered with status {}", status.as_u16()))
        }
        CallError::Redirects => Problem::not_fetched("its server redirects too often"),
        CallError::Connect(_) | CallError::Tls(_) | CallError::Broken(_) | CallError::TimedOut(_) => {
            Problem::not_fetched("its server did not answer in time, or not in HTTP")
        }
    }
}

/// An image that is being fetched.
struct Arriving<'a, 'b> {
    reader: &'a mut BodyReader<'b>,
    buffer: ImageBuffer,
}

enum Failure {
    Call(CallError),
    Problem(Problem),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Failure::Call(error)
    }
}

#[async_trait]
impl Download for Arriving<'_, '_> {
    type Error = Failure;

    async fn take(&mut self, piece: Bytes) -> Result<(), Failure> {
        self.buffer.push(self.reader, piece).await.map_err(Failure::Problem)
    }
}
