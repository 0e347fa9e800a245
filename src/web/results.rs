//! The ends of jobs, in the output store: read by whoever asks, written once, whoever writes.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::clock;
use crate::protocol::{
    self, ClassifyResult, ErrorCode, ErrorInfo, MAX_LEGACY_OUTPUT_BYTES, MAX_RESULT_BYTES, Prediction, Status,
    TimingsMs, WIRE_VERSION,
};
use crate::store::{ObjectStore, Put, PutOptions, StoreError};

pub struct Results {
    pub output: Arc<dyn ObjectStore>,
    /// Signs what this process ends itself.
    pub signature: String,
}

impl Results {
    /// The result object's text.
    pub async fn get(&self, id: Uuid) -> Result<Option<Bytes>, StoreError> {
        self.output.get(&protocol::result_key(id), MAX_RESULT_BYTES).await
    }

    /// The same, and where there is none, the output of a worker that spoke the original's form, adopted.
    pub async fn get_or_adopt(&self, id: Uuid) -> Result<Option<Bytes>, StoreError> {
        if let Some(result) = self.get(id).await? {
            return Ok(Some(result));
        }
        let name = id.to_string();
        match self.output.get(protocol::legacy_output_key(&name), MAX_LEGACY_OUTPUT_BYTES).await? {
            Some(output) => {
                let text = String::from_utf8_lossy(&output);
                self.adopt(id, &name, protocol::read_legacy_output(&text)).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Makes an answer in the original's form the job's end. Its workers write no result object, and a reply is gone
    /// once it is read: only from then on does every web process say the same, for ever. What stands is returned.
    pub async fn adopt(&self, id: Uuid, filename: &str, answer: &str) -> Result<Bytes, StoreError> {
        self.write_once(adopted(id, filename, protocol::legacy_answer(answer), clock::now())).await
    }

    /// Ends a job that no worker reached in time.
    pub async fn expire(&self, id: Uuid) -> Result<Bytes, StoreError> {
        let message = "no worker reached it in time";
        self.write_once(ClassifyResult::ended(id, "", Status::Expired, ErrorCode::Expired, message)).await
    }

    /// The first end stands, whoever writes it; it is returned.
    async fn write_once(&self, mut result: ClassifyResult) -> Result<Bytes, StoreError> {
        result.worker.clone_from(&self.signature);
        let body = Bytes::from(result.to_json());
        let options =
            PutOptions { if_none_match: true, content_type: Some("application/json"), ..PutOptions::default() };
        match self.output.put(&protocol::result_key(result.id), body.clone(), options).await? {
            Put::Created => Ok(body),
            Put::AlreadyExists => Ok(self.get(result.id).await?.unwrap_or(body)),
        }
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
