//! Lines on standard error and standard output that never block, fail or panic their writer.
//!
//! A caller puts its line into a bounded queue, and one thread writes the queue out. A pipe that nobody reads, a full
//! disk and a reader that went away therefore cost lines and nothing else: lines that do not fit the queue and lines
//! that cannot be written are counted, and one line reports the number once a write succeeds again.
//!
//! Order is kept. A killed process loses at most the lines that are still in the queue; a process that ends by itself
//! calls [`LineWriter::flush`] first.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of all lines that wait.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How often a sink that failed is tried again while there is nothing else to write to it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Makes the line that reports lost lines.
pub type LossReport = fn(&Lost) -> String;

/// Lines that were not written, and why the last one was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    pub lines: u64,
    pub reason: String,
}

/// Queues lines for one sink. See the module for the guarantees.
pub struct LineWriter {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified at every change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// The thread has taken a line out of the queue and is not done with it.
    is_writing: bool,
    /// No thread could be started, so that nobody would take a line out of the queue.
    has_no_thread: bool,
    lost: Lost,
}

/// What the thread does next.
struct Task {
    /// None: only the report of lost lines is due.
    line: Option<Vec<u8>>,
    lost: Lost,
}

impl LineWriter {
    /// Starts the thread that writes to `sink`. `report` makes the line about lost lines; without it they are not
    /// reported.
    pub fn start(name: &str, sink: impl Write + Send + 'static, report: Option<LossReport>) -> LineWriter {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // The thread lives as long as the process. Nothing waits for its end, since a write may block for ever.
        let started = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || of_thread.write_out(&mut Output { sink, is_torn: false }, report));
        shared.lock().has_no_thread = started.is_err();
        LineWriter { shared }
    }

    /// Queues one line, which ends in a line break. The line is counted as lost where the queue is full.
    pub fn write_line(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        if state.has_no_thread {
            return state.lose("no thread could be started to write them");
        }
        if state.queued_bytes + line.len() > MAX_QUEUED_BYTES {
            return state.lose("the reader of the log is too slow, or stopped");
        }
        state.queued_bytes += line.len();
        state.queue.push_back(line.to_vec());
        self.shared.changed.notify_all();
    }

    /// Waits until every queued line is written or lost, at most `limit`.
    pub fn flush(&self, limit: Duration) {
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
    /// Nothing that runs under this lock can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, output: &mut Output<impl Write>, report: Option<LossReport>) -> ! {
        loop {
            let task = self.next_task(report.is_some());
            let done = task.write(output, report);
            let mut state = self.lock();
            state.is_writing = false;
            match done {
                Ok(()) => state.lost.lines = state.lost.lines.saturating_sub(task.lost.lines),
                Err(error) if task.line.is_some() => state.lose(&error.to_string()),
                Err(_) => {}
            }
            self.changed.notify_all();
        }
    }

    /// Waits for a line, or for the time to try a failed sink again.
    fn next_task(&self, reports: bool) -> Task {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let lost = if reports { state.lost.clone() } else { Lost::default() };
            if let Some(line) = state.queue.pop_front() {
                state.queued_bytes -= line.len();
                state.is_writing = true;
                return Task { line: Some(line), lost };
            }
            if lost.lines > 0 && waited {
                return Task { line: None, lost };
            }
            state = if lost.lines > 0 {
                waited = true;
                self.changed.wait_timeout(state, RETRY_AFTER).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

impl State {
    fn lose(&mut self, reason: &str) {
        self.lost.lines += 1;
        reason.clone_into(&mut self.lost.reason);
    }
}

impl Task {
    fn write(&self, output: &mut Output<impl Write>, report: Option<LossReport>) -> io::Result<()> {
        if let Some(report) = report.filter(|_| self.lost.lines > 0) {
            output.write_line(report(&self.lost).as_bytes())?;
        }
        self.line.as_ref().map_or(Ok(()), |line| output.write_line(line))
    }
}

/// A sink, and whether its last line was cut by an error.
struct Output<W> {
    sink: W,
    is_torn: bool,
}

impl<W: Write> Output<W> {
    /// In one write where the sink takes it, so that lines of several processes do not mix.
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

/// A descriptor written to without the lock and the buffer that the standard library puts before it: a write that
/// blocks holds up nobody else, not even the end of the process.
pub struct Descriptor<F>(pub F);

impl<F: AsFd> Write for Descriptor<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                // Whoever shares the descriptor made it non-blocking.
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
    // Bounded, so that a descriptor that never tells is looked at again.
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

    /// Does with each write what the test says: takes so many bytes of it, or fails.
    struct Scripted {
        answers: Receiver<io::Result<usize>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Scripted {
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
        writer: LineWriter,
        answers: Sender<io::Result<usize>>,
        written: Receiver<Vec<u8>>,
    }

    impl Rig {
        fn new() -> Rig {
            let (answers, of_sink) = channel();
            let (of_test, written) = channel();
            let sink = Scripted { answers: of_sink, written: of_test };
            let report: LossReport = |lost| format!("lost {}: {}\n", lost.lines, lost.reason);
            Rig { writer: LineWriter::start("test", sink, Some(report)), answers, written }
        }

        fn takes(&self) {
            self.answers.send(Ok(usize::MAX)).expect("the thread lives");
        }

        fn fails(&self, text: &str) {
            self.answers.send(Err(io::Error::other(text.to_owned()))).expect("the thread lives");
        }

        fn next(&self) -> String {
            String::from_utf8(self.written.recv_timeout(DEADLINE).expect("something is written")).expect("text")
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let rig = Rig::new();
        for number in 0..100 {
            rig.writer.write_line(format!("{number}\n").as_bytes());
            rig.takes();
        }
        rig.writer.flush(DEADLINE);
        let lines: Vec<String> = (0..100).map(|_| rig.next()).collect();
        assert_eq!(lines, (0..100).map(|number| format!("{number}\n")).collect::<Vec<_>>());
    }

    #[test]
    fn failed_lines_are_counted_and_reported_before_the_next_line() {
        let rig = Rig::new();
        rig.fails("the disk is full");
        rig.writer.write_line(b"one\n");
        rig.writer.flush(DEADLINE);
        rig.takes();
        rig.takes();
        rig.writer.write_line(b"two\n");
        assert_eq!([rig.next(), rig.next()], ["lost 1: the disk is full\n", "two\n"]);
    }

    #[test]
    fn losses_are_reported_without_another_line() {
        let rig = Rig::new();
        rig.fails("gone");
        rig.writer.write_line(b"one\n");
        rig.fails("still gone");
        rig.takes();
        assert_eq!(rig.next(), "lost 1: gone\n");
    }

    #[test]
    fn a_torn_line_is_ended_before_the_next_one_begins() {
        let rig = Rig::new();
        rig.answers.send(Ok(2)).expect("the thread lives");
        rig.fails("the disk is full");
        rig.writer.write_line(b"torn\n");
        rig.writer.flush(DEADLINE);
        assert_eq!(rig.next(), "to");
        (0..3).for_each(|_| rig.takes());
        rig.writer.write_line(b"two\n");
        assert_eq!([rig.next(), rig.next(), rig.next()], ["\n", "lost 1: the disk is full\n", "two\n"]);
    }

    #[test]
    fn a_sink_that_blocks_costs_lines_and_bounded_memory_only() {
        let rig = Rig::new();
        let line = vec![b'x'; 1 << 10];
        // One line is with the sink, as many as fit wait, the others are lost.
        (0..3000).for_each(|_| rig.writer.write_line(&line));
        rig.writer.flush(Duration::from_millis(10));
        let (queued, lost) = {
            let state = rig.writer.shared.lock();
            (state.queue.len(), state.lost.lines)
        };
        assert!(queued <= 1 << 10, "{queued} lines wait");
        assert!((3000 - 1025..=3000 - 1024).contains(&lost), "{lost} lines are lost");
        for _ in 0..=queued + 1 {
            rig.takes();
        }
        let reported = (0..=queued + 1).map(|_| rig.next()).find(|text| text.starts_with("lost"));
        assert!(reported.is_some_and(|text| text.starts_with(&format!("lost {lost}: "))));
    }
}
