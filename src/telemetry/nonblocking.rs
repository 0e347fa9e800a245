//! Writes lines to standard error and standard output without ever blocking, failing or panicking (decision 21).
//!
//! The caller appends its line to a bounded queue, and one thread writes the queue. A pipe that nobody reads, a full
//! disk or a reader that went away therefore costs lines and nothing else. Lines that do not fit into the queue and
//! lines that cannot be written are counted, and one line reports their number once a write succeeds again.
//!
//! Lines keep their order. A killed process loses at most the lines that are still in the queue; a process that ends by
//! itself calls [`NonBlockingWriter::flush`] first.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most bytes in the queue.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How often a failed sink is tried again to report lost lines, while there is no other line to write.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Makes the line that reports lost lines.
pub(super) type LossReport = fn(&LostLines) -> String;

/// The lines that were not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LostLines {
    pub(super) count: u64,
    /// Why the last of them was not written.
    pub(super) reason: String,
}

/// Queues lines for one sink. The module's documentation says what it guarantees.
pub(super) struct NonBlockingWriter {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the state changes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// True while the thread is writing a line that it took out of the queue.
    is_writing: bool,
    /// True if the thread could not be started, so that nothing would take a line out of the queue.
    has_no_thread: bool,
    lost: LostLines,
}

/// The lines that the thread writes next.
struct Task {
    /// `None` when only the report of lost lines is due.
    line: Option<Vec<u8>>,
    lost: LostLines,
}

impl NonBlockingWriter {
    /// Starts the thread that writes to `sink`. `report` makes the line about lost lines; without it they are not
    /// reported.
    pub(super) fn start(
        name: &str,
        sink: impl Write + Send + 'static,
        report: Option<LossReport>,
    ) -> NonBlockingWriter {
        let shared = Arc::new(Shared::default());
        let thread_shared = Arc::clone(&shared);
        // The thread runs as long as the process. Nothing joins it, because a write may block for ever.
        let started = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread_shared.write_lines(&mut Output { sink, is_torn: false }, report));
        shared.lock().has_no_thread = started.is_err();
        NonBlockingWriter { shared }
    }

    /// Queues one line, which has to end with a line break. The line counts as lost when the queue is full.
    pub(super) fn write_line(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        if state.has_no_thread {
            return state.lose("the thread that writes them could not be started");
        }
        if state.queued_bytes + line.len() > MAX_QUEUED_BYTES {
            return state.lose("the reader of the log is too slow, or stopped");
        }
        state.queued_bytes += line.len();
        state.queue.push_back(line.to_vec());
        self.shared.changed.notify_all();
    }

    /// Waits until every queued line is written or lost, for at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        while state.is_writing || !state.queue.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.has_no_thread {
                return;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    /// No code panics half-way through a change under this lock, so a poisoned one still guards a consistent state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lines(&self, output: &mut Output<impl Write>, report: Option<LossReport>) -> ! {
        loop {
            let task = self.next_task(report.is_some());
            let done = task.write(output, report);
            let mut state = self.lock();
            state.is_writing = false;
            match done {
                Ok(()) => state.lost.count = state.lost.count.saturating_sub(task.lost.count),
                Err(error) if task.line.is_some() => state.lose(&error.to_string()),
                Err(_) => {}
            }
            self.changed.notify_all();
        }
    }

    /// Waits for a line, or until it is time to try a failed sink again.
    fn next_task(&self, reports: bool) -> Task {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let lost = if reports { state.lost.clone() } else { LostLines::default() };
            if let Some(line) = state.queue.pop_front() {
                state.queued_bytes -= line.len();
                state.is_writing = true;
                return Task { line: Some(line), lost };
            }
            if lost.count > 0 && waited {
                return Task { line: None, lost };
            }
            state = if lost.count > 0 {
                waited = true;
                self.changed.wait_timeout(state, RETRY_INTERVAL).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

impl State {
    fn lose(&mut self, reason: &str) {
        self.lost.count += 1;
        reason.clone_into(&mut self.lost.reason);
    }
}

impl Task {
    fn write(&self, output: &mut Output<impl Write>, report: Option<LossReport>) -> io::Result<()> {
        if let Some(report) = report.filter(|_| self.lost.count > 0) {
            output.write_line(report(&self.lost).as_bytes())?;
        }
        self.line.as_ref().map_or(Ok(()), |line| output.write_line(line))
    }
}

/// A sink and its state.
struct Output<W> {
    sink: W,
    /// True if an error cut off the last line.
    is_torn: bool,
}

impl<W: Write> Output<W> {
    /// Writes a line, in one write if the sink accepts that, so that lines of several processes do not mix.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            match self.sink.write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_torn |= written > 0;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Writes to a descriptor without the lock and the buffer of the standard library. A write that blocks therefore holds
/// up nothing else, not even the end of the process.
pub(super) struct Descriptor<F>(pub(super) F);

impl<F: AsFd> Write for Descriptor<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                // Another process that shares the descriptor made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => wait_until_writable(&self.0)?,
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_until_writable(descriptor: &impl AsFd) -> io::Result<()> {
    // Bounded, so that the descriptor is tried again even if it never becomes ready.
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    match poll(&mut [PollFd::new(descriptor, PollFlags::OUT)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const DEADLINE: Duration = Duration::from_mins(1);

    /// A sink that does what the test says with each write: it accepts a number of bytes, or fails.
    struct ScriptedSink {
        answers: Receiver<io::Result<usize>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for ScriptedSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.answers.recv().map_err(io::Error::other)??.min(bytes.len());
            let _ = self.written.send(bytes[..count].to_vec());
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        writer: NonBlockingWriter,
        answers: Sender<io::Result<usize>>,
        written: Receiver<Vec<u8>>,
    }

    impl Rig {
        fn new() -> Rig {
            let (answers, sink_answers) = channel();
            let (sink_written, written) = channel();
            let sink = ScriptedSink { answers: sink_answers, written: sink_written };
            let report: LossReport = |lost| format!("lost {}: {}\n", lost.count, lost.reason);
            Rig { writer: NonBlockingWriter::start("test", sink, Some(report)), answers, written }
        }

        fn accept_write(&self) {
            self.answers.send(Ok(usize::MAX)).expect("the thread runs");
        }

        fn fail_write(&self, text: &str) {
            self.answers.send(Err(io::Error::other(text.to_owned()))).expect("the thread runs");
        }

        fn next(&self) -> String {
            String::from_utf8(self.written.recv_timeout(DEADLINE).expect("something is written")).expect("text")
        }
    }

    #[test]
    fn lines_are_written_whole_and_in_order() {
        let rig = Rig::new();
        for number in 0..100 {
            rig.writer.write_line(format!("{number}\n").as_bytes());
            rig.accept_write();
        }
        rig.writer.flush(DEADLINE);
        let lines: Vec<String> = (0..100).map(|_| rig.next()).collect();
        assert_eq!(lines, (0..100).map(|number| format!("{number}\n")).collect::<Vec<_>>());
    }

    #[test]
    fn failed_lines_are_counted_and_reported_before_the_next_line() {
        let rig = Rig::new();
        rig.fail_write("the disk is full");
        rig.writer.write_line(b"one\n");
        rig.writer.flush(DEADLINE);
        rig.accept_write();
        rig.accept_write();
        rig.writer.write_line(b"two\n");
        assert_eq!([rig.next(), rig.next()], ["lost 1: the disk is full\n", "two\n"]);
    }

    #[test]
    fn lost_lines_are_reported_without_another_line() {
        let rig = Rig::new();
        rig.fail_write("gone");
        rig.writer.write_line(b"one\n");
        rig.fail_write("still gone");
        rig.accept_write();
        assert_eq!(rig.next(), "lost 1: gone\n");
    }

    #[test]
    fn torn_line_is_ended_before_the_next_one() {
        let rig = Rig::new();
        rig.answers.send(Ok(2)).expect("the thread runs");
        rig.fail_write("the disk is full");
        rig.writer.write_line(b"torn\n");
        rig.writer.flush(DEADLINE);
        assert_eq!(rig.next(), "to");
        (0..3).for_each(|_| rig.accept_write());
        rig.writer.write_line(b"two\n");
        assert_eq!([rig.next(), rig.next(), rig.next()], ["\n", "lost 1: the disk is full\n", "two\n"]);
    }

    #[test]
    fn blocked_sink_costs_only_lines_and_bounded_memory() {
        let rig = Rig::new();
        let line = vec![b'x'; 1 << 10];
        // The thread writes one line, the queue holds as many as fit, and the others are lost.
        (0..3000).for_each(|_| rig.writer.write_line(&line));
        rig.writer.flush(Duration::from_millis(10));
        let (queued, lost) = {
            let state = rig.writer.shared.lock();
            (state.queue.len(), state.lost.count)
        };
        assert!(queued <= 1 << 10, "{queued} lines are queued");
        assert!((3000 - 1025..=3000 - 1024).contains(&lost), "{lost} lines are lost");
        for _ in 0..=queued + 1 {
            rig.accept_write();
        }
        let reported = (0..=queued + 1).map(|_| rig.next()).find(|text| text.starts_with("lost"));
        assert!(reported.is_some_and(|text| text.starts_with(&format!("lost {lost}: "))));
    }
}
