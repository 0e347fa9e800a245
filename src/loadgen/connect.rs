//! Connections to a server, with TLS where its URL asks for it.
//!
//! A certificate has to be trusted by this machine: `SSL_CERT_FILE` names a file of further authorities.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use hyper_rustls::ConfigBuilderExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;

use super::target::BaseUrl;

/// A connection that requests are sent over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to the server of a URL.
#[derive(Clone)]
pub(super) struct Connector {
    /// The way to encrypt; `None` for `http://`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// # Errors
    /// If the host's name cannot be that of a certificate, or this machine has no certificates to trust.
    pub(super) fn new(url: &BaseUrl) -> anyhow::Result<Connector> {
        if !url.is_tls {
            return Ok(Connector { tls: None });
        }
        let name = ServerName::try_from(url.host.clone()).with_context(|| format!("no certificate can name {url}"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_native_roots()
            .context("cannot read the certificates that this machine trusts; SSL_CERT_FILE names a file of them")?;
        Ok(Connector { tls: Some((TlsConnector::from(Arc::new(config.with_no_client_auth())), name)) })
    }

    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
        }
    }
}
