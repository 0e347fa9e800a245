//! Measures how busy the sessions of a worker are.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::protocol::Worked;
use crate::transport::WorkerLoad;

/// The service time, until one was measured.
const FIRST_GUESS: Duration = Duration::from_millis(5);
/// The weight of one batch in the moving average is one divided by this, since images differ.
const SMOOTHING: u32 = 4;

/// The load of a worker's sessions at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionLoad {
    /// Sessions that wait for an image.
    pub waiting: usize,
    /// The images of the batch that a session began last; zero before the first.
    pub images: usize,
    /// How long an image takes a session, measured over the last batches.
    service_time: Duration,
}

impl SessionLoad {
    pub(crate) const NOTHING_YET: SessionLoad = SessionLoad { waiting: 0, images: 0, service_time: FIRST_GUESS };

    pub(crate) fn is_idle(self) -> bool {
        self.waiting > 0 || self.images == 0
    }

    /// Returns the expected time until the next session is free, if all `sessions` are busy.
    pub(crate) fn next_is_free_in(self, sessions: u32) -> Duration {
        self.service_time * self.images as u32 / sessions
    }

    pub(crate) fn measured(self, worked: Worked) -> SessionLoad {
        let service_time = worked.service_time().unwrap_or(self.service_time);
        SessionLoad { service_time: (self.service_time * (SMOOTHING - 1) + service_time) / SMOOTHING, ..self }
    }
}

/// The load, as the transport asks for it.
pub(crate) struct LoadWatch {
    pub load: watch::Receiver<SessionLoad>,
    pub sessions: u32,
}

#[async_trait]
impl WorkerLoad for LoadWatch {
    fn next_free_in(&self) -> Option<Duration> {
        let load = *self.load.borrow();
        (!load.is_idle()).then(|| load.next_is_free_in(self.sessions))
    }

    async fn until_idle(&self) {
        // Fails only when the sender is gone: the sessions have ended, and nothing is received any more.
        let _ = self.load.clone().wait_for(|load| load.is_idle()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_session_is_free_when_its_images_are_done() {
        let ms = Duration::from_millis;
        let busy = SessionLoad { images: 3, ..SessionLoad::NOTHING_YET };
        assert_eq!(busy.next_is_free_in(1), ms(15));
        assert_eq!(busy.next_is_free_in(2), ms(15) / 2);
        let large = (0..20).fold(busy, |load, _| load.measured(Worked { images: 2, busy: ms(80) }));
        assert!((ms(118)..ms(121)).contains(&large.next_is_free_in(1)), "{large:?}");
    }
}
