//! A body that is read whole, whatever it contains, and images that arrived inside of one.

use axum::extract::Request;
use bytes::Bytes;

use super::body::BodyReader;
use super::image::ImageBuffer;
use super::unsupported::unsupported;
use super::{Upload, UploadRules, is_gzip};
use crate::model;
use crate::web::budget::Reservation;
use crate::web::error::Problem;
use crate::web::metrics::METRICS;

/// A body that has arrived completely.
pub(in crate::web) struct WholeBody {
    pub(in crate::web) bytes: Bytes,
    /// The memory of `bytes`, released when the body is dropped.
    _reservation: Reservation,
}

impl WholeBody {
    /// Reads the body of a request, decompressed, of at most `max_bytes`.
    ///
    /// # Errors
    /// 400, 408, 413, 415 or 503. The rest of the body was then read, within bounds, so that the client reads the answer.
    pub(in crate::web) async fn receive(
        request: Request,
        rules: &UploadRules,
        max_bytes: u64,
    ) -> Result<WholeBody, Problem> {
        let _timer = METRICS.stage("uploaded").start_timer();
        let (parts, body) = request.into_parts();
        let is_gzip = is_gzip(&parts.headers)?;
        let mut reader = BodyReader::new(body, rules, max_bytes, is_gzip);
        let received = match reader.expected_bytes(&parts.headers) {
            Ok(expected) => read(&mut reader, expected).await,
            Err(problem) => Err(problem),
        };
        let (bytes, reservation) = reader.end(received).await?;
        Ok(WholeBody { bytes, _reservation: reservation })
    }
}

async fn read(reader: &mut BodyReader<'_>, expected_bytes: u64) -> Result<Bytes, Problem> {
    let mut buffer = ImageBuffer::new(expected_bytes);
    while let Some(chunk) = reader.chunk().await? {
        buffer.push(reader, chunk).await?;
    }
    Ok(buffer.into_bytes())
}

impl UploadRules {
    /// Reserves memory for bytes that are made from a body.
    ///
    /// # Errors
    /// 503 when it is not available.
    pub(in crate::web) fn reserve(&self, bytes: usize) -> Result<Reservation, Problem> {
        let full = "all memory for uploads is taken (--max-buffered-bytes); try again in a moment";
        self.budget.try_reserve(bytes as u64).map_err(|_| Problem::full(full))
    }
}

impl Upload {
    /// Makes an upload from an image that arrived inside of a body. `reservation` is the memory of `bytes`.
    ///
    /// # Errors
    /// 413 for an image above the limit, 415 for bytes that do not begin like one.
    pub(in crate::web) fn of_image(
        bytes: Bytes,
        reservation: Reservation,
        rules: &UploadRules,
    ) -> Result<Upload, Problem> {
        if bytes.len() as u64 > rules.max_upload_bytes {
            return Err(Problem::too_large(rules.max_upload_bytes));
        }
        let Some(content_type) = model::sniff(&bytes) else { return Err(unsupported(&bytes, "", "")) };
        let (filename, field) = (String::new(), String::new());
        Ok(Upload { bytes, filename, field, content_type, model: None, _reservation: reservation })
    }
}
