//! Messages as every transport delivers them.

use std::collections::BTreeMap;
use std::ops::Add;

/// Most messages that one receive returns. It is SQS's limit, and enough for the others.
pub const MAX_BATCH: usize = 10;

/// One delivery of one message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The same for every delivery of one message.
    pub message_id: String,
    /// The right to complete, extend or release this delivery.
    pub receipt: Receipt,
    /// The text that was sent.
    pub body: String,
    /// String attributes beside the body.
    pub attributes: BTreeMap<String, String>,
    /// 1 at the first delivery.
    pub receive_count: u32,
    /// When it was sent, in milliseconds since the Unix epoch, by the clock of the queue.
    pub sent_at_ms: i64,
}

/// The right to complete, extend or release one delivery. Opaque. A receipt whose message was delivered again or deleted
/// since does nothing, which is no error.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// How many messages a queue has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be received.
    pub visible: u64,
    /// Received, and neither completed nor timed out.
    pub in_flight: u64,
    /// Sent or released with a delay that has not passed.
    pub delayed: u64,
}

impl Add for Depth {
    type Output = Depth;

    fn add(self, other: Depth) -> Depth {
        Depth {
            visible: self.visible + other.visible,
            in_flight: self.in_flight + other.in_flight,
            delayed: self.delayed + other.delayed,
        }
    }
}

/// A process of this machine that receives messages. The start time distinguishes it from a later process with the same
/// number. Where the system does not report it, messages of that later process may be released too, which costs another
/// delivery of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivingProcess {
    /// The process id.
    pub pid: u32,
    /// In clock ticks since boot; 0 when the system does not report it.
    pub started: u64,
}

impl ReceivingProcess {
    /// This process.
    pub fn current() -> Self {
        ReceivingProcess::of(std::process::id())
    }

    /// A process that runs, or has ended and was not waited for yet.
    pub fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `<pid> (<name>) <state> …`; the name may contain anything. The start time is the 22nd field.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let started = fields.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or_default();
        ReceivingProcess { pid, started }
    }
}
