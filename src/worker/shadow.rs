//! The shadow model: it classifies a share of the images after their results were published, and says how often its first
//! label is the same. No answer waits for it: it runs in a thread of its own at the lowest priority, and images that it
//! cannot take at once are left out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics::METRICS;
use super::models::Model;
use super::thread::WorkerThread;
use crate::model::{self, Limits};

/// Images that wait for the shadow model.
const CAPACITY: usize = 4;
/// How often the agreement is logged while images are compared.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The niceness of the thread, the highest that there is. The system gives it the time that no other thread wants, and a
/// small share of it otherwise.
const NICENESS: i32 = 19;

/// An image with the first label of the model that answered.
pub(crate) struct ShadowImage {
    pub image: Bytes,
    pub label: String,
}

/// The share of the images that the shadow model gets, 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShadowShare(pub f64);

impl ShadowShare {
    /// Returns true if the image of a job belongs to the share. It is the same for each attempt and in each worker.
    pub(crate) fn contains(self, id: Uuid) -> bool {
        let digest = Sha256::digest(id.as_bytes());
        let first = digest.iter().take(8).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        (first as f64) < self.0 * u64::MAX as f64
    }
}

/// Hands images to the shadow model. The thread ends when this is dropped.
pub(crate) struct ShadowQueue(mpsc::Sender<ShadowImage>);

impl ShadowQueue {
    /// Hands an image over, unless the model is busy with earlier ones.
    pub(crate) fn offer(&self, image: ShadowImage) {
        if self.0.try_send(image).is_err() {
            METRICS.shadow_skipped.inc();
        }
    }
}

/// Starts the thread of the shadow model. It ends when the queue is dropped, or after the image at hand at `stop`.
///
/// # Errors
/// The system refuses another thread.
pub(crate) fn start(
    model: Arc<Model>,
    limits: Limits,
    stop: CancellationToken,
) -> anyhow::Result<(ShadowQueue, WorkerThread)> {
    let (sender, mut images) = mpsc::channel::<ShadowImage>(CAPACITY);
    let thread = WorkerThread::spawn("shadow".to_owned(), move || {
        if let Err(error) = setpriority_process(Some(gettid()), NICENESS) {
            tracing::debug!(%error, "the thread of the shadow model runs at the usual priority");
        }
        let mut agreement = Agreement::new();
        while let Some(image) = images.blocking_recv()
            && !stop.is_cancelled()
        {
            match classify(&model, &image, &limits) {
                Ok(label) => agreement.count(label == image.label, &model),
                Err(error) => {
                    METRICS.shadow_skipped.inc();
                    tracing::debug!("the shadow model cannot classify an image: {error:#}");
                }
            }
        }
        agreement.log(&model);
    })?;
    Ok((ShadowQueue(sender), thread))
}

fn classify(model: &Model, image: &ShadowImage, limits: &Limits) -> anyhow::Result<String> {
    let mut active = model.begin_batch(0);
    let tensor =
        model::prepare(&image.image, &active.package, limits).map_err(|error| anyhow::anyhow!(error.message))?;
    let rows = active.session.infer(&[&tensor])?;
    let row = rows.first().context("the model gave no answer")?;
    let best = model::top_k(&active.package, row, 1).into_iter().next().context("the model has no classes")?;
    Ok(best.label)
}

/// How often both models agreed since the start, and since the last line of the log.
struct Agreement {
    compared: u64,
    agreeing: u64,
    logged: u64,
    logged_at: Instant,
}

impl Agreement {
    fn new() -> Agreement {
        Agreement { compared: 0, agreeing: 0, logged: 0, logged_at: Instant::now() }
    }

    fn count(&mut self, agrees: bool, model: &Model) {
        METRICS.shadow_compared.inc();
        METRICS.shadow_agreeing.inc_by(u64::from(agrees));
        self.compared += 1;
        self.agreeing += u64::from(agrees);
        if self.logged_at.elapsed() >= LOG_INTERVAL {
            self.log(model);
        }
    }

    fn log(&mut self, model: &Model) {
        if self.compared > self.logged {
            let percent = self.agreeing as f64 * 100.0 / self.compared as f64;
            let Agreement { compared, agreeing, .. } = self;
            tracing::info!(
                shadow = model.version().name(),
                compared,
                agreeing,
                "the shadow model agrees on {percent:.1} % of the images since the start"
            );
        }
        (self.logged, self.logged_at) = (self.compared, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_that_of_the_jobs_and_the_same_at_each_attempt() {
        let ids: Vec<Uuid> = (0..4_000_u128).map(|number| Uuid::from_u128(number << 64)).collect();
        let count = |share: f64| ids.iter().filter(|id| ShadowShare(share).contains(**id)).count();
        assert_eq!((count(0.0), count(1.0)), (0, ids.len()));
        assert!((320..480).contains(&count(0.1)), "{}", count(0.1));
        assert!(ids.iter().all(|id| !ShadowShare(0.1).contains(*id) || ShadowShare(0.2).contains(*id)));
    }
}
