//! `imgcls provision` is killed at every call that changes something.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::{Stack, environment, proxy};
use crate::emulators::{Emulator, STRICT};
use crate::harness::request;

/// Number of emulators, each with a stack of its own, that are tested in parallel.
const LANES: usize = 2;
/// `destroy` is killed at every `STRIDE`th call only, unless the tests run for long.
const STRIDE: usize = 5;
const APPLY: [&str; 7] = ["apply", "--web-instances", "0", "--notify", "ops@example.org", "--budget", "50"];

/// Forwards calls to the emulator, and kills a process when a given number of changing calls were answered.
pub struct Killer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    changes: usize,
    victim: Option<(Child, usize)>,
}

impl Killer {
    pub fn start(emulator: SocketAddr) -> Killer {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let address = proxy::start(move |call| {
            let answer = call.forward_to(emulator)?;
            let mut state = shared.lock().unwrap();
            state.changes += usize::from(call.changes_something());
            let changes = state.changes;
            match &mut state.victim {
                Some((child, nth)) if call.changes_something() && changes == *nth => {
                    let _ = child.kill();
                    None
                }
                _ => Some(answer),
            }
        });
        Killer { address, state }
    }

    /// Runs the command and kills it at its `nth` changing call. Returns false if it ended before.
    pub fn kill_at(&self, stack: &Stack, command: &[&str], nth: usize) -> bool {
        // Held during the start, so that none of its calls is counted for the previous process.
        let mut state = self.state.lock().unwrap();
        let child = stack.command(command).stdout(Stdio::null()).spawn().unwrap();
        *state = State { changes: 0, victim: Some((child, nth)) };
        drop(state);
        self.wait()
    }

    fn wait(&self) -> bool {
        loop {
            if let Some((child, nth)) = &mut self.state.lock().unwrap().victim
                && let Some(status) = child.try_wait().unwrap()
            {
                let was_killed = status.code().is_none();
                assert!(was_killed || status.success(), "it failed by itself before call {nth}: {status}");
                return was_killed;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

#[test]
fn apply_killed_at_any_call_is_completed_by_the_next_apply() {
    let lanes: Vec<_> = (1..=LANES).map(|first| std::thread::spawn(move || lane(first))).collect();
    let kills: usize = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
    assert!(kills >= 40, "only {kills} kills");
}

/// Kills `apply` at its `first` changing call, and in each further round at one that is `LANES` later. Returns the
/// number of kills.
fn lane(first: usize) -> usize {
    // The emulator is reset between rounds, so it is not shared.
    let emulator = Emulator::start(STRICT);
    let killer = Killer::start(emulator.address);
    let stack = |address| Stack { environment: environment(&format!("http://{address}")), ..Stack::new("crash") };
    let (mortal, direct) = (stack(killer.address), stack(emulator.address));
    let stride = if std::env::var_os("IMGCLS_TEST_LONG").is_some() { 1 } else { STRIDE };
    let mut kills = 0;
    let mut nth = first;
    while killer.kill_at(&mortal, &APPLY, nth) {
        kills += 1;
        direct.succeeds(&APPLY);
        let plan = direct.run(&[&["plan", "--detailed-exitcode"][..], &APPLY[1..]].concat());
        assert_eq!(plan.code, Some(0), "killed at call {nth}: {}{}", plan.stdout, plan.stderr);
        if nth.is_multiple_of(stride) {
            killer.kill_at(&mortal, &["destroy", "--yes"], nth);
            direct.destroy();
        } else {
            assert_eq!(request(emulator.address, "POST", "/moto-api/reset", &[], b"").unwrap().status, 200);
        }
        nth += LANES;
    }
    kills
}
