//! Emulators of AWS. Each is one process for the whole run of the test binary, on a free loopback port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, free_port, request};

/// Environment variable with the folder of the emulators, if it is not where `scripts/emulators/install` puts them.
const FOLDER_VARIABLE: &str = "IMGCLS_EMULATORS";
/// The credentials that `scripts/emulators/start` configures for SeaweedFS.
pub const ACCESS_KEY: &str = "imgcls-test";
const SECRET_KEY: &str = "imgcls-test-secret";

/// moto behind a layer that makes it as strict as AWS.
pub const STRICT: &str = "moto-strict";

pub struct Emulator {
    pub address: SocketAddr,
    /// Exits when its standard input closes, and so with this process, however that ends.
    _server: Child,
}

/// moto, for SQS, S3 and STS.
pub fn moto() -> &'static Emulator {
    static MOTO: OnceLock<Emulator> = OnceLock::new();
    MOTO.get_or_init(|| Emulator::start("moto"))
}

/// A second moto, for stacks, which answers as late as AWS does: deleted queues and buckets are still listed
/// (`scripts/emulators/strict.py`).
pub fn moto_of_stacks() -> &'static Emulator {
    static MOTO: OnceLock<Emulator> = OnceLock::new();
    MOTO.get_or_init(|| Emulator::start(STRICT))
}

/// ministack, for SQS, S3 and STS.
pub fn ministack() -> &'static Emulator {
    static MINISTACK: OnceLock<Emulator> = OnceLock::new();
    MINISTACK.get_or_init(|| Emulator::start("ministack"))
}

/// A second ministack, for stacks.
pub fn ministack_of_stacks() -> &'static Emulator {
    static MINISTACK: OnceLock<Emulator> = OnceLock::new();
    MINISTACK.get_or_init(|| Emulator::start("ministack"))
}

/// SeaweedFS, an S3 that checks signatures and policies.
pub fn seaweedfs() -> &'static Emulator {
    static SEAWEEDFS: OnceLock<Emulator> = OnceLock::new();
    SEAWEEDFS.get_or_init(|| Emulator::start("seaweedfs"))
}

impl Emulator {
    /// Starts an emulator for one test. It ends when the value is dropped.
    pub fn start(name: &str) -> Emulator {
        // Emulators start one after the other, since each looks for free ports.
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
        let end = Instant::now() + DEADLINE;
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

    /// The environment of a client that uses this emulator only.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment = credentials();
        environment.extend(pairs(&[("AWS_ENDPOINT_URL", &self.url()), ("AWS_REGION", "us-east-1")]));
        environment
    }
}

/// Credentials that every emulator accepts, with all other sources of credentials disabled.
pub fn credentials() -> Vec<(String, String)> {
    let keys = pairs(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]);
    [keys, nothing_else()].concat()
}

/// Hides the AWS configuration of the user who runs the tests.
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

/// The Python interpreter with the emulators and boto3.
pub fn python() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/emulators");
    let python = std::env::var_os(FOLDER_VARIABLE).map_or(default, PathBuf::from).join("bin/python");
    let missing = "run scripts/emulators/install (scripts/test does), or set";
    assert!(python.exists(), "{} is missing: {missing} {FOLDER_VARIABLE}", python.display());
    python
}

/// Returns whether an HTTP server answers there. Client errors count as answers.
fn answers(address: SocketAddr) -> bool {
    request(address, "GET", "/", &[], b"").is_ok_and(|response| response.status < 500)
}
