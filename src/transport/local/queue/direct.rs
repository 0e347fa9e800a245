//! The datagram fast path: a transient message is sent as a Unix datagram to the one process that owns the queue, and
//! bypasses the database. A reply, whose result is stored, needs no transaction, no notification and no thread in between.
//!
//! `<data_dir>/direct/<queue>` is the socket. When its buffer is full or nobody listens, the message goes into the database
//! as any other. A message that was taken from the socket is lost with the process that took it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram as Sender;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixDatagram;
use uuid::Uuid;

use crate::clock::ServiceClock;
use crate::sqlite;
use crate::transport::message::{Delivery, Receipt};
use crate::transport::queued::queue::Outgoing;

const DIRECTORY: &str = "direct";
/// Larger messages go into the database. The kernel accepts longer datagrams by default.
const MAX_BYTES: usize = 64 << 10;
/// Distinguishes receipts of datagrams from those of rows, which begin with a number.
const RECEIPT_PREFIX: &str = "direct-";

/// The sending side of the sockets of a data directory.
pub(super) struct Direct {
    directory: PathBuf,
    /// Socket names are resolved below this handle, since the path of a socket has at most 107 bytes.
    handle: File,
    sender: Sender,
}

/// The receiving side of the socket of one queue. Dropping it removes the socket.
pub(super) struct Inbox {
    path: PathBuf,
    socket: UnixDatagram,
    /// Messages that were delivered and not acknowledged. A release sends them again.
    held: Mutex<HashMap<Receipt, String>>,
    clock: Arc<ServiceClock>,
}

impl Direct {
    /// Opens the sending side. Returns `None` and logs the reason when this system has no such sockets: all messages then go
    /// through the database.
    pub(crate) fn open(data_dir: &Path) -> Option<Direct> {
        let directory = data_dir.join(DIRECTORY);
        let open = || {
            sqlite::make_directory(&directory)?;
            let sender = Sender::unbound()?;
            sender.set_nonblocking(true)?;
            Ok::<_, anyhow::Error>(Direct { handle: File::open(&directory)?, sender, directory: directory.clone() })
        };
        let opened = open();
        opened
            .inspect_err(|error| tracing::info!(%error, "cannot use datagrams; replies are sent through the database of the local backend"))
            .ok()
    }

    /// Sends messages. Returns the indices of those that must go through the database.
    pub(crate) fn send(&self, queue: &str, messages: &[Outgoing]) -> Vec<usize> {
        let path = self.short_path(queue);
        let goes = |message: &Outgoing| may_go(message) && self.send_one(&path, message);
        (0..messages.len()).filter(|&at| !goes(&messages[at])).collect()
    }

    /// Returns true if a message with this text is likely to be sent as a datagram: the socket exists, though its buffer may
    /// be full.
    pub(crate) fn may_reach(&self, queue: &str, body: &str) -> bool {
        is_datagram(body) && self.short_path(queue).exists()
    }

    fn send_one(&self, path: &Path, message: &Outgoing) -> bool {
        match self.sender.send_to(message.body.as_bytes(), path) {
            Ok(_) => true,
            Err(error) => {
                // Nobody listens, or the buffer is full.
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock) {
                    tracing::debug!(%error, "cannot send a datagram; sending the message through the database");
                }
                false
            }
        }
    }

    /// Creates the socket of a queue that only this process receives from. Returns `None` when it cannot be created.
    pub(crate) fn own(&self, queue: &str, clock: &Arc<ServiceClock>) -> Option<Inbox> {
        let path = self.directory.join(queue);
        let bind = || {
            // An owner that died may have left its socket.
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(error);
            }
            let socket = UnixDatagram::bind(self.short_path(queue))?;
            sqlite::make_private(&path);
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Some(Inbox { path, socket, held: Mutex::default(), clock: Arc::clone(clock) }),
            Err(error) => {
                tracing::info!(queue, %error, "cannot use datagrams; replies are sent through the database of the local backend");
                None
            }
        }
    }

    /// Removes the socket that a dead owner left. It is no error when there is none.
    pub(crate) fn remove(&self, queue: &str) {
        let _ = std::fs::remove_file(self.directory.join(queue));
    }

    fn short_path(&self, queue: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{queue}", self.handle.as_raw_fd()))
    }
}

fn may_go(message: &Outgoing) -> bool {
    message.attributes.is_empty() && message.delay.is_zero() && is_datagram(&message.body)
}

fn is_datagram(body: &str) -> bool {
    (1..=MAX_BYTES).contains(&body.len())
}

impl Inbox {
    /// Takes the messages that are there now, at most `max`.
    pub(crate) fn take(&self, max: usize) -> Vec<Delivery> {
        let mut buffer = Vec::new();
        std::iter::from_fn(|| self.take_one(&mut buffer)).take(max).collect()
    }

    fn take_one(&self, buffer: &mut Vec<u8>) -> Option<Delivery> {
        buffer.reserve(MAX_BYTES);
        loop {
            buffer.clear();
            self.socket.try_recv_buf(buffer).ok()?;
            match std::str::from_utf8(buffer) {
                Ok(body) => return Some(self.deliver(body.to_owned())),
                Err(error) => tracing::debug!(%error, "datagram dropped: it is not UTF-8"),
            }
        }
    }

    fn deliver(&self, body: String) -> Delivery {
        let message_id = Uuid::now_v7().to_string();
        let receipt = Receipt(format!("{RECEIPT_PREFIX}{message_id}"));
        self.held().insert(receipt.clone(), body.clone());
        let sent_at_ms = self.clock.now_ms();
        Delivery { message_id, receipt, body, attributes: BTreeMap::new(), receive_count: 1, sent_at_ms }
    }

    /// Waits until there may be a message.
    pub(crate) async fn filled(&self) {
        if self.socket.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes the message of a receipt. Returns `None` when it was acknowledged or released already.
    pub(crate) fn end(&self, receipt: &Receipt) -> Option<String> {
        self.held().remove(receipt)
    }

    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a consistent map.
    fn held(&self) -> MutexGuard<'_, HashMap<Receipt, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
