//! Admission of images by the space that they need. A process that accepts images calls [`Space::admit`]; the loop that
//! enforces the limit measures the use and frees space. A backend whose space this program does not limit admits
//! every image.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How long a submission that would exceed the limit waits for space to be freed.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(1);
/// The space that a job needs besides its image, for its message, its result and its rows.
const BESIDE_IMAGE_BYTES: u64 = 8 << 10;
const BLOCK_BYTES: u64 = 4 << 10;
/// A warning is logged when the use reaches this share of the limit, in percent.
const WARN_FROM_PERCENT: u64 = 90;
/// The warning is logged again only after the use was below this share in between, in percent.
const WARN_AGAIN_BELOW_PERCENT: u64 = 80;
/// When the use reaches this share of the limit, space is freed before the next regular round, in percent.
const FREE_FROM_PERCENT: u64 = 95;
/// Space is freed down to this share, in percent.
const FREE_TO_PERCENT: u64 = 90;

/// The space of a service. Clones share it.
#[derive(Clone, Default)]
pub struct Space(Option<Arc<Shared>>);

struct Shared {
    state: Mutex<State>,
    /// Notified when space has to be freed.
    wanted: Notify,
    /// How often the use was measured.
    measured: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    limit_bytes: u64,
    used_bytes: u64,
    /// The space of admitted images that are not stored yet.
    pending_bytes: u64,
    /// The space of images stored since the measurement of `used_bytes` began.
    stored_bytes: u64,
    /// The largest image that waits for space.
    wanted_bytes: u64,
    /// The last attempt to free space found nothing, so that waiting for the next one is of no use.
    is_exhausted: bool,
    disk_free_bytes: u64,
}

/// The state of the space, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceState {
    /// The measured use.
    pub used_bytes: u64,
    /// The measured use, plus the images admitted since then and the largest image that waits for space.
    pub wanted_bytes: u64,
    /// The limit of the use.
    pub limit_bytes: u64,
    /// The free space of the disk.
    pub disk_free_bytes: u64,
}

/// The error of an image that was not admitted. There is no space until jobs finish or the limit is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored images and results take {used_bytes} of {limit_bytes} bytes (--max-data-bytes) and none of them can be \
     deleted yet; send it again when jobs have finished"
)]
pub struct NoSpace {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that may be used.
    pub limit_bytes: u64,
}

/// The space reserved for one image. The caller drops it when the image is stored or given up.
#[must_use]
pub struct Admitted {
    space: Space,
    bytes: u64,
}

/// A measurement that is in progress.
#[must_use]
pub struct Measuring {
    stored_before: u64,
}

impl Space {
    /// Returns the space of a backend that this program does not limit.
    pub fn unbounded() -> Space {
        Space(None)
    }

    /// Returns a space of at most `limit_bytes`. Until the first measurement nothing counts as used.
    pub fn bounded(limit_bytes: u64) -> Space {
        let state = Mutex::new(State { limit_bytes, ..State::default() });
        Space(Some(Arc::new(Shared { state, wanted: Notify::new(), measured: watch::Sender::new(0) })))
    }

    /// Admits an image of this size. If there is no space, it waits a moment for some to be freed.
    ///
    /// # Errors
    /// [`NoSpace`] if not enough was freed in time.
    pub async fn admit(&self, image_bytes: u64) -> Result<Admitted, NoSpace> {
        let Some(shared) = &self.0 else { return Ok(Admitted { space: self.clone(), bytes: 0 }) };
        let bytes = image_bytes.saturating_add(BESIDE_IMAGE_BYTES).div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        let mut measured = shared.measured.subscribe();
        if let Some(admitted) = self.try_admit(shared, bytes) {
            return Ok(admitted);
        }
        if shared.lock().is_exhausted {
            return Err(shared.no_space());
        }
        let freed = async {
            // A measurement that is already running may have begun before this call, so one change may not be enough.
            while measured.changed().await.is_ok() {
                if let Some(admitted) = self.try_admit(shared, bytes) {
                    return Some(admitted);
                }
            }
            None
        };
        tokio::time::timeout(ADMISSION_TIMEOUT, freed).await.ok().flatten().ok_or_else(|| shared.no_space())
    }

    fn try_admit(&self, shared: &Shared, bytes: u64) -> Option<Admitted> {
        let mut state = shared.lock();
        let wanted = state.taken().saturating_add(bytes);
        if bytes > state.limit_bytes {
            return None;
        }
        if wanted > state.limit_bytes {
            state.wanted_bytes = state.wanted_bytes.max(bytes);
        }
        if wanted > percent(state.limit_bytes, FREE_FROM_PERCENT) {
            shared.wanted.notify_one();
        }
        (wanted <= state.limit_bytes).then(|| {
            state.pending_bytes += bytes;
            Admitted { space: self.clone(), bytes }
        })
    }

    /// Returns the reason why an image would be refused now, or `None` if it would be admitted.
    pub fn refusal(&self) -> Option<NoSpace> {
        let shared = self.0.as_ref()?;
        let state = shared.lock();
        (state.used_bytes >= state.limit_bytes)
            .then(|| NoSpace { used_bytes: state.used_bytes, limit_bytes: state.limit_bytes })
    }

    /// Returns the current state, or `None` if the space is not limited.
    pub fn state(&self) -> Option<SpaceState> {
        let state = self.0.as_ref()?.lock();
        Some(SpaceState {
            used_bytes: state.used_bytes,
            wanted_bytes: state.taken() + state.wanted_bytes,
            limit_bytes: state.limit_bytes,
            disk_free_bytes: state.disk_free_bytes,
        })
    }

    /// Ends one attempt to free space. `is_exhausted` means that nothing could be freed.
    pub fn end_freeing(&self, is_exhausted: bool) {
        if let Some(shared) = &self.0 {
            let mut state = shared.lock();
            state.wanted_bytes = 0;
            state.is_exhausted = is_exhausted;
        }
    }

    /// Waits until space has to be freed. Only one caller may wait.
    pub async fn wanted(&self) {
        match &self.0 {
            Some(shared) => shared.wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Begins a measurement. Call it before the bytes are counted, so that images stored meanwhile count in any case.
    pub fn begin_measuring(&self) -> Measuring {
        Measuring { stored_before: self.0.as_ref().map_or(0, |shared| shared.lock().stored_bytes) }
    }

    /// Ends a measurement that failed. The images stored since the last one still count, and waiting callers check again.
    pub fn fail_measuring(&self) {
        if let Some(shared) = &self.0 {
            shared.measured.send_modify(|count| *count += 1);
        }
    }

    /// Ends a measurement with its result. Returns by how much the images that arrived since the last measurement may
    /// have raised it.
    pub fn end_measuring(&self, Measuring { stored_before }: Measuring, used_bytes: u64, disk_free_bytes: u64) -> u64 {
        let Some(shared) = &self.0 else { return 0 };
        let mut state = shared.lock();
        state.used_bytes = used_bytes;
        state.disk_free_bytes = disk_free_bytes;
        let arrived_bytes = state.stored_bytes + state.pending_bytes;
        state.stored_bytes -= stored_before;
        drop(state);
        shared.measured.send_modify(|count| *count += 1);
        arrived_bytes
    }
}

impl SpaceState {
    /// Returns the use at which all waiting images and the next few fit, or `None` if they fit already.
    pub fn target_bytes(&self) -> Option<u64> {
        if self.wanted_bytes <= percent(self.limit_bytes, FREE_FROM_PERCENT) {
            return None;
        }
        let coming = self.wanted_bytes.saturating_sub(self.used_bytes);
        Some(percent(self.limit_bytes, FREE_TO_PERCENT).min(self.limit_bytes.saturating_sub(coming)))
    }

    /// Returns true if the use is so low that a later warning is logged again.
    pub fn is_far_from_warning(&self) -> bool {
        self.used_bytes < percent(self.limit_bytes, WARN_AGAIN_BELOW_PERCENT)
    }

    /// Returns a warning for operators if space will run out soon.
    pub fn warning(&self) -> Option<String> {
        let SpaceState { used_bytes, limit_bytes, disk_free_bytes, .. } = self;
        if *used_bytes >= percent(*limit_bytes, WARN_FROM_PERCENT) {
            return Some(format!(
                "stored images and results take {used_bytes} of {limit_bytes} bytes (--max-data-bytes); the oldest of \
                 finished jobs are deleted first, before --keep-images and --keep-results"
            ));
        }
        let growth_bytes = limit_bytes - used_bytes;
        (*disk_free_bytes < growth_bytes).then(|| {
            format!(
                "the disk has {disk_free_bytes} bytes free, but --max-data-bytes allows for {growth_bytes} more: free \
                 some space or lower it"
            )
        })
    }
}

fn percent(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_space(&self) -> NoSpace {
        let state = self.lock();
        NoSpace { used_bytes: state.taken(), limit_bytes: state.limit_bytes }
    }
}

impl State {
    fn taken(&self) -> u64 {
        self.used_bytes + self.pending_bytes + self.stored_bytes
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(shared) = &self.space.0 {
            let mut state = shared.lock();
            state.pending_bytes -= self.bytes;
            state.stored_bytes += self.bytes;
        }
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Space").field(&self.state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn images_in_flight_and_stored_since_count_against_the_limit() {
        let space = Space::bounded(MIB);
        let first = space.admit(MIB / 2).await.unwrap();
        assert!(space.admit(MIB / 2).await.is_err());
        drop(first);
        assert!(space.admit(MIB / 2).await.is_err(), "stored, but not measured yet");
        let measuring = space.begin_measuring();
        space.end_measuring(measuring, MIB / 4, u64::MAX);
        let _second = space.admit(MIB / 2).await.unwrap();
        assert_eq!(space.refusal(), None);
        let measuring = space.begin_measuring();
        space.end_measuring(measuring, MIB, u64::MAX);
        assert!(space.refusal().is_some());
    }

    #[tokio::test]
    async fn waiting_image_is_admitted_once_space_is_freed() {
        let space = Space::bounded(MIB);
        let measuring = space.begin_measuring();
        space.end_measuring(measuring, MIB, u64::MAX);
        let freeing = async {
            space.wanted().await;
            let measuring = space.begin_measuring();
            space.end_measuring(measuring, 0, u64::MAX);
        };
        let (admitted, ()) = tokio::join!(space.admit(1), freeing);
        assert!(admitted.is_ok());
        assert!(Space::unbounded().admit(u64::MAX / 2).await.is_ok());
    }
}
