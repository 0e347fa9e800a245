//! Settings of access to the web tier: keys, limits per client, TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::parse::listen_address;
use super::usage::usage;
use crate::web;

#[derive(Debug, Args)]
pub struct AuthArgs {
    /// Require a key, which `imgcls keys create` makes, or let everybody in [default: none on a loopback address, else required]
    #[arg(long, env = "IMGCLS_AUTH")]
    pub auth: Option<AuthArg>,
    /// Serve /healthz, /readyz and /metrics at this address, too, without keys
    #[arg(long, env = "IMGCLS_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,
    /// Most requests of one client per second, minute or hour: 10/s, 600/min, 5000/h. A client is a key, or an address
    /// without one. Beyond it clients get 429 with Retry-After [default: no limit]
    #[arg(long, env = "IMGCLS_RATE_LIMIT", value_parser = |text: &str| text.parse::<web::RateLimit>())]
    pub rate_limit: Option<web::RateLimit>,
    /// Most requests of one client at once, within --rate-limit [default: the number in --rate-limit]
    #[arg(long, env = "IMGCLS_RATE_BURST", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_burst: Option<u32>,
    /// Most requests of one client that are open at a time; beyond it clients get 429 [default: no limit]
    #[arg(long, env = "IMGCLS_MAX_REQUESTS_PER_CLIENT", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_requests_per_client: Option<u32>,
    /// Certificate chain of the web tier, as PEM; with it the port speaks TLS. A changed file is loaded within 10 s
    #[arg(long, env = "IMGCLS_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, as PEM
    #[arg(long, env = "IMGCLS_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthArg {
    /// Everybody who reaches the port may use it
    None,
    /// Every request needs a key, except for health checks and the page itself
    Required,
}

impl AuthArgs {
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub(super) fn check(&self, command: &'static str, listen: SocketAddr) -> anyhow::Result<()> {
        if self.admin_listen.is_some_and(|address| address == listen && address.port() != 0) {
            return Err(usage(command, "--admin-listen is the address of --listen: give another one"));
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(usage(command, "TLS needs both --tls-cert and --tls-key: give the other one, too"));
        }
        if self.rate_burst.is_some() && self.rate_limit.is_none() {
            return Err(usage(command, "--rate-burst is a part of --rate-limit: give that, too"));
        }
        Ok(())
    }

    pub(super) fn access(&self) -> web::Access {
        let rate_limit = self.rate_limit.map(|limit| match self.rate_burst {
            Some(burst) => limit.with_burst(burst),
            None => limit,
        });
        web::Access {
            requires_key: self.auth.map(|auth| auth == AuthArg::Required),
            admin_listen: self.admin_listen,
            rate_limit,
            max_requests_per_client: self.max_requests_per_client,
            tls: self.tls_cert.clone().zip(self.tls_key.clone()).map(|(cert, key)| web::TlsFiles { cert, key }),
        }
    }
}
