//! The thread that starts a job for each image, and bounds how many are under way.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::{Client, Job, Outcome};
use crate::pile::finished::Finished;
use crate::pile::message::{Message, ReportPanic};
use crate::pile::queue::Receiver;
use crate::pile::read::Ready;
use crate::shutdown::CancellationToken;

pub(super) struct Sender {
    pub runtime: Handle,
    pub client: Arc<Client>,
    /// The most jobs that are under way.
    pub jobs: usize,
    pub ready: Receiver<Ready>,
    pub messages: SyncSender<Message>,
    pub stop: CancellationToken,
}

impl Sender {
    /// Starts the thread. It ends when all images are sent, or the run is stopped.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub(super) fn start(self) -> anyhow::Result<JoinHandle<()>> {
        let thread = thread::Builder::new().name("send".to_owned());
        thread.spawn(move || self.run()).context("cannot start a thread")
    }

    fn run(self) {
        let _report = ReportPanic(self.messages.clone());
        let permits = Arc::new(Semaphore::new(self.jobs));
        while let Some(mut ready) = self.ready.recv() {
            // The last object of a bucket ends its client, which must not happen in a task of the runtime.
            let job = ready.object.take().map(|object| self.client.job_of_object(&ready.path, &object));
            let permit = self.stop.run_until_cancelled(Arc::clone(&permits).acquire_owned());
            let Some(Ok(permit)) = self.runtime.block_on(permit) else { return };
            self.runtime.spawn(classify(Arc::clone(&self.client), ready, job, self.messages.clone(), permit));
        }
        // The copies of the last images are deleted before the run ends.
        let all = u32::try_from(self.jobs).unwrap_or(u32::MAX);
        let ended = self.stop.run_until_cancelled(permits.acquire_many(all));
        drop(self.runtime.block_on(ended));
    }
}

/// Takes one image to its outcome. An object of a bucket comes as its job. The permit is held until the image needs nothing more of the service.
async fn classify(
    client: Arc<Client>,
    ready: Ready,
    job: Option<Job>,
    messages: SyncSender<Message>,
    permit: OwnedSemaphorePermit,
) {
    let Ready { sequence, path, file, boxes, bytes, object: _, held } = ready;
    let job = job.unwrap_or_else(|| client.job(&path, bytes));
    let (message, needs_image) = match client.classify(&job, held).await {
        Ok(Outcome { row, needs_image }) => {
            (Message::from(Finished { sequence, path, file, boxes, outcome: row }), needs_image)
        }
        Err(fault) => (Message::Fault(fault), true),
    };
    // The collector takes outcomes as long as the run goes on. The channel has a place for each job that is under way.
    let is_taken = messages.send(message).is_ok();
    if is_taken && !needs_image {
        client.discard_image(&job).await;
    }
    drop(permit);
}
