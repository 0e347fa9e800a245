//! Answers about images that were classified before (decision 42). An answer is found by an [`AnswerKey`], a digest of the
//! content of the image, of everything that the answer of the model depends on, and of the options. The name of an image is
//! no part of it.
//!
//! - `file`: the answers in a file, which all processes of a machine share
//!
//! Identical images that come at the same time are classified once by each process: the first gets a [`Claim`], and the
//! others wait for its answer. A cache that cannot be read or written costs time and never an answer.

mod file;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use self::file::AnswerFile;
use crate::model::Prediction;
use crate::protocol::{ImageFacts, ServiceClass};

/// The version of the content of keys. Another version finds no answer of this one.
const KEY_VERSION: &[u8] = b"imgcls answer 1";

/// Settings of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The folder that gets the file. Without one the answers are in the memory of this process.
    pub folder: Option<PathBuf>,
    /// The most bytes that answers take. The least recently used are deleted.
    pub max_bytes: u64,
}

/// Names an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AnswerKey([u8; 32]);

/// An answer and the facts of its image. The model is that of the key.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedAnswer {
    /// The best classes, the best first.
    pub predictions: Vec<Prediction>,
    /// The classes at or above their thresholds, if the model gives an image several labels.
    pub labels: Vec<Prediction>,
    /// The facts of the image.
    pub facts: ImageFacts,
}

/// Images that a process classifies now, with those that wait for the answer. Images of different classes of service do not
/// wait for each other, so that no caller waits for images of a batch.
type Claimed = HashMap<(AnswerKey, ServiceClass), Vec<oneshot::Sender<Arc<CachedAnswer>>>>;

/// The answers that this process and others of this machine keep.
pub struct ResultCache {
    file: Mutex<AnswerFile>,
    claimed: Mutex<Claimed>,
    answered: AtomicU64,
}

/// The beginning of a classification.
pub enum Begun {
    /// The answer is known.
    Answered(Arc<CachedAnswer>),
    /// The caller classifies the image.
    Claimed(Claim),
    /// The same image is classified now.
    Waits(Waiter),
}

/// The duty to classify an image for all that wait for its answer. Dropping it makes one of them the next to do so.
pub struct Claim {
    cache: Arc<ResultCache>,
    key: AnswerKey,
    class: ServiceClass,
    is_answered: bool,
}

/// Waits for the answer of another.
pub struct Waiter {
    cache: Arc<ResultCache>,
    answer: oneshot::Receiver<Arc<CachedAnswer>>,
}

impl AnswerKey {
    /// The key of an image. `model` is the digest of everything that the model's answer depends on, the image apart. An image
    /// with more pixels than `max_pixels` has no answer.
    pub fn new(image: &[u8], model: &[u8; 32], top_k: u32, max_pixels: u64) -> AnswerKey {
        let mut key = Sha256::new_with_prefix(KEY_VERSION);
        key.update(Sha256::digest(image));
        key.update(model);
        key.update(top_k.to_le_bytes());
        key.update(max_pixels.to_le_bytes());
        AnswerKey(key.finalize().into())
    }
}

impl ResultCache {
    /// Opens the cache. One whose file cannot be used keeps its answers in memory; the log says why.
    pub fn open(config: &CacheConfig) -> Arc<ResultCache> {
        Arc::new(ResultCache {
            file: Mutex::new(AnswerFile::open(config)),
            claimed: Mutex::default(),
            answered: AtomicU64::new(0),
        })
    }

    /// The number of images that were answered without being classified.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Looks an answer up. If there is none, the first caller classifies the image, and others wait for it.
    pub fn begin(self: &Arc<Self>, key: AnswerKey, class: ServiceClass) -> Begun {
        let mut claimed = self.claimed();
        if let Some(waiting) = claimed.get_mut(&(key, class)) {
            let (sender, answer) = oneshot::channel();
            waiting.push(sender);
            return Begun::Waits(Waiter { cache: Arc::clone(self), answer });
        }
        // The claim of an answer ends after the answer is in the file, so an answer is either here or there.
        if let Some(answer) = self.file().find(key) {
            self.answered.fetch_add(1, Ordering::Relaxed);
            return Begun::Answered(Arc::new(answer));
        }
        claimed.insert((key, class), Vec::new());
        Begun::Claimed(Claim { cache: Arc::clone(self), key, class, is_answered: false })
    }

    /// Each change of the map is one call, so a poisoned lock still guards a consistent map.
    fn claimed(&self) -> MutexGuard<'_, Claimed> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, AnswerFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Keeps the answer, and gives it to all who wait for it.
    pub fn answer(mut self, answer: CachedAnswer) {
        self.is_answered = true;
        self.cache.file().keep(self.key, &answer);
        let waiting = self.cache.claimed().remove(&(self.key, self.class)).unwrap_or_default();
        let answer = Arc::new(answer);
        for waiting in waiting {
            // A waiter may have gone.
            let _ = waiting.send(Arc::clone(&answer));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // After an answer, the claim in the map may be that of another caller.
        if !self.is_answered {
            self.cache.claimed().remove(&(self.key, self.class));
        }
    }
}

impl Waiter {
    /// Waits. `None` means that the image was not classified: begin again.
    pub async fn wait(self) -> Option<Arc<CachedAnswer>> {
        let answer = self.answer.await.ok();
        self.cache.answered.fetch_add(u64::from(answer.is_some()), Ordering::Relaxed);
        answer
    }

    /// The same on a thread that is not one of the runtime.
    pub fn wait_blocking(self) -> Option<Arc<CachedAnswer>> {
        let answer = self.answer.blocking_recv().ok();
        self.cache.answered.fetch_add(u64::from(answer.is_some()), Ordering::Relaxed);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(label: &str, score: f32) -> CachedAnswer {
        let prediction = Prediction { class_index: Some(3), label: label.to_owned(), score: Some(score) };
        let facts = ImageFacts { width: 3, height: 2, datetime_original: Some("2024-05-01T12:34:56".to_owned()) };
        CachedAnswer { predictions: vec![prediction.clone()], labels: vec![prediction], facts }
    }

    fn key(number: u32) -> AnswerKey {
        AnswerKey::new(&number.to_le_bytes(), &[0; 32], 5, 1)
    }

    fn opened(folder: &std::path::Path, max_bytes: u64) -> Arc<ResultCache> {
        ResultCache::open(&CacheConfig { folder: Some(folder.to_owned()), max_bytes })
    }

    fn keep(cache: &Arc<ResultCache>, key: AnswerKey, answer: CachedAnswer) {
        match cache.begin(key, ServiceClass::Interactive) {
            Begun::Claimed(claim) => claim.answer(answer),
            _ => panic!("the answer is known"),
        }
    }

    fn found(cache: &Arc<ResultCache>, key: AnswerKey) -> Option<CachedAnswer> {
        match cache.begin(key, ServiceClass::Interactive) {
            Begun::Answered(answer) => Some((*answer).clone()),
            Begun::Claimed(_) => None,
            Begun::Waits(_) => panic!("nobody classifies it"),
        }
    }

    #[test]
    fn answers_are_those_that_were_kept_bit_for_bit_also_for_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (opened(folder.path(), 1 << 20), opened(folder.path(), 1 << 20));
        // Scores whose shortest decimal form is the hardest to read back, and any others.
        let hard = [f32::MIN_POSITIVE, 1e-45, f32::MAX, 0.1, 1.0 / 3.0, 8.589_973e9, 1.175_494_2e-38];
        for (number, score) in (0..).zip(hard.into_iter().chain((0..500).map(|_| rand::random()))) {
            keep(&one, key(number), answer(&format!("label {number}"), score));
            let there = found(&other, key(number)).expect("an answer");
            assert_eq!(there, answer(&format!("label {number}"), score));
            assert_eq!(there.predictions[0].score.map(f32::to_bits), Some(score.to_bits()));
        }
        drop((one, other));
        assert_eq!(found(&opened(folder.path(), 1 << 20), key(3)), Some(answer("label 3", 0.1)));
    }

    #[test]
    fn key_depends_on_image_model_and_options() {
        let keys = [
            AnswerKey::new(b"a", &[0; 32], 5, 9),
            AnswerKey::new(b"b", &[0; 32], 5, 9),
            AnswerKey::new(b"a", &[1; 32], 5, 9),
            AnswerKey::new(b"a", &[0; 32], 1, 9),
            AnswerKey::new(b"a", &[0; 32], 5, 8),
        ];
        let different: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
    }

    #[test]
    fn first_caller_classifies_and_the_others_get_its_answer() {
        let cache = ResultCache::open(&CacheConfig { folder: None, max_bytes: 1 << 20 });
        let Begun::Claimed(first) = cache.begin(key(1), ServiceClass::Interactive) else { panic!("it is known") };
        let Begun::Waits(second) = cache.begin(key(1), ServiceClass::Interactive) else { panic!("not the first") };
        assert!(matches!(cache.begin(key(2), ServiceClass::Interactive), Begun::Claimed(_)));
        assert!(matches!(cache.begin(key(1), ServiceClass::Bulk), Begun::Claimed(_)), "no class waits for another");
        // A claim that is dropped leaves the image to those that wait.
        drop(first);
        assert_eq!(second.wait_blocking(), None);
        let Begun::Claimed(next) = cache.begin(key(1), ServiceClass::Interactive) else { panic!("it is known") };
        let waiters: Vec<_> = (0..3).map(|_| cache.begin(key(1), ServiceClass::Interactive)).collect();
        next.answer(answer("cat", 0.5));
        for waiter in waiters {
            let Begun::Waits(waiter) = waiter else { panic!("not the first") };
            assert_eq!(waiter.wait_blocking().as_deref(), Some(&answer("cat", 0.5)));
        }
        assert_eq!(found(&cache, key(1)), Some(answer("cat", 0.5)));
        assert_eq!(cache.answered(), 4);
    }

    #[test]
    fn least_recently_used_answers_are_deleted_beyond_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let limit = 1 << 20;
        let cache = opened(folder.path(), limit);
        for number in 0..20_000 {
            keep(&cache, key(number), answer("a label of some length, so that answers take some room", 0.5));
        }
        assert!(found(&cache, key(19_999)).is_some() && found(&cache, key(0)).is_none());
        let bytes = |folder: &std::path::Path| -> u64 {
            std::fs::read_dir(folder.join(file::FOLDER))
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sqlite3"))
                .map(|entry| entry.metadata().unwrap().len())
                .sum()
        };
        drop(cache);
        assert!(bytes(folder.path()) <= limit, "{} bytes", bytes(folder.path()));
        // A smaller limit shrinks the file.
        let kept = opened(folder.path(), limit / 4);
        assert!(found(&kept, key(19_999)).is_some());
        drop(kept);
        assert!(bytes(folder.path()) <= limit / 4, "{} bytes", bytes(folder.path()));
    }

    #[test]
    fn damaged_and_foreign_files_are_replaced_or_left_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        keep(&opened(folder.path(), 1 << 20), key(1), answer("cat", 0.5));
        let path = folder.path().join(file::FOLDER).join(file::NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let cache = opened(folder.path(), 1 << 20);
        assert_eq!(found(&cache, key(1)), None);
        keep(&cache, key(1), answer("cat", 0.5));
        drop(cache);
        assert_eq!(found(&opened(folder.path(), 1 << 20), key(1)), Some(answer("cat", 0.5)));
        // Others could have written the answers.
        let open_to_all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path().join(file::FOLDER), open_to_all).unwrap();
        let cache = opened(folder.path(), 1 << 20);
        assert_eq!(found(&cache, key(1)), None);
        keep(&cache, key(1), answer("dog", 0.5));
        assert_eq!(found(&cache, key(1)), Some(answer("dog", 0.5)), "kept in memory");
    }
}
