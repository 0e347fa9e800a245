//! A proxy between clients of AWS and an emulator that injects faults of networks and services.
//!
//! Each client gets an address of its own (a door), so that calls can be attributed to clients. Requests
//! are forwarded unchanged, since they are signed, host name included. The disposition of a call is drawn at random
//! from a seed and its operation, so that the n-th call of an operation has the same disposition in every run. All
//! calls are recorded.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The faults that the proxy injects.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Delay before each call.
    pub latency: Duration,
    /// Share of calls whose connection is reset and which are not performed, from 0 to 1.
    pub resets: f64,
    /// Share of calls that fail with a server error or are throttled.
    pub refusals: f64,
    /// Share of calls that are performed, but whose connection is closed instead of an answer.
    pub lost_answers: f64,
    /// Operations whose calls hang while this plan is active.
    pub stalled: &'static [&'static str],
    /// Existing connections are reset, and so is every new one.
    pub unreachable: bool,
}

/// The disposition of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Passed,
    Reset,
    Refused,
    AnswerLost,
    /// A connection that was reset because the plan says unreachable.
    Unreachable,
}

#[derive(Debug, Clone)]
pub struct Call {
    pub at: Instant,
    pub door: usize,
    /// The name that AWS uses. `PutObjectOnce` is a put with `If-None-Match`. Empty for a connection that was reset.
    pub operation: String,
    pub disposition: Disposition,
}

pub struct FaultProxy {
    runtime: Runtime,
    shared: Arc<Shared>,
    doors: Mutex<usize>,
}

/// The address of one client.
pub struct Door {
    pub url: String,
    pub number: usize,
}

struct Shared {
    emulator: SocketAddr,
    seed: u64,
    plan: watch::Sender<Plan>,
    /// Random number generators, by operation.
    generators: Mutex<HashMap<String, StdRng>>,
    calls: Mutex<Vec<Call>>,
}

impl FaultProxy {
    pub fn before(emulator: SocketAddr, seed: u64) -> FaultProxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plan = watch::Sender::new(Plan::default());
        let shared = Arc::new(Shared { emulator, seed, plan, generators: Mutex::default(), calls: Mutex::default() });
        FaultProxy { runtime, shared, doors: Mutex::default() }
    }

    pub fn door(&self) -> Door {
        let mut doors = lock(&self.doors);
        let number = *doors;
        *doors += 1;
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        self.runtime.spawn(Arc::clone(&self.shared).open(number, listener));
        Door { url, number }
    }

    /// Follows another plan from now on. Returns the time of the change.
    pub fn follow(&self, plan: Plan) -> Instant {
        self.shared.plan.send_replace(plan);
        Instant::now()
    }

    /// All calls recorded so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    pub fn count(&self, is_wanted: impl Fn(&Call) -> bool) -> usize {
        lock(&self.shared.calls).iter().filter(|call| is_wanted(call)).count()
    }
}

impl Shared {
    async fn open(self: Arc<Self>, door: usize, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            if self.plan.borrow().unreachable {
                self.record(door, String::new(), Disposition::Unreachable);
                let _ = stream.set_zero_linger();
                continue;
            }
            tokio::spawn(Arc::clone(&self).serve(door, stream));
        }
    }

    async fn serve(self: Arc<Self>, door: usize, stream: TcpStream) {
        // A second handle of the connection, which resets it after the first has been dropped.
        let Ok((stream, handle)) = duplicate(stream) else { return };
        let shared = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&shared).answer(door, request));
        let mut plan = self.plan.subscribe();
        let ended = tokio::select! {
            ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => ended.is_ok(),
            _ = plan.wait_for(|plan| plan.unreachable) => false,
        };
        if !ended {
            let _ = handle.set_zero_linger();
        }
    }

    async fn answer(self: Arc<Self>, door: usize, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
        let operation = operation(&request);
        let plan = self.plan.borrow().clone();
        let (disposition, chance) = self.draw(&plan, &operation);
        self.record(door, operation.clone(), disposition);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        tokio::time::sleep(plan.latency).await;
        if plan.stalled.contains(&operation.as_str()) {
            let is_over = |plan: &Plan| !plan.stalled.contains(&operation.as_str());
            let _ = self.plan.subscribe().wait_for(is_over).await;
        }
        let request = Request::from_parts(head, Full::new(body));
        match disposition {
            Disposition::Passed => self.forward(request).await,
            Disposition::Refused => Ok(refusal(&request, chance)),
            Disposition::AnswerLost => {
                self.forward(request).await?;
                Err(Closed)
            }
            Disposition::Reset | Disposition::Unreachable => Err(Closed),
        }
    }

    /// Draws a disposition, and a number for further choices.
    fn draw(&self, plan: &Plan, operation: &str) -> (Disposition, u32) {
        let mut generators = lock(&self.generators);
        let generator = generators.entry(operation.to_owned()).or_insert_with(|| {
            let mut hasher = DefaultHasher::new();
            (self.seed, operation).hash(&mut hasher);
            StdRng::seed_from_u64(hasher.finish())
        });
        let (share, chance) = (generator.random::<f64>(), generator.random());
        let disposition = if share < plan.resets {
            Disposition::Reset
        } else if share < plan.resets + plan.refusals {
            Disposition::Refused
        } else if share < plan.resets + plan.refusals + plan.lost_answers {
            Disposition::AnswerLost
        } else {
            Disposition::Passed
        };
        (disposition, chance)
    }

    fn record(&self, door: usize, operation: String, disposition: Disposition) {
        lock(&self.calls).push(Call { at: Instant::now(), door, operation, disposition });
    }

    async fn forward(&self, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Closed> {
        let stream = TcpStream::connect(self.emulator).await.map_err(|_| Closed)?;
        let (mut emulator, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| Closed)?;
        // Ends with the answer, or when the emulator closes the connection.
        let answer = async {
            let (head, body) = emulator.send_request(request).await.map_err(|_| Closed)?.into_parts();
            let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
            Ok(Response::from_parts(head, Full::new(body)))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn duplicate(stream: TcpStream) -> std::io::Result<(TcpStream, TcpStream)> {
    let stream = stream.into_std()?;
    let second = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, TcpStream::from_std(second)?))
}

/// The connection is closed instead of an answer.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is closed")
    }
}

impl std::error::Error for Closed {}

fn operation<B>(request: &Request<B>) -> String {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(target) = header("x-amz-target") {
        return target.rsplit('.').next().unwrap_or_default().to_owned();
    }
    let names_key = request.uri().path().trim_matches('/').contains('/');
    let name = match (request.method(), names_key) {
        (&Method::PUT, true) if request.headers().contains_key("if-none-match") => "PutObjectOnce",
        (&Method::PUT, true) => "PutObject",
        (&Method::GET, true) => "GetObject",
        (&Method::HEAD, true) => "HeadObject",
        (&Method::DELETE, true) => "DeleteObject",
        (&Method::GET, false) => "ListObjects",
        (&Method::PUT, false) => "CreateBucket",
        _ => "Other",
    };
    name.to_owned()
}

/// An error in the protocol of the service.
fn refusal(request: &Request<Full<Bytes>>, chance: u32) -> Response<Full<Bytes>> {
    let choose = |refusals: &[(u16, &'static str)]| refusals[chance as usize % refusals.len()];
    let (status, content_type, body) = if request.headers().contains_key("x-amz-target") {
        let (status, code) =
            choose(&[(500, "InternalFailure"), (503, "ServiceUnavailable"), (400, "RequestThrottled")]);
        let body = format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"an injected fault"}}"#);
        (status, "application/x-amz-json-1.0", body)
    } else {
        let (status, code) = choose(&[(500, "InternalError"), (503, "SlowDown")]);
        let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
        let body = format!(
            "{head}<Error><Code>{code}</Code><Message>an injected fault</Message><RequestId>0</RequestId></Error>"
        );
        // An answer to HEAD has no body.
        (status, "application/xml", if request.method() == Method::HEAD { String::new() } else { body })
    };
    let response = Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", content_type)
        .header("x-amzn-requestid", "00000000-0000-0000-0000-000000000000");
    response.body(Full::from(body)).expect("headers of ours")
}
