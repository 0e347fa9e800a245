//! The images in a multipart form.

use std::collections::HashSet;

use axum::http::StatusCode;
use bytes::Bytes;

use super::body::BodyReader;
use super::fetch::fetch;
use super::image::{ImageBuffer, ReceivedImage, SIGNATURE_BYTES};
use super::multipart::{Event, FormError, FormReader, PartHead};
use super::unsupported::unsupported;
use crate::model;
use crate::protocol::cut_filename;
use crate::web::error::Problem;

/// The field that names the model.
const MODEL_FIELD: &str = "model";
/// The field that names the image by URL, in a form without a file.
const URL_FIELD: &str = "url";
/// The field that names the address that is called at the end.
const CALLBACK_FIELD: &str = "callback_url";
/// How many files of a form get an answer.
const MAX_FILES: usize = 100;
/// How many files or fields of a form are named when none of its parts is an image.
const MAX_NAMED_PARTS: usize = 8;

/// How many images a form may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Images {
    One,
    Several,
}

/// The files of a form.
pub(super) struct ReceivedForm {
    /// In the order of the form: the one image, or every file that is to be answered.
    pub(super) files: Vec<Result<ReceivedImage, Problem>>,
    /// True if each of the files gets an answer of its own.
    pub(super) is_list: bool,
    /// The content of the field `model`.
    pub(super) model: Option<String>,
    /// The content of the field `callback_url`.
    pub(super) callback_url: Option<String>,
}

/// Reads the images of a form. A part that begins like an image is one, whatever its headers say. A form is a list if it has
/// several images, or several files in the field of its image; then files of those fields that are not images are answered
/// too. Other files are ignored.
///
/// # Errors
/// 400 for a form without a file, for too many files, and for a second image where one is wanted, so that no client believes
/// that both were classified; 413 and 415 when no file can be used.
pub(super) async fn receive_form(
    reader: &mut BodyReader<'_>,
    boundary: &[u8],
    expected_bytes: u64,
    images: Images,
) -> Result<ReceivedForm, Problem> {
    let mut form = FormReader::new(boundary);
    let mut parts = FormParts {
        expected_bytes,
        images,
        part: None,
        model: None,
        url: None,
        callback_url: None,
        files: Vec::new(),
        fields: Vec::new(),
    };
    loop {
        let chunk = reader.chunk().await?;
        form.push(chunk.as_deref().unwrap_or_default());
        while let Some(event) = form.next(chunk.is_none()).map_err(malformed)? {
            parts.take(reader, event).await?;
        }
        if chunk.is_none() {
            if parts.files.is_empty()
                && let Some(url) = parts.url.take()
            {
                let outcome = Ok(fetch(reader, &url, None).await?);
                parts.files.push(FormFile { field: URL_FIELD.to_owned(), outcome });
            }
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
    images: Images,
    part: Option<Part>,
    model: Option<String>,
    url: Option<String>,
    callback_url: Option<String>,
    files: Vec<FormFile>,
    /// The names of fields without a file.
    fields: Vec<String>,
}

/// A file of a form.
struct FormFile {
    field: String,
    outcome: Result<ReceivedImage, Problem>,
}

/// The part that is being read.
struct Part {
    head: PartHead,
    bytes: u64,
    /// The first bytes of the part, which show whether it is an image.
    start: Vec<u8>,
    /// The content of a part that is an image.
    image: Option<ImageBuffer>,
    is_too_large: bool,
}

impl FormParts {
    async fn take(&mut self, reader: &mut BodyReader<'_>, event: Event) -> Result<(), Problem> {
        match event {
            Event::PartBegins(head) => self.part = Some(Part::new(head)),
            Event::Data(data) => {
                let may_be_image = self.may_have_image();
                let Some(part) = &mut self.part else { return Ok(()) };
                part.push(reader, data, may_be_image, self.expected_bytes).await?;
            }
            Event::PartEnds => {
                let may_be_image = self.may_have_image();
                if let Some(mut part) = self.part.take() {
                    part.check_start(reader, may_be_image, self.expected_bytes).await?;
                    self.end_part(part, reader.rules.max_upload_bytes)?;
                }
            }
        }
        Ok(())
    }

    fn may_have_image(&self) -> bool {
        self.images == Images::Several || self.files.iter().all(|file| file.outcome.is_err())
    }

    fn end_part(&mut self, part: Part, max_upload_bytes: u64) -> Result<(), Problem> {
        let PartHead { name, filename, content_type } = part.head;
        if part.is_too_large {
            return self.add_file(name, Err(Problem::too_large(max_upload_bytes)));
        }
        if let Some(image) = part.image {
            let bytes = image.into_bytes();
            let Some(content_type) = model::sniff(&bytes) else { return Ok(()) };
            let filename = filename.unwrap_or_default();
            let image = ReceivedImage { bytes, content_type, filename, field: name.clone() };
            return self.add_file(name, Ok(image));
        }
        if filename.is_none() && [MODEL_FIELD, URL_FIELD, CALLBACK_FIELD].contains(&&*name) {
            return self.set_text(&name, part.bytes, String::from_utf8_lossy(&part.start).trim());
        }
        // For a file input without a selected file, browsers send a file without a name and without bytes.
        let is_file = match &filename {
            Some(filename) => !filename.is_empty() || part.bytes > 0,
            None => content_type.starts_with("image/"),
        };
        if is_file {
            let filename = filename.filter(|filename| !filename.is_empty()).unwrap_or_else(|| name.clone());
            let problem = unsupported(&part.start, &filename, &content_type);
            return self.add_file(name, Err(problem));
        }
        if self.fields.len() < MAX_NAMED_PARTS {
            self.fields.push(cut_filename(&name).to_owned());
        }
        Ok(())
    }

    fn set_text(&mut self, field: &str, bytes: u64, text: &str) -> Result<(), Problem> {
        if field != MODEL_FIELD && bytes > SIGNATURE_BYTES as u64 {
            let detail =
                format!("the field {field} of the form has more than {SIGNATURE_BYTES} bytes; send JSON instead");
            return Err(Problem::malformed(detail));
        }
        let known = match field {
            URL_FIELD => &mut self.url,
            CALLBACK_FIELD => &mut self.callback_url,
            _ => &mut self.model,
        };
        match known {
            Some(known) if known != text => {
                let (one, other) = (cut_filename(known), cut_filename(text));
                Err(Problem::malformed(format!("the form names the {field} {one:?} and {other:?}; name one")))
            }
            _ => {
                *known = Some(text.to_owned());
                Ok(())
            }
        }
    }

    fn add_file(&mut self, field: String, outcome: Result<ReceivedImage, Problem>) -> Result<(), Problem> {
        if self.files.len() == MAX_FILES {
            return Err(Problem::malformed(format!("the form has more than {MAX_FILES} files; send several requests")));
        }
        self.files.push(FormFile { field, outcome });
        Ok(())
    }

    fn finish(self) -> Result<ReceivedForm, Problem> {
        let FormParts { images, model, callback_url, files, fields, .. } = self;
        let image_fields: HashSet<String> =
            files.iter().filter(|file| file.outcome.is_ok()).map(|file| file.field.clone()).collect();
        if image_fields.is_empty() {
            return Err(no_image(files, &fields));
        }
        let answered = |file: &FormFile| image_fields.contains(&file.field);
        let is_list = images == Images::Several && files.iter().filter(|file| answered(file)).count() > 1;
        let files = files.into_iter().filter(|file| if is_list { answered(file) } else { file.outcome.is_ok() });
        Ok(ReceivedForm { files: files.map(|file| file.outcome).collect(), is_list, model, callback_url })
    }
}

/// The problem of a form none of whose parts is an image that can be used.
fn no_image(files: Vec<FormFile>, fields: &[String]) -> Problem {
    let mut problems: Vec<Problem> = files.into_iter().filter_map(|file| file.outcome.err()).collect();
    if let Some(at) = problems.iter().position(|problem| problem.status == StatusCode::PAYLOAD_TOO_LARGE) {
        return problems.swap_remove(at);
    }
    if problems.is_empty() {
        return Problem::malformed(format!(
            "the form has no file; send one in any field (fields without a file: {})",
            if fields.is_empty() { "none".to_owned() } else { cut_filename(&fields.join(", ")).to_owned() }
        ));
    }
    let details: Vec<&str> = problems.iter().take(MAX_NAMED_PARTS).map(|problem| problem.detail.as_str()).collect();
    Problem::unsupported_type(details.join("; "))
}

impl Part {
    fn new(head: PartHead) -> Part {
        Part { head, bytes: 0, start: Vec::new(), image: None, is_too_large: false }
    }

    async fn push(
        &mut self,
        reader: &mut BodyReader<'_>,
        data: Bytes,
        may_be_image: bool,
        expected_bytes: u64,
    ) -> Result<(), Problem> {
        self.bytes += data.len() as u64;
        if self.bytes > reader.rules.max_upload_bytes {
            self.is_too_large = true;
            self.image = None;
            return Ok(());
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
            self.begin_image(reader, may_be_image, expected_bytes)?;
            return match &mut self.image {
                Some(image) => image.push(reader, data).await,
                None => Ok(()),
            };
        }
        let (start, rest) = data.split_at(wanted.min(data.len()));
        self.start.extend_from_slice(start);
        if self.start.len() == SIGNATURE_BYTES {
            self.check_start(reader, may_be_image, expected_bytes).await?;
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
        may_be_image: bool,
        expected_bytes: u64,
    ) -> Result<(), Problem> {
        if self.image.is_some() || self.is_too_large {
            return Ok(());
        }
        self.begin_image(reader, may_be_image, expected_bytes)?;
        if let Some(image) = &mut self.image {
            image.push(reader, Bytes::copy_from_slice(&self.start)).await?;
        }
        Ok(())
    }

    fn begin_image(&mut self, reader: &BodyReader<'_>, may_be_image: bool, expected_bytes: u64) -> Result<(), Problem> {
        if model::sniff(&self.start).is_none() {
            return Ok(());
        }
        if !may_be_image {
            let detail = "the form holds more than one image; send it to POST /v1/classify, which answers each file";
            return Err(Problem::malformed(detail));
        }
        self.image = Some(ImageBuffer::after(reader.reserved_bytes(), expected_bytes));
        Ok(())
    }
}
