//! Calls of one item each that go together where they meet: SQS takes ten for the price of one.
//!
//! An item that comes after a pause goes at once. At load one call departs every [`Pace::interval`], or as soon as ten
//! items wait; so the calls a second are bounded, and what an item waits is too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::{MAX_BATCH, QueueError};

/// Items that wait or are under way; who brings more waits for room.
const MAX_ITEMS: usize = 1_000;

/// How often calls depart.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two calls that are not full.
    pub interval: Duration,
    /// Calls under way at a time.
    pub max_in_flight: usize,
    /// What the items of one call may have together.
    pub max_batch_bytes: usize,
}

/// What is done with items that go together.
#[async_trait]
pub trait BatchCall: Send + Sync + 'static {
    type Item: Send + 'static;
    fn size_bytes(item: &Self::Item) -> usize;
    /// One answer for each of the at most [`MAX_BATCH`] items, in order.
    async fn call(&self, items: Vec<Self::Item>) -> Vec<Result<(), QueueError>>;
}

pub struct Coalescer<C: BatchCall> {
    shared: Arc<Shared<C>>,
}

struct Shared<C: BatchCall> {
    call: C,
    pace: Pace,
    room: Arc<Semaphore>,
    state: Mutex<State<C::Item>>,
}

struct State<T> {
    waiting: VecDeque<Entry<T>>,
    in_flight: usize,
    last_departure: Option<Instant>,
    /// Somebody looks again when the interval has passed.
    timer_runs: bool,
}

struct Entry<T> {
    item: T,
    size_bytes: usize,
    answer: oneshot::Sender<Result<(), QueueError>>,
    /// Given back when the answer is there.
    room: OwnedSemaphorePermit,
}

/// When the next call departs.
#[derive(Debug, PartialEq, Eq)]
enum Departure {
    Now,
    After(Duration),
    /// When something else happens: an item comes, or a call returns.
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
    pub fn new(call: C, pace: Pace) -> Self {
        let state = State { waiting: VecDeque::new(), in_flight: 0, last_departure: None, timer_runs: false };
        let room = Arc::new(Semaphore::new(MAX_ITEMS));
        Coalescer { shared: Arc::new(Shared { call, pace, room, state: Mutex::new(state) }) }
    }

    /// One answer for each of the at most [`MAX_BATCH`] items, in order. What was submitted is done, whether or not
    /// this future is dropped.
    pub async fn submit(&self, items: Vec<C::Item>) -> Vec<Result<(), QueueError>> {
        let count = u32::try_from(items.len()).expect("at most ten; this is a bug");
        let room = Arc::clone(&self.shared.room).acquire_many_owned(count).await;
        let answers = self.shared.enqueue(items, room.expect("never closed; this is a bug"));
        self.shared.depart();
        let lost = || Err(QueueError::Unavailable("the call was given up".to_owned()));
        join_all(answers).await.into_iter().map(|answer| answer.unwrap_or_else(|_| lost())).collect()
    }
}

impl<C: BatchCall> Shared<C> {
    /// No code panics while it holds the lock, so a poisoned one still guards whole entries.
    fn lock(&self) -> MutexGuard<'_, State<C::Item>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers to come, in order. `room` has a permit for each item.
    fn enqueue(
        &self,
        items: Vec<C::Item>,
        mut room: OwnedSemaphorePermit,
    ) -> Vec<oneshot::Receiver<Result<(), QueueError>>> {
        let mut state = self.lock();
        let enter = |item| {
            let (answer, answered) = oneshot::channel();
            let size_bytes = C::size_bytes(&item);
            let room = room.split(1).expect("one for each item; this is a bug");
            state.waiting.push_back(Entry { item, size_bytes, answer, room });
            answered
        };
        items.into_iter().map(enter).collect()
    }

    /// Starts every call that is due. Who waits for an answer waits for these tasks; a call has a deadline.
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
                        tokio::spawn(Arc::clone(self).look_again_after(pause));
                    }
                    return;
                }
                Departure::Later => return,
            }
        }
    }

    async fn look_again_after(self: Arc<Self>, pause: Duration) {
        tokio::time::sleep(pause).await;
        self.lock().timer_runs = false;
        self.depart();
    }

    async fn make_call(self: Arc<Self>, batch: Vec<Entry<C::Item>>) {
        let (items, waiters): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|entry| (entry.item, (entry.answer, entry.room))).unzip();
        for ((waiter, room), answer) in waiters.into_iter().zip(self.call.call(items).await) {
            // Who is gone needs no answer.
            let _ = waiter.send(answer);
            drop(room);
        }
        self.lock().in_flight -= 1;
        self.depart();
    }
}

impl<T> State<T> {
    /// How many of the first that wait make one call: at most a batch by number and by bytes. One that is too large by
    /// itself goes alone, and its queue says so.
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

    /// The interval is longer than a call of [`Slow`]: what departs earlier does so because it is full.
    const PACE: Pace = Pace { interval: Duration::from_millis(400), max_in_flight: 2, max_batch_bytes: 100 };

    /// Notes what went together.
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
    fn a_lone_item_waits_for_nothing_and_more_wait_for_their_turn() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(PACE.next(false, 0, 1, None), Departure::Now);
        assert_eq!(PACE.next(false, 1, 1, ms(400)), Departure::Now);
        assert_eq!(PACE.next(false, 0, 1, ms(100)), Departure::After(Duration::from_millis(300)));
        assert_eq!(PACE.next(true, 1, 10, ms(100)), Departure::Now);
        assert_eq!(PACE.next(true, 2, 10, ms(500)), Departure::Later);
        assert_eq!(PACE.next(false, 0, 0, None), Departure::Later);
    }

    #[tokio::test]
    async fn what_meets_goes_together_and_each_gets_its_own_answer() {
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
    async fn a_call_has_no_more_bytes_than_it_may() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let coalescer = Coalescer::new(Slow(Arc::clone(&calls)), PACE);
        let answers = coalescer.submit(vec![60, 50, 50, 200, 1]).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(*calls.lock().unwrap(), [vec![60], vec![50, 50], vec![200], vec![1]]);
    }
}
