//! HTTP/2 through the real binary: with curl, and with a client that can misbehave.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::JoinHandle;

use crate::harness::{DEADLINE, Process, Service, block_on, free_port, imgcls, label_of, metric, test_image, until};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of settings without any: length, type, flags, stream.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// One connection that begins with the preface.
struct Client {
    send: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
    address: SocketAddr,
}

impl Client {
    async fn connect(address: SocketAddr) -> Client {
        Client::connect_with(address, 1 << 20).await
    }

    /// `window` is how many bytes of an answer the server may send unread.
    async fn connect_with(address: SocketAddr, window: u32) -> Client {
        let stream = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
        let mut builder = Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(window).max_header_list_size(1 << 20);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Client { send, connection: tokio::spawn(connection), address }
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, String) {
        let answer = self.send.clone().send_request(request).await.unwrap();
        (answer.status().as_u16(), text(answer).await)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send(self.request("GET", path, &[], b"")).await
    }

    /// Waits until the server has closed the connection.
    async fn closed(self) {
        let Client { send, connection, .. } = self;
        tokio::time::timeout(DEADLINE, connection).await.expect("the server closes the connection").unwrap().ok();
        drop(send);
    }
}

async fn text(answer: Response<hyper::body::Incoming>) -> String {
    String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

/// Runs curl, or returns `None` and says so if this one cannot speak HTTP/2.
fn curl(arguments: &[&str]) -> Option<String> {
    let version = Command::new("curl").arg("--version").output().ok().map(|output| output.stdout).unwrap_or_default();
    if !String::from_utf8_lossy(&version).contains("HTTP2") {
        eprintln!("SKIPPED: there is no curl that speaks HTTP/2");
        return None;
    }
    let mut command = Command::new("curl");
    command.args(["-sS", "-w", " %{http_version} %{http_code}"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn curl_speaks_both_versions_on_one_port() {
    let service = Service::start(1, &[], &[]);
    let url = format!("http://{}/", service.address);
    let image = format!("myfile=@{}/tests/pictures/cup.jpg", env!("CARGO_MANIFEST_DIR"));
    for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1"), ("--http2", "1.1")] {
        let Some(answer) = curl(&[flag, "-F", &image, &url]) else { return };
        assert_eq!(answer, format!("{} {version} 200", label_of("cup.jpg")), "{flag}");
    }
    let Some(refused) = curl(&["--http2-prior-knowledge", "-H", "Host: evil.example", &url]) else { return };
    assert!(refused.contains("misdirected") && refused.ends_with(" 2 421"), "{refused}");
}

#[test]
fn tls_offers_http2_and_clients_choose() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = |extension| format!("{}/tests/tls/one.{extension}", env!("CARGO_MANIFEST_DIR"));
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = imgcls();
    command.args(["serve-web", "--backend", "local", "--listen", &address.to_string(), "--data-dir"]);
    command.arg(dir.path().join("data")).args(["--tls-cert", &certificate("crt"), "--tls-key", &certificate("key")]);
    let _web = Process::start(command, &dir.path().join("web.log"));
    until("the port", || TcpStream::connect(address).ok());
    let url = format!("https://localhost:{}/healthz", address.port());
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let Some(answer) = curl(&[flag, "--cacert", &certificate("crt"), &url]) else { return };
        assert_eq!(answer, format!("ok\n {version} 200"), "{flag}");
    }
}

#[test]
fn many_requests_share_one_connection_and_get_their_own_answers() {
    let service = Service::start(1, &[], &[]);
    block_on(async {
        let client = Client::connect(service.address).await;
        let names = ["cup.jpg", "rocket.jpg", "cat.jpg"];
        let expected: Vec<String> = names.iter().map(|name| label_of(name)).collect();
        let calls = (0..60).map(|number| {
            let disposition = format!("attachment; filename=\"{number}\"");
            let headers = [("Content-Disposition", disposition.as_str())];
            client.send(client.request("POST", "/v1/classify?wait=120", &headers, &test_image(names[number % 3])))
        });
        for (number, (status, text)) in join_all(calls).await.into_iter().enumerate() {
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, answer["filename"].as_str()), (200, Some(number.to_string().as_str())), "{text}");
            assert_eq!(answer["predictions"][0]["label"], expected[number % 3]);
        }
        let metrics = client.get("/metrics").await.1;
        assert!(metrics.contains("\nimgcls_web_connections 1\n"), "{metrics}");
    });
}

#[test]
fn limits_of_requests_hold_for_each_of_a_connection() {
    let service = Service::start(0, &["--max-upload-bytes", "64KiB", "--body-timeout", "1s"], &[]);
    block_on(async {
        let client = Client::connect(service.address).await;
        let (status, text) = client.send(client.request("POST", "/v1/jobs", &[], &vec![0xff; 100_000])).await;
        assert_eq!(status, 413, "{text}");
        let host = client.request("GET", "/v1/models", &[("Host", "evil.example")], b"");
        assert_eq!(client.send(host).await.0, 200, "the address of the request has the host");
        let other_host = Request::get("http://evil.example/v1/models").body(Full::default()).unwrap();
        assert_eq!(client.send(other_host).await.0, 421);
        let cross = client.request("POST", "/v1/jobs", &[("Origin", "https://evil.example")], b"");
        assert_eq!(client.send(cross).await.0, 403);
        let long = "x".repeat(66_000);
        assert_eq!(client.send(client.request("GET", "/healthz", &[("X-Long", &long)], b"")).await.0, 431);
        // A job of a replicate client is named by the host of the request.
        let (status, text) = client.get("/v1/predictions/none").await;
        assert_eq!(status, 404, "{text}");
        assert_eq!(client.get("/healthz").await, (200, "ok\n".to_owned()), "the connection goes on");
    });
}

#[test]
fn requests_of_a_connection_count_like_connections() {
    let service = Service::start(0, &["--max-connections", "6"], &[]);
    block_on(async {
        let client = Client::connect(service.address).await;
        let wait = || {
            let mut send = client.send.clone();
            let request = client.request("POST", "/v1/classify?wait=600", &[], &test_image("cat.jpg"));
            tokio::spawn(send.send_request(request))
        };
        let mut waiting: Vec<_> = (0..5).map(|_| wait()).collect();
        until_waiting(&client, 5.0).await;
        // The connection has one permit, its four further requests have four, and this one has the last.
        assert_eq!(client.get("/v1/models").await.0, 200);
        waiting.push(wait());
        let refused = async {
            loop {
                let (status, text) = client.get("/v1/models").await;
                if status == 503 {
                    return text;
                }
            }
        };
        let text = tokio::time::timeout(DEADLINE, refused).await.expect("a refusal");
        assert!(text.contains("all connections are taken (--max-connections)"), "{text}");
        assert_eq!(client.get("/healthz").await, (200, "ok\n".to_owned()), "health checks pass");
        assert!(waiting.iter().all(|call| !call.is_finished()), "the others go on");
    });
}

/// Waits until so many callers wait for results, asking on the same connection.
async fn until_waiting(client: &Client, count: f64) {
    let line = format!("\nimgcls_web_waiting {count}\n");
    let waiting = async { while !client.get("/metrics").await.1.contains(&line) {} };
    tokio::time::timeout(DEADLINE, waiting).await.expect("waiting callers");
}

#[test]
fn preface_may_arrive_in_pieces_and_other_beginnings_are_http1() {
    let service = Service::start(0, &[], &[]);
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    for byte in PREFACE {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.write_all(SETTINGS).unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "the first frame of the server has its settings");
    for pieces in [
        &["P", "UT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"][..],
        &["PR", "I * HTTP/3.0\r\n\r\n"],
    ] {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 40"), "{pieces:?}: {answer}");
    }
}

#[test]
fn idle_and_silent_connections_are_closed() {
    let service = Service::start(0, &["--idle-timeout", "1s"], &[]);
    for beginning in [&b""[..], b"PRI * HT", PREFACE, &[PREFACE, SETTINGS].concat()] {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(beginning).unwrap();
        // It ends: the server closes it.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    block_on(async {
        let client = Client::connect(service.address).await;
        assert_eq!(client.get("/healthz").await.0, 200);
        client.closed().await;
    });
}

#[test]
fn client_that_leaves_answers_unread_is_cut_off() {
    let service = Service::start(0, &["--write-timeout", "1s"], &[]);
    // It looks like an answer that this server would complete in HTTP/1.1.
    let answer_like = b"HTTP/1.1 431 Too large\r\ncontent-length: 0\r\n\r\n".repeat(40_000);
    let image = [test_image("cat.jpg"), answer_like].concat();
    let id = service.submit("cat.jpg", &image);
    let path = format!("/v1/jobs/{id}/image");
    block_on(async {
        let reader = Client::connect(service.address).await;
        let answer = reader.send.clone().send_request(reader.request("GET", &path, &[], b"")).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body == image, "{} of {} bytes", body.len(), image.len());
        let client = Client::connect_with(service.address, 1 << 10).await;
        let mut send = client.send.clone();
        let answer = send.send_request(client.request("GET", &path, &[], b"")).await.unwrap();
        drop(send);
        // Its body is never read.
        client.closed().await;
        drop(answer);
    });
    let closed = metric(service.address, "imgcls_web_connections_closed_total{reason=\"write_timeout\"}");
    assert!(closed >= 1.0, "{closed}");
}

#[test]
fn client_that_resets_its_requests_again_and_again_loses_the_connection() {
    let service = Service::start(0, &[], &[]);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    block_on(async {
        let client = Client::connect(service.address).await;
        let other = Client::connect(service.address).await;
        let path = format!("/v1/jobs/{id}?wait=600");
        let resets = async {
            while !client.connection.is_finished() {
                let mut send = client.send.clone();
                let call = send.send_request(client.request("GET", &path, &[], b""));
                // The request is sent, and the answer is not waited for.
                let _ = tokio::time::timeout(Duration::from_millis(1), call).await;
                assert_eq!(other.get("/healthz").await.0, 200, "another client is served");
            }
        };
        tokio::time::timeout(DEADLINE, resets).await.expect("the server closes the connection");
        assert_eq!(other.get("/healthz").await.0, 200);
    });
}

#[test]
fn requests_that_run_are_answered_before_a_drain_ends() {
    let mut service = Service::start(0, &[], &[]);
    let address = service.address;
    block_on(async {
        let client = Client::connect(address).await;
        let mut send = client.send.clone();
        let request = client.request("POST", "/v1/classify?wait=600", &[], &test_image("cup.jpg"));
        let call = tokio::spawn(send.send_request(request));
        tokio::task::spawn_blocking(move || {
            until("the job", || service.images().pop().map(drop));
            service.web.signal("TERM");
            assert_eq!(service.web.wait(), Some(0));
        })
        .await
        .unwrap();
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.status().as_u16(), 202, "the address of the result");
        client.closed().await;
    });
}

#[test]
fn body_that_is_larger_than_the_window_arrives() {
    let service = Service::start(0, &[], &[]);
    let large = [test_image("cat.jpg"), vec![0x55; 8 << 20]].concat();
    block_on(async {
        let client = Client::connect(service.address).await;
        let (status, text) = client.send(client.request("POST", "/v1/jobs", &[], &large)).await;
        assert_eq!(status, 202, "{text}");
    });
    assert_eq!(service.images().len(), 1);
}
