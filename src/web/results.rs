//! The results of jobs. They are written once, whichever process writes.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::clock;
use crate::model::Prediction;
use crate::protocol::{self, ClassifyResult, ErrorCode, ErrorInfo, Status, TimingsMs, WIRE_VERSION};
use crate::transport::{Removal, Transport, TransportError};

pub(crate) struct Results {
    pub transport: Arc<dyn Transport>,
    /// Signs the results that this process writes itself.
    pub signature: String,
}

impl Results {
    /// The result of a job, as text.
    pub(crate) async fn get(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        self.transport.result(id).await
    }

    /// The same. When there is none, the output of a legacy worker is adopted.
    pub(crate) async fn get_or_adopt(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        if let Some(result) = self.get(id).await? {
            return Ok(Some(result));
        }
        match self.transport.legacy_output(id).await? {
            Some(output) => {
                let text = String::from_utf8_lossy(&output);
                self.adopt(id, &id.to_string(), protocol::read_legacy_output(&text)).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Makes an answer in the legacy form the result of its job. Legacy workers write no result, and a reply is gone once
    /// it is read: only from then on does every web process give the same answer. Returns the job's result.
    pub(crate) async fn adopt(&self, id: Uuid, filename: &str, answer: &str) -> Result<Bytes, TransportError> {
        self.write_once(adopted(id, filename, protocol::legacy_answer(answer), clock::now())).await
    }

    /// Writes the result of a job that no worker reached in time.
    pub(crate) async fn expire(&self, id: Uuid) -> Result<Bytes, TransportError> {
        let message = "no worker reached it in time";
        self.write_once(ClassifyResult::ended(id, "", Status::Expired, ErrorCode::Expired, message)).await
    }

    /// Replaces what is kept of a job by a result that says that its client deleted it.
    pub(crate) async fn remove(&self, id: Uuid) -> Result<Removal, TransportError> {
        let mut tombstone = ClassifyResult::tombstone(id);
        tombstone.worker.clone_from(&self.signature);
        self.transport.remove(id, Bytes::from(tombstone.to_json())).await
    }

    /// The first result is kept, whichever process writes it, and returned.
    async fn write_once(&self, mut result: ClassifyResult) -> Result<Bytes, TransportError> {
        result.worker.clone_from(&self.signature);
        self.transport.write_result(result.id, Bytes::from(result.to_json())).await
    }
}

fn adopted(id: Uuid, filename: &str, answer: Result<String, ErrorInfo>, now: Timestamp) -> ClassifyResult {
    let total = protocol::submitted_at(id).map_or(0, |at| now.as_microsecond() - at.as_microsecond()).max(0);
    let mut result = ClassifyResult {
        v: WIRE_VERSION,
        id,
        filename: filename.to_owned(),
        status: Status::Succeeded,
        predictions: Vec::new(),
        labels: Vec::new(),
        image: None,
        model: None,
        timings_ms: TimingsMs { total: total as f64 / 1e3, ..TimingsMs::default() },
        attempt: 0,
        worker: String::new(),
        error: None,
    };
    match answer {
        Ok(label) => result.predictions.push(Prediction { class_index: None, label, score: None }),
        Err(error) => {
            result.status = Status::Failed;
            result.error = Some(error);
        }
    }
    result
}
