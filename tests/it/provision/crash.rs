//! Applying, killed at every call that changes something.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::{Arc, Mutex};

use super::Stack;
use crate::emulators::moto_of_stacks;

/// Of the calls that change something, killed at each `STRIDE`th; at every one in a long run.
const STRIDE: usize = 5;

/// Hands calls on to the emulator, and kills a process when so many that change something were answered.
struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    changes: usize,
    victim: Option<(Child, usize)>,
}

impl Proxy {
    fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // Ends with the process: it waits for connections.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || hand_on(stream, &state));
            }
        });
        Proxy { address, state }
    }

    /// Runs the command, killed at its `nth` call that changes something; false where it ended before.
    fn kill_at(&self, stack: &Stack, command: &[&str], nth: usize) -> bool {
        // Held while it starts: no call of it is counted for another.
        let mut state = self.state.lock().unwrap();
        let child = stack.command(command).stdout(std::process::Stdio::null()).spawn().unwrap();
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
                assert!(was_killed || status.success(), "before call {nth} it failed by itself: {status}");
                return was_killed;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// One request. The connection ends with its answer: the client makes another.
fn hand_on(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut client = stream;
    let Some((head, body)) = read_request(&mut reader) else { return };
    let mut server = TcpStream::connect(moto_of_stacks().address).unwrap();
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(head.as_bytes()).and_then(|()| server.write_all(&body)).unwrap();
    let mut answer = Vec::new();
    if server.read_to_end(&mut answer).is_err() {
        return;
    }
    if changes_something(&head, &body) {
        let mut state = state.lock().unwrap();
        state.changes += 1;
        let changes = state.changes;
        if let Some((child, nth)) = &mut state.victim
            && changes == *nth
        {
            let _ = child.kill();
            return;
        }
    }
    let _ = client.write_all(&answer);
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let ends = line == "\r\n";
        head.push_str(&line);
        if ends {
            break;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// By the name of the operation; of S3 by the method.
fn changes_something(head: &str, body: &[u8]) -> bool {
    let first = head.lines().next().unwrap_or_default();
    let (method, path) = first.split_once(' ').unwrap_or_default();
    let lower = head.to_ascii_lowercase();
    let target = lower.lines().find_map(|line| line.strip_prefix("x-amz-target: ")?.split('.').nth(1));
    let body = String::from_utf8_lossy(body);
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action="));
    let operation = path.split("/operation/").nth(1).and_then(|rest| rest.split(' ').next());
    match operation.or(target).or(action).map(str::to_ascii_lowercase) {
        Some(name) => !["describe", "get", "list"].iter().any(|reading| name.starts_with(reading)),
        None => method != "GET" && method != "HEAD",
    }
}

#[test]
fn killed_at_any_call_it_goes_on_and_ends_the_same() {
    let is_long = std::env::var_os("IMGCLS_TEST_LONG").is_some();
    let proxy = Proxy::start();
    let mut stack = Stack::new("crash");
    stack.environment = super::environment(&format!("http://{}", proxy.address));
    let mut nth = 1;
    let mut killed = 0;
    while proxy.kill_at(&stack, &["apply", "--web-instances", "0"], nth) {
        killed += 1;
        // What stands now is said, and the next run goes on from there.
        let direct = Stack::new("crash");
        direct.succeeds(&["apply", "--web-instances", "0"]);
        let plan = direct.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
        assert_eq!(plan.code, Some(0), "killed at call {nth}: {}{}", plan.stdout, plan.stderr);
        // Taking it away again may be killed as well.
        proxy.kill_at(&stack, &["destroy", "--yes"], nth);
        direct.destroy();
        nth += if is_long { 1 } else { STRIDE };
    }
    assert!(killed * if is_long { 1 } else { STRIDE } > 35, "only {killed} kills");
    Stack::new("crash").destroy();
}
