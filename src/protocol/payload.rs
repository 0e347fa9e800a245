//! The claim check: when an image travels in the message, and when by reference.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::{ClassifyRequest, ImageRef, image_key};

/// How the worker gets at the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Decoded from the message.
    Inline(Vec<u8>),
    /// To be read from the input store.
    Stored(Uuid),
}

/// Stands in the input store where the image of a job was whose client left before it was told the id. A worker that finds
/// it ends the message without a result. No image starts like this, so that no upload can be mistaken for it.
pub const WITHDRAWN_IMAGE: &[u8] = b"withdrawn\n";

/// Room that a request without its image takes in a message: ids, times, a file name of 255 bytes that JSON may
/// escape to six bytes each, a reply queue.
const ENVELOPE_BYTES: usize = 2_304;

/// The bytes inline when they were asked to be (`inline_bytes` > 0), are within it, and fit the queue's limit
/// together with the envelope; else a reference to where the web tier has put them anyway.
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

/// What a queue must take for an image of that size to travel inline.
pub fn inline_request_bytes(image_bytes: usize) -> usize {
    image_bytes.div_ceil(3) * 4 + ENVELOPE_BYTES
}

impl ClassifyRequest {
    /// The message's text, for a queue that takes `limit_bytes`: where it would be larger, the image goes by reference,
    /// then the file name gets shorter. What is left then has about 500 bytes, and no queue of SQS takes less than 1,024.
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

    /// Where this request's bytes are, checked against what a message may name: its own image in the configured
    /// bucket and nothing else, so that a message cannot make a worker read other objects.
    ///
    /// # Errors
    /// A reason for `malformed`.
    pub fn payload(&self, input_bucket: &str) -> Result<Payload, String> {
        match (&self.image, &self.image_data) {
            (Some(image), None) if image.bucket != input_bucket => {
                Err(format!("the message names bucket {:?}, this worker reads only {input_bucket:?}", image.bucket))
            }
            (Some(image), None) if image.key != image_key(self.id) => {
                Err(format!("the message names key {:?}, which is not its own image", image.key))
            }
            (Some(_), None) => Ok(Payload::Stored(self.id)),
            (None, Some(data)) => decode_base64(data).map(Payload::Inline),
            _ => Err("exactly one of `image` and `image_data` must be given".to_owned()),
        }
    }
}

impl super::LegacyRequest {
    /// The image of the original's form.
    ///
    /// # Errors
    /// A reason for `malformed`.
    pub fn image_bytes(&self) -> Result<Vec<u8>, String> {
        decode_base64(&self.image_data)
    }
}

/// White space is skipped: many encoders break lines (the `base64` of coreutils, MIME encoders), and the decoder of the
/// legacy system takes that.
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
