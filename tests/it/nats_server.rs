//! NATS servers of tests, a proxy before them that breaks connections, and a server that only tells its version.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use imgcls::config::{Backend, NatsLocation};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream as AsyncStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::emulators;
use crate::harness::{DEADLINE, free_port};

/// A server with JetStream. It keeps its data and its port when it is started again, and ends with this value.
pub struct NatsServer {
    port: u16,
    /// Without one, the folder is removed when the server ends, and messages have the size that the suites expect.
    folder: Option<tempfile::TempDir>,
    server: Option<Child>,
}

/// One server for all tests that do not stop it.
pub fn shared() -> &'static NatsServer {
    static SHARED: OnceLock<NatsServer> = OnceLock::new();
    SHARED.get_or_init(|| NatsServer::start_in(None))
}

impl NatsServer {
    /// Starts a server with these settings beside its address and the folder of JetStream.
    pub fn start(settings: &str) -> NatsServer {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("more.conf"), settings).unwrap();
        NatsServer::start_in(Some(folder))
    }

    fn start_in(folder: Option<tempfile::TempDir>) -> NatsServer {
        let mut server = NatsServer { port: free_port(), folder, server: None };
        server.restart();
        server
    }

    /// Ends the server as a loss of power of its process would: it writes nothing more.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            // The script that runs the server kills it when this is closed.
            drop(server.stdin.take());
            server.wait().unwrap();
        }
    }

    /// Starts the server again.
    pub fn restart(&mut self) {
        self.kill();
        let mut server = Command::new(emulators::python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/emulators/start"))
            .args(["nats", &self.port.to_string()])
            .args(self.folder.as_ref().map(tempfile::TempDir::path))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + DEADLINE;
        while !greets(self.address()) {
            assert!(server.try_wait().unwrap().is_none(), "the NATS server ended by itself");
            assert!(Instant::now() < end, "NATS does not answer at {}", self.address());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server = Some(server);
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    pub fn backend(&self) -> Backend {
        backend(&self.url())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn backend(url: &str) -> Backend {
    Backend::Nats(NatsLocation { url: url.to_owned(), credentials: None, ca: None, replicas: 1 })
}

/// A server of NATS speaks first.
fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut begin = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok() && stream.read_exact(&mut begin).is_ok()
}

/// The faults of a network between a client and NATS.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Delay of everything that is sent.
    pub latency: Duration,
    /// Each connection breaks after at most so many bytes in one direction, in the middle of whatever is sent.
    pub broken_after_bytes: Option<u64>,
    /// New connections are closed at once.
    pub unreachable: bool,
}

/// A server that tells its version and answers pings, and does nothing else.
pub struct NatsGreeter {
    pub address: SocketAddr,
    _runtime: Runtime,
}

impl NatsGreeter {
    pub fn start(version: &str) -> NatsGreeter {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let about = json!({
            "server_id": "OLD", "server_name": "old", "version": version, "proto": 1, "go": "go1.23", "headers": true,
            "host": "127.0.0.1", "port": address.port(), "max_payload": 1 << 20, "client_id": 1, "jetstream": true,
        });
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(greet(client, format!("INFO {about}\r\n")));
            }
        });
        NatsGreeter { address, _runtime: runtime }
    }
}

async fn greet(client: AsyncStream, greeting: String) -> std::io::Result<()> {
    let (from_client, mut to_client) = client.into_split();
    to_client.write_all(greeting.as_bytes()).await?;
    let mut lines = BufReader::new(from_client).lines();
    while let Some(line) = lines.next_line().await? {
        if line == "PING" {
            to_client.write_all(b"PONG\r\n").await?;
        }
    }
    Ok(())
}

/// A proxy before a server.
pub struct NatsProxy {
    pub url: String,
    faults: watch::Sender<Faults>,
    _runtime: Runtime,
}

impl NatsProxy {
    pub fn before(server: SocketAddr, seed: u64) -> NatsProxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let (faults, changes) = watch::channel(Faults::default());
        runtime.spawn(accept(listener, server, changes, StdRng::seed_from_u64(seed)));
        NatsProxy { url, faults, _runtime: runtime }
    }

    /// Breaks all connections, and treats new ones like this from now on.
    pub fn follow(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, mut faults: watch::Receiver<Faults>, mut random: StdRng) {
    while let Ok((client, _)) = listener.accept().await {
        let now = faults.borrow_and_update().clone();
        if now.unreachable {
            continue;
        }
        let Ok(upstream) = AsyncStream::connect(server).await else { continue };
        let limit = now.broken_after_bytes.map_or(u64::MAX, |most| random.random_range(most / 10..most));
        tokio::spawn(pass(client, upstream, faults.clone(), limit));
    }
}

/// Passes bytes both ways until one side ends or a fault ends both.
async fn pass(client: AsyncStream, server: AsyncStream, mut faults: watch::Receiver<Faults>, limit: u64) {
    let latency = faults.borrow().latency;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = copy(from_client, to_server, latency, limit) => {}
        () = copy(from_server, to_client, latency, limit) => {}
        _ = faults.changed() => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, latency: Duration, limit: u64) {
    let mut left = limit;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(latency).await;
        let passed = left.min(length as u64) as usize;
        if to.write_all(&buffer[..passed]).await.is_err() || passed < length {
            return;
        }
        left -= passed as u64;
    }
}
