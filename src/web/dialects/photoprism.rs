//! Labels of PhotoPrism's vision service: `POST /api/v1/vision/labels` with data URLs. The images of one request are
//! crops of the same photo, so the answer is one list, with the best confidence of each label.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::call::MAX_IMAGES;
use super::json::{Limited, Text};
use super::{call, image, json};
use crate::protocol::{ClassifyResult, cut_filename};
use crate::web::error::Problem;
use crate::web::site::Site;

/// The version that PhotoPrism asks for when its settings name none.
const LATEST: &str = "latest";

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/vision/labels", post(labels))
        .method_not_allowed_fallback(|| async { refusal("", Problem::method_not_allowed()) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    #[serde(borrow, default)]
    images: Limited<Text<'a>, MAX_IMAGES>,
    id: Option<String>,
    model: Option<String>,
    version: Option<String>,
    format: Option<String>,
    /// Sent by every version of PhotoPrism, with the value `false`.
    stream: Option<bool>,
    /// The same, as an empty text.
    suffix: Option<String>,
    url: Option<IgnoredAny>,
    system: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
    options: Option<IgnoredAny>,
    context: Option<IgnoredAny>,
    schema: Option<IgnoredAny>,
}

async fn labels(State(site): State<Arc<Site>>, request: Request) -> Response {
    let mut id = String::new();
    answer(&site, request, &mut id).await.unwrap_or_else(|problem| refusal(&id, problem))
}

/// `id` becomes that of the request, which is also told when the request is refused.
async fn answer(site: &Site, request: Request, id: &mut String) -> Result<Response, Problem> {
    let mut options = call::options(site, &request, None)?;
    let body = call::receive(site, request).await?;
    let memory = json::reserve(&body.bytes, &site.uploads)?;
    let call: Call<'_> = json::parse(&body.bytes)?;
    call.check()?;
    cut_filename(call.id.as_deref().unwrap_or_default()).clone_into(id);
    options.model = site.models.choose(call.model.as_deref(), None)?;
    let version = call.version.as_deref().filter(|version| !version.is_empty() && *version != LATEST);
    if let Some(version) = version {
        let Some(model) = &options.model else {
            return Err(Problem::malformed("a version is named without its model; name both, or neither"));
        };
        call::check_version(site, model, version).await?;
    }
    let uploads = image::decode_all(call.images.0.iter().map(|image| &*image.0), &site.uploads)?;
    drop(call);
    drop((memory, body));
    let results = call::classify_all(site, uploads, &options).await?;
    Ok(call::json(StatusCode::OK, &found(id, &results)))
}

impl Call<'_> {
    /// Refuses what only a language model could do.
    fn check(&self) -> Result<(), Problem> {
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let unsupported = [
            ("url", self.url.is_some()),
            ("system", self.system.is_some()),
            ("prompt", self.prompt.is_some()),
            ("options", self.options.is_some()),
            ("context", self.context.is_some()),
            ("schema", self.schema.is_some()),
            ("suffix", is_set(&self.suffix)),
            ("stream", self.stream == Some(true)),
            ("format", self.format.as_deref().is_some_and(|format| !matches!(format, "" | "json" | "vision"))),
        ];
        match unsupported.iter().find(|(_, is_used)| *is_used) {
            None => Ok(()),
            Some((name, _)) => Err(Problem::malformed(format!(
                "{name} is not supported by an image classifier; send the images as data URLs in \"images\""
            ))),
        }
    }
}

fn found(id: &str, results: &[ClassifyResult]) -> Value {
    let mut best: HashMap<&str, f64> = HashMap::new();
    for class in results.iter().flat_map(|result| &result.predictions) {
        let score = best.entry(&class.label).or_default();
        *score = score.max(call::score(class));
    }
    let mut best: Vec<(&str, f64)> = best.into_iter().collect();
    best.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(other.0)));
    let label = |(name, confidence): (&str, f64)| json!({ "name": name, "source": "image", "confidence": confidence });
    let model = results.first().and_then(|result| result.model.as_ref());
    json!({
        "id": id,
        "code": 200,
        "model": model.map(|model| json!({ "type": "labels", "name": model.name, "version": model.version })),
        "result": { "labels": best.into_iter().map(label).collect::<Vec<_>>() },
    })
}

pub(super) fn refusal(id: &str, problem: Problem) -> Response {
    let body = json!({ "id": id, "code": problem.status.as_u16(), "error": problem.detail }).to_string();
    call::refusal(problem, "application/json", body)
}
