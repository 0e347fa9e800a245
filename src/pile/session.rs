//! The sessions: each has a thread that decodes and infers one image after the other.
//!
//! A decoder that does not stop within twice its time is given up: its image fails as `decode_timeout`, and another
//! session takes the place of its thread, which ends only with the process.

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use super::boxes::ImageBoxes;
use super::finished::{Answer, BoxAnswer, Finished, Timings};
use super::message::{Message, ReportPanic};
use super::queue::Receiver;
use super::read::Ready;
use crate::model::{self, Limits, ModelChoice, ModelPackage, PrepareError, Region, Session, Tensor, WholeImage};
use crate::protocol::{ErrorCode, ErrorInfo, ImageFacts, ServiceClass};
use crate::result_cache::{AnswerKey, Begun, CachedAnswer, Claim, ResultCache};
use crate::shutdown::CancellationToken;
use crate::worker::{Slot, Watchdog};

/// So many decoders may be given up before the run ends. Each of them uses a core.
const MAX_STUCK: usize = 8;

/// State that all sessions of a run share.
pub(super) struct Sessions {
    pub package: ModelPackage,
    pub choice: ModelChoice,
    pub limits: Limits,
    /// Answers that are kept.
    pub cache: Option<Arc<ResultCache>>,
    pub top_k: u32,
    /// Reads when a photograph was taken.
    pub reads_time: bool,
    pub ready: Receiver<Ready>,
    pub messages: SyncSender<Message>,
    pub stop: CancellationToken,
    pub watchdog: Watchdog<Pending>,
    /// Sessions that have an image, or are opened or closed. The outcome of an image is sent before the number decreases.
    pub busy: AtomicUsize,
}

/// A session that counts as busy.
struct Busy(Arc<Sessions>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An image whose decoder runs.
pub(super) struct Pending {
    sequence: u64,
    path: PathBuf,
    file: Option<PathBuf>,
    boxes: Option<Arc<ImageBoxes>>,
    /// Other sessions may wait for the answer.
    claim: Option<Claim>,
}

/// An image that is ready to be classified.
enum Prepared {
    /// The input for the whole image, and the size of the upright image.
    Whole(Tensor, (u32, u32)),
    Boxes(WholeImage, Arc<ImageBoxes>),
    /// No part of the image is classified.
    Nothing,
}

impl Sessions {
    /// Starts a thread with a session, which it opens itself if it gets none.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub(super) fn start(
        self: &Arc<Sessions>,
        name: String,
        session: Option<Session>,
    ) -> anyhow::Result<JoinHandle<()>> {
        let (sessions, opening) = (Arc::clone(self), self.busy());
        let thread = thread::Builder::new().name(name);
        thread.spawn(move || sessions.run(session, opening)).context("cannot start a thread; give a smaller --jobs")
    }

    fn busy(self: &Arc<Sessions>) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    /// Returns whether a session has an image, or is opened or closed. Once the run is stopped and none is busy, no thread calls the
    /// runtime, which the end of the process would take away from it.
    pub(super) fn are_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }

    fn run(self: &Arc<Sessions>, session: Option<Session>, opening: Busy) {
        let _report = ReportPanic(self.messages.clone());
        if self.stop.is_cancelled() {
            mem::forget(session);
            return;
        }
        let mut session = match session.map_or_else(|| Session::open(&self.package, &self.choice), Ok) {
            Ok(session) => session,
            Err(fault) => {
                let _ =
                    self.messages.send(Message::Fault(fault.context("cannot open a session; give a smaller --jobs")));
                return;
            }
        };
        drop(opening);
        self.classify_all(&mut session);
        let closing = self.busy();
        if self.stop.is_cancelled() {
            // Nothing waits for this thread any more, and the process may end while it closes the session.
            mem::forget(session);
        } else {
            drop(session);
        }
        drop(closing);
    }

    /// Classifies images until there are no more, or the run is stopped.
    fn classify_all(self: &Arc<Sessions>, session: &mut Session) {
        let slot = self.watchdog.slot();
        while let Some(ready) = self.ready.recv() {
            let busy = self.busy();
            if self.stop.is_cancelled() {
                return;
            }
            let Some(finished) = self.classify(ready, &slot, session) else {
                // The watchdog has counted this thread off.
                mem::forget(busy);
                return;
            };
            if self.messages.send(finished.into()).is_err() {
                return;
            }
        }
    }

    /// Returns `None` if the watchdog gave this thread up.
    fn classify(&self, ready: Ready, slot: &Slot<Pending>, session: &mut Session) -> Option<Finished> {
        let Ready { sequence, path, file, boxes, bytes, object: _, held } = ready;
        let begun = Instant::now();
        let claim = match self.look_up(&bytes, boxes.is_some()) {
            Some(Ok(answer)) => {
                let outcome = Ok(self.cached(&answer, Timings::new(Duration::ZERO, begun.elapsed())));
                return Some(Finished { sequence, path, file, boxes, outcome });
            }
            Some(Err(claim)) => Some(claim),
            None => None,
        };
        let reads_time = self.reads_time || claim.is_some();
        slot.begin(Pending { sequence, path, file, boxes: boxes.clone(), claim });
        let prepared = self.prepare(&bytes, boxes);
        let decoded = begun.elapsed();
        let datetime_original = (reads_time && prepared.is_ok()).then(|| model::datetime_original(&bytes)).flatten();
        let Pending { sequence, path, file, boxes, claim } = slot.end()?;
        drop((bytes, held));
        let outcome = prepared.map_err(error_info).and_then(|prepared| {
            let (mut answers, (width, height)) = self.answers(prepared, session)?;
            let timings = Timings::new(decoded, begun.elapsed());
            let whole = if boxes.is_none() { answers.pop() } else { None };
            let BoxAnswer { predictions, labels } = whole.unwrap_or_default();
            let model = self.package.model_ref();
            if let Some(claim) = claim {
                let facts = ImageFacts { width, height, datetime_original: datetime_original.clone() };
                let (predictions, labels) = (predictions.clone(), labels.clone());
                claim.answer(CachedAnswer { predictions, labels, facts });
            }
            Ok(Answer { predictions, labels, width, height, datetime_original, model, timings, boxes: answers })
        });
        Some(Finished { sequence, path, file, boxes, outcome })
    }

    /// The answer for an image that was classified before, or the duty to classify it for other sessions too. `None` if no
    /// answers are kept.
    fn look_up(&self, bytes: &[u8], has_boxes: bool) -> Option<Result<Arc<CachedAnswer>, Claim>> {
        let cache = self.cache.as_ref().filter(|_| !has_boxes)?;
        let key = AnswerKey::new(bytes, self.package.answer_digest(), self.top_k, self.limits.max_pixels);
        loop {
            match cache.begin(key, ServiceClass::Bulk) {
                Begun::Answered(answer) => return Some(Ok(answer)),
                Begun::Claimed(claim) => return Some(Err(claim)),
                // The session that has the image is classifying it now.
                Begun::Waits(waiter) => {
                    if let Some(answer) = waiter.wait_blocking() {
                        return Some(Ok(answer));
                    }
                }
            }
        }
    }

    fn cached(&self, answer: &CachedAnswer, timings: Timings) -> Answer {
        let CachedAnswer { predictions, labels, facts } = answer.clone();
        let ImageFacts { width, height, datetime_original } = facts;
        let (model, boxes) = (self.package.model_ref(), Vec::new());
        Answer { predictions, labels, width, height, datetime_original, model, timings, boxes }
    }

    fn prepare(&self, bytes: &[u8], boxes: Option<Arc<ImageBoxes>>) -> Result<Prepared, PrepareError> {
        match boxes {
            None => {
                let prepared = model::prepare_sized(bytes, &self.package, &self.limits);
                prepared.map(|(tensor, size)| Prepared::Whole(tensor, size))
            }
            Some(boxes) if boxes.regions.is_empty() => Ok(Prepared::Nothing),
            Some(boxes) => WholeImage::decode(bytes, &self.limits).map(|image| Prepared::Boxes(image, boxes)),
        }
    }

    /// The answers for the parts of an image, and its size. One tensor at a time is in memory.
    fn answers(&self, prepared: Prepared, session: &mut Session) -> Result<(Vec<BoxAnswer>, (u32, u32)), ErrorInfo> {
        let mut answer = |tensor: &Tensor| -> Result<BoxAnswer, ErrorInfo> {
            let scores = infer(session, tensor)?;
            let predictions = model::top_k(&self.package, &scores, self.top_k);
            Ok(BoxAnswer { predictions, labels: model::labels_above(&self.package, &scores) })
        };
        match prepared {
            Prepared::Nothing => Ok((Vec::new(), (0, 0))),
            Prepared::Whole(tensor, size) => Ok((vec![answer(&tensor)?], size)),
            Prepared::Boxes(image, boxes) => {
                let of_box = |(_, region): &(usize, Region)| {
                    let tensor = image.tensor(*region, boxes.crop, &self.package, &self.limits).map_err(error_info)?;
                    answer(&tensor)
                };
                let answers = boxes.regions.iter().map(of_box).collect::<Result<Vec<_>, _>>()?;
                Ok((answers, image.size()))
            }
        }
    }

    /// Replaces sessions whose decoder is stuck, until `end` is closed.
    pub(super) fn watch(self: &Arc<Sessions>, end: &mpsc::Receiver<()>) {
        let _report = ReportPanic(self.messages.clone());
        let often = (self.limits.decode_timeout / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let mut stuck = 0;
        while end.recv_timeout(often) == Err(RecvTimeoutError::Timeout) {
            let Some(Pending { sequence, path, file, boxes, claim }) = self.watchdog.take_stuck() else { continue };
            // A session that waits for the same image tries it next.
            drop(claim);
            stuck += 1;
            tracing::error!(image = %path.display(), "a decoder does not stop; its image fails as `decode_timeout`");
            let message = model::timeout_message(self.limits.decode_timeout);
            let error = ErrorInfo { code: ErrorCode::DecodeTimeout, message };
            let _ = self.messages.send(Finished { sequence, path, file, boxes, outcome: Err(error) }.into());
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if let Err(fault) = self.replace(stuck) {
                let _ = self.messages.send(Message::Fault(fault));
                return;
            }
        }
    }

    fn replace(self: &Arc<Sessions>, stuck: usize) -> anyhow::Result<()> {
        if stuck > MAX_STUCK {
            return Err(anyhow!(
                "the decoders of {stuck} images did not stop, and each uses a core; run the same command again for the \
                 other images"
            ));
        }
        self.start(format!("replacement-{stuck}"), None).map(drop)
    }
}

fn error_info(error: PrepareError) -> ErrorInfo {
    ErrorInfo { code: error.fault.into(), message: error.message }
}

fn infer(session: &mut Session, tensor: &Tensor) -> Result<Vec<f32>, ErrorInfo> {
    let scores = session.infer(&[tensor]).and_then(|scores| scores.into_iter().next().context("it gave no scores"));
    scores.map_err(|error| ErrorInfo { code: ErrorCode::Internal, message: format!("{error:#}") })
}
