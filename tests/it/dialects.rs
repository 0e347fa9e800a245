//! The addresses and formats of other servers (`docs/clients.md`): over sockets, and with the real clients at pinned
//! versions (`tests/clients/`). Every answer is compared with that of the service's own address.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::{Response, Service, form, label_of, metric, test_image};

const MODEL: &str = "efficientnet-lite0";
const IMAGE: &str = "cup.jpg";
/// An image without loss, so that its pixels can be sent, too.
const LOSSLESS: &str = "rgb.png";
const REKOGNITION: (&str, &str) = ("X-Amz-Target", "RekognitionService.DetectLabels");

/// The classes that the service's own address returns.
fn classes(service: &Service, image: &[u8], top_k: usize) -> Vec<Value> {
    let response = service.request("POST", &format!("/v1/classify?top_k={top_k}"), &[], image);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["predictions"].as_array().unwrap().clone()
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn post(service: &Service, path: &str, body: &Value) -> Response {
    service.request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

fn ok(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn scored(classes: &[Value]) -> Vec<Value> {
    classes.iter().map(|class| json!({"label": class["label"], "score": class["score"]})).collect()
}

/// A request with one binary tensor, as Triton's client writes it.
fn binary(service: &Service, mut request: Value, tensor: &[u8]) -> Response {
    request["inputs"][0]["parameters"] = json!({"binary_data_size": tensor.len()});
    let head = request.to_string();
    let length = head.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    service.request("POST", &format!("/v2/models/{MODEL}/infer"), &headers, &[head.as_bytes(), tensor].concat())
}

/// The tensor of an image file: its length and its bytes.
fn element(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

#[test]
fn every_dialect_gives_the_answer_of_the_service() {
    let service = Service::start(1, &[], &[]);
    let image = test_image(IMAGE);
    let encoded = base64(&image);
    let data_url = format!("data:image/jpeg;base64,{encoded}");
    let classes = classes(&service, &image, 5);
    let expected = scored(&classes);

    // Hugging Face
    let path = format!("/models/{MODEL}");
    assert_eq!(ok(&service.request("POST", &path, &[("Content-Type", "image/jpeg")], &image)), json!(expected));
    assert_eq!(ok(&post(&service, &path, &json!({"inputs": encoded}))), json!(expected));
    let options = json!({"inputs": data_url, "parameters": {"top_k": 2}, "options": {"wait_for_model": true}});
    assert_eq!(ok(&post(&service, &path, &options)), json!(expected[..2]));
    let agent = [("User-Agent", "unknown/None; hf_hub/1.2.3; python/3.11")];
    assert_eq!(ok(&service.request("POST", "/", &agent, &image)), json!(expected));

    // KServe's first protocol
    let path = format!("/v1/models/{MODEL}:predict");
    let instances = json!([{"b64": encoded}, {"image_bytes": {"b64": encoded}}]);
    assert_eq!(
        ok(&post(&service, &path, &json!({"instances": instances}))),
        json!({"predictions": [expected, expected]})
    );
    let shown = ok(&service.request("GET", &format!("/v1/models/{MODEL}"), &[], b""));
    assert_eq!((&shown["name"], &shown["ready"]), (&json!(MODEL), &json!(true)));

    // TorchServe
    let (content_type, body) = form("data", "cup.jpg", &image);
    let path = format!("/predictions/{MODEL}");
    for response in [
        service.request("POST", &path, &[], &image),
        service.request("PUT", &path, &[], &image),
        service.request("POST", &format!("{path}/1"), &[("Content-Type", &content_type)], &body),
    ] {
        let scores = ok(&response);
        assert_eq!(scores.as_object().unwrap().len(), 5);
        assert!(classes.iter().all(|class| scores[class["label"].as_str().unwrap()] == class["score"]), "{scores}");
        let first = format!("{{{}:", classes[0]["label"]);
        assert!(response.text().starts_with(&first), "the best is not the first: {}", response.text());
    }
    assert_eq!(ok(&service.request("GET", "/ping", &[], b"")), json!({"status": "Healthy"}));

    // SageMaker, from a client and from SageMaker itself
    for path in [format!("/endpoints/{MODEL}/invocations"), "/invocations".to_owned()] {
        assert_eq!(ok(&service.request("POST", &path, &[("Content-Type", "image/jpeg")], &image)), json!(expected));
    }

    // Rekognition
    let call = json!({"Image": {"Bytes": encoded}, "MaxLabels": 2, "MinConfidence": 0});
    let response = service.request("POST", "/", &[REKOGNITION], call.to_string().as_bytes());
    assert_eq!(response.header("content-type"), Some("application/x-amz-json-1.1"));
    assert!(response.header("x-amzn-requestid").is_some());
    let labels = ok(&response);
    assert_eq!(labels["Labels"].as_array().unwrap().len(), 2);
    assert_eq!(labels["Labels"][0]["Name"], classes[0]["label"]);
    assert_eq!(labels["LabelModelVersion"], "efficientnet-lite0@1");

    // PhotoPrism, with every member that it sends
    let call =
        json!({"id": "one", "images": [data_url], "model": "", "version": "latest", "suffix": "", "stream": false});
    let answer = ok(&post(&service, "/api/v1/vision/labels", &call));
    assert_eq!((&answer["id"], &answer["code"]), (&json!("one"), &json!(200)));
    assert_eq!(answer["model"], json!({"type": "labels", "name": MODEL, "version": "1"}));
    let labels: Vec<Value> = classes
        .iter()
        .map(|class| json!({"name": class["label"], "source": "image", "confidence": class["score"]}))
        .collect();
    assert_eq!(answer["result"], json!({"labels": labels}));

    // A sibling of the legacy system, and the legacy system
    let (content_type, body) = form("inputFile", "test_00.jpg", &image);
    let response = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
    assert_eq!(response.text(), format!("test_00:{}", classes[0]["label"].as_str().unwrap()));
    let (content_type, body) = form("myfile", "test_00.jpg", &image);
    let response = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
    assert_eq!(response.text(), classes[0]["label"].as_str().unwrap());
}

#[test]
fn labels_of_several_crops_are_one_list_with_the_best_confidence() {
    let service = Service::start(1, &[], &[]);
    let images = [IMAGE, "cat.jpg"].map(test_image);
    let both: Vec<Value> = images.iter().flat_map(|image| classes(&service, image, 5)).collect();
    let urls = images.map(|image| format!("data:image/jpeg;base64,{}", base64(&image)));
    let answer = ok(&post(&service, "/api/v1/vision/labels", &json!({"images": urls})));
    let labels = answer["result"]["labels"].as_array().unwrap();
    let confidences: Vec<f64> = labels.iter().map(|label| label["confidence"].as_f64().unwrap()).collect();
    assert!(confidences.is_sorted_by(|one, other| one >= other), "{confidences:?}");
    for class in &both {
        let found = labels.iter().find(|label| label["name"] == class["label"]).unwrap();
        assert!(found["confidence"].as_f64() >= class["score"].as_f64(), "{found} {class}");
    }
}

#[test]
fn open_inference_takes_files_and_pixels_in_json_and_binary() {
    let service = Service::start(1, &[], &[]);
    let (first, second) = (test_image(IMAGE), test_image(LOSSLESS));
    let path = format!("/v2/models/{MODEL}/infer");
    let expected = [classes(&service, &first, 2), classes(&service, &second, 2)];
    let rows = |name: &str| -> Vec<Value> { expected.iter().flatten().map(|class| class[name].clone()).collect() };
    let files = json!({
        "id": "7",
        "parameters": {"top_k": 2},
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [base64(&first), base64(&second)]}],
    });
    let answer = ok(&post(&service, &path, &files));
    assert_eq!(
        (&answer["id"], &answer["model_name"], &answer["model_version"]),
        (&json!("7"), &json!(MODEL), &json!("1"))
    );
    let output = |name: &str, datatype: &str, data: &str| json!({"name": name, "datatype": datatype, "shape": [2, 2], "data": rows(data)});
    let outputs = [
        output("labels", "BYTES", "label"),
        output("scores", "FP32", "score"),
        output("indices", "INT64", "class_index"),
    ];
    assert_eq!(answer["outputs"], json!(outputs));

    // The same files as binary elements.
    let mut request = files.clone();
    request["inputs"][0].as_object_mut().unwrap().remove("data");
    let both = [element(&first), element(&second)].concat();
    assert_eq!(ok(&binary(&service, request, &both))["outputs"], json!(outputs));

    // The pixels of the second one, which give exactly its answer.
    let decoded = image::load_from_memory(&second).unwrap().into_rgb8();
    let (width, height) = decoded.dimensions();
    let pixels = decoded.into_raw();
    let shape = json!([height, width, 3]);
    let request = json!({
        "parameters": {"top_k": 2},
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": shape}],
        "outputs": [{"name": "scores"}],
    });
    let scores = expected[1].iter().map(|class| class["score"].clone()).collect::<Vec<_>>();
    assert_eq!(ok(&binary(&service, request.clone(), &pixels))["outputs"][0]["data"], json!(scores));
    let mut in_json = request;
    in_json["inputs"][0]["data"] = json!(pixels.chunks(width as usize * 3).collect::<Vec<_>>());
    assert_eq!(ok(&post(&service, &path, &in_json))["outputs"][0]["data"], json!(scores));

    // Outputs in binary after the JSON, and the classification extension.
    let mut request = files;
    request["outputs"] = json!([
        {"name": "scores", "parameters": {"classification": 1, "binary_data": true}},
        {"name": "indices", "parameters": {"binary_data": false}},
    ]);
    let response = post(&service, &path, &request);
    assert_eq!(response.header("content-type"), Some("application/octet-stream"));
    let length: usize = response.header("inference-header-content-length").unwrap().parse().unwrap();
    let head: Value = serde_json::from_slice(&response.body[..length]).unwrap();
    let text =
        |class: &Value| format!("{}:{}:{}", class["score"], class["class_index"], class["label"].as_str().unwrap());
    let elements: Vec<u8> = expected.iter().flat_map(|image| element(text(&image[0]).as_bytes())).collect();
    assert_eq!(&response.body[length..], elements, "{}", response.text());
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], elements.len());
    assert_eq!(head["outputs"][1]["data"], json!(rows("class_index")));
}

#[test]
fn open_inference_describes_server_and_models() {
    let service = Service::start(0, &[], &[]);
    let get = |path: &str| service.request("GET", path, &[], b"");
    let server = ok(&get("/v2"));
    assert_eq!((&server["name"], &server["version"]), (&json!("imgcls"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(ok(&get("/v2/health/live")), json!({"live": true}));
    assert_eq!(ok(&get("/v2/health/ready")), json!({"ready": true}));
    for path in [format!("/v2/models/{MODEL}"), format!("/v2/models/{MODEL}/versions/1")] {
        let model = ok(&get(&path));
        assert_eq!((&model["name"], &model["versions"]), (&json!(MODEL), &json!(["1"])));
        assert_eq!(model["inputs"][0], json!({"name": "image", "datatype": "BYTES", "shape": [-1]}));
        assert_eq!(ok(&get(&format!("{path}/ready")))["ready"], true);
    }
    for path in
        ["/v2/models/other", "/v2/models/other/ready", "/v2/nothing", "/v2/models/efficientnet-lite0/versions/2"]
    {
        let response = get(path);
        assert_eq!(response.status, 404, "{path}");
        assert!(response.json()["error"].is_string(), "{}", response.text());
    }
    let wrong_method = service.request("DELETE", "/v2/health/live", &[], b"");
    assert_eq!(wrong_method.status, 405);
    assert!(wrong_method.header("allow").is_some() && wrong_method.json()["error"].is_string());
}

#[test]
fn predictions_of_replicate_are_jobs() {
    let service = Service::start(1, &[], &[]);
    let image = test_image(IMAGE);
    let expected = scored(&classes(&service, &image, 3));
    let call =
        json!({"version": MODEL, "input": {"image": format!("data:image/jpeg;base64,{}", base64(&image)), "top_k": 3}});
    let waiting = service.request("POST", "/v1/predictions", &[("Prefer", "wait")], call.to_string().as_bytes());
    assert_eq!(waiting.status, 201, "{}", waiting.text());
    let prediction = waiting.json();
    assert_eq!((&prediction["status"], &prediction["output"]), (&json!("succeeded"), &json!(expected)));
    assert_eq!((&prediction["model"], &prediction["version"]), (&json!(MODEL), &json!("1")));

    let started = post(&service, "/v1/predictions", &call);
    assert_eq!((started.status, &started.json()["status"]), (201, &json!("starting")));
    let started = started.json();
    let id = started["id"].as_str().unwrap();
    service.finished(id);
    let get = started["urls"]["get"].as_str().unwrap();
    assert_eq!(get, format!("http://{}/v1/predictions/{id}", service.address));
    let shown = ok(&service.request("GET", &format!("/v1/predictions/{id}"), &[], b""));
    assert_eq!(
        (&shown["status"], &shown["output"], &shown["error"]),
        (&json!("succeeded"), &json!(expected), &Value::Null)
    );

    let broken = json!({"input": {"image": base64(&image[..200])}});
    let failed = service.request("POST", "/v1/predictions", &[("Prefer", "wait=60")], broken.to_string().as_bytes());
    assert_eq!((failed.status, &failed.json()["status"]), (201, &json!("failed")), "{}", failed.text());
    assert!(failed.json()["error"].is_string() && failed.json()["output"].is_null());
    for id in ["nothing", "01890000-0000-7000-8000-000000000000"] {
        assert_eq!(service.request("GET", &format!("/v1/predictions/{id}"), &[], b"").status, 404);
        assert_eq!(service.request("POST", &format!("/v1/predictions/{id}/cancel"), &[], b"").status, 404);
    }
    let ended = ok(&service.request("POST", &format!("/v1/predictions/{id}/cancel"), &[], b""));
    assert_eq!((&ended["status"], &ended["output"]), (&json!("succeeded"), &json!(expected)));
}

#[test]
fn prediction_of_replicate_is_cancelled_while_it_waits() {
    let service = Service::start(0, &[], &[]);
    let started = post(&service, "/v1/predictions", &json!({"input": {"image": base64(&test_image(IMAGE))}})).json();
    let id = started["id"].as_str().unwrap();
    let cancel = started["urls"]["cancel"].as_str().unwrap();
    assert_eq!(cancel, format!("http://{}/v1/predictions/{id}/cancel", service.address));
    for (method, path) in [
        ("POST", format!("/v1/predictions/{id}/cancel")),
        ("GET", format!("/v1/predictions/{id}")),
        ("POST", format!("/v1/predictions/{id}/cancel")),
    ] {
        let shown = ok(&service.request(method, &path, &[], b""));
        assert_eq!((&shown["id"], &shown["status"]), (&json!(id), &json!("canceled")), "{method} {path}");
    }
    assert_eq!(service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").status, 404);
}

/// The member of an answer in which each dialect says why it refuses.
fn reason(response: &Response) -> String {
    let body = response.json();
    let members = ["error", "message", "Message", "detail"].map(|name| body[name].as_str().map(str::to_owned));
    members.into_iter().flatten().next().unwrap_or_else(|| panic!("no reason: {body}"))
}

/// Bodies that no dialect with JSON takes, and what each refusal says.
fn bad_bodies() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (b"".to_vec(), ""),
        (b"{".to_vec(), "EOF"),
        (b"{}".to_vec(), ""),
        (b"[]".to_vec(), ""),
        (b"null".to_vec(), ""),
        (b"{\"unknown\": 1}".to_vec(), ""),
        (b"{\"\xff\": 1}".to_vec(), ""),
        (format!("{}{}", "[".repeat(200_000), "]".repeat(200_000)).into_bytes(), ""),
        (format!("{}1{}", "{\"inputs\":".repeat(100_000), "}".repeat(100_000)).into_bytes(), ""),
        (vec![b' '; 3_000_000], "1048576"),
    ]
}

#[test]
fn bad_input_is_the_fault_of_the_client_in_every_dialect() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let predict = format!("/v1/models/{MODEL}:predict");
    let infer = format!("/v2/models/{MODEL}/infer");
    let models = format!("/models/{MODEL}");
    let endpoint = format!("/endpoints/{MODEL}/invocations");
    let addresses: [(&str, &[(&str, &str)]); 8] = [
        (&models, &[]),
        ("/", &[("User-Agent", "hf_hub/1.0")]),
        (&predict, &[]),
        (&infer, &[]),
        ("/", &[REKOGNITION]),
        (&endpoint, &[]),
        ("/api/v1/vision/labels", &[]),
        ("/v1/predictions", &[]),
    ];
    for (path, headers) in addresses {
        for (body, says) in bad_bodies() {
            let response = service.request("POST", path, headers, &body);
            let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert!((400..500).contains(&response.status), "{path} {start}: {}", response.text());
            let reason = reason(&response);
            assert!(reason.len() < 1_000 && reason.contains(says), "{path} {start}: {reason}");
        }
        // The refusal of a head that is read before the body.
        let response = service.request("POST", path, &[headers, &[("Content-Encoding", "br")]].concat(), b"{}");
        assert!((400..500).contains(&response.status), "{path}: {}", response.text());
    }
    assert!(metric(service.address, "imgcls_web_accepted_total") < 0.5, "a refused image was accepted");
}

/// Requests whose members are wrong, and what each refusal says. `image` is one in base64.
fn bad_members(image: &str) -> Vec<(String, Value, &'static str)> {
    let predict = format!("/v1/models/{MODEL}:predict");
    let infer = format!("/v2/models/{MODEL}/infer");
    let models = format!("/models/{MODEL}");
    let input = |input: Value| json!({"inputs": [input]});
    let bytes =
        |shape: Value, data: Value| input(json!({"name": "image", "datatype": "BYTES", "shape": shape, "data": data}));
    let pixels =
        |shape: Value, data: Value| input(json!({"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}));
    let photo = "/api/v1/vision/labels";
    let replicate = "/v1/predictions";
    vec![
        (models.clone(), json!({"inputs": 5}), "invalid type"),
        (models.clone(), json!({"inputs": [image]}), "invalid type"),
        (models.clone(), json!({"inputs": ""}), "zero bytes"),
        (models.clone(), json!({"inputs": "%%%"}), "not base64"),
        (models.clone(), json!({"inputs": "http://127.0.0.1/cat.jpg"}), "by its address"),
        (models.clone(), json!({"inputs": "data:image/jpeg,abc"}), "base64"),
        (models.clone(), json!({"inputs": base64(b"text")}), "image type"),
        (models.clone(), json!({"inputs": image, "parameters": {"top_k": 0}}), "top_k is 0"),
        (models.clone(), json!({"inputs": image, "parameters": {"top_k": -1}}), "top_k is -1"),
        (models.clone(), json!({"inputs": image, "parameters": {"top_k": 1.5}}), "1.5"),
        (models.clone(), json!({"inputs": image, "parameters": {"top_k": 1_000_000_000_000_i64}}), "1000000000000"),
        (models.clone(), json!({"inputs": image, "parameters": {"top_k": "5"}}), "invalid type"),
        (models.clone(), json!({"inputs": image, "parameters": {"function_to_apply": "sigmoid"}}), "sigmoid"),
        (models.clone(), json!({"inputs": image, "parameters": {"candidate_labels": ["a"]}}), "candidate_labels"),
        (models.clone(), json!({"inputs": image, "options": {"other": 1}}), "other"),
        (models.clone(), json!({"inputs": "A".repeat(1_450_000)}), "1048576"),
        ("/models/no/such".to_owned(), json!({"inputs": image}), "choose one of"),
        (predict.clone(), json!({"instances": []}), "no image"),
        (predict.clone(), json!({"instances": [[0.5, 0.5]]}), "b64"),
        (predict.clone(), json!({"instances": [{"b64": image, "key": "1"}]}), "key"),
        (predict.clone(), json!({"instances": [{}]}), "without members"),
        (predict.clone(), json!({"instances": vec![json!({"b64": ""}); 33]}), "at most 32 items"),
        (predict.clone(), json!({"inputs": {"b64": image}}), "inputs"),
        (predict.clone(), json!({"instances": [{"b64": image}], "signature_name": "other"}), "other"),
        (predict.clone(), json!({"instances": [{"b64": image}, {"b64": "AAAA"}]}), "image 2 of 2"),
        ("/v1/models/other:predict".to_owned(), json!({"instances": [{"b64": image}]}), "choose one of"),
        ("/v1/models/efficientnet-lite0:explain".to_owned(), json!({"instances": [{"b64": image}]}), "explain"),
        (infer.clone(), input(json!({"name": "image", "datatype": "FP32", "shape": [1], "data": [0.5]})), "FP32"),
        (
            infer.clone(),
            input(json!({"name": "input", "datatype": "BYTES", "shape": [1], "data": [image]})),
            "no input",
        ),
        (infer.clone(), json!({"inputs": []}), "0 inputs"),
        (infer.clone(), bytes(json!([2]), json!([image])), "shape"),
        (infer.clone(), bytes(json!([0]), json!([])), "shape"),
        (infer.clone(), bytes(json!([-1]), json!([image])), "negative"),
        (infer.clone(), bytes(json!([33]), json!([image])), "32"),
        (infer.clone(), bytes(json!([1, 2]), json!([image, image])), "shape"),
        (infer.clone(), bytes(json!([1]), json!([7])), "base64"),
        (infer.clone(), bytes(json!([1]), json!([null])), "null"),
        (infer.clone(), bytes(json!([1]), json!({})), "list"),
        (infer.clone(), pixels(json!([1, 1, 3]), json!([0.5, 0, 0])), "whole numbers"),
        (infer.clone(), pixels(json!([1, 1, 3]), json!([256, 0, 0])), "whole numbers"),
        (infer.clone(), pixels(json!([1, 1, 3]), json!(["a"])), "whole numbers"),
        (infer.clone(), pixels(json!([1, 1, 3]), json!([1, 2])), "2 elements"),
        (infer.clone(), pixels(json!([0, 1, 3]), json!([])), "0 elements"),
        (infer.clone(), pixels(json!([4_294_967_296_i64, 4_294_967_296_i64, 3]), json!([1])), "shape"),
        (infer.clone(), pixels(json!([4_000_000_000_i64, 4_000_000_000_i64, 3]), json!([1])), "1 elements"),
        (infer.clone(), pixels(json!([1, 1, 4]), json!([1, 2, 3, 4])), "[height, width, 3]"),
        (photo.to_owned(), json!({"images": []}), "no image"),
        (photo.to_owned(), json!({"images": [image], "prompt": "describe"}), "prompt"),
        (photo.to_owned(), json!({"url": "http://127.0.0.1/cat.jpg"}), "url"),
        (photo.to_owned(), json!({"images": ["https://127.0.0.1/cat.jpg"]}), "by its address"),
        (photo.to_owned(), json!({"images": [image], "stream": true}), "stream"),
        (photo.to_owned(), json!({"images": [image], "model": "other"}), "choose one of"),
        (photo.to_owned(), json!({"images": [image], "version": "9"}), "without its model"),
        (photo.to_owned(), json!({"images": [image], "model": MODEL, "version": "9"}), "no version"),
        (replicate.to_owned(), json!({"input": {"image": image}, "version": "other"}), "choose one of"),
        (replicate.to_owned(), json!({"input": {"image": image}, "version": format!("x/{MODEL}:9")}), "no version"),
        (replicate.to_owned(), json!({"input": {"image": image, "prompt": "x"}}), "prompt"),
        (replicate.to_owned(), json!({"input": {"image": image}, "webhook": "https://127.0.0.1/"}), "webhook"),
        (replicate.to_owned(), json!({"input": {"image": image}, "stream": true}), "stream"),
        (replicate.to_owned(), json!({"input": {"image": "https://127.0.0.1/cat.jpg"}}), "by its address"),
    ]
}

#[test]
fn parameters_that_a_dialect_cannot_answer_are_refused_by_name() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    for (path, body, says) in bad_members(&base64(&test_image(IMAGE))) {
        let response = post(&service, &path, &body);
        let start: String = body.to_string().chars().take(120).collect();
        assert!((400..500).contains(&response.status), "{path} {start}: {}", response.text());
        let reason = reason(&response);
        assert!(reason.contains(says), "{path} {start}: {reason:?} does not say {says:?}");
    }
    assert!(metric(service.address, "imgcls_web_accepted_total") < 0.5, "a refused image was accepted");
}

#[test]
fn members_and_headers_that_are_given_twice_or_are_no_numbers_are_refused() {
    let service = Service::start(0, &[], &[]);
    let predict = format!("/v1/models/{MODEL}:predict");
    let infer = format!("/v2/models/{MODEL}/infer");
    let models = format!("/models/{MODEL}");
    let (photo, replicate) = ("/api/v1/vision/labels", "/v1/predictions");
    let image = base64(&test_image(IMAGE));
    // Members that are given twice.
    for (path, body) in [
        (&*models, format!("{{\"inputs\": \"{image}\", \"inputs\": \"{image}\"}}")),
        (&models, format!("{{\"inputs\": \"{image}\", \"parameters\": {{\"top_k\": 1, \"top_k\": 2}}}}")),
        (&predict, format!("{{\"instances\": [{{\"b64\": \"{image}\", \"b64\": \"{image}\"}}]}}")),
        (&infer, "{\"inputs\": [], \"inputs\": []}".to_owned()),
        (photo, "{\"images\": [], \"images\": []}".to_owned()),
        (replicate, format!("{{\"input\": {{\"image\": \"{image}\", \"image\": \"{image}\"}}}}")),
    ] {
        let response = service.request("POST", path, &[], body.as_bytes());
        assert!((400..500).contains(&response.status), "{path}: {}", response.text());
        let reason = reason(&response);
        assert!(reason.contains("duplicate") || reason.contains("b64\" and"), "{path}: {reason}");
    }

    // Parameters in headers.
    let call = json!({"input": {"image": image}}).to_string();
    for prefer in ["wait=0", "wait=61", "wait=abc", "wait=-1"] {
        let response = service.request("POST", replicate, &[("Prefer", prefer)], call.as_bytes());
        assert_eq!(response.status, 400, "{prefer}: {}", response.text());
    }
    for lengths in [&["1000000"][..], &["abc"], &["-1"], &["2", "2"]] {
        let headers: Vec<_> = lengths.iter().map(|length| ("Inference-Header-Content-Length", *length)).collect();
        let response = service.request("POST", &infer, &headers, b"{}");
        assert_eq!(response.status, 400, "{lengths:?}: {}", response.text());
        assert!(reason(&response).contains("inference-header-content-length"), "{lengths:?}: {}", response.text());
    }
    assert!(metric(service.address, "imgcls_web_accepted_total") < 0.5, "a refused image was accepted");
}

#[test]
fn binary_tensors_have_exactly_the_size_that_they_announce() {
    let service = Service::start(0, &[], &[]);
    let image = element(&test_image(IMAGE));
    let request = |shape: Value| json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": shape}]});
    for (tensor, says) in [
        (&b""[..], "elements with their lengths"),
        (&image[..3], "elements with their lengths"),
        (&image[..100], "elements with their lengths"),
        (&[255, 255, 255, 255, 0], "elements with their lengths"),
        (&[0, 0, 0, 0], "zero bytes"),
        (&[4, 0, 0, 0, b't', b'e', b'x', b't'], "image type"),
    ] {
        let response = binary(&service, request(json!([1])), tensor);
        assert!((400..500).contains(&response.status), "{tensor:?}: {}", response.text());
        assert!(reason(&response).contains(says), "{}", response.text());
    }
    assert!(reason(&binary(&service, request(json!([2])), &image)).contains("2 elements"));
    let response =
        service.request("POST", &format!("/v2/models/{MODEL}/infer"), &[], request(json!([1])).to_string().as_bytes());
    assert!(reason(&response).contains("neither data nor binary_data_size"), "{}", response.text());
}

#[test]
fn aws_calls_are_refused_with_the_names_of_aws() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let image = base64(&test_image(IMAGE));
    let call =
        |headers: &[(&str, &str)], body: &Value| service.request("POST", "/", headers, body.to_string().as_bytes());
    for (body, kind) in [
        (json!({"Image": {"S3Object": {"Bucket": "b", "Name": "n"}}}), "InvalidS3ObjectException"),
        (json!({"Image": {}}), "InvalidParameterException"),
        (json!({"Image": {"Bytes": image}, "MaxLabels": -1}), "InvalidParameterException"),
        (json!({"Image": {"Bytes": image}, "MinConfidence": 100.5}), "InvalidParameterException"),
        (json!({"Image": {"Bytes": image}, "Features": ["IMAGE_PROPERTIES"]}), "InvalidParameterException"),
        (json!({"Image": {"Bytes": base64(b"text")}}), "InvalidImageFormatException"),
        (json!({"Image": {"Bytes": &image[..400]}}), "InvalidImageFormatException"),
        (json!({"Image": {"Bytes": "A".repeat(1_450_000)}}), "ImageTooLargeException"),
    ] {
        let response = call(&[REKOGNITION], &body);
        assert_eq!((response.status, &response.json()["__type"]), (400, &json!(kind)), "{}", response.text());
        assert_eq!(response.header("content-type"), Some("application/x-amz-json-1.1"));
    }
    for target in ["RekognitionService.DetectText", "DynamoDB_20120810.GetItem", ""] {
        let response = call(&[("X-Amz-Target", target)], &json!({"Image": {"Bytes": image}}));
        assert_eq!((response.status, &response.json()["__type"]), (400, &json!("UnknownOperationException")));
    }
    let endpoint = format!("/endpoints/{MODEL}/invocations");
    for (headers, body, kind) in [
        (&[("X-Amzn-SageMaker-Target-Model", "a.tar.gz")][..], &b"x"[..], "ValidationError"),
        (&[("X-Amzn-SageMaker-Enable-Explanations", "`true`")], b"x", "ValidationError"),
        (&[("Accept", "text/csv")], b"x", "ValidationError"),
        (&[], b"no image", "ModelError"),
    ] {
        let response = service.request("POST", &endpoint, headers, body);
        assert_eq!(response.header("x-amzn-errortype"), Some(kind), "{}", response.text());
    }
    let response = service.request("POST", &endpoint, &[], &test_image(IMAGE)[..300]);
    assert_eq!((response.status, &response.json()["OriginalStatusCode"]), (424, &json!(422)), "{}", response.text());
}

#[test]
fn full_service_refuses_every_dialect_with_503_and_retry_after() {
    let service = Service::start(0, &["--max-queue-depth", "1"], &[]);
    let image = test_image(IMAGE);
    service.submit("first.jpg", &image);
    let encoded = base64(&image);
    let infer = json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}]});
    let torchserve = service.request("POST", &format!("/predictions/{MODEL}"), &[], &image);
    let rekognition = json!({"Image": {"Bytes": encoded}}).to_string();
    for response in [
        post(&service, &format!("/models/{MODEL}"), &json!({"inputs": encoded})),
        post(&service, &format!("/v1/models/{MODEL}:predict"), &json!({"instances": [{"b64": encoded}]})),
        post(&service, &format!("/v2/models/{MODEL}/infer"), &infer),
        torchserve,
        service.request("POST", "/", &[REKOGNITION], rekognition.as_bytes()),
        service.request("POST", &format!("/endpoints/{MODEL}/invocations"), &[], &image),
        post(&service, "/api/v1/vision/labels", &json!({"images": [encoded]})),
        post(&service, "/v1/predictions", &json!({"input": {"image": encoded}})),
    ] {
        assert_eq!(response.status, 503, "{}", response.text());
        assert!(response.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
        assert!(reason(&response).contains("--max-queue-depth"), "{}", response.text());
    }
    assert_eq!(service.images().len(), 1);
}

#[test]
fn service_of_legacy_workers_refuses_dialects_that_need_scores() {
    let service = Service::start(0, &["--wire", "legacy"], &[]);
    let encoded = base64(&test_image(IMAGE));
    let response = post(&service, &format!("/models/{MODEL}"), &json!({"inputs": encoded}));
    assert_eq!(response.status, 400);
    assert!(reason(&response).contains("without a score"), "{}", response.text());
}

/// The interpreter with the clients of other servers.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".cache/clients/bin/python");
    assert!(python.exists(), "the clients are not installed; run tests/clients/install");
    python
}

/// Runs a script of `tests/clients` against a service with one worker.
fn run_client(script: &str, takes_host: bool, more: &[&str]) {
    let service = Service::start(1, &[], &[]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let image = root.join("tests/pictures").join(IMAGE);
    let expected = json!(classes(&service, &test_image(IMAGE), 5)).to_string();
    let address = if takes_host { service.address.to_string() } else { format!("http://{}", service.address) };
    let output = Command::new(python())
        .arg(root.join("tests/clients").join(script))
        .args([&address, MODEL])
        .arg(image)
        .arg(expected)
        .args(more)
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}\n{}", service.web.log());
}

#[test]
fn client_of_hugging_face_classifies() {
    run_client("hugging_face.py", false, &[]);
}

#[test]
fn client_of_triton_classifies() {
    let lossless = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(LOSSLESS);
    run_client("triton.py", true, &[lossless.to_str().unwrap()]);
}

#[test]
fn client_of_aws_classifies() {
    run_client("aws.py", false, &[]);
}

#[test]
fn client_of_replicate_classifies() {
    run_client("replicate_client.py", false, &[]);
}

/// Every example of `docs/clients.md` runs as it is, except for the port, and prints the label of its image.
#[test]
fn examples_of_the_docs_work() {
    let service = Service::start(1, &[], &[]);
    let label = label_of(IMAGE);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/clients.md")).unwrap();
    let blocks = page.split("```").skip(1).step_by(2);
    let mut count = 0;
    for block in blocks {
        let (language, code) = block.split_once('\n').unwrap();
        let code = code.replace("127.0.0.1:8080", &service.address.to_string());
        let mut command = if language == "python" { Command::new(python()) } else { Command::new("bash") };
        let output = command
            .args(["-c", &code])
            .current_dir(root)
            .env("NO_PROXY", "*")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .output()
            .unwrap();
        let (said, printed) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success() && printed.contains(&label), "{code}\n{printed}\n{said}");
        count += 1;
    }
    assert!(count >= 8, "only {count} examples");
}

/// The versions of the clients are those that the tests install.
#[test]
fn versions_in_the_docs_are_those_of_the_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pins = std::fs::read_to_string(root.join("tests/clients/requirements.txt")).unwrap();
    let page = std::fs::read_to_string(root.join("docs/clients.md")).unwrap();
    for (package, name) in [
        ("huggingface-hub", "huggingface_hub"),
        ("tritonclient", "tritonclient"),
        ("boto3", "boto3"),
        ("replicate", "replicate"),
    ] {
        let pin = pins.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
        let version = pin.unwrap_or_else(|| panic!("{package} is not pinned")).split(' ').next().unwrap();
        let row = format!("| {name} | {version} |");
        assert!(page.contains(&row), "docs/clients.md has no row {row:?}");
    }
}
