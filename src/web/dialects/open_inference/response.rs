//! Answers: the outputs that were asked for, in JSON or in binary after it.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::json;

use super::super::call;
use super::HEADER_LENGTH;
use super::data::append;
use super::outputs::{INDICES, SCORES, Wanted, WantedOutputs};
use crate::model::Prediction;
use crate::protocol::ClassifyResult;

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_version: Option<&'a str>,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Output {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Elements {
    Texts(Vec<String>),
    Scores(Vec<f32>),
    Indices(Vec<i64>),
}

/// Writes the answer.
pub(super) fn write(model: &str, id: Option<&str>, results: &[ClassifyResult], wanted: &WantedOutputs) -> Response {
    let mut binary = Vec::new();
    let outputs = wanted.0.iter().map(|wanted| output(*wanted, results, &mut binary)).collect();
    let model_version = results.first().and_then(|result| result.model.as_ref()).map(|model| model.version.as_str());
    let answer = Answer { id, model_name: model, model_version, outputs };
    if binary.is_empty() {
        return call::json(StatusCode::OK, &answer);
    }
    let mut body = serde_json::to_vec(&answer).expect("strings and finite numbers; this is a bug");
    let json_bytes = body.len();
    body.append(&mut binary);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (HeaderName::from_static(HEADER_LENGTH), HeaderValue::from(json_bytes)),
    ];
    (headers, body).into_response()
}

fn output(wanted: Wanted, results: &[ClassifyResult], binary: &mut Vec<u8>) -> Output {
    let limit = wanted.top_k as usize;
    // A tensor has rows of the same length. A model that changed in between may have fewer classes.
    let classes = results.iter().map(|result| result.predictions.len().min(limit)).min().unwrap_or_default();
    let rows = results.iter().flat_map(|result| &result.predictions[..classes]);
    let (datatype, elements) = match (wanted.is_classification, wanted.name) {
        (true, _) => ("BYTES", Elements::Texts(rows.map(classification).collect())),
        (false, SCORES) => ("FP32", Elements::Scores(rows.map(score).collect())),
        (false, INDICES) => ("INT64", Elements::Indices(rows.map(index).collect())),
        (false, _) => ("BYTES", Elements::Texts(rows.map(|class| class.label.clone()).collect())),
    };
    let (parameters, data) = if wanted.is_binary {
        let before = binary.len();
        elements.append_to(binary);
        (Some(json!({ "binary_data_size": binary.len() - before })), None)
    } else {
        (None, Some(elements))
    };
    Output { name: wanted.name, datatype, shape: [results.len(), classes], parameters, data }
}

impl Elements {
    fn append_to(&self, binary: &mut Vec<u8>) {
        match self {
            Elements::Texts(texts) => texts.iter().for_each(|text| append(binary, text)),
            Elements::Scores(scores) => scores.iter().for_each(|score| binary.extend(score.to_le_bytes())),
            Elements::Indices(indices) => indices.iter().for_each(|index| binary.extend(index.to_le_bytes())),
        }
    }
}

fn classification(class: &Prediction) -> String {
    format!("{}:{}:{}", score(class), index(class), class.label)
}

fn score(class: &Prediction) -> f32 {
    class.score.unwrap_or_default()
}

fn index(class: &Prediction) -> i64 {
    class.class_index.map_or(-1, i64::from)
}
