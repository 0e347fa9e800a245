//! TLS of the web tier's port, by rustls. The certificate is loaded again when its files change.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the files are read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(3);

/// The name of HTTP/2 in ALPN.
const HTTP2: &[u8] = b"h2";

/// The files of a certificate, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those that it was issued by.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The current certificate of a server.
pub(crate) struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
    loaded: [u8; 32],
}

/// The content of both files.
struct Content {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Loads the certificate.
    ///
    /// # Errors
    /// If a file cannot be read, or the key is not that of the certificate.
    pub(crate) fn open(files: TlsFiles) -> anyhow::Result<Tls> {
        let content = Content::read(&files)?;
        let config = content.config(&files)?;
        Ok(Tls { loaded: content.digest(), files, config: RwLock::new(Arc::new(config)) })
    }

    /// Loads the files again whenever they have changed, until `stop`. A pair that cannot be used changes nothing: it may
    /// be half written, and is tried again once it changes.
    pub(crate) async fn follow(&self, stop: &CancellationToken) {
        let mut seen = self.loaded;
        while stop.run_until_cancelled(tokio::time::sleep(RELOAD_INTERVAL)).await.is_some() {
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || Content::read(&files)).await else { continue };
            let reload = read.and_then(|content| {
                let digest = content.digest();
                if digest == seen {
                    return Ok(None);
                }
                seen = digest;
                content.config(&self.files).map(Some)
            });
            match reload {
                Ok(Some(config)) => {
                    *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    tracing::info!(cert = %self.files.cert.display(), "the new certificate is in use");
                }
                Ok(None) => {}
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "cannot load the new certificate; the old one stays in use");
                }
            }
        }
    }

    /// Does the handshake of a new connection.
    ///
    /// # Errors
    /// If it fails, or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Socket> {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        let handshake = TlsAcceptor::from(config).accept(stream);
        let done = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        let stream =
            done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake is slow")))?;
        Ok(Socket::Tls(Box::new(stream)))
    }
}

impl Content {
    fn read(files: &TlsFiles) -> anyhow::Result<Content> {
        let read = |path: &Path, flag: &str| {
            std::fs::read(path).with_context(|| format!("cannot read {} ({flag})", path.display()))
        };
        Ok(Content { cert: read(&files.cert, "--tls-cert")?, key: read(&files.key, "--tls-key")? })
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(Sha256::digest(&self.cert)).chain_update(&self.key).finalize().into()
    }

    fn config(&self, files: &TlsFiles) -> anyhow::Result<ServerConfig> {
        let (cert, key) = (files.cert.display(), files.key.display());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{cert} (--tls-cert) is not PEM"))?;
        anyhow::ensure!(!chain.is_empty(), "{cert} (--tls-cert) has no certificate in PEM");
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| anyhow::anyhow!("{key} (--tls-key) has no private key in PEM"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .with_context(|| format!("{cert} and {key} are no certificate with its private key"))?;
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The socket of a client, with or without TLS.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Returns true if client and server have chosen HTTP/2 in the handshake.
    pub(super) fn is_http2(&self) -> bool {
        match self {
            Socket::Plain(_) => false,
            Socket::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(HTTP2),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
