//! Stands between clients of AWS and an emulator, and does what networks and services do on a bad day.
//!
//! Each client gets a door of its own, an address on a free port, so that what it tries is told from what others try.
//! Requests pass as they are: they are signed, host name included. What becomes of a call is drawn by chance from a
//! seed and its operation, so that the n-th call of an operation has the same fate in every run. All calls are kept.

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

/// What the proxy does until told otherwise.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Before each call is dealt with.
    pub latency: Duration,
    /// Shares of all calls, each 0 to 1: the connection is reset and nothing is performed,
    pub resets: f64,
    /// the service refuses by a fault of its own, or for there being too many calls,
    pub refusals: f64,
    /// the call is performed and the connection is cut in place of an answer.
    pub lost_answers: f64,
    /// Operations whose calls hang as long as this plan holds.
    pub stalled: &'static [&'static str],
    /// Connections that stand are reset, and so is every new one.
    pub unreachable: bool,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Passed,
    Reset,
    Refused,
    AnswerLost,
    /// A connection, while nobody was to be reached.
    TurnedAway,
}

#[derive(Debug, Clone)]
pub struct Call {
    pub at: Instant,
    pub door: usize,
    /// As AWS names it; `PutObjectOnce` is a put with `If-None-Match`. Empty for a connection that was turned away.
    pub operation: String,
    pub fate: Fate,
}

pub struct FaultProxy {
    runtime: Runtime,
    shared: Arc<Shared>,
    doors: Mutex<usize>,
}

/// The way in of one client.
pub struct Door {
    pub url: String,
    pub number: usize,
}

struct Shared {
    emulator: SocketAddr,
    seed: u64,
    plan: watch::Sender<Plan>,
    /// Chance, by operation.
    dice: Mutex<HashMap<String, StdRng>>,
    calls: Mutex<Vec<Call>>,
}

impl FaultProxy {
    pub fn before(emulator: SocketAddr, seed: u64) -> FaultProxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plan = watch::Sender::new(Plan::default());
        let shared = Arc::new(Shared { emulator, seed, plan, dice: Mutex::default(), calls: Mutex::default() });
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

    /// From now on; when that was.
    pub fn follow(&self, plan: Plan) -> Instant {
        self.shared.plan.send_replace(plan);
        Instant::now()
    }

    /// All calls so far.
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
                self.keep(door, String::new(), Fate::TurnedAway);
                let _ = stream.set_zero_linger();
                continue;
            }
            tokio::spawn(Arc::clone(&self).serve(door, stream));
        }
    }

    async fn serve(self: Arc<Self>, door: usize, stream: TcpStream) {
        // A second handle on the connection, to reset it when the first has been dropped.
        let Ok((stream, handle)) = twins(stream) else { return };
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

    async fn answer(self: Arc<Self>, door: usize, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
        let operation = operation(&request);
        let plan = self.plan.borrow().clone();
        let (fate, chance) = self.draw(&plan, &operation);
        self.keep(door, operation.clone(), fate);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        tokio::time::sleep(plan.latency).await;
        if plan.stalled.contains(&operation.as_str()) {
            let is_over = |plan: &Plan| !plan.stalled.contains(&operation.as_str());
            let _ = self.plan.subscribe().wait_for(is_over).await;
        }
        let request = Request::from_parts(head, Full::new(body));
        match fate {
            Fate::Passed => self.forward(request).await,
            Fate::Refused => Ok(refusal(&request, chance)),
            Fate::AnswerLost => {
                self.forward(request).await?;
                Err(Cut)
            }
            Fate::Reset | Fate::TurnedAway => Err(Cut),
        }
    }

    /// A fate, and a number to choose further by.
    fn draw(&self, plan: &Plan, operation: &str) -> (Fate, u32) {
        let mut dice = lock(&self.dice);
        let dice = dice.entry(operation.to_owned()).or_insert_with(|| {
            let mut hasher = DefaultHasher::new();
            (self.seed, operation).hash(&mut hasher);
            StdRng::seed_from_u64(hasher.finish())
        });
        let (share, chance) = (dice.random::<f64>(), dice.random());
        let fate = if share < plan.resets {
            Fate::Reset
        } else if share < plan.resets + plan.refusals {
            Fate::Refused
        } else if share < plan.resets + plan.refusals + plan.lost_answers {
            Fate::AnswerLost
        } else {
            Fate::Passed
        };
        (fate, chance)
    }

    fn keep(&self, door: usize, operation: String, fate: Fate) {
        lock(&self.calls).push(Call { at: Instant::now(), door, operation, fate });
    }

    async fn forward(&self, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Cut> {
        let stream = TcpStream::connect(self.emulator).await.map_err(|_| Cut)?;
        let (mut emulator, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| Cut)?;
        // Ends with the answer, or when the client has gone.
        let answer = async {
            let (head, body) = emulator.send_request(request).await.map_err(|_| Cut)?.into_parts();
            let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
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

fn twins(stream: TcpStream) -> std::io::Result<(TcpStream, TcpStream)> {
    let stream = stream.into_std()?;
    let twin = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, TcpStream::from_std(twin)?))
}

/// In place of an answer: the connection ends.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

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

/// Each service in its own form.
fn refusal(request: &Request<Full<Bytes>>, chance: u32) -> Response<Full<Bytes>> {
    let choose = |refusals: &[(u16, &'static str)]| refusals[chance as usize % refusals.len()];
    let (status, content_type, body) = if request.headers().contains_key("x-amz-target") {
        let (status, code) =
            choose(&[(500, "InternalFailure"), (503, "ServiceUnavailable"), (400, "RequestThrottled")]);
        let body = format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"a bad day"}}"#);
        (status, "application/x-amz-json-1.0", body)
    } else {
        let (status, code) = choose(&[(500, "InternalError"), (503, "SlowDown")]);
        let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
        let body =
            format!("{head}<Error><Code>{code}</Code><Message>a bad day</Message><RequestId>0</RequestId></Error>");
        // The answer to a HEAD has none.
        (status, "application/xml", if request.method() == Method::HEAD { String::new() } else { body })
    };
    let response = Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", content_type)
        .header("x-amzn-requestid", "00000000-0000-0000-0000-000000000000");
    response.body(Full::from(body)).expect("headers of ours")
}
