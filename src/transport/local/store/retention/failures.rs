//! The newest results that say that a job failed, for operators.

use serde::Deserialize;
use uuid::Uuid;

use super::{Kind, LocalData};
use crate::protocol::{ErrorInfo, Status};
use crate::sqlite::Fault;

/// How many of the newest results are searched.
const SEARCHED: usize = 1_000;

/// A result that is not an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedResult {
    /// The job.
    pub id: Uuid,
    /// When the result was written, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Why the job failed.
    pub error: ErrorInfo,
}

/// The members of a stored result that matter here.
#[derive(Deserialize)]
struct Head {
    id: Uuid,
    status: Status,
    error: Option<ErrorInfo>,
}

impl LocalData {
    /// Returns the newest failed and expired jobs among the results of the last thousand jobs, the newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn recent_failures(&self, limit: usize) -> Result<Vec<FailedResult>, Fault> {
        let bucket = Kind::Results.bucket(self.names()).to_owned();
        self.read(move |snapshot| {
            // Ids begin with the time of submission, so the order of keys is that of jobs.
            let sql = "SELECT modified_ms, CAST(body AS TEXT) FROM objects
                       WHERE bucket = ?1 AND key > 'results/' AND key < 'results0' AND segment IS NULL
                       ORDER BY key DESC LIMIT ?2";
            let mut select = snapshot.connection.prepare_cached(sql)?;
            let mut rows = select.query(rusqlite::params![bucket, SEARCHED])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()?
                && found.len() < limit
            {
                let head = serde_json::from_str::<Head>(&row.get::<_, String>(1)?).ok();
                let failed = head.filter(|head| matches!(head.status, Status::Failed | Status::Expired));
                found.extend(failed.and_then(|Head { id, error, .. }| {
                    Some(FailedResult { id, at_ms: row.get(0).ok()?, error: error? })
                }));
            }
            Ok(found)
        })
        .await
    }
}
