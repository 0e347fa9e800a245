//! `GET /v1/fleet`: the queue, the workers and the last answers, for operators and for the page.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::admission::ServiceState;
use super::answer::json_of;
use super::site::Site;

/// The answer. What this process cannot know is `null`.
#[derive(Serialize)]
struct FleetState {
    queue: Queue,
    workers: Workers,
    expected_wait_seconds: Option<f64>,
    /// The answers to jobs of this process in the last minute.
    recent: Recent,
    /// The cost of 1,000 images, by the machines and the answers of the last minute.
    cost: Option<Cost>,
}

#[derive(Serialize)]
struct Cost {
    per_thousand: f64,
    currency: String,
}

#[derive(Serialize)]
struct Queue {
    waiting: u64,
    in_flight: u64,
}

#[derive(Serialize)]
struct Workers {
    /// Only the workers of `up` are known.
    ready: Option<usize>,
}

#[derive(Serialize)]
struct Recent {
    images_per_second: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// Reads the state of the service.
pub(super) async fn fleet(Shared(site): Shared<Arc<Site>>) -> Response {
    let ServiceState { waiting, in_flight, workers, expected_wait, recent } = site.jobs.admission.service_state().await;
    let hours = recent.machine_hours_per_thousand;
    let cost = site.machine_hour.as_ref().zip(hours).map(|(hour, hours)| Cost {
        per_thousand: (hour.price * hours * 1e6).round() / 1e6,
        currency: hour.currency.clone(),
    });
    let rounded = |number: f64| (number * 10.0).round() / 10.0;
    let state = FleetState {
        queue: Queue { waiting, in_flight },
        workers: Workers { ready: workers },
        expected_wait_seconds: expected_wait.map(|wait| rounded(wait.as_secs_f64())),
        recent: Recent {
            images_per_second: rounded(recent.images_per_second),
            p50_ms: recent.p50_ms.map(rounded),
            p99_ms: recent.p99_ms.map(rounded),
        },
        cost,
    };
    json_of(StatusCode::OK, &state)
}
