//! The state that the handlers share, and what they extract from requests.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Request};
use axum::http::request::Parts;
use uuid::Uuid;

use super::MachineHour;
use super::assets::IndexPage;
use super::auth::Principal;
use super::batches::Batches;
use super::budget::Budget;
use super::callbacks::Callbacks;
use super::error::Problem;
use super::jobs::{JobOptions, Jobs};
use super::listeners::Listeners;
use super::models::Models;
use super::query::Query;
use super::readiness::Readiness;
use super::thumbnail::Thumbnails;
use super::upload::{self, Upload, UploadRules};

/// The state that the handlers share.
pub(super) struct Site {
    pub(super) jobs: Jobs,
    pub(super) batches: Batches,
    /// `None` if nobody is called back.
    pub(super) callbacks: Option<Callbacks>,
    /// Buckets that the images of a batch may be named in.
    pub(super) read_buckets: Vec<String>,
    pub(super) models: Arc<Models>,
    pub(super) uploads: UploadRules,
    /// The memory of images that are being sent to clients.
    pub(super) image_reads: Budget,
    /// The clients that wait for jobs that exist.
    pub(super) listeners: Listeners,
    /// The price of an hour of one machine with workers, if that is known.
    pub(super) machine_hour: Option<MachineHour>,
    /// How long `POST /` waits for its answer.
    pub(super) sync_timeout: Duration,
    pub(super) readiness: Readiness,
    pub(super) thumbnails: Thumbnails,
    /// The page for images.
    pub(super) index: IndexPage,
}

impl Site {
    /// The options of a request: who sent it, and a model that exists. A wrong one is refused before the image is read.
    pub(super) fn job_options(&self, query: Query, request: &Request) -> Result<JobOptions, Problem> {
        let mut options = query.job_options(request.headers())?;
        options.principal = request.extensions().get::<Principal>().cloned().unwrap_or_default();
        options.model = self.models.choose(options.model.as_deref(), None)?;
        Ok(options)
    }

    /// Reads the image of a request. A form may name the model, too.
    pub(super) async fn receive(&self, request: Request, options: &mut JobOptions) -> Result<Upload, Problem> {
        let upload = upload::receive(request, &self.uploads).await?;
        options.model = self.models.choose(options.model.as_deref(), upload.model.as_deref())?;
        Ok(upload)
    }
}

/// The id in an address. Text that is not an id is answered like an unknown job.
pub(super) struct JobId(pub(super) Uuid);

impl<S: Sync + Send> FromRequestParts<S> for JobId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(Problem::no_such_job(parts.uri.path()));
        };
        text.parse().map(JobId).map_err(|_| Problem::no_such_job(&text))
    }
}
