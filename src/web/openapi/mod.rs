//! The description of the interface: an OpenAPI document for programs, and a page for people. Both are made from the table of
//! [`operations`], like the router.

mod operation;
mod operations;
mod page;
mod schemas;

use std::sync::LazyLock;

use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};

use self::operation::{Answer, Body, Content, Parameter, Tag};
pub(super) use self::operation::{Call, Operation};
pub(super) use self::operations::OPERATIONS;
use super::assets::Asset;
use super::query::{LISTED_STATUSES, MAX_JOBS, MAX_PAGE, MAX_TOP_K, MAX_WAIT};
use crate::model;

static DOCUMENT: LazyLock<Asset> = LazyLock::new(|| Asset::new("application/json", openapi().to_string()));
static PAGE: LazyLock<Asset> = LazyLock::new(|| Asset::new("text/html; charset=utf-8", page::html()));

/// `GET /openapi.json`
pub(super) async fn document(headers: HeaderMap) -> Response {
    DOCUMENT.answer(&headers)
}

/// `GET /docs`
pub(super) async fn docs(headers: HeaderMap) -> Response {
    PAGE.answer(&headers)
}

/// Problems that any operation may answer, beside its own.
const COMMON_PROBLEMS: [(u16, &str); 8] = [
    (400, "The request is malformed; the problem says what is wrong"),
    (401, "A key is needed"),
    (403, "A page of another site may not send this, or the key may not do it"),
    (421, "The request is for the host of another server"),
    (429, "Too many requests of this client; try again after `Retry-After`"),
    (431, "The head of the request is too large"),
    (500, "An internal error"),
    (503, "Not now: too much at once, no space, or the store cannot be reached; try again after `Retry-After`"),
];

fn openapi() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "imgcls",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Classifies images through a queue",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "security": [{}, {"key": []}, {"keyInHeader": []}],
        "components": {"schemas": schemas::schemas(), "securitySchemes": security_schemes()},
    })
}

/// How a request carries a key. Whether it needs one depends on `--auth`.
fn security_schemes() -> Value {
    json!({
        "key": {"type": "http", "scheme": "bearer", "description": "A key of the operator (`imgcls keys create`)"},
        "keyInHeader": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key"},
    })
}

fn described(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for (status, description) in COMMON_PROBLEMS {
        responses.insert(status.to_string(), response(description, &content(Content::Problem)));
    }
    for Answer { status, description, content: of } in operation.answers {
        responses.insert(status.to_string(), response(description, &content(*of)));
    }
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag.title()],
        "summary": operation.summary,
        "parameters": operation.parameters.iter().map(|parameter| parameter.described()).collect::<Value>(),
        "responses": responses,
    });
    if let Some(body) = request_body(operation.body) {
        described["requestBody"] = body;
    }
    described
}

fn response(description: &str, content: &Value) -> Value {
    let mut response = json!({"description": description});
    if content.as_object().is_some_and(|content| !content.is_empty()) {
        response["content"] = content.clone();
    }
    response
}

fn content(content: Content) -> Value {
    let schema = |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
    match content {
        Content::Nothing => json!({}),
        Content::Json(name) => json!({"application/json": schema(name)}),
        Content::TextOrJson(name) => {
            let text = json!({"schema": {"type": "string"}});
            json!({"text/plain": text, "text/html": text, "application/json": schema(name)})
        }
        Content::Media(types) => {
            types.iter().map(|media_type| ((*media_type).to_owned(), json!({}))).collect::<Map<_, _>>().into()
        }
        Content::Image => {
            let types = model::media_types().chain(["application/octet-stream"]);
            types.map(|media_type| (media_type.to_owned(), json!({}))).collect::<Map<_, _>>().into()
        }
        Content::Problem => json!({"application/problem+json": schema("Problem")}),
    }
}

fn request_body(body: Body) -> Option<Value> {
    let file = json!({"type": "string", "format": "binary"});
    let form = json!({"schema": {"type": "object", "additionalProperties": file}});
    let mut content = Map::new();
    match body {
        Body::Nothing => return None,
        Body::Form => {}
        Body::Batch => {
            content.insert(
                "application/json".to_owned(),
                json!({"schema": {"$ref": "#/components/schemas/ListedImages"}}),
            );
        }
        Body::Image => {
            content.extend(model::media_types().map(|media_type| (media_type.to_owned(), json!({}))));
            content
                .insert("application/json".to_owned(), json!({"schema": {"$ref": "#/components/schemas/ImageInJson"}}));
        }
    }
    content.insert("multipart/form-data".to_owned(), form);
    Some(json!({"required": true, "content": content}))
}

impl Tag {
    const ALL: [Tag; 6] = [Tag::Classify, Tag::Jobs, Tag::Batches, Tag::Models, Tag::Page, Tag::Operation];

    fn title(self) -> &'static str {
        match self {
            Tag::Classify => "Classify",
            Tag::Jobs => "Jobs",
            Tag::Batches => "Batches",
            Tag::Models => "Models",
            Tag::Page => "Page and documentation",
            Tag::Operation => "Operation",
        }
    }
}

/// Ids of jobs, separated by commas.
fn ids_pattern() -> String {
    let id = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
    format!("^{id}(,{id}){{0,{}}}$", MAX_JOBS - 1)
}

impl Parameter {
    /// The name of the parameter, and where it is.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Parameter::JobId | Parameter::BatchId => ("id", "path"),
            Parameter::Format => ("format", "query"),
            Parameter::FileName(name) => (name, "path"),
            Parameter::ModelName => ("name", "path"),
            Parameter::Jobs => ("jobs", "query"),
            Parameter::Status => ("status", "query"),
            Parameter::After => ("after", "query"),
            Parameter::Limit => ("limit", "query"),
            Parameter::Wait => ("wait", "query"),
            Parameter::TopK => ("top_k", "query"),
            Parameter::Model => ("model", "query"),
            Parameter::CallbackUrl => ("callback_url", "query"),
            Parameter::Labels => ("labels", "query"),
            Parameter::Prefer => ("Prefer", "header"),
            Parameter::IdempotencyKey => ("Idempotency-Key", "header"),
            Parameter::IfNoneMatch => ("If-None-Match", "header"),
        }
    }

    fn description(self) -> &'static str {
        match self {
            Parameter::JobId => "The id of the job",
            Parameter::BatchId => "The id of the batch",
            Parameter::Format => "The format of the rows; CSV by default",
            Parameter::FileName(_) => "The name of the file",
            Parameter::ModelName => "The name of the model",
            Parameter::Jobs => "The ids of up to 100 jobs, separated by commas",
            Parameter::Status => "Only the jobs in this state",
            Parameter::After => "The member `next` of the page before; jobs that are older follow",
            Parameter::Limit => {
                "The most jobs of the page; 50 by default. A page may have fewer although others follow"
            }
            Parameter::Wait => "How long the answer may wait for the result, in seconds, or as `1m 30s`",
            Parameter::TopK => "The number of predictions",
            Parameter::Model => "The name of the model that classifies",
            Parameter::CallbackUrl => {
                "The address that is called at the end, if the server allows that (--allow-callbacks)"
            }
            Parameter::Labels => "True if the classes are listed",
            Parameter::Prefer => "`wait=SECONDS`, or `respond-async` to get 202 at once (RFC 7240)",
            Parameter::IdempotencyKey => "A key of the client's choice: a repeated request with it gets the same job",
            Parameter::IfNoneMatch => "The `ETag` that the client has",
        }
    }

    fn described(self) -> Value {
        let (name, place) = self.name();
        let schema = match self {
            Parameter::JobId | Parameter::BatchId | Parameter::After => json!({"type": "string", "format": "uuid"}),
            Parameter::Status => json!({"enum": LISTED_STATUSES}),
            Parameter::Limit => json!({"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
            Parameter::Format => json!({"enum": ["csv", "jsonl"]}),
            Parameter::FileName(_) | Parameter::ModelName => json!({"type": "string", "minLength": 1}),
            Parameter::Jobs => json!({"type": "string", "pattern": ids_pattern()}),
            Parameter::Wait => json!({"type": "number", "minimum": 0, "maximum": MAX_WAIT.as_secs()}),
            Parameter::TopK => json!({"type": "integer", "minimum": 1, "maximum": MAX_TOP_K}),
            Parameter::Labels => json!({"enum": ["true", "1", "", "false", "0"]}),
            Parameter::CallbackUrl => json!({"type": "string", "format": "uri", "maxLength": 2048}),
            Parameter::IdempotencyKey => json!({"type": "string", "minLength": 1, "maxLength": 255}),
            Parameter::Model | Parameter::Prefer | Parameter::IfNoneMatch => json!({"type": "string"}),
        };
        json!({
            "name": name,
            "in": place,
            "required": place == "path" || self == Parameter::Jobs,
            "description": self.description(),
            "schema": schema,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_names_each_operation_once_and_every_schema_that_it_refers_to() {
        let document = openapi();
        let mut ids: Vec<&str> = OPERATIONS.iter().map(|operation| operation.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), OPERATIONS.len(), "an id occurs twice");
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, OPERATIONS.len(), "a method of an address occurs twice");
        for reference in document.to_string().split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn parameters_of_a_path_are_those_of_its_address() {
        for operation in OPERATIONS {
            let in_path =
                operation.parameters.iter().map(|parameter| parameter.name()).filter(|(_, place)| *place == "path");
            let names: Vec<String> = in_path.map(|(name, _)| format!("{{{name}}}")).collect();
            let of_path: Vec<&str> = operation.path.split('/').filter(|part| part.starts_with('{')).collect();
            assert_eq!(names, of_path, "{}", operation.path);
        }
    }
}
