//! A bounded queue between the threads of a run, which wakes few of them.
//!
//! A channel wakes a thread that waits to send as soon as it has capacity for one item. The thread sends this item and waits
//! again, and where all cores classify, each of these turns interrupts a session. Here it waits until half of the queue is free.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The end that items are sent to. The queue ends when the last clone is dropped.
pub(super) struct Sender<T>(Arc<Queue<T>>);

/// The end that items are received from. With the last clone the items in the queue are dropped.
pub(super) struct Receiver<T>(Arc<Queue<T>>);

/// Nobody receives from the queue any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

struct Queue<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    has_items: Condvar,
    has_capacity: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    receivers: usize,
    /// Threads that wait. A condition variable asks the kernel for each notification, even if no thread waits.
    waiting_senders: usize,
    waiting_receivers: usize,
}

/// Creates a queue that has at most `capacity` items.
pub(super) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), senders: 1, receivers: 1, waiting_senders: 0, waiting_receivers: 0 };
    let (has_items, has_capacity) = (Condvar::new(), Condvar::new());
    let queue = Arc::new(Queue { capacity, state: Mutex::new(state), has_items, has_capacity });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<T> Sender<T> {
    /// Sends an item. If the queue is full, waits until half of it is free.
    pub(super) fn send(&self, item: T) -> Result<(), Closed> {
        let Queue { capacity, has_items, has_capacity, .. } = &*self.0;
        let mut state = self.0.state();
        if state.items.len() >= *capacity {
            state.waiting_senders += 1;
            let is_fuller = |state: &mut State<T>| state.receivers > 0 && state.items.len() > capacity / 2;
            state = has_capacity.wait_while(state, is_fuller).unwrap_or_else(PoisonError::into_inner);
            state.waiting_senders -= 1;
        }
        if state.receivers == 0 {
            return Err(Closed);
        }
        state.items.push_back(item);
        if state.waiting_receivers > 0 {
            has_items.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for the next item. Returns `None` once the queue is empty and has ended.
    pub(super) fn recv(&self) -> Option<T> {
        let Queue { capacity, has_items, has_capacity, .. } = &*self.0;
        let mut state = self.0.state();
        if state.items.is_empty() {
            state.waiting_receivers += 1;
            let is_waiting = |state: &mut State<T>| state.senders > 0 && state.items.is_empty();
            state = has_items.wait_while(state, is_waiting).unwrap_or_else(PoisonError::into_inner);
            state.waiting_receivers -= 1;
        }
        let item = state.items.pop_front();
        // One thread for each item: if the first keeps the queue filled, the others may wait.
        if state.waiting_senders > 0 && state.items.len() <= capacity / 2 {
            has_capacity.notify_one();
        }
        item
    }
}

impl<T> Queue<T> {
    /// No code panics while it holds the lock, so the state is valid even if it is poisoned.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state().receivers += 1;
        Receiver(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        if state.senders == 0 {
            self.0.has_items.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.receivers -= 1;
        if state.receivers == 0 {
            // They may hold locks of their own, so they are dropped after the state is free.
            let items = std::mem::take(&mut state.items);
            drop(state);
            self.0.has_capacity.notify_all();
            drop(items);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn each_item_arrives_once_whatever_the_number_of_threads() {
        for (senders, receivers, capacity) in [(1, 1, 1), (1, 4, 2), (4, 1, 7), (3, 3, 16)] {
            let (sender, receiver) = bounded(capacity);
            let received = thread::scope(|scope| {
                for number in 0..senders {
                    let sender = sender.clone();
                    scope.spawn(move || (0..1000).for_each(|item| sender.send(number * 1000 + item).unwrap()));
                }
                drop(sender);
                let receive = || std::iter::from_fn(|| receiver.recv()).collect::<Vec<usize>>();
                let threads: Vec<_> = (0..receivers).map(|_| scope.spawn(receive)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            let mut sorted = received.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..senders * 1000).collect::<Vec<_>>());
            if receivers == 1 && senders == 1 {
                assert_eq!(received, sorted);
            }
        }
    }

    #[test]
    fn thread_that_found_the_queue_full_sends_when_half_is_free() {
        let (sender, receiver) = bounded(4);
        (0..4).for_each(|item| sender.send(item).unwrap());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sender.send(4));
            while receiver.0.state().waiting_senders == 0 {
                thread::yield_now();
            }
            assert_eq!(receiver.recv(), Some(0));
            assert_eq!(receiver.0.state().waiting_senders, 1);
            assert_eq!(receiver.recv(), Some(1));
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        assert_eq!(receiver.0.state().items, [2, 3, 4]);
    }

    #[test]
    fn end_without_receivers_drops_the_items_and_refuses_others() {
        let (sender, receiver) = bounded(1);
        let item = Arc::new(());
        sender.send(Arc::clone(&item)).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sender.send(Arc::clone(&item)));
            while receiver.0.state().waiting_senders == 0 {
                thread::yield_now();
            }
            drop(receiver.clone());
            assert_eq!(receiver.0.state().waiting_senders, 1);
            drop(receiver);
            assert_eq!(waiting.join().unwrap(), Err(Closed));
        });
        assert_eq!((sender.send(Arc::clone(&item)), Arc::strong_count(&item)), (Err(Closed), 1));
    }
}
