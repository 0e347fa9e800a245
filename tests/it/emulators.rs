//! Emulators of AWS: one process each for the whole run of this test binary, on a free loopback port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, free_port, request};

/// Where `scripts/emulators/install` puts them, unless this variable names another place.
const PLACE: &str = "IMGCLS_EMULATORS";
/// What `scripts/emulators/start` tells SeaweedFS to accept.
pub const ACCESS_KEY: &str = "imgcls-test";
const SECRET_KEY: &str = "imgcls-test-secret";

pub struct Emulator {
    pub address: SocketAddr,
    /// Ends when its standard input closes, that is with this process, however that ends.
    _server: Child,
}

/// SQS, S3 and STS.
pub fn moto() -> &'static Emulator {
    static MOTO: OnceLock<Emulator> = OnceLock::new();
    MOTO.get_or_init(|| Emulator::start("moto"))
}

/// One more, for stacks: it holds few queues, since planning asks each for its tags.
pub fn moto_of_stacks() -> &'static Emulator {
    static MOTO: OnceLock<Emulator> = OnceLock::new();
    MOTO.get_or_init(|| Emulator::start("moto"))
}

/// SQS, S3 and STS, from another hand.
pub fn ministack() -> &'static Emulator {
    static MINISTACK: OnceLock<Emulator> = OnceLock::new();
    MINISTACK.get_or_init(|| Emulator::start("ministack"))
}

/// One more, for stacks, as of moto.
pub fn ministack_of_stacks() -> &'static Emulator {
    static MINISTACK: OnceLock<Emulator> = OnceLock::new();
    MINISTACK.get_or_init(|| Emulator::start("ministack"))
}

/// S3 that checks signatures and policies.
pub fn seaweedfs() -> &'static Emulator {
    static SEAWEEDFS: OnceLock<Emulator> = OnceLock::new();
    SEAWEEDFS.get_or_init(|| Emulator::start("seaweedfs"))
}

impl Emulator {
    /// For a test of its own; it ends with the value.
    pub fn start(name: &str) -> Emulator {
        // One after the other: each looks for free ports of its own.
        static STARTING: Mutex<()> = Mutex::new(());
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = python();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut server = Command::new(python)
            .arg(root.join("scripts/emulators/start"))
            .args([name, &address.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("an interpreter that starts");
        let end = Instant::now() + PATIENCE;
        while !answers(address) {
            if let Some(status) = server.try_wait().expect("a child of this process") {
                panic!("{name} ended by itself: {status}");
            }
            assert!(Instant::now() < end, "{name} does not answer at {address}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Emulator { address, _server: server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment of a client of this emulator and of nothing else.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment = credentials();
        environment.extend(pairs(&[("AWS_ENDPOINT_URL", &self.url()), ("AWS_REGION", "us-east-1")]));
        environment
    }
}

/// The credentials that every emulator accepts; no profile and no instance says others.
pub fn credentials() -> Vec<(String, String)> {
    let keys = pairs(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]);
    [keys, nothing_else()].concat()
}

/// Keeps the AWS configuration of whoever runs the tests away from them.
pub fn nothing_else() -> Vec<(String, String)> {
    pairs(&[
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ])
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The interpreter that has the emulators, and boto3.
pub fn python() -> PathBuf {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/emulators");
    let python = std::env::var_os(PLACE).map_or(place, PathBuf::from).join("bin/python");
    let missing = "run scripts/emulators/install (scripts/test does), or set";
    assert!(python.exists(), "{} is missing: {missing} {PLACE}", python.display());
    python
}

/// Whether something there speaks HTTP; a refusal is an answer.
fn answers(address: SocketAddr) -> bool {
    request(address, "GET", "/", &[], b"").is_ok_and(|response| response.status < 500)
}
