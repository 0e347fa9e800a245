//! The events of a folder and the folders below it, as the system reports them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Events that wait. If more come, the folder is read instead.
const MAX_WAITING: usize = 4096;

/// Something that happened in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The file was closed by a program that wrote it, or moved to this path.
    Whole(PathBuf),
    /// The file came into being.
    Created(PathBuf),
    /// A program writes the file.
    Written(PathBuf),
    /// A folder came, perhaps with files.
    Folder,
    /// Some events were lost.
    Lost,
}

/// The events of a folder.
pub(super) struct Events {
    receiver: Receiver<Event>,
    are_lost: Arc<AtomicBool>,
    /// Keeps the channel open if there is no watcher.
    _sender: SyncSender<Event>,
    _watcher: Option<RecommendedWatcher>,
}

impl Events {
    /// Subscribes to the events. Without them, a warning says that files are found only by reading the folder.
    pub(super) fn open(root: &Path, rescan: Duration) -> Events {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let are_lost = Arc::new(AtomicBool::new(false));
        let (events, lost) = (sender.clone(), Arc::clone(&are_lost));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let events_of = event.map_or_else(|_| vec![Event::Lost], |event| read(&event));
            for event in events_of {
                if matches!(events.try_send(event), Err(TrySendError::Full(_))) {
                    lost.store(true, Ordering::Release);
                }
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(
                folder = %root.display(), %error,
                "cannot subscribe to the events of this folder, so it is read every {rescan:?}; --rescan changes that"
            );
        });
        Events { receiver, are_lost, _sender: sender, _watcher: watcher.ok() }
    }

    /// Waits for the next event.
    pub(super) fn next(&self, limit: Duration) -> Option<Event> {
        if self.are_lost.swap(false, Ordering::AcqRel) {
            return Some(Event::Lost);
        }
        self.receiver.recv_timeout(limit).ok()
    }
}

fn read(event: &notify::Event) -> Vec<Event> {
    if event.need_rescan() {
        return vec![Event::Lost];
    }
    // The new path is the last one.
    let Some(path) = event.paths.last() else { return Vec::new() };
    let event = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Event::Whole(path.clone()),
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both | RenameMode::Any)) if path.is_dir() => {
            Event::Folder
        }
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both | RenameMode::Any)) => {
            Event::Whole(path.clone())
        }
        EventKind::Create(CreateKind::Folder) => Event::Folder,
        // A link to a folder is created like a file.
        EventKind::Create(_) if path.is_dir() => Event::Folder,
        EventKind::Create(_) => Event::Created(path.clone()),
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => Event::Written(path.clone()),
        _ => return Vec::new(),
    };
    vec![event]
}
