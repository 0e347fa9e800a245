//! Claim check: when a message contains the image and when it contains a reference.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::legacy::LegacyRequest;
use super::message::{ClassifyRequest, ImageRef};
use super::names::image_key;

/// How the worker gets the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The image, decoded from the message.
    Inline(Vec<u8>),
    /// The job whose image is to be read from the input store.
    Stored(Uuid),
    /// An object of another bucket than those of the service.
    Foreign(ImageRef),
}

/// Replaces the image in the input store if the client disconnected before it received the id. A worker that reads it
/// completes the message without a result. No image format starts like this, so no upload can be mistaken for it.
pub const WITHDRAWN_IMAGE: &[u8] = b"withdrawn\n";

/// Maximum size of a request without its image: ids, times, a file name of 255 bytes that JSON may escape to six bytes
/// each, a reply queue, the name of a model, and a batch.
const ENVELOPE_BYTES: usize = 2_480;

/// Returns the image as base64 if inlining is enabled (`inline_bytes` > 0), the image is within that size, and it fits
/// the queue's limit together with the envelope. Otherwise returns a reference to the object that the web tier writes
/// in any case.
pub fn inline_or_reference(
    image: &[u8],
    id: Uuid,
    bucket: &str,
    inline_bytes: usize,
    queue_limit_bytes: usize,
) -> (Option<ImageRef>, Option<String>) {
    if image.len() <= inline_bytes && inline_request_bytes(image.len()) <= queue_limit_bytes {
        (None, Some(STANDARD.encode(image)))
    } else {
        (Some(ImageRef { bucket: bucket.to_owned(), key: image_key(id) }), None)
    }
}

/// The message size that a queue must allow for an inline image of this size.
pub fn inline_request_bytes(image_bytes: usize) -> usize {
    image_bytes.div_ceil(3) * 4 + ENVELOPE_BYTES
}

impl ClassifyRequest {
    /// The body of the message for a queue that takes `limit_bytes`. If it would be larger, the image is replaced by a
    /// reference, then the file name is truncated. The remaining message has about 500 bytes, and every SQS queue takes
    /// at least 1,024.
    pub fn into_message(mut self, bucket: &str, limit_bytes: usize) -> String {
        loop {
            let text = serde_json::to_string(&self).expect("a request is strings and numbers; this is a bug");
            if text.len() <= limit_bytes {
                return text;
            }
            if self.image_data.take().is_some() {
                self.image = Some(ImageRef { bucket: bucket.to_owned(), key: image_key(self.id) });
            } else if self.filename.pop().is_none() {
                return text;
            }
        }
    }

    /// Locates the image of this request. A message may name any key of the buckets in `read_buckets`, and in the
    /// service's own bucket only its own image, so that it cannot make a worker read other objects.
    ///
    /// # Errors
    /// The reason for `malformed`.
    pub fn payload(&self, input_bucket: &str, read_buckets: &[String]) -> Result<Payload, String> {
        match (&self.image, &self.image_data) {
            (Some(image), None) if image.bucket != input_bucket && read_buckets.contains(&image.bucket) => {
                Ok(Payload::Foreign(image.clone()))
            }
            (Some(image), None) if image.bucket != input_bucket => Err(format!(
                "the message names bucket {:?}, this worker reads only {input_bucket:?} and those of --read-bucket",
                image.bucket
            )),
            (Some(image), None) if image.key != image_key(self.id) => {
                Err(format!("the message names key {:?}, which is not its own image", image.key))
            }
            (Some(_), None) => Ok(Payload::Stored(self.id)),
            (None, Some(data)) => decode_base64(data).map(Payload::Inline),
            _ => Err("exactly one of `image` and `image_data` must be given".to_owned()),
        }
    }
}

impl LegacyRequest {
    /// The image of a legacy request.
    ///
    /// # Errors
    /// The reason for `malformed`.
    pub fn image_bytes(&self) -> Result<Vec<u8>, String> {
        decode_base64(&self.image_data)
    }
}

/// Decodes base64 with white space. Many encoders insert line breaks (`base64` of coreutils, MIME encoders), and the
/// decoder of the legacy system accepts them.
fn decode_base64(data: &str) -> Result<Vec<u8>, String> {
    let decode = |data: &[u8]| STANDARD.decode(data).map_err(|error| format!("image_data is not base64: {error}"));
    if !data.bytes().any(is_white_space) {
        return decode(data.as_bytes());
    }
    let without_white_space: Vec<u8> = data.bytes().filter(|byte| !is_white_space(*byte)).collect();
    decode(&without_white_space)
}

fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)
}
