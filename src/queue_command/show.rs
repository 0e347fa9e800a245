//! Shows one dead letter: the message, the reason why it is dead, the result of its job, and its image.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::dead_letters::Summary;
use super::{MAX_IMAGE_BYTES, PAGE, explained};
use crate::clock;
use crate::config::Names;
use crate::model;
use crate::protocol::{Callback, Incoming, Payload};
use crate::transport::{DeadLetterScan, Delivery, Transport};

#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub summary: Summary,
    /// The message as JSON, or as a string if it is no JSON.
    pub message: Value,
    /// The result of the job, if it has one.
    pub result: Option<Value>,
    /// `None` if the image is gone, or if the message names none.
    pub image: Option<ImageFound>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageFound {
    pub size_bytes: usize,
    /// The media type by the signature of the bytes.
    pub content_type: Option<&'static str>,
    pub saved_to: Option<PathBuf>,
}

/// # Errors
/// There is no such dead letter, its image cannot be saved, or the backend fails.
pub(crate) async fn show(
    transport: &dyn Transport,
    names: &Names,
    id: &str,
    save: Option<&Path>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Shown> {
    let mut scan = transport.dead_letters().await.map_err(explained)?;
    let found = find(&mut *scan, id, shutdown).await;
    scan.close().await?;
    let Some((dead_letter, summary)) = found? else {
        bail!(
            "no dead letter has the id {id:?}; `imgcls queue dead` lists them (one that another command holds comes back within 30 s)"
        )
    };
    let result = match summary.id {
        Some(id) => transport.result(id).await?,
        None => None,
    };
    let image = image(transport, names, &dead_letter).await?;
    let saved_to = match (save, &image) {
        (Some(path), Some(image)) => Some(save_new(path, image)?),
        (Some(_), None) => bail!("there is no image to save: the message carries none and the store has none"),
        (None, _) => None,
    };
    Ok(Shown {
        summary,
        message: serde_json::from_str(&dead_letter.body).unwrap_or(Value::String(dead_letter.body)),
        result: result.and_then(|result| serde_json::from_slice(&result).ok()),
        image: image.map(|image| ImageFound { size_bytes: image.len(), content_type: model::sniff(&image), saved_to }),
    })
}

async fn find(
    scan: &mut dyn DeadLetterScan,
    id: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<(Delivery, Summary)>> {
    while !shutdown.is_cancelled() {
        let page = scan.next(PAGE).await?;
        if page.is_empty() {
            return Ok(None);
        }
        let mut found = None;
        for dead_letter in page {
            let summary = Summary::of(&dead_letter, clock::now());
            if summary.has_id(id) {
                found = Some((dead_letter.clone(), summary));
            }
            scan.keep(dead_letter);
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Returns the image of a dead letter, from the message itself or from the store.
async fn image(transport: &dyn Transport, names: &Names, dead_letter: &Delivery) -> anyhow::Result<Option<Bytes>> {
    if Callback::parse(&dead_letter.body).is_some() {
        return Ok(None);
    }
    let payload = match Incoming::parse(&dead_letter.body) {
        Incoming::Job(request) => request.payload(&names.input_bucket, &[]),
        Incoming::Legacy(request) => request.image_bytes().map(Payload::Inline),
        Incoming::Notification(_) | Incoming::UnknownVersion { .. } | Incoming::Malformed { .. } => return Ok(None),
    };
    match payload {
        Ok(Payload::Inline(bytes)) => Ok(Some(bytes.into())),
        Ok(Payload::Foreign(_)) => Ok(None),
        Ok(Payload::Stored(id)) => Ok(transport.image(id, MAX_IMAGE_BYTES).await?),
        Err(reason) => {
            tracing::warn!(reason, "the message leads to no image");
            Ok(None)
        }
    }
}

/// Saves the image to a new file. Fails if the file exists.
fn save_new(path: &Path, image: &[u8]) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot save to {shown}: give --save another name"))?;
    file.write_all(image).with_context(|| format!("cannot write {shown}"))?;
    Ok(path.to_owned())
}
