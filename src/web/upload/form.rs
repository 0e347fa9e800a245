//! The image in a multipart form.

use bytes::Bytes;

use super::body::BodyReader;
use super::image::{ImageBuffer, ReceivedImage, SIGNATURE_BYTES};
use super::multipart::{Event, FormError, FormReader, PartHead};
use super::unsupported::unsupported;
use crate::model;
use crate::protocol::cut_filename;
use crate::web::error::Problem;

/// The field that names the model.
const MODEL_FIELD: &str = "model";
/// How many files or fields of a form are named when none of its parts is an image.
const MAX_NAMED_PARTS: usize = 8;

/// Reads the one image of a form. The first part that begins like an image is used, whatever its headers say.
///
/// # Errors
/// 400 for a second image, so that no client believes that both were classified, or for a form without a file; 415 when
/// no file is an image.
pub(super) async fn receive_form(
    reader: &mut BodyReader<'_>,
    boundary: &[u8],
    expected_bytes: u64,
) -> Result<ReceivedImage, Problem> {
    let mut form = FormReader::new(boundary);
    let mut parts =
        FormParts { expected_bytes, part: None, image: None, model: None, files: Vec::new(), fields: Vec::new() };
    loop {
        let chunk = reader.chunk().await?;
        form.push(chunk.as_deref().unwrap_or_default());
        while let Some(event) = form.next(chunk.is_none()).map_err(malformed)? {
            parts.take(reader, event).await?;
        }
        if chunk.is_none() {
            return parts.finish();
        }
    }
}

fn malformed(error: FormError) -> Problem {
    Problem::malformed(format!("not a multipart form: {error}"))
}

/// The parts of a form that have been read.
struct FormParts {
    expected_bytes: u64,
    part: Option<Part>,
    image: Option<ReceivedImage>,
    /// The content of the field `model`.
    model: Option<String>,
    /// For each file that is not an image, the reason.
    files: Vec<Problem>,
    /// The names of fields without a file.
    fields: Vec<String>,
}

/// The part that is being read.
struct Part {
    head: PartHead,
    bytes: u64,
    /// The first bytes of the part, which show whether it is an image.
    start: Vec<u8>,
    /// The content of a part that is an image.
    image: Option<ImageBuffer>,
}

impl FormParts {
    async fn take(&mut self, reader: &mut BodyReader<'_>, event: Event) -> Result<(), Problem> {
        match event {
            Event::PartBegins(head) => self.part = Some(Part { head, bytes: 0, start: Vec::new(), image: None }),
            Event::Data(data) => {
                let has_image = self.image.is_some();
                let Some(part) = &mut self.part else { return Ok(()) };
                part.push(reader, data, has_image, self.expected_bytes).await?;
            }
            Event::PartEnds => {
                if let Some(mut part) = self.part.take() {
                    part.check_start(reader, self.image.is_some(), self.expected_bytes).await?;
                    self.end_part(part);
                }
            }
        }
        Ok(())
    }

    fn end_part(&mut self, part: Part) {
        let PartHead { name, filename, content_type } = part.head;
        if let Some(image) = part.image {
            let bytes = image.into_bytes();
            if let Some(content_type) = model::sniff(&bytes) {
                let filename = filename.unwrap_or_default();
                self.image = Some(ReceivedImage { bytes, content_type, filename, field: name, model: None });
            }
            return;
        }
        if name == MODEL_FIELD && filename.is_none() {
            self.model.get_or_insert_with(|| String::from_utf8_lossy(&part.start).trim().to_owned());
            return;
        }
        // For a file input without a selected file, browsers send a file without a name and without bytes.
        let is_file = match &filename {
            Some(filename) => !filename.is_empty() || part.bytes > 0,
            None => content_type.starts_with("image/"),
        };
        if is_file && self.files.len() < MAX_NAMED_PARTS {
            let filename = filename.filter(|filename| !filename.is_empty()).unwrap_or(name);
            self.files.push(unsupported(&part.start, &filename, &content_type));
        } else if !is_file && self.fields.len() < MAX_NAMED_PARTS {
            self.fields.push(cut_filename(&name).to_owned());
        }
    }

    fn finish(self) -> Result<ReceivedImage, Problem> {
        if let Some(image) = self.image {
            return Ok(ReceivedImage { model: self.model, ..image });
        }
        if !self.files.is_empty() {
            let details: Vec<&str> = self.files.iter().map(|problem| problem.detail.as_str()).collect();
            return Err(Problem::unsupported_type(details.join("; ")));
        }
        Err(Problem::malformed(format!(
            "the form has no file; send one in any field (fields without a file: {})",
            if self.fields.is_empty() { "none".to_owned() } else { cut_filename(&self.fields.join(", ")).to_owned() }
        )))
    }
}

impl Part {
    async fn push(
        &mut self,
        reader: &mut BodyReader<'_>,
        data: Bytes,
        has_image: bool,
        expected_bytes: u64,
    ) -> Result<(), Problem> {
        self.bytes += data.len() as u64;
        if self.bytes > reader.rules.max_upload_bytes {
            return Err(Problem::too_large(reader.rules.max_upload_bytes));
        }
        if let Some(image) = &mut self.image {
            return image.push(reader, data).await;
        }
        let wanted = SIGNATURE_BYTES.saturating_sub(self.start.len());
        if wanted == 0 {
            return Ok(());
        }
        if self.start.is_empty() && data.len() >= SIGNATURE_BYTES {
            self.start.extend_from_slice(&data[..SIGNATURE_BYTES]);
            self.begin_image(has_image, expected_bytes)?;
            return match &mut self.image {
                Some(image) => image.push(reader, data).await,
                None => Ok(()),
            };
        }
        let (start, rest) = data.split_at(wanted.min(data.len()));
        self.start.extend_from_slice(start);
        if self.start.len() == SIGNATURE_BYTES {
            self.check_start(reader, has_image, expected_bytes).await?;
            if let Some(image) = &mut self.image
                && !rest.is_empty()
            {
                image.push(reader, Bytes::copy_from_slice(rest)).await?;
            }
        }
        Ok(())
    }

    /// Decides by its first bytes whether this part is an image. If so, they become the beginning of the image.
    async fn check_start(
        &mut self,
        reader: &mut BodyReader<'_>,
        has_image: bool,
        expected_bytes: u64,
    ) -> Result<(), Problem> {
        if self.image.is_some() {
            return Ok(());
        }
        self.begin_image(has_image, expected_bytes)?;
        if let Some(image) = &mut self.image {
            image.push(reader, Bytes::copy_from_slice(&self.start)).await?;
        }
        Ok(())
    }

    fn begin_image(&mut self, has_image: bool, expected_bytes: u64) -> Result<(), Problem> {
        if model::sniff(&self.start).is_none() {
            return Ok(());
        }
        if has_image {
            return Err(Problem::malformed("the form holds more than one image; send POST /v1/classify once per file"));
        }
        self.image = Some(ImageBuffer::new(expected_bytes));
        Ok(())
    }
}
