//! The short way of a transient message: by a Unix datagram from its sender to the one process that owns the queue, past
//! the file. No transaction, no bell and no thread between them: for a reply, whose result stands, the file would only
//! be the long way round.
//!
//! `<data_dir>/direct/<queue>` is the socket. A message for which it has no room, or nobody's ear, goes into the file as
//! any other. One that was taken from the socket dies with the process that took it.

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
use crate::queue::{Delivery, Outgoing, Receipt};
use crate::sqlite;

const DIRECTORY: &str = "direct";
/// What is larger goes into the file; a datagram that the kernel takes by default is longer.
const MAX_BYTES: usize = 64 << 10;
/// Tells the receipts of this way from those of the file, which are numbers.
const RECEIPT_PREFIX: &str = "direct-";

/// The sockets of a data directory, from the side of who sends.
pub(super) struct Direct {
    directory: PathBuf,
    /// Names are looked up below this handle, since the path of a socket has at most 107 bytes.
    handle: File,
    sender: Sender,
}

/// The socket of one queue, from the side of its owner. Gone with it.
pub(super) struct Inbox {
    path: PathBuf,
    socket: UnixDatagram,
    /// Delivered and not acknowledged: what is handed back has to be there.
    held: Mutex<HashMap<Receipt, String>>,
    clock: Arc<ServiceClock>,
}

impl Direct {
    /// None, said in the log, where this system has no such sockets: all messages then go by the file.
    pub fn open(data_dir: &Path) -> Option<Direct> {
        let directory = data_dir.join(DIRECTORY);
        let open = || {
            sqlite::make_directory(&directory)?;
            let sender = Sender::unbound()?;
            sender.set_nonblocking(true)?;
            Ok::<_, anyhow::Error>(Direct { handle: File::open(&directory)?, sender, directory: directory.clone() })
        };
        let opened = open();
        opened.inspect_err(|error| tracing::info!(%error, "replies go by the file of the local backend only")).ok()
    }

    /// The places of messages that cannot go this way.
    pub fn send(&self, queue: &str, messages: &[Outgoing]) -> Vec<usize> {
        let path = self.short_path(queue);
        let goes = |message: &Outgoing| may_go(message) && self.send_one(&path, message);
        (0..messages.len()).filter(|&at| !goes(&messages[at])).collect()
    }

    fn send_one(&self, path: &Path, message: &Outgoing) -> bool {
        match self.sender.send_to(message.body.as_bytes(), path) {
            Ok(_) => true,
            Err(error) => {
                // Nobody is there, or it is full.
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock) {
                    tracing::debug!(%error, "a message goes by the file");
                }
                false
            }
        }
    }

    /// Makes the socket of a queue that this process alone receives from. None where it cannot be.
    pub fn own(&self, queue: &str, clock: &Arc<ServiceClock>) -> Option<Inbox> {
        let path = self.directory.join(queue);
        let bind = || {
            // Of an owner that died.
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
                tracing::info!(queue, %error, "replies go by the file of the local backend only");
                None
            }
        }
    }

    /// What a dead owner left. A socket that is not there is removed already.
    pub fn remove(&self, queue: &str) {
        let _ = std::fs::remove_file(self.directory.join(queue));
    }

    fn short_path(&self, queue: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{queue}", self.handle.as_raw_fd()))
    }
}

fn may_go(message: &Outgoing) -> bool {
    message.is_transient
        && message.attributes.is_empty()
        && message.delay.is_zero()
        && (1..=MAX_BYTES).contains(&message.body.len())
}

impl Inbox {
    /// What is there now, at most `max`.
    pub fn take(&self, max: usize) -> Vec<Delivery> {
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
                Err(error) => tracing::debug!(%error, "not a message; dropped"),
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

    /// Waits until there may be something.
    pub async fn filled(&self) {
        if self.socket.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The message of a receipt, held no more. None where it was already acknowledged, or handed back.
    pub fn end(&self, receipt: &Receipt) -> Option<String> {
        self.held().remove(receipt)
    }

    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a whole map.
    fn held(&self) -> MutexGuard<'_, HashMap<Receipt, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
