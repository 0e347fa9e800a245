//! One dead letter: the message, why it is dead, the result of its job, and its image.

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
use crate::protocol::{Incoming, Payload};
use crate::transport::{DeadLetterScan, Delivery, Transport};

#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub summary: Summary,
    /// The message as JSON, or its text when it is no JSON.
    pub message: Value,
    /// The result of the job, when it has one.
    pub result: Option<Value>,
    /// `None` when there is none, or the message does not lead to one.
    pub image: Option<ImageFound>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageFound {
    pub size_bytes: usize,
    /// By its signature.
    pub content_type: Option<&'static str>,
    pub saved_to: Option<PathBuf>,
}

/// # Errors
/// Also when there is no such letter, or its image cannot be saved.
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
    let Some((letter, summary)) = found? else {
        bail!(
            "no dead letter has the id {id:?}; `imgcls queue dead` lists them (one that another command holds comes back within 30 s)"
        )
    };
    let result = match summary.id {
        Some(id) => transport.result(id).await?,
        None => None,
    };
    let image = image(transport, names, &letter).await?;
    let saved_to = match (save, &image) {
        (Some(path), Some(image)) => Some(save_new(path, image)?),
        (Some(_), None) => bail!("there is no image to save: the message carries none and the store has none"),
        (None, _) => None,
    };
    Ok(Shown {
        summary,
        message: serde_json::from_str(&letter.body).unwrap_or(Value::String(letter.body)),
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
        let letters = scan.next(PAGE).await?;
        if letters.is_empty() {
            return Ok(None);
        }
        let mut found = None;
        for letter in letters {
            let summary = Summary::of(&letter, clock::now());
            if summary.has_id(id) {
                found = Some((letter.clone(), summary));
            }
            scan.keep(letter);
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The image of a letter: in the message, or where the message says.
async fn image(transport: &dyn Transport, names: &Names, letter: &Delivery) -> anyhow::Result<Option<Bytes>> {
    let payload = match Incoming::parse(&letter.body) {
        Incoming::Job(request) => request.payload(&names.input_bucket),
        Incoming::Legacy(request) => request.image_bytes().map(Payload::Inline),
        Incoming::UnknownVersion { .. } | Incoming::Malformed { .. } => return Ok(None),
    };
    match payload {
        Ok(Payload::Inline(bytes)) => Ok(Some(bytes.into())),
        Ok(Payload::Stored(id)) => Ok(transport.image(id, MAX_IMAGE_BYTES).await?),
        Err(reason) => {
            tracing::warn!(reason, "the message leads to no image");
            Ok(None)
        }
    }
}

/// Overwrites no file.
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
