//! The id of the job of an image: the same in every run of a batch, so that no image is classified twice.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

/// The id of the job of an image in a batch: a UUIDv7 with the time of the batch, whose other bits are a digest of the
/// batch, the path and the content. An image whose content changes becomes another job.
pub(super) fn job_id(batch: Uuid, path: &[u8], content: &[u8]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(batch.as_bytes());
    // The length separates path and content.
    hash.update((path.len() as u64).to_be_bytes());
    hash.update(path);
    hash.update(Sha256::digest(content));
    let digest = hash.finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    Builder::from_unix_timestamp_millis(created_at_ms(batch), &random).into_uuid()
}

/// When the batch was created, which its id says.
fn created_at_ms(batch: Uuid) -> u64 {
    let (seconds, nanoseconds) = batch.get_timestamp().map_or((0, 0), |at| at.to_unix());
    seconds * 1_000 + u64::from(nanoseconds) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_depends_on_batch_path_and_content_only() {
        let (batch, other) = (Uuid::now_v7(), Uuid::now_v7());
        let id = job_id(batch, b"a.png", b"bytes");
        assert_eq!(id, job_id(batch, b"a.png", b"bytes"));
        for different in
            [job_id(other, b"a.png", b"bytes"), job_id(batch, b"b.png", b"bytes"), job_id(batch, b"a.pn", b"gbytes")]
        {
            assert_ne!(id, different);
        }
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(created_at_ms(id), created_at_ms(batch));
    }
}
