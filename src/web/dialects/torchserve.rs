//! TorchServe: `POST /predictions/{name}` with an image as the body or in the field `data` of a form. The answer is an
//! object of labels and scores, the best first. `GET /ping` tells whether the service is ready.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::json;

use super::call;
use crate::model::Prediction;
use crate::web::error::Problem;
use crate::web::site::Site;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/predictions/{name}", post(predict).put(predict))
        .route("/predictions/{name}/{version}", post(predict_version).put(predict_version))
        .route("/ping", get(ping))
        .method_not_allowed_fallback(|| async { refusal(Problem::method_not_allowed()) })
}

async fn predict(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let answer = async { answer(&site, &call::path(name)?, request).await };
    answer.await.unwrap_or_else(refusal)
}

async fn predict_version(
    State(site): State<Arc<Site>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    let answer = async {
        let Path((name, version)) = path.map_err(|_| Problem::malformed("the name in the address is not UTF-8"))?;
        call::check_version(&site, &name, &version).await?;
        answer(&site, &name, request).await
    };
    answer.await.unwrap_or_else(refusal)
}

async fn answer(site: &Site, model: &str, request: Request) -> Result<Response, Problem> {
    let mut options = call::options(site, &request, Some(model))?;
    let request = site.jobs.admission.check_request(request, site.sync_timeout).await?;
    let upload = site.receive(request, &mut options).await?;
    let result = call::classify(site, upload, options).await?;
    Ok(call::json(StatusCode::OK, &Scores(&result.predictions)))
}

/// `GET /ping`, which SageMaker also asks its containers.
async fn ping(State(site): State<Arc<Site>>) -> Response {
    match site.readiness.check().await {
        Ok(()) => call::json(StatusCode::OK, &json!({ "status": "Healthy" })),
        Err(_) => call::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "Unhealthy" })),
    }
}

/// The classes as an object in their order. Of two classes with the same label, which an object cannot have, the better
/// one is kept.
struct Scores<'a>(&'a [Prediction]);

impl Serialize for Scores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut seen = HashSet::new();
        for class in self.0.iter().filter(|class| seen.insert(&class.label)) {
            map.serialize_entry(&class.label, &call::score(class))?;
        }
        map.end()
    }
}

pub(super) fn refusal(problem: Problem) -> Response {
    let kind = match problem.status {
        StatusCode::NOT_FOUND => "ModelNotFoundException",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedException",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLargeException",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "ServiceUnavailableException",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "InvalidKeyException",
        status if status.is_server_error() => "InternalServerException",
        _ => "BadRequestException",
    };
    let body = json!({ "code": problem.status.as_u16(), "type": kind, "message": problem.detail }).to_string();
    call::refusal(problem, "application/json", body)
}
