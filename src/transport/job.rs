//! A job that is to be submitted, and the message that carries it.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::protocol::{self, ClassifyRequest, LegacyRequest, ServiceClass};

/// A job to submit: an image and what workers are told about it.
#[derive(Debug)]
pub struct NewJob<'a> {
    /// Names the image and the result.
    pub id: Uuid,
    /// The file that was uploaded.
    pub image: &'a Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// The form of the message.
    pub form: JobForm,
    /// When the call may return.
    pub acknowledge: Acknowledge,
}

/// The form of a job's message.
#[derive(Debug, Clone)]
pub enum JobForm {
    /// Version 1. The transport adds the image: a reference to where it is stored, or the bytes themselves when they have
    /// at most `inline_bytes` and the queue takes them.
    Request {
        /// The request, whose `image` and `image_data` are not set yet.
        request: Box<ClassifyRequest>,
        /// Larger images go by reference.
        inline_bytes: usize,
    },
    /// The legacy form, which always carries the whole image.
    Legacy,
}

/// When a submission may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// Once the job is durable: the caller tells its client the id at once.
    WhenDurable,
    /// The caller waits for the result anyway, at most this long. The call may return somewhat later, so that several jobs
    /// share what durability costs. The job can be received, and its result can come, before the call returns.
    WithResult(Duration),
}

/// How long the two halves of a submission took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubmitTimes {
    /// Storing the image.
    pub stored: Duration,
    /// Sending the message.
    pub sent: Duration,
}

/// The message would have `size` bytes, and the queue takes `limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageTooLarge {
    /// Bytes of the message.
    pub size: usize,
    /// Bytes that the queue takes.
    pub limit: usize,
}

impl NewJob<'_> {
    /// The class of the job, which is that of its request.
    pub fn class(&self) -> ServiceClass {
        match &self.form {
            JobForm::Request { request, .. } => request.class(),
            JobForm::Legacy => ServiceClass::Interactive,
        }
    }

    /// The message for a queue that takes `limit_bytes`, from a service whose images are in `bucket`.
    ///
    /// # Errors
    /// Only in the legacy form, which has no references.
    pub fn message(&self, bucket: &str, limit_bytes: usize) -> Result<String, MessageTooLarge> {
        match &self.form {
            JobForm::Request { request, inline_bytes } => {
                let (image, image_data) =
                    protocol::inline_or_reference(self.image, self.id, bucket, *inline_bytes, limit_bytes);
                let request = ClassifyRequest { image, image_data, ..(**request).clone() };
                Ok(request.into_message(bucket, limit_bytes))
            }
            JobForm::Legacy => {
                let filename = protocol::legacy_name(self.id, self.content_type);
                let size = protocol::legacy_request_bytes(self.image.len(), &filename);
                if size > limit_bytes {
                    return Err(MessageTooLarge { size, limit: limit_bytes });
                }
                Ok(LegacyRequest::new(self.image, filename).to_json())
            }
        }
    }

    /// The limit from which on a queue takes the message with the image in it; zero when the image goes by reference
    /// whatever the queue takes.
    pub fn wanted_limit_bytes(&self) -> usize {
        match &self.form {
            JobForm::Request { inline_bytes, .. } if self.image.len() <= *inline_bytes => {
                protocol::inline_request_bytes(self.image.len())
            }
            JobForm::Request { .. } => 0,
            JobForm::Legacy => {
                protocol::legacy_request_bytes(self.image.len(), &protocol::legacy_name(self.id, self.content_type))
            }
        }
    }
}
