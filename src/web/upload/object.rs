//! Reads the image of a request that names it in a bucket: `s3://BUCKET/KEY`.

use std::sync::Arc;

use super::body::BodyReader;
use super::image::ReceivedImage;
use crate::model;
use crate::protocol::{ImageRef, cut_filename};
use crate::transport::TransportError;
use crate::web::error::Problem;

/// S3's limit on a key, in bytes.
const MAX_KEY_BYTES: usize = 1_024;

/// Reads an object. `filename` is the client's name for it; without one it is the last part of the key.
///
/// # Errors
/// 400 for a bucket that may not be read, 413 and 415 as for uploads, 422 for an object that cannot be read, 503 while the
/// store cannot be reached.
pub(super) async fn read_object(
    reader: &mut BodyReader<'_>,
    location: &str,
    filename: Option<String>,
) -> Result<ReceivedImage, Problem> {
    let (bucket, key) = location.split_once('/').unwrap_or((location, ""));
    let buckets = &reader.rules.buckets;
    if !buckets.names.iter().any(|name| name == bucket) {
        let bucket = cut_filename(bucket);
        return Err(Problem::malformed(format!("the bucket {bucket:?} may not be read (--read-bucket)")));
    }
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Problem::malformed(format!(
            "s3://BUCKET/KEY names an object; a key has 1 to {MAX_KEY_BYTES} bytes"
        )));
    }
    let (transport, max_bytes) = (Arc::clone(&buckets.transport), reader.rules.max_upload_bytes);
    // The size of the object is not known.
    let needed = reader.reserved_bytes().saturating_add(max_bytes);
    reader.reserve(usize::try_from(needed).unwrap_or(usize::MAX)).await?;
    let image = ImageRef { bucket: bucket.to_owned(), key: key.to_owned() };
    let bytes = match transport.foreign_image(&image, max_bytes).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Problem::not_fetched("there is no such object")),
        Err(TransportError::ObjectTooLarge { .. }) => return Err(Problem::too_large(max_bytes)),
        Err(error @ (TransportError::Fatal(_) | TransportError::Damaged { .. })) => {
            tracing::warn!(%error, bucket, "an image in a bucket of --read-bucket cannot be read");
            return Err(Problem::not_fetched("this server cannot read the object"));
        }
        Err(error) => {
            tracing::warn!(%error, bucket, "an image in a bucket of --read-bucket cannot be read now");
            return Err(Problem::unavailable("the bucket cannot be read at the moment; try again shortly"));
        }
    };
    let filename = filename.unwrap_or_else(|| key.rsplit('/').next().unwrap_or(key).to_owned());
    match model::sniff(&bytes) {
        Some(content_type) => Ok(ReceivedImage { bytes, content_type, filename, field: String::new() }),
        None => Err(Problem::unsupported_type(format!(
            "{:?}: the object does not begin like any accepted image type: {}",
            cut_filename(&filename),
            model::format_names()
        ))),
    }
}
