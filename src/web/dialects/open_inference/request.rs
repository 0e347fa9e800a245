//! Requests: which outputs are wanted, and the images of the input.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use super::super::call::{MAX_IMAGES, of_image};
use super::super::json::Limited;
use super::super::{image, tensor};
use super::data::{self, Elements};
use super::outputs::{INDICES, LABELS, OUTPUTS, SCORES, Wanted, WantedOutputs};
use crate::protocol::cut_filename;
use crate::web::error::Problem;
use crate::web::query::{DEFAULT_TOP_K, MAX_TOP_K};
use crate::web::upload::{Upload, UploadRules};

/// The input that takes image files.
pub(super) const IMAGE: &str = "image";
/// The input that takes pixels.
pub(super) const PIXELS: &str = "pixels";

const MAX_ID_BYTES: usize = 1024;
/// More items of a list than any correct request has.
const MAX_ITEMS: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Infer<'a> {
    id: Option<String>,
    parameters: Option<InferParameters>,
    #[serde(borrow)]
    inputs: Limited<Input<'a>, MAX_ITEMS>,
    #[serde(default)]
    outputs: Limited<RequestedOutput, MAX_ITEMS>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InferParameters {
    top_k: Option<i64>,
    binary_data_output: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input<'a> {
    name: String,
    shape: Limited<i64, MAX_ITEMS>,
    datatype: String,
    parameters: Option<InputParameters>,
    #[serde(borrow)]
    data: Option<Elements<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputParameters {
    binary_data_size: Option<usize>,
    /// How MLServer's clients say that texts are base64.
    content_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedOutput {
    name: String,
    parameters: Option<OutputParameters>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputParameters {
    classification: Option<i64>,
    binary_data: Option<bool>,
}

impl Infer<'_> {
    /// Returns the id of the request, which the answer repeats.
    pub(super) fn id(&self) -> Result<Option<String>, Problem> {
        match &self.id {
            Some(id) if id.len() > MAX_ID_BYTES => {
                Err(Problem::malformed(format!("the id of the request has more than {MAX_ID_BYTES} bytes")))
            }
            id => Ok(id.clone()),
        }
    }

    /// Returns the outputs that the request names, or all.
    pub(super) fn wanted(&self) -> Result<WantedOutputs, Problem> {
        let parameters = self.parameters.as_ref();
        let top_k = match parameters.and_then(|parameters| parameters.top_k) {
            None => DEFAULT_TOP_K,
            Some(top_k) => count("top_k", top_k)?,
        };
        let is_binary = parameters.and_then(|parameters| parameters.binary_data_output).unwrap_or(false);
        let output = |name| Wanted { name, top_k, is_classification: false, is_binary };
        if self.outputs.0.is_empty() {
            return Ok(WantedOutputs(OUTPUTS.map(output).to_vec()));
        }
        let mut wanted: Vec<Wanted> = Vec::new();
        for RequestedOutput { name, parameters } in &self.outputs.0 {
            let Some(known) = OUTPUTS.into_iter().find(|known| known == name) else {
                let name = cut_filename(name);
                return Err(Problem::malformed(format!(
                    "there is no output {name:?}; the outputs are {LABELS}, {SCORES} and {INDICES}"
                )));
            };
            if wanted.iter().any(|other| other.name == known) {
                return Err(Problem::malformed(format!("the output {known:?} is requested twice")));
            }
            wanted.push(parameters.as_ref().map_or(Ok(output(known)), |parameters| parameters.apply(output(known)))?);
        }
        Ok(WantedOutputs(wanted))
    }

    /// Makes the images of the one input. `tail` is what follows the JSON in the body.
    pub(super) async fn images(&self, tail: &Bytes, rules: &UploadRules) -> Result<Vec<Upload>, Problem> {
        let [input] = self.inputs.0.as_slice() else {
            return Err(Problem::malformed(format!(
                "the request has {} inputs; send one: {IMAGE:?} (BYTES) or {PIXELS:?} (UINT8)",
                self.inputs.0.len()
            )));
        };
        let binary = input.binary(tail)?;
        match (input.name.as_str(), input.datatype.as_str()) {
            (IMAGE, "BYTES") => input.files(binary, rules),
            (PIXELS, "UINT8") => input.pixels(binary, rules).await,
            (IMAGE | PIXELS, datatype) => Err(Problem::malformed(format!(
                "{} tensors are not accepted for the input {:?}: send image files as {IMAGE:?} (BYTES), or pixels from 0 \
                 to 255 as {PIXELS:?} (UINT8, [height, width, 3])",
                cut_filename(datatype),
                input.name
            ))),
            (name, datatype) => Err(Problem::malformed(format!(
                "there is no input {:?} ({}); the inputs are {IMAGE:?} (BYTES) and {PIXELS:?} (UINT8)",
                cut_filename(name),
                cut_filename(datatype)
            ))),
        }
    }
}

impl OutputParameters {
    fn apply(&self, mut output: Wanted) -> Result<Wanted, Problem> {
        output.is_binary = self.binary_data.unwrap_or(output.is_binary);
        if let Some(classes) = self.classification {
            if output.name != SCORES {
                return Err(Problem::malformed(format!(
                    "the parameter classification is not supported for the output {:?}, only for {SCORES:?}",
                    output.name
                )));
            }
            output.top_k = count("classification", classes)?;
            output.is_classification = true;
        }
        Ok(output)
    }
}

fn count(name: &str, value: i64) -> Result<u32, Problem> {
    let valid = u32::try_from(value).ok().filter(|count| (1..=MAX_TOP_K).contains(count));
    valid.ok_or_else(|| Problem::malformed(format!("{name} is {value}, and not between 1 and {MAX_TOP_K}")))
}

impl Input<'_> {
    /// Returns the binary elements of the input, if it has those. It is the only input, so they are all of `tail`.
    fn binary(&self, tail: &Bytes) -> Result<Option<Bytes>, Problem> {
        let size = self.parameters.as_ref().and_then(|parameters| parameters.binary_data_size);
        match (size, &self.data) {
            (Some(size), None) if size == tail.len() => Ok(Some(tail.clone())),
            (Some(size), None) => {
                Err(Problem::malformed(format!("binary_data_size is {size}, but {} bytes follow the JSON", tail.len())))
            }
            (None, Some(_)) if tail.is_empty() => Ok(None),
            (None, Some(_)) => Err(Problem::malformed(format!(
                "{} bytes follow the JSON, and no input has a binary_data_size",
                tail.len()
            ))),
            (Some(_), Some(_)) => Err(Problem::malformed("the input has both data and binary_data_size; send one")),
            (None, None) => Err(Problem::malformed("the input has neither data nor binary_data_size")),
        }
    }

    /// The sides of the tensor.
    fn shape(&self) -> Result<Vec<usize>, Problem> {
        let sides = self.shape.0.iter().map(|side| usize::try_from(*side));
        sides.collect::<Result<_, _>>().map_err(|_| self.wrong_shape("sides may not be negative"))
    }

    fn wrong_shape(&self, expected: &str) -> Problem {
        Problem::malformed(format!("the input {:?} has the shape {:?}: {expected}", self.name, self.shape.0))
    }

    /// Decodes image files: [n] or [n, 1].
    fn files(&self, binary: Option<Bytes>, rules: &UploadRules) -> Result<Vec<Upload>, Problem> {
        let count = match self.shape()?.as_slice() {
            [count] | [count, 1] if (1..=MAX_IMAGES).contains(count) => *count,
            _ => return Err(self.wrong_shape(&format!("it has to be [images], from 1 to {MAX_IMAGES}"))),
        };
        if let Some(binary) = binary {
            let Some(files) = data::split(binary, count) else {
                return Err(Problem::malformed(format!(
                    "the binary data of the input {:?} is not {count} elements with their lengths",
                    self.name
                )));
            };
            let upload = |(at, file): (usize, Bytes)| {
                let reservation = rules.reserve(file.len())?;
                // A copy, so that the whole body is not kept for the sake of one image.
                let upload = Upload::of_image(Bytes::copy_from_slice(&file), reservation, rules);
                upload.map_err(|problem| if count == 1 { problem } else { of_image(problem, at, count) })
            };
            return files.into_iter().enumerate().map(upload).collect();
        }
        self.check_content_type()?;
        let elements = self.data.as_ref().map(|data| (&data.texts, data.bytes.is_empty() && !data.has_other));
        match elements {
            Some((texts, true)) if texts.len() == count => image::decode_all(texts.iter().map(Cow::as_ref), rules),
            _ => Err(self.wrong_shape("data has to be as many texts in base64")),
        }
    }

    fn check_content_type(&self) -> Result<(), Problem> {
        let content_type = self.parameters.as_ref().and_then(|parameters| parameters.content_type.as_deref());
        match content_type {
            None | Some("base64") => Ok(()),
            Some(other) => Err(Problem::malformed(format!(
                "content_type is {:?}; BYTES in JSON have to be \"base64\"",
                cut_filename(other)
            ))),
        }
    }

    /// Encodes pixels: [height, width, 3] or [n, height, width, 3].
    async fn pixels(&self, binary: Option<Bytes>, rules: &UploadRules) -> Result<Vec<Upload>, Problem> {
        let expected =
            format!("it has to be [height, width, 3], or [images, height, width, 3] with at most {MAX_IMAGES}");
        let (count, height, width) = match self.shape()?.as_slice() {
            [height, width, 3] => (1, *height, *width),
            [count, height, width, 3] if (1..=MAX_IMAGES).contains(count) => (*count, *height, *width),
            _ => return Err(self.wrong_shape(&expected)),
        };
        let (Ok(height), Ok(width)) = (u32::try_from(height), u32::try_from(width)) else {
            return Err(self.wrong_shape(&expected));
        };
        let pixels = match (binary, &self.data) {
            (Some(binary), _) => binary,
            (None, Some(data)) if data.texts.is_empty() && !data.has_other => {
                let _memory = rules.reserve(data.bytes.len())?;
                Bytes::copy_from_slice(&data.bytes)
            }
            (None, _) => return Err(self.wrong_shape("UINT8 elements have to be whole numbers from 0 to 255")),
        };
        let each = u64::from(height).checked_mul(u64::from(width)).and_then(|area| area.checked_mul(3));
        let total = each.and_then(|each| each.checked_mul(count as u64));
        if total != Some(pixels.len() as u64) || pixels.is_empty() {
            return Err(self.wrong_shape(&format!("the data has {} elements", pixels.len())));
        }
        let each = pixels.len() / count;
        let mut uploads = Vec::new();
        for at in 0..count {
            let upload = tensor::encode(pixels.slice(at * each..(at + 1) * each), height, width, rules).await;
            uploads.push(upload.map_err(|problem| if count == 1 { problem } else { of_image(problem, at, count) })?);
        }
        Ok(uploads)
    }
}
