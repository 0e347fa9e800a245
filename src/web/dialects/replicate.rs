//! Predictions of Replicate: `POST /v1/predictions` with a data URL in `input.image`, `Prefer: wait`, and
//! `GET /v1/predictions/{id}` and `POST /v1/predictions/{id}/cancel`. A prediction is a job, and has its id. Refusals are
//! problem documents, as Replicate's are.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{call, hugging_face, image, json};
use crate::protocol::{self, ClassifyResult, Status, cut_filename};
use crate::web::answer;
use crate::web::error::Problem;
use crate::web::jobs::{Classified, JobOptions, State as JobState};
use crate::web::site::Site;
use crate::web::upload::WholeBody;

/// How long a request waits that only says `Prefer: wait`, and the longest time that it may name.
const MAX_WAIT_SECONDS: u64 = 60;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/v1/predictions", post(create))
        .route("/v1/predictions/{id}", get(show))
        .route("/v1/predictions/{id}/cancel", post(cancel))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    version: Option<String>,
    #[serde(borrow)]
    input: Input<'a>,
    stream: Option<bool>,
    webhook: Option<IgnoredAny>,
    webhook_completed: Option<IgnoredAny>,
    #[expect(dead_code, reason = "it only says something about a webhook")]
    webhook_events_filter: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input<'a> {
    #[serde(borrow)]
    image: Cow<'a, str>,
    top_k: Option<i64>,
}

async fn create(State(site): State<Arc<Site>>, request: Request) -> Result<Response, Problem> {
    let mut options = call::options(&site, &request, None)?;
    let wait = wait(request.headers())?;
    let host = host(request.headers());
    let request = site.jobs.admission.check_request(request, wait).await?;
    let body = WholeBody::receive(request, &site.uploads, call::max_body_bytes(&site)).await?;
    let memory = json::reserve(&body.bytes, &site.uploads)?;
    let call: Call<'_> = json::parse(&body.bytes)?;
    call.check()?;
    if let Some(version) = &call.version {
        choose(&site, &mut options, version).await?;
    }
    call::set_top_k(&mut options, "input.top_k", call.input.top_k)?;
    let upload = image::decode(&call.input.image, &site.uploads)?;
    drop(call);
    drop((memory, body));
    let model = options.model.clone();
    if wait.is_zero() {
        let id = site.jobs.submit(upload, options).await?;
        return Ok(call::json(StatusCode::CREATED, &starting(id, model.as_deref(), &host)));
    }
    let Classified { id, result } = site.jobs.classify(upload, options, wait).await?;
    Ok(match result {
        Some(text) => call::json(StatusCode::CREATED, &ended(&answer::parse(&text)?, &host)),
        None => call::json(StatusCode::ACCEPTED, &starting(id, model.as_deref(), &host)),
    })
}

impl Call<'_> {
    fn check(&self) -> Result<(), Problem> {
        let unsupported = [
            ("webhook", self.webhook.is_some()),
            ("webhook_completed", self.webhook_completed.is_some()),
            ("stream", self.stream == Some(true)),
        ];
        match unsupported.iter().find(|(_, is_used)| *is_used) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Problem::malformed(format!("{name} is not supported; get the prediction by its id")))
            }
        }
    }
}

/// Chooses the model of a version: `NAME`, `OWNER/NAME`, or either with `:VERSION`. The owner is ignored.
async fn choose(site: &Site, options: &mut JobOptions, text: &str) -> Result<(), Problem> {
    let (name, version) = text.split_once(':').map_or((text, None), |(name, version)| (name, Some(version)));
    let name = name.rsplit('/').next().unwrap_or(name);
    options.model = site.models.choose(Some(name), None)?;
    match version {
        Some(version) => call::check_version(site, name, version).await,
        None => Ok(()),
    }
}

/// Returns how long the client wants to wait for the prediction; zero without the preference.
fn wait(headers: &HeaderMap) -> Result<Duration, Problem> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    for preference in values.flat_map(|value| value.split([',', ';'])) {
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        if !name.trim().eq_ignore_ascii_case("wait") {
            continue;
        }
        let value = value.trim().trim_matches('"');
        let seconds = if value.is_empty() { Some(MAX_WAIT_SECONDS) } else { value.parse().ok() };
        return seconds.filter(|seconds| (1..=MAX_WAIT_SECONDS).contains(seconds)).map(Duration::from_secs).ok_or_else(
            || {
                let value = cut_filename(value);
                Problem::malformed(format!("Prefer says wait={value:?}, and not 1 to {MAX_WAIT_SECONDS} seconds"))
            },
        );
    }
    Ok(Duration::ZERO)
}

async fn show(
    State(site): State<Arc<Site>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = job_id(path)?;
    let state = site.jobs.state(id, Duration::ZERO).await?;
    Ok(call::json(StatusCode::OK, &prediction(id, state, &host(&headers))?))
}

/// Cancels a prediction that waits. One that has ended stays as it is.
async fn cancel(
    State(site): State<Arc<Site>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = job_id(path)?;
    let mut state = site.jobs.state(id, Duration::ZERO).await?;
    if state == JobState::Queued {
        site.jobs.remove(id).await?;
        state = JobState::Removed;
    }
    Ok(call::json(StatusCode::OK, &prediction(id, state, &host(&headers))?))
}

fn job_id(path: Result<Path<String>, PathRejection>) -> Result<Uuid, Problem> {
    let text = call::path(path)?;
    text.parse().map_err(|_| Problem::no_such_job(&text))
}

/// The prediction of a job in this state.
fn prediction(id: Uuid, state: JobState, host: &str) -> Result<Value, Problem> {
    match state {
        JobState::Unknown => Err(Problem::no_such_job(&id.to_string())),
        JobState::Queued => Ok(starting(id, None, host)),
        JobState::Removed => {
            let mut prediction = starting(id, None, host);
            prediction["status"] = json!("canceled");
            Ok(prediction)
        }
        JobState::Final(text) => Ok(ended(&answer::parse(&text)?, host)),
    }
}

/// The address of this server as the client knows it, for the addresses in a prediction.
fn host(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme =
        if text(header::HeaderName::from_static("x-forwarded-proto")) == Some("https") { "https" } else { "http" };
    text(header::HOST).map(|host| format!("{scheme}://{host}")).unwrap_or_default()
}

fn starting(id: Uuid, model: Option<&str>, host: &str) -> Value {
    json!({
        "id": id,
        "model": model.unwrap_or_default(),
        "version": "hidden",
        "input": {},
        "output": null,
        "logs": "",
        "error": null,
        "status": "starting",
        "created_at": protocol::submitted_at(id),
        "started_at": null,
        "completed_at": null,
        "metrics": {},
        "urls": {
            "get": format!("{host}/v1/predictions/{id}"),
            "cancel": format!("{host}/v1/predictions/{id}/cancel"),
        },
    })
}

fn ended(result: &ClassifyResult, host: &str) -> Value {
    let model = result.model.as_ref();
    let mut prediction = starting(result.id, model.map(|model| model.name.as_str()), host);
    if let Some(model) = model {
        prediction["version"] = json!(model.version);
    }
    let created_at = protocol::submitted_at(result.id);
    let after = |millis: f64| {
        let micros = (millis.max(0.0) * 1e3) as i64;
        created_at.and_then(|at| Timestamp::from_microsecond(at.as_microsecond().saturating_add(micros)).ok())
    };
    let timings = &result.timings_ms;
    prediction["started_at"] = json!(after(timings.queued));
    prediction["completed_at"] = json!(after(timings.total));
    prediction["metrics"] = json!({ "predict_time": (timings.total - timings.queued).max(0.0) / 1e3 });
    if result.status == Status::Succeeded {
        prediction["status"] = json!("succeeded");
        prediction["output"] = json!(hugging_face::scored(&result.predictions));
    } else {
        prediction["status"] = json!("failed");
        prediction["error"] = json!(Problem::of_result(result).detail);
    }
    prediction
}
