//! An image in a bucket, which is read when its turn comes.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Runtime;

use crate::protocol::{ErrorCode, ErrorInfo, ImageRef};
use crate::transport::aws::{ObjectError, Objects};

/// A bucket that several threads read.
pub(crate) struct Bucket {
    pub(super) runtime: Runtime,
    pub(super) objects: Objects,
}

/// An image in a bucket.
#[derive(Clone)]
pub(crate) struct Object {
    pub(super) bucket: Arc<Bucket>,
    pub(super) key: String,
    /// The size in bytes when it was listed.
    pub bytes: u64,
}

impl Object {
    /// The bucket and the key.
    pub(crate) fn reference(&self) -> ImageRef {
        ImageRef { bucket: self.bucket.objects.bucket().to_owned(), key: self.key.clone() }
    }

    /// Reads the image.
    ///
    /// # Errors
    /// The outer error ends the run: the service does not answer. The inner one is that of the image.
    pub(crate) fn read(&self, max_bytes: u64) -> anyhow::Result<Result<Vec<u8>, ErrorInfo>> {
        let Bucket { runtime, objects } = &*self.bucket;
        match runtime.block_on(objects.get(&self.key, max_bytes)) {
            Ok(bytes) => Ok(Ok(bytes.into())),
            Err(ObjectError::TooLarge(bytes)) => {
                let message =
                    format!("the image has {bytes} bytes, more than the limit of {max_bytes} (--max-upload-bytes)");
                Ok(Err(ErrorInfo { code: ErrorCode::InputTooLarge, message }))
            }
            Err(ObjectError::Object(message)) => Ok(Err(ErrorInfo { code: ErrorCode::InputMissing, message })),
            Err(ObjectError::Unavailable(reason)) => {
                Err(anyhow::anyhow!("cannot read {:?}: {reason}; run the same command again later", self.key))
            }
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("key", &self.key).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
