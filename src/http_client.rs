//! The parts that the clients of HTTP/1 in this program share: TLS that trusts the certificates of this machine, and a
//! connection that the task of a request polls itself, so that a request wakes no second task.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;

/// The bytes of a connection, plain or encrypted.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Connection = http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>;

/// The settings of TLS for a client, which trusts the certificates that this machine trusts. `SSL_CERT_FILE` names a file of
/// further authorities.
///
/// # Errors
/// If this machine has no certificates to trust.
pub(crate) fn tls() -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    Ok(builder.with_native_roots()?.with_no_client_auth())
}

/// Begins HTTP/1 on a stream.
///
/// # Errors
/// Those of hyper.
pub(crate) async fn handshake(stream: Box<dyn Stream>) -> hyper::Result<(http1::SendRequest<Full<Bytes>>, Io)> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Ok((sender, Io(Some(connection))))
}

/// The half of a connection that reads and writes; `None` once the connection has ended.
pub(crate) struct Io(Option<Connection>);

impl Io {
    /// Returns true once the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_none()
    }

    /// Reads and writes until `exchange` completes.
    pub(crate) async fn drive<T>(&mut self, exchange: impl Future<Output = T>) -> T {
        let mut exchange = pin!(exchange);
        std::future::poll_fn(|cx| {
            // Poll the exchange first, which hands over the request, then the connection, which writes it or reads the
            // answer, then the exchange again, which takes the answer.
            if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let _ended = self.poll(cx);
            exchange.as_mut().poll(cx)
        })
        .await
    }

    /// Ready once the connection has ended. The reason is not needed here: hyper reports it to the exchange.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            None => Poll::Ready(()),
            Some(connection) => Pin::new(connection).poll(cx).map(|_result| self.0 = None),
        }
    }
}
