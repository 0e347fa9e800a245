//! Buckets on AWS: S3.
//!
//! Beyond the contract of [`ObjectStore`]:
//!
//! - A conditional put is S3's own `If-None-Match: *`. A put whose answer was lost is sent again and may then find its
//!   own object: that is [`Put::AlreadyExists`], which callers treat as success.
//! - Checksums are the SDK's defaults: CRC32 of uploads, checked by S3; CRC of downloads, checked here. Bodies are in memory,
//!   so the checksum is a header, and not a chunked framing that a server would have to know. Stores that are not AWS's own
//!   get none (`Aws::s3_config`).
//! - A store that is not AWS's own may ignore conditions. That is found out before the first conditional put. The object is
//!   then looked for before it is put: two puts at the same moment can both create it, and the later one stays.
//! - Opening checks that the bucket exists and may be listed: without `s3:ListBucket` a missing object is 403, not 404, and
//!   a job without a result could not be distinguished from a forbidden one.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::create_bucket::CreateBucketError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, PublicAccessBlockConfiguration};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use tokio::sync::OnceCell;

use super::compatible::{keeps_conditions, status};
use crate::aws::{Aws, Fault, jittered};
use crate::transport::error::TransportError;
use crate::transport::queued::object::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::transport::reader::ObjectReader;

/// The slowest connection that is supported: 4 Mbit/s. A large body may take longer than a call without one, but a small
/// one must not hang for as long.
const LEAST_BYTES_PER_SECOND: u64 = 500_000;
/// Timeout for reading any body, after the head of the answer came.
const LEAST_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of a conditional put that met another one of the same key.
const TRIES_AT_CONFLICT: u32 = 5;
const REST_AT_CONFLICT: Duration = Duration::from_millis(50);
/// The one region that a request to make a bucket must not name.
const REGION_UNNAMED: &str = "us-east-1";

/// One bucket.
pub struct S3Store {
    aws: Aws,
    client: Client,
    bucket: String,
    /// True if conditions of puts are kept. Empty until that is known.
    keeps_conditions: OnceCell<bool>,
}

impl S3Store {
    /// Opens the bucket. When it does not exist it is created without public access.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when it cannot be used; it says what to do.
    pub async fn open(region: Option<&str>, endpoint_url: Option<&str>, bucket: &str) -> Result<S3Store, StoreError> {
        let store = S3Store::of_others(region, endpoint_url, bucket).await?;
        if !store.is_there().await? {
            store.make().await?;
        }
        Ok(store)
    }

    /// Opens a bucket of others, which is neither checked nor created.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when AWS cannot be used.
    pub(super) async fn of_others(
        region: Option<&str>,
        endpoint_url: Option<&str>,
        bucket: &str,
    ) -> Result<S3Store, StoreError> {
        let fatal = |reason| StoreError::Fatal { bucket: bucket.to_owned(), reason };
        let aws = Aws::connect(region, endpoint_url).await.map_err(|refusal| fatal(refusal.to_string()))?;
        let client = Client::from_conf(aws.s3_config().build());
        let keeps_conditions = OnceCell::new_with(aws.compatible_store().is_none().then_some(true));
        Ok(S3Store { aws, client, bucket: bucket.to_owned(), keeps_conditions })
    }

    /// Returns whether the store keeps conditions of puts. One line of log says so if it does not.
    async fn keeps_conditions(&self) -> Result<bool, StoreError> {
        let probe = || async {
            let reason = match keeps_conditions(&self.client, &self.bucket).await {
                Ok(true) => return Ok(true),
                Ok(false) => "it does not refuse a second put with If-None-Match: *".to_owned(),
                Err(error) => match self.fault("s3:PutObject", &error) {
                    error @ StoreError::Unavailable { .. } => return Err(error),
                    error => format!("it is not known whether it keeps conditions: {error}"),
                },
            };
            tracing::warn!(
                bucket = self.bucket,
                reason,
                "this store does not keep conditions of puts: an object is looked for before it is put, and of two \
                 workers that finish the same image at the same moment the later one's result stays"
            );
            Ok(false)
        };
        self.keeps_conditions.get_or_try_init(probe).await.copied()
    }

    /// Lists the bucket instead of a HEAD request, whose answer has no body and so would not say what is wrong.
    async fn is_there(&self) -> Result<bool, StoreError> {
        match self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send().await {
            Ok(_) => Ok(true),
            Err(error) => match self.aws.fault("s3:ListBucket", &self.resource(), &error) {
                Fault::Missing => Ok(false),
                fault => Err(self.error(fault)),
            },
        }
    }

    async fn make(&self) -> Result<(), StoreError> {
        let region = self.aws.region();
        let place = (region != REGION_UNNAMED).then(|| {
            let region = BucketLocationConstraint::from(region);
            CreateBucketConfiguration::builder().location_constraint(region).build()
        });
        let call = self.client.create_bucket().bucket(&self.bucket).set_create_bucket_configuration(place);
        match call.send().await {
            Ok(_) => tracing::info!(bucket = self.bucket, region, "bucket made"),
            // Another tier has created it meanwhile.
            Err(error) if error.as_service_error().is_some_and(CreateBucketError::is_bucket_already_owned_by_you) => {}
            Err(error) if error.as_service_error().is_some_and(CreateBucketError::is_bucket_already_exists) => {
                let reason = "the name is taken by another account; give another --input-bucket or --output-bucket";
                return Err(self.error(Fault::Fatal(reason.to_owned())));
            }
            Err(error) => {
                let fault = match self.aws.fault("s3:CreateBucket", &self.resource(), &error) {
                    Fault::Fatal(reason) => Fault::Fatal(format!(
                        "it is not there and cannot be made ({reason}); make it with `aws s3 mb s3://{} --region {region}`",
                        self.bucket
                    )),
                    fault => fault,
                };
                return Err(self.error(fault));
            }
        }
        self.close_to_the_public().await;
        Ok(())
    }

    /// AWS does this by itself for new buckets. This call is for accounts with another setting.
    async fn close_to_the_public(&self) {
        let closed = PublicAccessBlockConfiguration::builder()
            .block_public_acls(true)
            .ignore_public_acls(true)
            .block_public_policy(true)
            .restrict_public_buckets(true)
            .build();
        let call = self.client.put_public_access_block().bucket(&self.bucket).public_access_block_configuration(closed);
        if let Err(error) = call.send().await {
            let fault = self.fault("s3:PutBucketPublicAccessBlock", &error);
            tracing::warn!(error = %fault, "the new bucket has AWS's default: no public access");
        }
    }

    async fn put_once(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Once, StoreError> {
        self.put_if(key, body, options, None).await
    }

    /// Puts an object, with `replaced` only in place of the object with this tag.
    async fn put_if(
        &self,
        key: &str,
        body: Bytes,
        options: PutOptions,
        replaced: Option<&str>,
    ) -> Result<Once, StoreError> {
        let deadlines = Aws::timeouts_with(time_for(body.len() as u64));
        let deadlines = aws_sdk_s3::config::Builder::default().timeout_config(deadlines);
        let call = self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body));
        let call = call
            .set_content_type(options.content_type.map(str::to_owned))
            .set_if_none_match(options.if_none_match.then(|| "*".to_owned()))
            .set_if_match(replaced.map(str::to_owned));
        let is_conditional = options.if_none_match || replaced.is_some();
        match call.customize().config_override(deadlines).send().await {
            Ok(_) => Ok(Once::Done(Put::Created)),
            // An object that is to be replaced and is missing is a 404.
            Err(error) if replaced.is_some() && is_missing(&error) => Ok(Once::Done(Put::AlreadyExists)),
            Err(error) => match (status(&error), is_conditional) {
                (Some(412), true) => Ok(Once::Done(Put::AlreadyExists)),
                (Some(409), true) => Ok(Once::Conflict),
                _ => Err(self.fault("s3:PutObject", &error)),
            },
        }
    }

    /// The error of a call on an object of this bucket. Callers have handled a missing object, so here the bucket is missing.
    fn fault<E>(&self, action: &str, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.error(self.aws.fault(action, &self.resource(), error))
    }

    fn error(&self, fault: Fault) -> StoreError {
        let bucket = self.bucket.clone();
        match fault {
            Fault::Missing => StoreError::Fatal { bucket, reason: "the bucket does not exist".to_owned() },
            Fault::Unavailable(reason) => StoreError::Unavailable { bucket, reason },
            Fault::Fatal(reason) => StoreError::Fatal { bucket, reason },
        }
    }

    fn resource(&self) -> String {
        format!("bucket {:?}", self.bucket)
    }

    fn check_key(&self, key: &str) -> Result<(), StoreError> {
        check_key_length(key)
            .map_err(|why| StoreError::Fatal { bucket: self.bucket.clone(), reason: format!("the key {why}") })
    }

    fn broken_off(&self, reason: &dyn std::fmt::Display) -> StoreError {
        broken_off(&self.bucket, reason)
    }

    /// The tag of an object's content.
    async fn tag(&self, key: &str) -> Result<Option<String>, StoreError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => Ok(Some(found.e_tag.unwrap_or_default())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.fault("s3:GetObject", &error)),
        }
    }

    /// Size and body of an object of at most `max_bytes`.
    async fn open_body(&self, key: &str, max_bytes: u64) -> Result<Option<(u64, ByteStream)>, StoreError> {
        self.check_key(key)?;
        let found = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.fault("s3:GetObject", &error)),
        };
        // Every answer of S3 has a length. One without is not read.
        let size = found.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(u64::MAX);
        if size > max_bytes {
            return Err(StoreError::TooLarge { key: key.to_owned(), size, limit: max_bytes });
        }
        Ok(Some((size, found.body)))
    }
}

fn broken_off(bucket: &str, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable { bucket: bucket.to_owned(), reason: format!("s3:GetObject broke off: {reason}") }
}

/// The outcome of one try of a put.
enum Once {
    Done(Put),
    /// Another conditional put of this key was in flight. The next try shows its outcome.
    Conflict,
}

#[async_trait]
impl ObjectStore for S3Store {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.keeps_conditions().await.map(drop)
    }

    async fn put(&self, key: &str, body: Bytes, mut options: PutOptions) -> Result<Put, StoreError> {
        self.check_key(key)?;
        if options.if_none_match && !self.keeps_conditions().await? {
            if self.head(key).await?.is_some() {
                return Ok(Put::AlreadyExists);
            }
            options.if_none_match = false;
        }
        for tried in 1..=TRIES_AT_CONFLICT {
            if let Once::Done(put) = self.put_once(key, body.clone(), options).await? {
                return Ok(put);
            }
            let rest = REST_AT_CONFLICT * tried;
            tokio::time::sleep(jittered(rest)).await;
        }
        let reason = format!("s3:PutObject of {key:?} met other puts of that key {TRIES_AT_CONFLICT} times");
        Err(StoreError::Unavailable { bucket: self.bucket.clone(), reason })
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let Some((size, body)) = self.open_body(key, max_bytes).await? else { return Ok(None) };
        match tokio::time::timeout(body_timeout(size), body.collect()).await {
            Ok(Ok(body)) => Ok(Some(body.into_bytes())),
            Ok(Err(error)) => Err(self.broken_off(&error)),
            Err(_) => Err(self.broken_off(&"it took too long")),
        }
    }

    async fn get_tagged(&self, key: &str, max_bytes: u64) -> Result<Option<(Bytes, String)>, StoreError> {
        // The tag comes first: if the object is replaced between the calls, `replace` fails.
        let Some(tag) = self.tag(key).await? else { return Ok(None) };
        Ok(self.get(key, max_bytes).await?.map(|body| (body, tag)))
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &str) -> Result<Put, StoreError> {
        self.check_key(key)?;
        let options = PutOptions { if_none_match: false, content_type: Some("application/json") };
        let mut condition = Some(tag);
        if !self.keeps_conditions().await? {
            if self.tag(key).await?.as_deref() != Some(tag) {
                return Ok(Put::AlreadyExists);
            }
            condition = None;
        }
        match self.put_if(key, body, options, condition).await? {
            Once::Done(put) => Ok(put),
            Once::Conflict => Ok(Put::AlreadyExists),
        }
    }

    /// However slow the reader is: what it has not asked for yet stays at S3 or in the buffers of the connection.
    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError> {
        let Some((size, body)) = self.open_body(key, max_bytes).await? else { return Ok(None) };
        let bucket = self.bucket.clone();
        let pieces = stream::unfold(Some(body), move |body| {
            let bucket = bucket.clone();
            async move {
                let mut body = body?;
                let error = match tokio::time::timeout(LEAST_BODY_TIMEOUT, body.next()).await {
                    Ok(Some(Ok(piece))) => return Some((Ok(piece), Some(body))),
                    Ok(Some(Err(error))) => broken_off(&bucket, &error),
                    Ok(None) => return None,
                    Err(_) => broken_off(&bucket, &"it took too long"),
                };
                Some((Err(error), None))
            }
        });
        Ok(Some(ObjectReader::new(size, pieces.map(|piece| piece.map_err(TransportError::from)).boxed())))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        self.check_key(key)?;
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => Ok(Some(ObjectInfo {
                size_bytes: found.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or_default(),
                modified: found
                    .last_modified
                    .and_then(|at| SystemTime::try_from(at).ok())
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            })),
            Err(error) if is_missing(&error) => Ok(None),
            // A HEAD request needs the permission of a GET: there is no s3:HeadObject.
            Err(error) => Err(self.fault("s3:GetObject", &error)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        let call = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let found = call.set_start_after(after.map(str::to_owned)).send().await;
        let found = found.map_err(|error| self.fault("s3:ListBucket", &error))?;
        Ok(found.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check_key(key)?;
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(self.fault("s3:DeleteObject", &error)),
        }
    }
}

/// Timeout for reading a body of this size, after the head of the answer came.
pub(super) fn body_timeout(bytes: u64) -> Duration {
    LEAST_BODY_TIMEOUT + time_for(bytes)
}

fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(bytes / LEAST_BYTES_PER_SECOND)
}

/// Returns true if the object is missing, and not the bucket. The answer to a HEAD request has no body and therefore no
/// error code, only a status.
pub(super) fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    status(error) == Some(404) && error.code() != Some("NoSuchBucket")
}
