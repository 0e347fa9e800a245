//! Connections to a server, with TLS where its URL asks for it.
//!
//! A certificate has to be trusted by this machine: `SSL_CERT_FILE` names a file of further authorities.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::target::BaseUrl;
use crate::http_client::{self, Stream};

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
        let config = http_client::tls()
            .context("cannot read the certificates that this machine trusts; SSL_CERT_FILE names a file of them")?;
        Ok(Connector { tls: Some((TlsConnector::from(Arc::new(config)), name)) })
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
