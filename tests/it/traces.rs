//! One trace from the HTTP request through the message to the worker's spans and log lines. The collector is a server
//! that accepts OTLP in JSON.

use std::collections::BTreeSet;
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
fn metrics_go_where_traces_go_and_lead_to_them() {
    let collector = Collector::start();
    let mut environment = exporting_to(collector.address);
    environment.push(("OTEL_METRIC_EXPORT_INTERVAL".to_owned(), "100".to_owned()));
    environment.push(("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), "x-tenant=one%20two".to_owned()));
    let service = Service::start_on(&["--backend", "local"], environment, 1, &[], &[]);
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", traceparent.as_str())];
    let answer = service.request("POST", "/v1/classify", &headers, &test_image("cat.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());

    let points = |name: &str| -> Vec<Value> {
        let metrics = collector.metrics();
        let found = metrics.iter().rfind(|metric| metric["name"] == name);
        let data = found.map(|metric| ["sum", "gauge", "histogram"].map(|kind| metric[kind]["dataPoints"].clone()));
        data.into_iter().flatten().filter_map(|points| points.as_array().cloned()).flatten().collect()
    };
    let has = |point: &Value, value: &str| point["attributes"].to_string().contains(value);
    let request = until("the metric of the request", || {
        points("imgcls_web_request_seconds").into_iter().find(|point| has(point, "/v1/classify"))
    });
    assert_eq!(request["count"], "1");
    assert!(request["sum"].as_f64().unwrap() > 0.0);
    let counts: u64 = request["bucketCounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|count| count.as_str().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(counts, 1);
    assert_eq!(
        request["bucketCounts"].as_array().unwrap().len(),
        1 + request["explicitBounds"].as_array().unwrap().len()
    );
    assert_eq!(request["exemplars"][0]["traceId"], TRACE);
    let stage = until("the metric of a stage", || {
        points("imgcls_worker_stage_seconds").into_iter().find(|point| has(point, "inferred") && point["count"] == "1")
    });
    assert_eq!(stage["exemplars"][0]["traceId"], TRACE);
    let accepted = points("imgcls_web_accepted_total");
    assert_eq!(accepted[0]["asDouble"], 1.0);
    let resident = points("process_resident_memory_bytes");
    assert!(resident[0]["asDouble"].as_f64().unwrap() > 1e6);
    assert!(collector.tenants().iter().all(|tenant| tenant == "one two"));
    let instances = collector.attribute_of_resources("service.instance.id");
    assert_eq!(instances.len(), 2, "one for each process: {instances:?}");
}

#[test]
fn metrics_are_not_exported_if_that_is_switched_off() {
    let collector = Collector::start();
    let mut environment = exporting_to(collector.address);
    environment.push(("OTEL_METRICS_EXPORTER".to_owned(), "none".to_owned()));
    environment.push(("OTEL_METRIC_EXPORT_INTERVAL".to_owned(), "50".to_owned()));
    let mut service = Service::start_on(&["--backend", "local"], environment, 1, &[], &[]);
    let answer = service.request("POST", "/v1/classify", &[], &test_image("cat.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    service.web.signal("TERM");
    assert_eq!(service.web.wait(), Some(0), "{}", service.web.log());
    until("spans", || (!collector.resource_spans().is_empty()).then_some(()));
    assert_eq!(collector.metrics(), Vec::<Value>::new());
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
    Service::start_on(&["--backend", "local"], exporting_to(address), 1, &[], &[])
}

fn exporting_to(address: SocketAddr) -> Vec<(String, String)> {
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), "http/json".to_owned()),
    ];
    environment.to_vec()
}

/// Accepts every export.
struct Collector {
    address: SocketAddr,
    exports: Arc<Mutex<Vec<Value>>>,
    /// The header of each request that one variable sets.
    tenants: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start() -> Collector {
        let exports = Arc::<Mutex<Vec<Value>>>::default();
        let received = Arc::clone(&exports);
        let tenants = Arc::<Mutex<Vec<String>>>::default();
        let tenants_received = Arc::clone(&tenants);
        let address = serve(move |request| {
            let path = request.path.as_str();
            assert!(["/v1/traces", "/v1/metrics"].contains(&path), "{path}");
            tenants_received.lock().unwrap().extend(request.header("x-tenant").map(str::to_owned));
            received.lock().unwrap().push(serde_json::from_slice(&request.body).unwrap());
            Answer::text(200, "application/json", "{}")
        });
        Collector { address, exports, tenants }
    }

    fn resource_spans(&self) -> Vec<Value> {
        let exports = self.exports.lock().unwrap();
        exports.iter().filter_map(|export| export["resourceSpans"].as_array().cloned()).flatten().collect()
    }

    fn resource_metrics(&self) -> Vec<Value> {
        let exports = self.exports.lock().unwrap();
        exports.iter().filter_map(|export| export["resourceMetrics"].as_array().cloned()).flatten().collect()
    }

    /// The metrics of all exports, the newest last.
    fn metrics(&self) -> Vec<Value> {
        let scopes = self
            .resource_metrics()
            .into_iter()
            .flat_map(|resource| resource["scopeMetrics"].as_array().unwrap().clone());
        scopes.flat_map(|scope| scope["metrics"].as_array().unwrap().clone()).collect()
    }

    fn tenants(&self) -> Vec<String> {
        self.tenants.lock().unwrap().clone()
    }

    /// The values of an attribute of those whose metrics were exported.
    fn attribute_of_resources(&self, name: &str) -> BTreeSet<String> {
        let resources = self.resource_metrics();
        let attributes = resources.iter().flat_map(|resource| resource["resource"]["attributes"].as_array().unwrap());
        let values = attributes.filter(|attribute| attribute["key"] == name);
        values.map(|attribute| attribute["value"]["stringValue"].as_str().unwrap().to_owned()).collect()
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
