//! One trace from the HTTP request through the message to the worker's spans and log lines. The collector is a server
//! that accepts OTLP in JSON.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::{Service, test_image, until};
use crate::http_server::{Answer, serve};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[test]
fn request_and_its_job_belong_to_one_trace() {
    let collector = Collector::start();
    let mut service = traced_service(&collector);
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", traceparent.as_str())];
    let answer = service.request("POST", "/v1/classify", &headers, &test_image("cat.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    // The last spans are sent while the tiers drain.
    for tier in [&mut service.web, &mut service.workers[0]] {
        tier.signal("TERM");
        assert_eq!(tier.wait(), Some(0), "{}", tier.log());
    }
    let spans = collector.spans();
    let named = |name: &str| {
        let found = spans.iter().find(|span| span["name"] == name);
        found.unwrap_or_else(|| panic!("no span {name:?} in {spans:#?}"))
    };
    let (request, job) = (named("POST /v1/classify"), named("classify"));
    assert_eq!(request["parentSpanId"], CALLER);
    assert_eq!(job["parentSpanId"], request["spanId"]);
    for stage in ["fetched", "decoded", "inferred", "published"] {
        assert_eq!(named(stage)["parentSpanId"], job["spanId"], "{stage}");
    }
    assert!(spans.iter().all(|span| span["traceId"] == TRACE), "{spans:#?}");
    let attributes = job["attributes"].to_string();
    assert!(attributes.contains(&id) && attributes.contains("imgcls.attempt"), "{attributes}");
    let mut services = collector.services();
    services.dedup();
    services.sort();
    assert_eq!(services, ["imgcls-web", "imgcls-worker"]);
}

#[test]
fn log_line_of_a_job_names_its_trace_without_a_collector() {
    let service = Service::start(1, &[], &[]);
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", traceparent.as_str())];
    let mut broken = test_image("cat.jpg");
    broken.truncate(broken.len() / 4);
    let answer = service.request("POST", "/v1/classify", &headers, &broken);
    assert_eq!(answer.status, 422, "{}", answer.text());
    service.workers[0].wait_for_log(&format!("trace_id={TRACE}"));
}

#[test]
fn missing_collector_costs_no_answer() {
    let unused_address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut service = service_exporting_to(unused_address);
    let answer = service.request("POST", "/v1/classify", &[], &test_image("cat.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    service.web.signal("TERM");
    assert_eq!(service.web.wait(), Some(0), "{}", service.web.log());
}

#[test]
fn unsupported_otlp_protocol_is_refused_at_start() {
    let output = crate::harness::imgcls()
        .args(["worker", "--data-dir", "/nonexistent"])
        .envs([("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.lines().last().is_some_and(|line| line.contains("grpc") && line.contains("http/protobuf")),
        "{stderr}"
    );
}

fn traced_service(collector: &Collector) -> Service {
    service_exporting_to(collector.address)
}

fn service_exporting_to(address: SocketAddr) -> Service {
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), "http/json".to_owned()),
    ];
    Service::start_on(&["--backend", "local"], environment.to_vec(), 1, &[], &[])
}

/// Accepts every export.
struct Collector {
    address: SocketAddr,
    exports: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Collector {
        let exports = Arc::<Mutex<Vec<Value>>>::default();
        let received = Arc::clone(&exports);
        let address = serve(move |request| {
            received.lock().unwrap().push(serde_json::from_slice(&request.body).unwrap());
            Answer::text(200, "application/json", "{}")
        });
        Collector { address, exports }
    }

    fn resource_spans(&self) -> Vec<Value> {
        let exports = self.exports.lock().unwrap();
        exports.iter().flat_map(|export| export["resourceSpans"].as_array().unwrap().clone()).collect()
    }

    fn spans(&self) -> Vec<Value> {
        until("spans of both tiers", || (self.services().len() >= 2).then_some(()));
        let scopes =
            self.resource_spans().into_iter().flat_map(|resource| resource["scopeSpans"].as_array().unwrap().clone());
        scopes.flat_map(|scope| scope["spans"].as_array().unwrap().clone()).collect()
    }

    fn services(&self) -> Vec<String> {
        let attributes = self
            .resource_spans()
            .into_iter()
            .flat_map(|resource| resource["resource"]["attributes"].as_array().unwrap().clone());
        let names = attributes.filter(|attribute| attribute["key"] == "service.name");
        names.map(|name| name["value"]["stringValue"].as_str().unwrap().to_owned()).collect()
    }
}
