//! One dead letter: the message, why it is dead, how its job ended, and its image.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Service;
use super::letters::{Scan, Summary};
use crate::clock;
use crate::model;
use crate::protocol::{self, Incoming, MAX_RESULT_BYTES, Payload};
use crate::queue::{Delivery, MAX_BATCH};

/// What is read of an image; far more than any web tier takes.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    pub summary: Summary,
    /// The message's members, or its text where it is no JSON.
    pub message: Value,
    /// How the job ended, if it did.
    pub result: Option<Value>,
    /// None where it is nowhere, or not to be found out.
    pub image: Option<ImageFound>,
}

#[derive(Debug, Serialize)]
pub struct ImageFound {
    pub size_bytes: usize,
    /// By signature.
    pub content_type: Option<&'static str>,
    pub saved_to: Option<PathBuf>,
}

/// # Errors
/// Also where there is no such letter, or its image cannot be saved.
pub async fn show(
    service: &Service,
    id: &str,
    save: Option<&Path>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Shown> {
    let queue = service.dead_letters().await?;
    let mut scan = Scan::of(&*queue, shutdown);
    let found = find(&mut scan, id).await;
    scan.hand_back().await?;
    let Some((letter, summary)) = found? else {
        bail!(
            "no dead letter has the id {id:?}; `imgcls queue dead` lists them (one that another command holds comes back within 30 s)"
        )
    };
    let result = match summary.id {
        Some(id) => service.output().await?.get(&protocol::result_key(id), MAX_RESULT_BYTES).await?,
        None => None,
    };
    let image = image(service, &letter).await?;
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

async fn find(scan: &mut Scan<'_>, id: &str) -> anyhow::Result<Option<(Delivery, Summary)>> {
    loop {
        let letters = scan.next(MAX_BATCH).await?;
        if letters.is_empty() {
            return Ok(None);
        }
        let mut found = None;
        for letter in letters {
            let summary = Summary::of(&letter, clock::now());
            if summary.is_called(id) {
                found = Some((letter.clone(), summary));
            }
            scan.keep(letter);
        }
        if found.is_some() {
            return Ok(found);
        }
    }
}

/// The image of a letter: in the message, or where the message says.
async fn image(service: &Service, letter: &Delivery) -> anyhow::Result<Option<Bytes>> {
    let payload = match Incoming::parse(&letter.body) {
        Incoming::Job(request) => request.payload(&service.names.input_bucket),
        Incoming::Legacy(request) => request.image_bytes().map(Payload::Inline),
        Incoming::UnknownVersion { .. } | Incoming::Malformed { .. } => return Ok(None),
    };
    match payload {
        Ok(Payload::Inline(bytes)) => Ok(Some(bytes.into())),
        Ok(Payload::Stored(id)) => Ok(service.input().await?.get(&protocol::image_key(id), MAX_IMAGE_BYTES).await?),
        Err(reason) => {
            tracing::warn!(reason, "the message leads to no image");
            Ok(None)
        }
    }
}

/// Never over a file that stands.
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
