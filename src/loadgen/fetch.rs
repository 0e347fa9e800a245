//! A single request to a server, on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::Connector;
use super::target::BaseUrl;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Metrics take some tens of kilobytes.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// A request to the server of a URL, whose own path is not used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub content_type: Option<&'static str>,
    /// Sent as `Authorization: Bearer KEY`.
    pub key: Option<&'a str>,
    pub body: Bytes,
}

/// Sends the request, and returns the status and the body of the answer.
///
/// # Errors
/// One line if there is no answer within five seconds.
pub(crate) async fn fetch(url: &BaseUrl, call: Call<'_>) -> Result<(StatusCode, String), String> {
    let answer = tokio::time::timeout(TIMEOUT, exchange(url, call)).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}

async fn exchange(url: &BaseUrl, call: Call<'_>) -> Result<(StatusCode, String), String> {
    let connector = Connector::new(url).map_err(|error| format!("{error:#}"))?;
    let addresses = tokio::net::lookup_host((url.host.as_str(), url.port)).await.map_err(|error| error.to_string())?;
    let mut stream = Err("the host has no address".to_owned());
    for address in addresses {
        stream = connector.connect(address).await.map_err(|error| error.to_string());
        if stream.is_ok() {
            break;
        }
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream?)).await.map_err(|error| error.to_string())?;
    let request = request(url, call).map_err(|error| error.to_string())?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // The connection ends after the exchange, which drops its sender.
    let (answer, _connection) = tokio::join!(exchange, connection);
    answer
}

fn request(url: &BaseUrl, call: Call<'_>) -> http::Result<Request<Full<Bytes>>> {
    let Call { method, path, content_type, key, body } = call;
    let request = Request::builder().method(method).uri(path);
    let mut request = request.header(header::HOST, &url.authority).header(header::CONNECTION, "close");
    if let Some(content_type) = content_type {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    if let Some(key) = key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Full::new(body))
}
