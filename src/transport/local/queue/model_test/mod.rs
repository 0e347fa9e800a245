//! Tests the protocol of the local queue against a small model of it, on a virtual clock.
//!
//! Several processes send, receive, acknowledge, extend and release messages in transactions of one to three calls. They
//! run the code of `messages` on a real file with a connection per process. At any step a process may crash: before its
//! transaction, inside it, or after the commit and before the process learns of it. The clock is the real service clock on
//! a virtual source, and it jumps, mostly a little, sometimes by hours: steps of the wall clock must change nothing, and a
//! reboot may only let time pass. After every call the rows of the file are compared with the model, and at the end of a
//! run every accepted message is received.
//!
//! A run is made from its seed alone. `IMGCLS_QUEUE_SEED=7` replays seed 7 and prints its steps; `IMGCLS_TEST_LONG=1`
//! runs 10,000 seeds instead of a few hundred.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a failed test prints the steps that led to it")]

mod chance;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use self::chance::{Clock, Random};
use self::model::{
    DEAD, Held, MAIN, MAX_MESSAGE_BYTES, Outcome, Pending, Row, Rows, Seen, attributes, bodies_in, deliver, end,
    is_current, is_dead_letter, is_expired, move_dead_letters, rows,
};
use super::messages::{Taking, fair_share};
use super::{expiry, messages};
use crate::sqlite::{self, Failure, Session, millis};
use crate::transport::message::{Delivery, Depth};
use crate::transport::queued::queue::{Outgoing, ReceiveOptions};

const PROCESSES: usize = 3;
const STEPS: usize = 60;
const SEEDS: u64 = 300;
const SEEDS_LONG: u64 = 10_000;

#[test]
fn the_queue_keeps_its_protocol_whatever_crashes_and_whatever_the_clock_does() {
    let directory = memory_directory();
    let mut processes: Vec<Process> = (0..PROCESSES).map(|_| Process::open(directory.path())).collect();
    if let Some(seed) = std::env::var("IMGCLS_QUEUE_SEED").ok().and_then(|text| text.parse().ok()) {
        Run::new(seed, directory.path(), &mut processes, true).run();
        return;
    }
    let seeds = if std::env::var_os("IMGCLS_TEST_LONG").is_some() { SEEDS_LONG } else { SEEDS };
    let mut seen = Seen::default();
    for seed in 0..seeds {
        let mut run = Run::new(seed, directory.path(), &mut processes, false);
        run.run();
        seen.add(&run.seen);
    }
    // Runs that never reach an operation would pass with any queue.
    assert!(seen.are_all(), "the runs did not reach everything: {seen:?}");
    println!("{seeds} seeds: {seen:?}");
}

/// Returns a directory in memory if the system has such a file system, since the test does not depend on syncs.
fn memory_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let in_memory = tempfile::tempdir_in(memory);
    in_memory.or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// One process: its connection, and the deliveries that it received.
struct Process {
    connection: Connection,
    held: Vec<Held>,
}

impl Process {
    fn open(data_dir: &Path) -> Process {
        let connection = sqlite::open_connection(data_dir).unwrap_or_else(|fault| panic!("{fault}"));
        connection.execute_batch("PRAGMA synchronous = OFF").expect("a pragma");
        Process { connection, held: Vec::new() }
    }
}

/// The run of one seed.
struct Run<'a> {
    seed: u64,
    data_dir: &'a Path,
    processes: &'a mut Vec<Process>,
    random: Random,
    clock: Clock,
    /// The committed rows.
    rows: Rows,
    outcomes: BTreeMap<u64, Outcome>,
    next_body: u64,
    seen: Seen,
    steps: Vec<String>,
    is_loud: bool,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.steps.join("\n"));
            eprintln!("seed {0} fails; IMGCLS_QUEUE_SEED={0} replays it", self.seed);
        }
    }
}

impl<'a> Run<'a> {
    fn new(seed: u64, data_dir: &'a Path, processes: &'a mut Vec<Process>, is_loud: bool) -> Run<'a> {
        Run {
            seed,
            data_dir,
            processes,
            random: Random(seed),
            clock: Clock::new(),
            rows: Rows::new(),
            outcomes: BTreeMap::new(),
            next_body: 0,
            seen: Seen::default(),
            steps: Vec::new(),
            is_loud,
        }
    }

    fn run(&mut self) {
        self.create_queues();
        for _ in 0..STEPS {
            self.pass_time();
            let process = self.random.below(PROCESSES);
            match self.random.below(20) {
                0 => self.crash(process),
                1 => self.step_clock(),
                2 => self.remove_expired(process),
                _ => self.transact(process),
            }
        }
        self.receive_all();
        for process in &mut *self.processes {
            process.held.clear();
        }
    }

    /// Creates the queues again under the same names. Receipts of the previous seed must have no effect on them.
    fn create_queues(&mut self) {
        let now_ms = self.clock.now_ms();
        let connection = &self.processes[0].connection;
        begin(connection);
        let mut session = Session::at(connection, now_ms);
        for name in [MAIN, DEAD] {
            ok(messages::delete(&mut session, name));
            ok(messages::create(&session, name, &attributes(name)));
        }
        commit(connection);
        assert_eq!(rows(connection), Rows::new());
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let text = text();
        if self.is_loud {
            println!("{text}");
        }
        self.steps.push(text);
    }

    fn pass_time(&mut self) {
        let millis = match self.random.below(40) {
            0..20 => self.random.below(50),
            20..38 => self.random.below(20_000),
            38 => self.random.below(600_000),
            _ => self.random.below(2 * 3_600_000),
        };
        self.clock.pass(Duration::from_millis(millis as u64));
    }

    fn step_clock(&mut self) {
        let hours = (self.random.next() % 240).cast_signed() - 120;
        let is_reboot = self.random.one_in(20);
        self.note(|| format!("the wall clock steps by {hours} h, with a reboot {is_reboot}"));
        if is_reboot {
            self.clock.reboot(hours * 3_600_000);
        } else {
            self.clock.step(hours * 3_600_000);
        }
        self.seen.clock_steps += 1;
        self.check_committed();
    }

    /// Runs the background removal of expired messages.
    fn remove_expired(&mut self, process: usize) {
        let now_ms = self.clock.now_ms();
        expiry::remove_some(&mut self.processes[process].connection, now_ms).expect("the lock is free");
        let expired: Vec<u64> =
            self.rows.iter().filter(|(_, row)| is_expired(row, now_ms)).map(|(body, _)| *body).collect();
        self.note(|| format!("at {now_ms}: process {process} removes what is too old: {expired:?}"));
        let left = rows(&self.processes[process].connection);
        for body in expired {
            // One call removes the messages of one queue; the next call removes those of the other.
            if !left.contains_key(&body) {
                self.rows.remove(&body);
                self.seen.expired += 1;
                assert_eq!(self.outcomes.insert(body, Outcome::Expired), None, "message {body} ended twice");
            }
        }
        self.check_committed();
    }

    /// Restarts a process, which loses everything that it had in memory.
    fn crash(&mut self, process: usize) {
        self.note(|| format!("process {process} crashes"));
        self.processes[process] = Process::open(self.data_dir);
        self.check_committed();
    }

    /// Up to three calls of one process in one transaction, which may crash at any point.
    fn transact(&mut self, process: usize) {
        let calls = 1 + self.random.below(3);
        let crashes_before_commit = self.random.one_in(10);
        let crashes_after_commit = self.random.one_in(10);
        let now_ms = self.clock.now_ms();
        let mut pending = Pending { rows: self.rows.clone(), ..Pending::default() };
        self.note(|| format!("at {now_ms}: process {process} begins"));
        begin(&self.processes[process].connection);
        for _ in 0..calls {
            self.call(process, now_ms, &mut pending);
        }
        if crashes_before_commit {
            self.note(|| "it crashes before the commit".to_owned());
            self.seen.rolled_back += 1;
            self.processes[process] = Process::open(self.data_dir);
            return self.check_committed();
        }
        commit(&self.processes[process].connection);
        self.rows = pending.rows;
        for (body, outcome) in pending.outcomes {
            assert_eq!(self.outcomes.insert(body, outcome), None, "message {body} ended twice");
        }
        self.seen.add(&pending.seen);
        if crashes_after_commit {
            self.note(|| "it commits and crashes before it learns of that".to_owned());
            self.seen.lost_answers += 1;
            self.processes[process] = Process::open(self.data_dir);
        } else {
            let held = &mut self.processes[process].held;
            held.extend(pending.received);
            held.retain(|held| !pending.spent.contains(&held.receipt));
            // A process that holds many deliveries forgets some of them, as a hanging worker does.
            while held.len() > 12 {
                held.remove(0);
            }
        }
        self.check_committed();
    }

    fn call(&mut self, process: usize, now_ms: i64, pending: &mut Pending) {
        let queue = if self.random.one_in(5) { DEAD } else { MAIN };
        match self.random.below(40) {
            0..10 => self.send(process, now_ms, pending),
            10..22 => self.receive(process, now_ms, queue, pending),
            22..28 => self.acknowledge(process, now_ms, pending),
            28..33 => self.set_visibility(process, now_ms, pending),
            33..35 => self.release(process, now_ms, pending),
            39 if self.random.one_in(4) => self.purge(process, now_ms, queue, pending),
            _ => self.depth(process, now_ms, queue, pending),
        }
        assert_eq!(rows(&self.processes[process].connection), pending.rows, "what the call left");
    }

    fn send(&mut self, process: usize, now_ms: i64, pending: &mut Pending) {
        let count = 1 + self.random.below(4);
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..count {
            let body = self.next_body;
            self.next_body += 1;
            let is_too_large = self.random.one_in(12);
            let delay = Duration::from_millis(self.random.pick(&[0, 0, 0, 500, 1_500, 15_000]));
            let text =
                if is_too_large { format!("{body:0>width$}", width = MAX_MESSAGE_BYTES + 1) } else { body.to_string() };
            batch.push(Outgoing { delay, ..Outgoing::new(text) });
            expected.push(!is_too_large);
            if !is_too_large {
                let row =
                    Row { queue: MAIN, visible_at_ms: now_ms + millis(delay), receive_count: 0, sent_at_ms: now_ms };
                pending.rows.insert(body, row);
                pending.seen.sent += 1;
            }
        }
        let until = self.next_body;
        self.note(|| format!("  send up to {until}: accepted {expected:?}"));
        let mut session = Session::at(&self.processes[process].connection, now_ms);
        let answers = ok(messages::send(&mut session, MAIN, &batch));
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), expected);
    }

    fn receive(&mut self, process: usize, now_ms: i64, queue: &'static str, pending: &mut Pending) {
        let max = 1 + self.random.below(10);
        let visibility_timeout = Duration::from_millis(self.random.pick(&[0, 1_000, 30_000, 30_000, 30_000]));
        let taking = if self.random.one_in(3) { Taking::Share } else { Taking::UpToMax };
        let options = ReceiveOptions { max, wait: Duration::ZERO, visibility_timeout };
        let connection = &self.processes[process].connection;
        let mut session = Session::at(connection, now_ms);
        let taken = ok(messages::receive(&mut session, queue, options, taking));
        let left = rows(connection);
        let bodies: Vec<String> = taken.deliveries.iter().map(|delivery| delivery.body.clone()).collect();
        self.note(|| format!("  receive {max} from {queue} for {visibility_timeout:?}, {taking:?}: {bodies:?}"));

        Self::check_count(&taken.deliveries, now_ms, queue, options, taking, pending);
        for delivery in &taken.deliveries {
            let held = deliver(delivery, now_ms, queue, visibility_timeout, pending);
            pending.received.push(held);
        }
        move_dead_letters(now_ms, queue, &left, pending);
        let waits = |row: &&Row| row.queue == queue && !is_expired(row, now_ms);
        let due = pending.rows.values().filter(waits).map(|row| row.visible_at_ms).min();
        assert_eq!(taken.next_due_ms, due, "when the next message is due");
    }

    /// Checks the number of deliveries: as many as possible up to `max`, or at least the fair share for [`Taking::Share`].
    fn check_count(
        deliveries: &[Delivery],
        now_ms: i64,
        queue: &str,
        options: ReceiveOptions,
        taking: Taking,
        pending: &Pending,
    ) {
        let can_be_received = |row: &&Row| {
            row.queue == queue && row.visible_at_ms <= now_ms && !is_expired(row, now_ms) && !is_dead_letter(row)
        };
        let eligible = pending.rows.values().filter(can_be_received).count();
        let most = eligible.min(options.max);
        assert!(deliveries.len() <= most, "{} of at most {most}", deliveries.len());
        if options.visibility_timeout.is_zero() {
            return;
        }
        let least = match taking {
            Taking::Share => fair_share(eligible, options.max).min(most),
            Taking::UpToMax => most,
        };
        assert!(deliveries.len() >= least, "{} of at least {least}", deliveries.len());
    }

    fn acknowledge(&mut self, process: usize, now_ms: i64, pending: &mut Pending) {
        let Some(held) = self.some_held(process) else { return };
        let is_current = is_current(&held, pending);
        self.note(|| format!("  acknowledge {} of {}, current {is_current}", held.body, held.queue));
        let session = Session::at(&self.processes[process].connection, now_ms);
        ok(messages::ack(&session, held.queue, std::slice::from_ref(&held.receipt)));
        if is_current {
            pending.rows.remove(&held.body);
            end(held.body, Outcome::Acknowledged, pending);
        } else {
            pending.seen.stale_receipts += 1;
        }
        // The process sometimes keeps the receipt and acknowledges twice, as a client does that got no response.
        if !self.random.one_in(4) {
            pending.spent.push(held.receipt);
        }
    }

    fn set_visibility(&mut self, process: usize, now_ms: i64, pending: &mut Pending) {
        let Some(held) = self.some_held(process) else { return };
        let timeout = Duration::from_millis(self.random.pick(&[0, 2_000, 30_000, 120_000]));
        let is_current = is_current(&held, pending);
        let is_released = self.random.one_in(3);
        self.note(|| {
            let verb = if is_released { "release" } else { "extend" };
            format!("  {verb} {} of {} for {timeout:?}, current {is_current}", held.body, held.queue)
        });
        let mut session = Session::at(&self.processes[process].connection, now_ms);
        if is_released {
            ok(messages::release(&mut session, held.queue, std::slice::from_ref(&held.receipt), timeout));
        } else {
            ok(messages::set_visibility(&mut session, held.queue, &[(held.receipt.clone(), timeout)]));
        }
        if is_current && let Some(row) = pending.rows.get_mut(&held.body) {
            row.visible_at_ms = now_ms + millis(timeout);
            pending.seen.extended += 1;
        }
    }

    /// Undoes a receive, as for a receiver that went away before it got the delivery.
    fn release(&mut self, process: usize, now_ms: i64, pending: &mut Pending) {
        let Some(held) = self.some_held(process) else { return };
        let is_current = is_current(&held, pending);
        self.note(|| format!("  undo the receive of {} of {}, current {is_current}", held.body, held.queue));
        let mut session = Session::at(&self.processes[process].connection, now_ms);
        ok(messages::undo_receive(&mut session, held.queue, std::slice::from_ref(&held.receipt)));
        if is_current && let Some(row) = pending.rows.get_mut(&held.body) {
            row.visible_at_ms = now_ms;
            row.receive_count -= 1;
            pending.seen.released += 1;
        }
        pending.spent.push(held.receipt);
    }

    fn depth(&mut self, process: usize, now_ms: i64, queue: &'static str, pending: &mut Pending) {
        let connection = &self.processes[process].connection;
        let depth = ok(messages::depth(&Session::at(connection, now_ms), queue));
        self.note(|| format!("  depth of {queue}: {depth:?}"));
        let mut expected = Depth::default();
        for row in pending.rows.values().filter(|row| row.queue == queue && !is_expired(row, now_ms)) {
            match row.receive_count {
                _ if row.visible_at_ms <= now_ms => expected.visible += 1,
                0 => expected.delayed += 1,
                _ => expected.in_flight += 1,
            }
        }
        assert_eq!(depth, expected);
    }

    fn purge(&mut self, process: usize, now_ms: i64, queue: &'static str, pending: &mut Pending) {
        let makes_again = self.random.one_in(2);
        self.note(|| format!("  purge {queue}, made again {makes_again}"));
        let mut session = Session::at(&self.processes[process].connection, now_ms);
        if makes_again {
            ok(messages::delete(&mut session, queue));
            ok(messages::create(&session, queue, &attributes(queue)));
        } else {
            while let Some(last) = ok(messages::last_row(&session, queue)) {
                ok(messages::purge_some(&session, queue, last));
            }
        }
        let gone: Vec<u64> = bodies_in(queue, &pending.rows);
        for body in gone {
            pending.rows.remove(&body);
            end(body, Outcome::Purged, pending);
        }
    }

    fn some_held(&mut self, process: usize) -> Option<Held> {
        let count = self.processes[process].held.len();
        (count > 0).then(|| self.random.below(count)).map(|at| self.processes[process].held[at].clone())
    }

    /// Checks that another process sees exactly the committed rows.
    fn check_committed(&self) {
        let witness = &self.processes[self.steps.len() % PROCESSES].connection;
        assert_eq!(rows(witness), self.rows, "what is committed");
    }

    /// Checks that no accepted message is lost: every message that is left can be received, and then the queues are empty.
    fn receive_all(&mut self) {
        self.note(|| "all that is left is received".to_owned());
        let mut left: BTreeSet<u64> = self.rows.keys().copied().collect();
        // No message is invisible for longer than this. Messages that expire meanwhile count as expired.
        self.clock.pass(Duration::from_mins(3));
        for _ in 0..4 * (left.len() + 2) {
            let now_ms = self.clock.now_ms();
            for queue in [MAIN, DEAD] {
                let mut pending = Pending { rows: self.rows.clone(), ..Pending::default() };
                begin(&self.processes[0].connection);
                self.receive(0, now_ms, queue, &mut pending);
                for held in std::mem::take(&mut pending.received) {
                    let session = Session::at(&self.processes[0].connection, now_ms);
                    ok(messages::ack(&session, queue, &[held.receipt]));
                    pending.rows.remove(&held.body);
                    end(held.body, Outcome::Acknowledged, &mut pending);
                }
                self.depth(0, now_ms, queue, &mut pending);
                commit(&self.processes[0].connection);
                self.rows = pending.rows;
                for (body, outcome) in pending.outcomes {
                    assert!(left.remove(&body), "message {body} was not left");
                    assert_eq!(self.outcomes.insert(body, outcome), None, "message {body} ended twice");
                }
                self.seen.add(&pending.seen);
            }
            self.remove_expired(0);
            left.retain(|body| self.rows.contains_key(body));
            self.clock.pass(Duration::from_secs(1));
        }
        assert_eq!((self.rows.len(), left), (0, BTreeSet::new()), "messages that cannot be received");
        self.check_committed();
    }
}

fn begin(connection: &Connection) {
    connection.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([])).expect("the lock is free");
}

fn commit(connection: &Connection) {
    connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).expect("it commits");
}

fn ok<T, E: std::fmt::Display>(answer: Result<T, Failure<E>>) -> T {
    answer.unwrap_or_else(|failure| match failure {
        Failure::Call(error) => panic!("{error}"),
        Failure::Sql(error) => panic!("{error}"),
    })
}
