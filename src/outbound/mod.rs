//! Calls of the service to addresses that its clients name: callbacks, and images by URL.
//!
//! A client must not reach with them what only the service can reach: other machines of its network, its own ports, the
//! metadata of the cloud. [`guard`] decides without I/O which addresses may be called, and [`Caller`] is the only way to make
//! such a call: it looks a name up once, checks every address of the answer, and connects to one of those. A callback follows
//! no redirect; a download follows a few, and each is checked like the address that the client named. No proxy is used.

mod caller;
pub mod guard;
mod ranges;

pub use self::caller::{CallError, Caller, Download, Limits};
pub use self::guard::{Allowed, AllowedPlace, Refusal, Target};
