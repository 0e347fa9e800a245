//! The inference threads: one OS thread owns one session of the model, without a mutex.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::job::{Ending, Rules, Work};
use super::lease::Lease;
use super::metrics::METRICS;
use crate::model::{self, ModelChoice, ModelPackage, Session, Tensor};

/// An image that is ready for the model.
pub struct Prepared {
    pub work: Work,
    pub lease: Lease,
    pub tensor: Tensor,
    /// The file; kept for the original's form, which stores it. Empty otherwise.
    pub image: Bytes,
    /// A place among those that wait. Given up when the inference begins, so that the next image is fetched and
    /// decoded meanwhile.
    pub place: OwnedSemaphorePermit,
    pub ready_at: Instant,
}

impl Prepared {
    pub fn same_shape(&self, other: &Prepared) -> bool {
        (self.tensor.height, self.tensor.width) == (other.tensor.height, other.tensor.width)
    }
}

/// What leaves the model: a lease and how it ends.
pub struct Finished {
    pub lease: Lease,
    pub ending: Ending,
}

/// The sessions, as the batcher sees them.
pub struct Sessions {
    batches: Vec<std::sync::mpsc::SyncSender<Vec<Prepared>>>,
    free: mpsc::Receiver<usize>,
}

/// A session that waits for a batch.
pub struct FreeSession<'a>(&'a std::sync::mpsc::SyncSender<Vec<Prepared>>);

impl Sessions {
    /// The next session that has nothing to do.
    pub async fn free(&mut self) -> anyhow::Result<FreeSession<'_>> {
        let index = self.free.recv().await.context("every inference thread has ended")?;
        Ok(FreeSession(&self.batches[index]))
    }
}

impl FreeSession<'_> {
    pub fn run(self, batch: Vec<Prepared>) -> anyhow::Result<()> {
        self.0.send(batch).map_err(|_| anyhow::anyhow!("an inference thread has ended"))
    }
}

/// Opens `count` sessions at the same time, each on its own thread, and returns when all are warm.
///
/// The threads end when [`Sessions`] is dropped; they drop their senders of `finished` then.
pub async fn start(
    count: usize,
    package: &Arc<ModelPackage>,
    choice: &ModelChoice,
    rules: &Arc<Rules>,
    finished: &mpsc::Sender<Finished>,
) -> anyhow::Result<(Sessions, Vec<JoinHandle<()>>)> {
    let (free_tx, free) = mpsc::channel(count);
    let (opened_tx, mut opened) = mpsc::channel::<anyhow::Result<String>>(count);
    let mut batches = Vec::new();
    let mut threads = Vec::new();
    for index in 0..count {
        let (batch_tx, batch_rx) = std::sync::mpsc::sync_channel(1);
        let thread = Thread {
            index,
            package: Arc::clone(package),
            rules: Arc::clone(rules),
            batches: batch_rx,
            free: free_tx.clone(),
            finished: finished.clone(),
        };
        let (choice, opened) = (choice.clone(), opened_tx.clone());
        let handle = std::thread::Builder::new()
            .name(format!("infer-{index}"))
            .spawn(move || thread.run(&choice, &opened))
            .context("cannot start an inference thread")?;
        batches.push(batch_tx);
        threads.push(handle);
    }
    drop(opened_tx);
    for _ in 0..count {
        let description = opened.recv().await.context("an inference thread ended while it opened its session")??;
        tracing::debug!(session = description, "session open");
    }
    Ok((Sessions { batches, free }, threads))
}

struct Thread {
    index: usize,
    package: Arc<ModelPackage>,
    rules: Arc<Rules>,
    batches: std::sync::mpsc::Receiver<Vec<Prepared>>,
    free: mpsc::Sender<usize>,
    finished: mpsc::Sender<Finished>,
}

impl Thread {
    fn run(self, choice: &ModelChoice, opened: &mpsc::Sender<anyhow::Result<String>>) {
        let mut session = match Session::open(&self.package, choice) {
            Ok(session) => session,
            Err(error) => {
                let _ = opened.blocking_send(Err(error));
                return;
            }
        };
        let _ = opened.blocking_send(Ok(session.describe()));
        // The capacity of `free` is one place a session, so this never waits; an error means that the batcher ended.
        while self.free.blocking_send(self.index).is_ok() {
            let Ok(batch) = self.batches.recv() else { return };
            if self.run_batch(&mut session, batch).is_err() {
                return;
            }
        }
    }

    /// # Errors
    /// When nobody takes what is finished any more.
    fn run_batch(&self, session: &mut Session, batch: Vec<Prepared>) -> Result<(), ()> {
        let mut running = Vec::with_capacity(batch.len());
        let mut tensors = Vec::with_capacity(batch.len());
        for Prepared { work, lease, tensor, image, place, ready_at } in batch {
            drop(place);
            running.push((work, lease, image, ready_at));
            tensors.push(tensor);
        }
        let started = Instant::now();
        let outcome = session.infer(&tensors.iter().collect::<Vec<_>>());
        METRICS.batch_size.observe(tensors.len() as f64);
        METRICS.stage("inferred").observe(started.elapsed().as_secs_f64());
        let mut probabilities = match outcome {
            Ok(probabilities) => Ok(probabilities.into_iter()),
            Err(error) => Err(format!("inference failed: {error:#}")),
        };
        for (mut work, lease, image, ready_at) in running {
            work.timings_ms.inferred = ready_at.elapsed().as_secs_f64() * 1e3;
            let ending = match &mut probabilities {
                Ok(rows) => self.conclude(work, image, rows.next().as_deref()),
                Err(reason) => work.faulted(reason.clone()),
            };
            self.finished.blocking_send(Finished { lease, ending }).map_err(|_| ())?;
        }
        Ok(())
    }

    fn conclude(&self, work: Work, image: Bytes, row: Option<&[f32]>) -> Ending {
        let Some(row) = row else { return work.faulted("the model gave fewer answers than images".to_owned()) };
        let predictions = model::top_k(&self.package, row, work.top_k);
        work.succeeded(predictions, image, self.package.model_ref(), Timestamp::now(), &self.rules)
    }
}
