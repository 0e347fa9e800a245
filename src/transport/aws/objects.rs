//! Objects of a bucket that is not the service's own: it is listed and read, and never written or made.

use aws_sdk_s3::Client;
use bytes::Bytes;

use super::s3::{body_timeout, is_missing};
use crate::aws::{Aws, Fault};

/// A bucket that is read.
pub struct Objects {
    aws: Aws,
    client: Client,
    bucket: String,
}

/// Some objects of a bucket, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPage {
    /// Key and size in bytes of each object.
    pub objects: Vec<(String, u64)>,
    /// Passed to [`Objects::list`] for the next page. `None` if this is the last.
    pub next: Option<String>,
}

/// The reason why an object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The object does not exist, or may not be read; other objects may.
    #[error("{0}")]
    Object(String),
    /// The object has more bytes than the caller reads.
    #[error("the object has {0} bytes")]
    TooLarge(u64),
    /// The service does not answer. A later run may succeed.
    #[error("{0}")]
    Unavailable(String),
}

impl Objects {
    /// Prepares to read a bucket, with the credentials of the environment, and with its region and endpoint unless they
    /// are given.
    ///
    /// # Errors
    /// No region is configured.
    pub async fn open(bucket: &str, region: Option<&str>, endpoint_url: Option<&str>) -> anyhow::Result<Objects> {
        let aws = Aws::connect(region, endpoint_url).await?;
        let client = Client::from_conf(aws.s3_config().build());
        Ok(Objects { aws, client, bucket: bucket.to_owned() })
    }

    /// The name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The next page of the objects whose keys begin with `prefix`.
    ///
    /// # Errors
    /// One line: the bucket does not exist, may not be listed, or the service does not answer.
    pub async fn list(&self, prefix: &str, page: Option<String>) -> anyhow::Result<ObjectPage> {
        let call = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).set_continuation_token(page);
        let found = call.send().await.map_err(|error| {
            let fault = self.aws.fault("s3:ListBucket", &self.resource(), &error);
            anyhow::anyhow!("cannot list {}: {fault}", self.resource())
        })?;
        let size = |size: Option<i64>| size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        let objects = found.contents.unwrap_or_default().into_iter();
        let objects = objects.filter_map(|object| Some((object.key?, size(object.size)))).collect();
        let next = found.next_continuation_token.filter(|_| found.is_truncated.unwrap_or_default());
        Ok(ObjectPage { objects, next })
    }

    /// Reads an object of at most `max_bytes`.
    ///
    /// # Errors
    /// The kind says whether other objects may be read.
    pub async fn get(&self, key: &str, max_bytes: u64) -> Result<Bytes, ObjectError> {
        let found = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => {
                return Err(ObjectError::Object("the object does not exist any more".to_owned()));
            }
            Err(error) => {
                return Err(match self.aws.fault("s3:GetObject", &self.resource(), &error) {
                    Fault::Missing => ObjectError::Object("the bucket does not exist any more".to_owned()),
                    Fault::Fatal(reason) => ObjectError::Object(reason),
                    Fault::Unavailable(reason) => ObjectError::Unavailable(reason),
                });
            }
        };
        let size = found.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(u64::MAX);
        if size > max_bytes {
            return Err(ObjectError::TooLarge(size));
        }
        let broken_off = |reason: &dyn std::fmt::Display| {
            ObjectError::Unavailable(format!("s3:GetObject of {} broke off: {reason}", self.resource()))
        };
        match tokio::time::timeout(body_timeout(size), found.body.collect()).await {
            Ok(Ok(body)) => Ok(body.into_bytes()),
            Ok(Err(error)) => Err(broken_off(&error)),
            Err(_) => Err(broken_off(&"it took too long")),
        }
    }

    fn resource(&self) -> String {
        format!("bucket {:?}", self.bucket)
    }
}
