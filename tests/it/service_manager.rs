//! The reports that systemd gets from services which a unit of `Type=notify` starts.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::harness::{DEADLINE, Process, imgcls};

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Manager { socket, folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, command: &str, flags: &[&str]) -> Process {
        let mut process = imgcls();
        process.arg(command).arg("--data-dir").arg(self.path().join("data")).args(flags);
        process.env("NOTIFY_SOCKET", self.path().join("notify")).env("WATCHDOG_USEC", "100000");
        Process::start(process, &self.path().join(format!("{command}.log")))
    }

    fn next(&self) -> String {
        let mut report = [0; 64];
        let length = self.socket.recv(&mut report).unwrap();
        String::from_utf8_lossy(&report[..length]).into_owned()
    }

    /// Waits for a report, and returns those before it.
    fn wait_for(&self, report: &str) -> Vec<String> {
        std::iter::repeat_with(|| self.next()).take_while(|next| next != report).collect()
    }
}

#[test]
fn service_reports_that_it_is_ready_alive_and_stopping() {
    for (command, flags) in [
        ("serve-web", &["--listen", "127.0.0.1:0"][..]),
        ("worker", &[]),
        ("up", &["--listen", "127.0.0.1:0", "--min-workers", "2", "--max-workers", "2"]),
    ] {
        let manager = Manager::new();
        let mut process = manager.start(command, flags);
        let before = manager.wait_for("READY=1");
        assert!(before.iter().all(|report| report == "WATCHDOG=1"), "{command}: {before:?}");
        manager.wait_for("WATCHDOG=1");
        manager.wait_for("WATCHDOG=1");
        process.signal("TERM");
        // Two workers are ready by now, and neither has reported for its supervisor.
        let between = manager.wait_for("STOPPING=1");
        assert!(between.iter().all(|report| report == "WATCHDOG=1"), "{command}: {between:?}");
        assert_eq!(process.wait(), Some(0), "{command}");
    }
}

#[test]
fn service_manager_that_does_not_listen_stops_nothing() {
    let manager = Manager::new();
    std::fs::remove_file(manager.path().join("notify")).unwrap();
    let mut process = manager.start("serve-web", &["--listen", "127.0.0.1:0"]);
    process.wait_for_log("web tier listens");
    process.wait_for_log("cannot report to systemd");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0));
    // The watchdog asks for a report twenty times a second.
    assert_eq!(process.log().matches("cannot report to systemd").count(), 1, "{}", process.log());
}
