//! Coalesces calls of one item each: SQS takes ten for the price of one.
//!
//! An item that comes after a pause is sent at once. Under load one call departs every [`Pace::interval`], or as soon as
//! ten items wait. So the calls a second are bounded, and so is the wait of an item.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::transport::queued::queue::{MAX_BATCH, QueueError};

/// Items that wait or are in flight. Callers with more wait for capacity.
const MAX_ITEMS: usize = 1_000;

/// How often calls depart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between two calls that are not full.
    pub interval: Duration,
    /// Calls in flight at a time.
    pub max_in_flight: usize,
    /// The most bytes of the items of one call.
    pub max_batch_bytes: usize,
}

/// The call that coalesced items share.
#[async_trait]
pub(crate) trait BatchCall: Send + Sync + 'static {
    type Item: Send + 'static;
    fn size_bytes(item: &Self::Item) -> usize;
    /// One answer for each of the at most [`MAX_BATCH`] items, in order.
    async fn call(&self, items: Vec<Self::Item>) -> Vec<Result<(), QueueError>>;
}

pub(crate) struct Coalescer<C: BatchCall> {
    shared: Arc<Shared<C>>,
}

struct Shared<C: BatchCall> {
    call: C,
    pace: Pace,
    capacity: Arc<Semaphore>,
    state: Mutex<State<C::Item>>,
}

struct State<T> {
    waiting: VecDeque<Entry<T>>,
    in_flight: usize,
    last_departure: Option<Instant>,
    /// True if a task will check again when the interval has passed.
    timer_runs: bool,
}

struct Entry<T> {
    item: T,
    size_bytes: usize,
    answer: oneshot::Sender<Result<(), QueueError>>,
    /// Released when the answer is there.
    permit: OwnedSemaphorePermit,
}

/// When the next call departs.
#[derive(Debug, PartialEq, Eq)]
enum Departure {
    Now,
    After(Duration),
    /// When an item comes, or a call returns.
    Later,
}

impl Pace {
    fn next(&self, full: bool, in_flight: usize, waiting: usize, since_last: Option<Duration>) -> Departure {
        if waiting == 0 || in_flight >= self.max_in_flight {
            return Departure::Later;
        }
        match since_last.and_then(|since| self.interval.checked_sub(since)) {
            Some(pause) if !full && !pause.is_zero() => Departure::After(pause),
            _ => Departure::Now,
        }
    }
}

impl<C: BatchCall> Coalescer<C> {
    pub(crate) fn new(call: C, pace: Pace) -> Self {
        let state = State { waiting: VecDeque::new(), in_flight: 0, last_departure: None, timer_runs: false };
        let capacity = Arc::new(Semaphore::new(MAX_ITEMS));
        Coalescer { shared: Arc::new(Shared { call, pace, capacity, state: Mutex::new(state) }) }
    }

    /// One answer for each of the at most [`MAX_BATCH`] items, in order. Submitted items are sent even when this
    /// future is dropped.
    pub(crate) async fn submit(&self, items: Vec<C::Item>) -> Vec<Result<(), QueueError>> {
        let count = u32::try_from(items.len()).expect("at most ten; this is a bug");
        let permits = Arc::clone(&self.shared.capacity).acquire_many_owned(count).await;
        let answers = self.shared.enqueue(items, permits.expect("never closed; this is a bug"));
        self.shared.depart();
        let lost = || Err(QueueError::Unavailable("the call was given up".to_owned()));
        join_all(answers).await.into_iter().map(|answer| answer.unwrap_or_else(|_| lost())).collect()
    }
}

impl<C: BatchCall> Shared<C> {
    /// No code panics while it holds the lock, so a poisoned lock still guards consistent entries.
    fn lock(&self) -> MutexGuard<'_, State<C::Item>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers to come, in order. `permits` has one for each item.
    fn enqueue(
        &self,
        items: Vec<C::Item>,
        mut permits: OwnedSemaphorePermit,
    ) -> Vec<oneshot::Receiver<Result<(), QueueError>>> {
        let mut state = self.lock();
        let enter = |item| {
            let (answer, answered) = oneshot::channel();
            let size_bytes = C::size_bytes(&item);
            let permit = permits.split(1).expect("one for each item; this is a bug");
            state.waiting.push_back(Entry { item, size_bytes, answer, permit });
            answered
        };
        items.into_iter().map(enter).collect()
    }

    /// Starts every call that is due. Callers that wait for an answer wait for these tasks; every call has a deadline.
    fn depart(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let since_last = state.last_departure.map(|last| now.saturating_duration_since(last));
            let fitting = state.fitting(self.pace.max_batch_bytes);
            let full = fitting == MAX_BATCH || fitting < state.waiting.len();
            match self.pace.next(full, state.in_flight, state.waiting.len(), since_last) {
                Departure::Now => {
                    let batch = state.waiting.drain(..fitting).collect();
                    state.in_flight += 1;
                    state.last_departure = Some(now);
                    tokio::spawn(Arc::clone(self).make_call(batch));
                }
                Departure::After(pause) => {
                    if !state.timer_runs {
                        state.timer_runs = true;
                        tokio::spawn(Arc::clone(self).check_after(pause));
                    }
                    return;
                }
                Departure::Later => return,
            }
        }
    }

    async fn check_after(self: Arc<Self>, pause: Duration) {
        tokio::time::sleep(pause).await;
        self.lock().timer_runs = false;
        self.depart();
    }

    async fn make_call(self: Arc<Self>, batch: Vec<Entry<C::Item>>) {
        let (items, waiters): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|entry| (entry.item, (entry.answer, entry.permit))).unzip();
        for ((waiter, permit), answer) in waiters.into_iter().zip(self.call.call(items).await) {
            // A caller that went away needs no answer.
            let _ = waiter.send(answer);
            drop(permit);
        }
        self.lock().in_flight -= 1;
        self.depart();
    }
}

impl<T> State<T> {
    /// How many of the first waiting items make one call: at most a batch by number and by bytes. An item that is too large
    /// by itself goes alone, and its queue refuses it.
    fn fitting(&self, max_bytes: usize) -> usize {
        let mut bytes = 0;
        let fits = |entry: &&Entry<T>| {
            bytes += entry.size_bytes;
            bytes <= max_bytes
        };
        let count = self.waiting.iter().take(MAX_BATCH).take_while(fits).count();
        count.max(1).min(self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The interval is longer than a call of [`Slow`]: a call that departs earlier is full.
    const PACE: Pace = Pace { interval: Duration::from_millis(400), max_in_flight: 2, max_batch_bytes: 100 };

    /// Records which items shared a call.
    #[derive(Default)]
    struct Slow(Arc<Mutex<Vec<Vec<usize>>>>);

    #[async_trait]
    impl BatchCall for Slow {
        type Item = usize;

        fn size_bytes(item: &usize) -> usize {
            *item
        }

        async fn call(&self, items: Vec<usize>) -> Vec<Result<(), QueueError>> {
            let answers = items.iter().map(|item| match item {
                13 => Err(QueueError::Unavailable("13".to_owned())),
                _ => Ok(()),
            });
            let answers = answers.collect();
            self.0.lock().unwrap().push(items);
            tokio::time::sleep(Duration::from_millis(30)).await;
            answers
        }
    }

    #[test]
    fn single_item_departs_at_once_and_more_wait_for_the_interval() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(PACE.next(false, 0, 1, None), Departure::Now);
        assert_eq!(PACE.next(false, 1, 1, ms(400)), Departure::Now);
        assert_eq!(PACE.next(false, 0, 1, ms(100)), Departure::After(Duration::from_millis(300)));
        assert_eq!(PACE.next(true, 1, 10, ms(100)), Departure::Now);
        assert_eq!(PACE.next(true, 2, 10, ms(500)), Departure::Later);
        assert_eq!(PACE.next(false, 0, 0, None), Departure::Later);
    }

    #[tokio::test]
    async fn items_that_meet_share_a_call_and_each_gets_its_own_answer() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let coalescer = Coalescer::new(Slow(Arc::clone(&calls)), Pace { max_batch_bytes: 1_000, ..PACE });
        let answers = join_all((1..=16).map(|item| coalescer.submit(vec![item]))).await;
        for (item, answer) in (1..=16).zip(&answers) {
            assert_eq!(answer[0].is_ok(), item != 13, "{item}");
        }
        // The first at once, the next ten since they are full, the rest when the interval has passed.
        assert_eq!(*calls.lock().unwrap(), [vec![1], (2..=11).collect(), (12..=16).collect()]);
    }

    #[tokio::test]
    async fn call_stays_within_its_bytes() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let coalescer = Coalescer::new(Slow(Arc::clone(&calls)), PACE);
        let answers = coalescer.submit(vec![60, 50, 50, 200, 1]).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(*calls.lock().unwrap(), [vec![60], vec![50, 50], vec![200], vec![1]]);
    }
}
