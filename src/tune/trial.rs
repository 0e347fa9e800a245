//! One measurement: a setting, and how fast it is.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::model::{self, BatchTime, Limits, ModelChoice, ModelPackage, Session, Tensor};

/// The image that is classified: a photograph of a common size.
const PHOTOGRAPH: &[u8] = include_bytes!("../loadgen/samples/coffee.jpg");

/// One way to run the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub variant: String,
    pub intra_threads: usize,
    pub sessions: usize,
    pub batch_size: usize,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Trial {
    #[serde(flatten)]
    pub setting: Setting,
    pub images_per_second: f64,
    /// Time to decode and infer one batch.
    pub batch_ms: f64,
    /// The part of it inside the model.
    pub infer_ms: f64,
}

/// The work of one session.
#[derive(Default)]
struct Work {
    batches: u32,
    inferred: Duration,
    elapsed: Duration,
}

/// Measures one setting. Each session decodes and infers in its own thread, as in a worker.
///
/// # Errors
/// If the model cannot be loaded or run.
pub(super) fn measure(choice: &ModelChoice, setting: Setting, duration: Duration) -> anyhow::Result<Trial> {
    let choice = ModelChoice {
        variant: Some(setting.variant.clone()),
        intra_threads: Some(setting.intra_threads),
        ..choice.clone()
    };
    let package = ModelPackage::load(&choice)?;
    let mut sessions =
        (0..setting.sessions).map(|_| Session::open(&package, &choice)).collect::<anyhow::Result<Vec<_>>>()?;
    let begin = Barrier::new(sessions.len());
    let (begin, package) = (&begin, &package);
    let outcomes: Vec<anyhow::Result<Work>> = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .map(|session| scope.spawn(move || work(session, package, setting.batch_size, begin, duration)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a trial does not panic; this is a bug")).collect()
    });
    let (mut images_per_second, mut batch_seconds, mut infer_seconds) = (0.0, 0.0, 0.0);
    for outcome in outcomes {
        let Work { batches, inferred, elapsed } = outcome?;
        let seconds = elapsed.as_secs_f64() / f64::from(batches);
        images_per_second += setting.batch_size as f64 / seconds;
        batch_seconds += seconds / setting.sessions as f64;
        infer_seconds += inferred.as_secs_f64() / f64::from(batches) / setting.sessions as f64;
    }
    Ok(Trial { setting, images_per_second, batch_ms: batch_seconds * 1e3, infer_ms: infer_seconds * 1e3 })
}

fn work(
    session: &mut Session,
    package: &ModelPackage,
    batch_size: usize,
    begin: &Barrier,
    duration: Duration,
) -> anyhow::Result<Work> {
    let warm = classify(session, package, batch_size);
    begin.wait(); // after a failure too, because the other threads wait for this one
    warm?;
    let begun = Instant::now();
    let mut work = Work::default();
    while work.batches == 0 || begun.elapsed() < duration {
        work.inferred += classify(session, package, batch_size)?;
        work.batches += 1;
    }
    work.elapsed = begun.elapsed();
    Ok(work)
}

/// Classifies one batch. Returns the time inside the model.
fn classify(session: &mut Session, package: &ModelPackage, batch_size: usize) -> anyhow::Result<Duration> {
    let limits = Limits::default();
    let tensors =
        (0..batch_size).map(|_| model::prepare(PHOTOGRAPH, package, &limits)).collect::<Result<Vec<Tensor>, _>>()?;
    let begun = Instant::now();
    session.infer(&tensors.iter().collect::<Vec<_>>())?;
    Ok(begun.elapsed())
}

impl Trial {
    /// The time of its batches, compared with `single_ms` for one image.
    pub(super) fn batch_time(&self, single_ms: f64) -> BatchTime {
        let size = self.setting.batch_size;
        let gain = if size == 1 { 0.0 } else { 1.0 - self.batch_ms / size as f64 / single_ms };
        BatchTime { size, batch_ms: self.batch_ms, infer_ms: self.infer_ms, gain }
    }

    pub(super) fn line(&self) -> String {
        let Setting { variant, intra_threads, sessions, batch_size } = &self.setting;
        format!(
            "{variant}, {sessions} × {intra_threads} threads, batches of {batch_size}: {:.1} images/s",
            self.images_per_second
        )
    }
}
