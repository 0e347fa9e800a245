//! Finds out how a store that speaks like S3, and is not S3, treats conditions and checksums: by putting a small object,
//! since stores do not say it.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use uuid::Uuid;

/// Objects of the probes. Every tier may write there, and what could not be deleted expires with the results.
const PROBE_PREFIX: &str = "results/.probe-";
const PROBE: &[u8] = b"probe";

type PutError = SdkError<PutObjectError, HttpResponse>;

/// Returns whether the store refuses the second of two puts with `If-None-Match: *`, as S3 does. Some stores ignore the
/// header, and some do not implement it.
///
/// # Errors
/// A put failed for another reason.
pub async fn keeps_conditions(client: &Client, bucket: &str) -> Result<bool, PutError> {
    let key = probe_key();
    let put = || {
        let call = client.put_object().bucket(bucket).key(&key).if_none_match("*");
        call.body(ByteStream::from_static(PROBE)).send()
    };
    let mut is_refused = Ok(false);
    for _ in 0..2 {
        match put().await {
            Ok(_) => {}
            // The first put was sent again after a lost answer, or this is the second.
            Err(error) if matches!(status(&error), Some(412 | 409)) => is_refused = Ok(true),
            Err(error) if is_unknown(&error) => break,
            Err(error) => {
                is_refused = Err(error);
                break;
            }
        }
    }
    remove(client, bucket, &key).await;
    is_refused
}

/// Returns whether the store takes an object with a checksum in a header.
///
/// # Errors
/// The put failed for another reason than that.
pub async fn takes_checksums(client: &Client, bucket: &str) -> Result<bool, PutError> {
    let key = probe_key();
    let call = client.put_object().bucket(bucket).key(&key).checksum_algorithm(ChecksumAlgorithm::Crc32);
    let is_taken = match call.body(ByteStream::from_static(PROBE)).send().await {
        Ok(_) => Ok(true),
        Err(error) if is_unknown(&error) => Ok(false),
        Err(error) => Err(error),
    };
    remove(client, bucket, &key).await;
    is_taken
}

fn probe_key() -> String {
    format!("{PROBE_PREFIX}{}", Uuid::now_v7())
}

/// Stores answer 400 or 501 to a header that they do not implement.
fn is_unknown<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    matches!(status(error), Some(400 | 501))
}

/// The status of the answer, if there was one.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

async fn remove(client: &Client, bucket: &str, key: &str) {
    if let Err(error) = client.delete_object().bucket(bucket).key(key).send().await {
        tracing::debug!(bucket, key, %error, "cannot delete the object of a probe; it expires with the results");
    }
}
