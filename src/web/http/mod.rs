//! The HTTP server below the routes: connections, their limits, and the checks that every request passes.
//!
//! [`serve`] accepts connections, [`connections`] limits their number and decides which of them to close, [`idle`]
//! tracks which ones wait for a request, [`tls`] does handshakes, [`http2`] serves connections with several requests at a
//! time, and [`stream`] cuts off clients that do not read. [`guard`] runs before every handler: it checks the permit of
//! the connection, the host and the origin ([`hosts`]). [`held`] is the body of an answer that keeps a value until it is
//! sent, [`rules`] has the limits of a connection.

mod connections;
mod descriptors;
mod drain;
mod guard;
mod held;
mod hosts;
mod http2;
mod idle;
mod rules;
mod serve;
mod stream;
mod tls;

pub(super) use self::connections::Connections;
pub(super) use self::descriptors::{max_connections, raise_limit};
pub(super) use self::drain::drain_body;
pub(super) use self::guard::{RequestGuard, client_address, guard};
pub(super) use self::held::HeldBody;
pub(super) use self::hosts::HostPolicy;
pub(super) use self::rules::ServeRules;
pub use self::serve::listen;
pub(super) use self::serve::serve;
pub(super) use self::stream::MIN_BYTES_PER_SECOND;
pub(super) use self::tls::Tls;
pub use self::tls::TlsFiles;
