//! The threads before the sessions: one lists the images, others read their files.

use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::buffer::spare_capacity;
use rustix::io::retry_on_intr;

use super::boxes::ImageBoxes;
use super::finished::Finished;
use super::memory::{Held, InputMemory};
use super::message::{Message, ReportPanic};
use super::progress::Counters;
use super::queue::{Receiver, Sender};
use super::source::{Content, Found, Inputs, Object, Purpose, Visitor, too_large, unreadable};
use crate::protocol::ErrorInfo;
use crate::shutdown::CancellationToken;

/// An image that was found.
pub(super) struct Listed {
    sequence: u64,
    path: PathBuf,
    content: ListedContent,
    boxes: Option<Arc<ImageBoxes>>,
}

enum ListedContent {
    File(PathBuf),
    Object(Object),
    Bytes(Vec<u8>, Held),
    Failed(ErrorInfo),
}

/// An image whose file was read.
pub(super) struct Ready {
    pub sequence: u64,
    pub path: PathBuf,
    pub file: Option<PathBuf>,
    pub boxes: Option<Arc<ImageBoxes>>,
    pub bytes: Vec<u8>,
    /// The object, if workers read the image themselves. It has no bytes here then.
    pub object: Option<Object>,
    /// Released when the image is decoded.
    pub held: Held,
}

/// Says which images an earlier run has classified.
pub(super) type IsDone = Box<dyn Fn(&Path) -> bool + Send>;

/// Lists the images.
pub(super) struct Lister {
    pub inputs: Inputs,
    pub max_image_bytes: u64,
    pub is_done: IsDone,
    pub memory: Arc<InputMemory>,
    pub counters: Arc<Counters>,
    pub stop: CancellationToken,
    /// Takes a token for each image, and blocks while too many images are under way.
    pub window: SyncSender<()>,
    pub listed: Sender<Listed>,
    pub messages: SyncSender<Message>,
}

impl Lister {
    /// Passes on every image, then reports how many there are.
    pub(super) fn run(self) {
        let _report = ReportPanic(self.messages.clone());
        let (inputs, max_image_bytes) = (self.inputs.clone(), self.max_image_bytes);
        let messages = self.messages.clone();
        let mut visit = Visit { lister: self, next: 0 };
        let message = match inputs.walk(Purpose::Classify, max_image_bytes, &mut visit) {
            Ok(ControlFlow::Continue(())) => Message::Listed { images: visit.next },
            // The run was stopped, and nobody waits for the number.
            Ok(ControlFlow::Break(())) => return,
            Err(error) => Message::Fault(error),
        };
        drop(visit);
        let _ = messages.send(message);
    }
}

struct Visit {
    lister: Lister,
    next: u64,
}

impl Visit {
    fn flow(&self) -> ControlFlow<()> {
        if self.lister.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Visitor for Visit {
    fn wants(&mut self, path: &Path) -> ControlFlow<(), bool> {
        self.flow()?;
        let is_done = (self.lister.is_done)(path);
        if is_done {
            self.lister.counters.add_resumed();
        }
        ControlFlow::Continue(!is_done)
    }

    fn image(&mut self, Found { path, content }: Found) -> ControlFlow<()> {
        let boxes = match &content {
            Content::Boxed(_, boxes) => Some(Arc::clone(boxes)),
            _ => None,
        };
        let content = match content {
            Content::File(file) | Content::Boxed(file, _) => ListedContent::File(file),
            Content::Object(object) => ListedContent::Object(object),
            Content::Failed(error) => ListedContent::Failed(error),
            Content::Bytes(bytes) => {
                let held = self.lister.memory.hold(bytes.len() as u64);
                ListedContent::Bytes(bytes, held)
            }
        };
        let listed = Listed { sequence: self.next, path, content, boxes };
        self.next += 1;
        if self.lister.window.send(()).is_err() || self.lister.listed.send(listed).is_err() {
            return ControlFlow::Break(());
        }
        self.flow()
    }

    fn failed(&mut self, path: PathBuf, error: ErrorInfo) -> ControlFlow<()> {
        if self.wants(&path)? {
            self.image(Found { path, content: Content::Failed(error) })?;
        }
        ControlFlow::Continue(())
    }

    fn skip(&mut self) -> ControlFlow<()> {
        self.lister.counters.add_skipped();
        self.flow()
    }

    fn goes_on(&mut self) -> ControlFlow<()> {
        self.flow()
    }
}

/// Reads the files of the images.
#[derive(Clone)]
pub(super) struct Reader {
    pub listed: Receiver<Listed>,
    pub ready: Sender<Ready>,
    pub messages: SyncSender<Message>,
    pub memory: Arc<InputMemory>,
    pub max_image_bytes: u64,
    /// Buckets whose images are not read here, because workers read them.
    pub referenced_buckets: Arc<[String]>,
}

impl Reader {
    /// Reads until there are no more images, or nobody takes them.
    pub(super) fn run(self) {
        let _report = ReportPanic(self.messages.clone());
        while let Some(Listed { sequence, path, content, boxes }) = self.listed.recv() {
            let mut object = None;
            let (file, read) = match content {
                ListedContent::Bytes(bytes, held) => (None, Ok((bytes, held))),
                ListedContent::Failed(error) => (None, Err(error)),
                ListedContent::Object(found) if self.referenced_buckets.contains(&found.reference().bucket) => {
                    object = Some(found);
                    (None, Ok((Vec::new(), self.memory.hold(0))))
                }
                ListedContent::Object(object) => match self.fetch(&object) {
                    Ok(read) => (None, read),
                    Err(fault) => {
                        let _ = self.messages.send(Message::Fault(fault));
                        return;
                    }
                },
                ListedContent::File(file) => {
                    let read = self.read(&file);
                    (Some(file), read)
                }
            };
            let is_taken = match read {
                Ok((bytes, held)) => {
                    self.ready.send(Ready { sequence, path, file, boxes, bytes, object, held }).is_ok()
                }
                Err(error) => {
                    let finished = Finished { sequence, path, file, boxes, outcome: Err(error) };
                    self.messages.send(finished.into()).is_ok()
                }
            };
            if !is_taken {
                return;
            }
        }
    }

    /// # Errors
    /// The outer error ends the run.
    fn fetch(&self, object: &Object) -> anyhow::Result<Result<(Vec<u8>, Held), ErrorInfo>> {
        let held = self.memory.hold(object.bytes.min(self.max_image_bytes));
        Ok(object.read(self.max_image_bytes)?.map(|bytes| (bytes, held)))
    }

    fn read(&self, path: &Path) -> Result<(Vec<u8>, Held), ErrorInfo> {
        let unreadable = |error| unreadable("file", &error);
        let file = File::open(path).map_err(unreadable)?;
        // A pipe has no length. It is read up to the limit.
        let length = file.metadata().map_err(unreadable)?.len();
        if length > self.max_image_bytes {
            return Err(too_large(length, self.max_image_bytes));
        }
        let held = self.memory.hold(length);
        let mut bytes = Vec::with_capacity(length as usize + 1);
        // One system call reads a file, where `read_to_end` would begin with a few kilobytes.
        let read = retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut bytes)));
        let read = read.map_err(|error| unreadable(error.into()))? as u64;
        // The rest of a pipe, or of a file that grew meanwhile. Above the limit it is refused when it is decoded.
        if read != length || length == 0 {
            let limit = self.max_image_bytes.saturating_add(1);
            file.take(limit.saturating_sub(read)).read_to_end(&mut bytes).map_err(unreadable)?;
        }
        Ok((bytes, held))
    }
}
