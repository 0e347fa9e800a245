//! Reports to systemd that this process is ready, alive, or stopping: the protocol of `sd_notify(3)`.
//!
//! A unit with `Type=notify` sets `NOTIFY_SOCKET`, and one with `WatchdogSec=` also `WATCHDOG_USEC`. Without these
//! variables nothing is sent. A report that cannot be sent changes nothing else.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The variables of the protocol. They concern the process that systemd started, so its children must not inherit them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// A report that fails is logged once, although the watchdog asks for one every few seconds.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Reports that the process serves: units that wait for this one may start.
pub fn ready() {
    send("READY=1");
}

/// Reports that the process is alive as often as the watchdog of the unit asks, and that it stops once `shutdown` is
/// over. Run it beside the work on the same runtime: if the runtime no longer runs, the reports end, and systemd restarts
/// the process.
pub async fn follow(shutdown: impl Future<Output = ()>) -> Infallible {
    let stopping = async {
        shutdown.await;
        send("STOPPING=1");
    };
    let (never, ()) = tokio::join!(keep_alive(), stopping);
    match never {}
}

async fn keep_alive() -> Infallible {
    let variable = |name: &str| std::env::var(name).ok();
    let timeout = watchdog_timeout(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
    let Some(timeout) = timeout else { return std::future::pending().await };
    // The manual recommends half of the timeout.
    let mut ticks = tokio::time::interval(timeout / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        send("WATCHDOG=1");
    }
}

/// The time after which systemd restarts a process that reports nothing. Returns `None` if no process or another one is
/// watched.
fn watchdog_timeout(microseconds: Option<String>, watched: Option<String>, own: u32) -> Option<Duration> {
    if watched.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let timeout = Duration::from_micros(microseconds?.parse().ok()?);
    (timeout >= Duration::from_millis(2)).then_some(timeout)
}

fn send(report: &str) {
    let Some(path) = std::env::var_os(VARIABLES[0]).filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send_to(&path, report)
        && !HAS_FAILED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, report, socket = %path.display(), "cannot report to systemd; see NOTIFY_SOCKET");
    }
}

/// Sends one datagram without waiting: a service manager that does not read must not stop a service.
fn send_to(path: &OsStr, report: &str) -> std::io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(report.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_concerns_the_process_that_it_names() {
        let timeout = |microseconds: &str, watched: Option<&str>| {
            watchdog_timeout(Some(microseconds.to_owned()), watched.map(str::to_owned), 7)
        };
        assert_eq!(timeout("30000000", Some("7")), Some(Duration::from_secs(30)));
        assert_eq!(timeout("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(timeout("30000000", Some("8")), None);
        assert_eq!(timeout("0", Some("7")), None);
        assert_eq!(timeout("soon", None), None);
        assert_eq!(watchdog_timeout(None, None, 7), None);
    }

    #[test]
    fn reports_reach_sockets_with_paths_and_abstract_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@imgcls-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        for (socket, named) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&address).unwrap(), OsStr::new(&name)),
        ] {
            send_to(named, "READY=1").unwrap();
            let mut received = [0; 16];
            let length = socket.recv(&mut received).unwrap();
            assert_eq!(&received[..length], b"READY=1");
        }
        assert!(send_to(OsStr::new("/no/such/socket"), "READY=1").is_err());
    }
}
