//! Requests that choose a model: over HTTP, in a form, and in messages of releases that know only one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::queued::queue::{self, Outgoing};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Response, Service, form, imgcls, label_of, test_image};

const SHIPPED: &str = "efficientnet-lite0";
/// The name of the second model. Its labels are those of the shipped one in capital letters.
const SECOND: &str = "capitals";

/// Writes a package that differs from the shipped one in its name and its labels.
pub fn second_model(folder: &Path) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(SHIPPED);
    let second = folder.join("any-folder");
    std::fs::create_dir(&second).unwrap();
    let labels = std::fs::read(shipped.join("labels.txt")).unwrap();
    let upper: String = String::from_utf8(labels.clone()).unwrap().lines().fold(String::new(), |mut upper, line| {
        let (id, name) = line.split_once(' ').unwrap();
        let _ = writeln!(upper, "{id} {}", name.to_uppercase());
        upper
    });
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let description = std::fs::read_to_string(shipped.join("model.toml")).unwrap();
    let description = description
        .replace(&format!("name = \"{SHIPPED}\""), &format!("name = \"{SECOND}\""))
        .replace(&hex(&labels), &hex(upper.as_bytes()));
    std::fs::write(second.join("labels.txt"), upper).unwrap();
    std::fs::write(second.join("model.toml"), description).unwrap();
    for entry in std::fs::read_dir(&shipped).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "onnx") {
            std::fs::copy(&path, second.join(path.file_name().unwrap())).unwrap();
        }
    }
    second
}

fn problem(response: &Response) -> (u16, String, String) {
    let body = response.json();
    let text = |member: &str| body[member].as_str().unwrap_or_default().to_owned();
    (response.status, text("type"), text("detail"))
}

/// A form with an image and a field `model`.
fn form_with_model(image: &[u8], model: &str) -> (String, Vec<u8>) {
    let (content_type, body) = form("myfile", "cup.jpg", image);
    let boundary = content_type.rsplit('=').next().unwrap();
    let field = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n");
    (content_type, [field.as_bytes(), &body].concat())
}

#[test]
fn request_is_classified_by_the_model_that_it_names_and_otherwise_by_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let second = second_model(folder.path());
    let flags = ["--model", SHIPPED, "--model", second.to_str().unwrap()];
    let service = Service::start(1, &flags, &flags);
    let (image, label) = (test_image("cup.jpg"), label_of("cup.jpg"));
    let upper = label.to_uppercase();
    let answered = |answer: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&answer["model"]["name"]), text(&answer["predictions"][0]["label"]))
    };

    for (path, model, label) in [
        ("/v1/classify", SHIPPED, &label),
        ("/v1/classify?model=", SHIPPED, &label),
        ("/v1/classify?model=efficientnet-lite0", SHIPPED, &label),
        ("/v1/classify?model=capitals&top_k=1", SECOND, &upper),
    ] {
        let answer = service.request("POST", path, &[], &image).json();
        assert_eq!(answered(&answer), (model.to_owned(), label.clone()), "{path}: {answer}");
    }
    let accepted = service.request("POST", "/v1/jobs?model=capitals", &[], &image).json();
    assert_eq!(answered(&service.finished(accepted["id"].as_str().unwrap())), (SECOND.to_owned(), upper.clone()));

    let (content_type, body) = form_with_model(&image, SECOND);
    let headers = [("Content-Type", content_type.as_str())];
    assert_eq!(answered(&service.request("POST", "/v1/classify", &headers, &body).json()).0, SECOND);
    assert_eq!(service.request("POST", "/", &headers, &body).text(), upper);
    let twice = service.request("POST", "/v1/classify?model=efficientnet-lite0", &headers, &body);
    assert_eq!(twice.status, 400, "{}", twice.text());
    let (content_type, body) = form("myfile", "cup.jpg", &image);
    let headers = [("Content-Type", content_type.as_str())];
    assert_eq!(service.request("POST", "/?model=capitals&wait=x&wait=y", &headers, &body).text(), upper);
    assert_eq!(service.request("POST", "/", &headers, &body).text(), label);

    // A web tier of a release with one model sends requests without `model`.
    let id = send(&service, None);
    assert_eq!(answered(&service.finished(&id)), (SHIPPED.to_owned(), label));
    let id = send(&service, Some(SECOND));
    assert_eq!(answered(&service.finished(&id)), (SECOND.to_owned(), upper));
    let failed = service.finished(&send(&service, Some("no-such-model")));
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&"failed".into(), &"unknown_model".into()), "{failed}");
}

/// Sends a message as a web tier does, and returns the id of its job.
fn send(service: &Service, model: Option<&str>) -> String {
    use base64::Engine as _;
    let id = uuid::Uuid::now_v7().to_string();
    let image = base64::engine::general_purpose::STANDARD.encode(test_image("cup.jpg"));
    let now = jiff::Timestamp::now();
    let expires_at = now + jiff::SignedDuration::from_mins(30);
    let mut message = json!({
        "v": 1, "id": id, "image_data": image, "submitted_at": now.to_string(), "expires_at": expires_at.to_string(),
    });
    if let Some(model) = model {
        message["model"] = model.into();
    }
    let names = Names::local("imgcls");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let requests = runtime.block_on(async {
        let backend = Backend::Local { data_dir: service.data_dir() };
        let queues = transport::open_queues(&backend).await.unwrap();
        queues.open(&names.request_queue).await.unwrap()
    });
    runtime.block_on(queue::send_one(&*requests, Outgoing::new(message.to_string()))).unwrap();
    id
}

#[test]
fn job_fails_as_unknown_model_if_the_worker_lacks_its_model() {
    let web = ["--model", SHIPPED, "--model", "only-of-the-web-tier"];
    let service = Service::start(1, &web, &["--model", SHIPPED]);
    let image = test_image("cup.jpg");
    let answer = service.request("POST", "/v1/classify?model=only-of-the-web-tier", &[], &image);
    let (status, kind, detail) = problem(&answer);
    assert_eq!((status, kind.as_str()), (404, "urn:imgcls:problem:unknown-model"), "{detail}");
    assert!(detail.contains("only-of-the-web-tier"), "{detail}");
}

#[test]
fn models_that_the_web_tier_does_not_have_are_refused_with_the_names_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let second = second_model(folder.path());
    let service = Service::start(0, &["--model", SHIPPED, "--model", second.to_str().unwrap()], &[]);
    let image = test_image("cup.jpg");
    let (content_type, body) = form_with_model(&image, "any-folder");
    let form = [("Content-Type", content_type.as_str())];
    for (method, path, headers, body) in [
        ("POST", "/v1/classify?model=any-folder", &[][..], &image[..]),
        ("POST", "/v1/jobs?model=any-folder", &[], &image),
        ("PUT", "/v1/classify/cup.jpg?model=any-folder", &[], &image),
        ("POST", "/?model=any-folder", &[], &image),
        ("POST", "/v1/jobs", &form, &body),
        ("POST", "/", &form, &body),
        ("GET", "/v1/models/any-folder", &[], b""),
    ] {
        let (status, kind, detail) = problem(&service.request(method, path, headers, body));
        assert_eq!((status, kind.as_str()), (404, "urn:imgcls:problem:unknown-model"), "{method} {path}: {detail}");
        let names = "there is no model \"any-folder\"; choose one of: efficientnet-lite0, capitals";
        assert_eq!(detail, names, "{method} {path}");
    }
    assert!(service.images().is_empty(), "a refused image was stored");

    let long = "x".repeat(1_000);
    let (status, _, detail) = problem(&service.request("POST", &format!("/v1/jobs?model={long}"), &[], &image));
    assert!(status == 404 && detail.len() < 400, "{status} {detail}");
}

#[test]
fn models_are_listed_with_what_a_client_needs_to_know() {
    let folder = tempfile::tempdir().unwrap();
    let second = second_model(folder.path());
    let flags = ["--model", SHIPPED, "--model", second.to_str().unwrap(), "--model", "elsewhere@3f2a9c01b7de"];
    let service = Service::start(0, &flags, &[]);
    let get = |path: &str| {
        let response = service.request("GET", path, &[], b"");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    };
    let listed = get("/v1/models");
    let models = listed["models"].as_array().unwrap();
    let names: Vec<_> =
        models.iter().map(|model| (model["name"].as_str().unwrap(), model["default"] == true)).collect();
    assert_eq!(names, [(SHIPPED, true), (SECOND, false), ("elsewhere", false)]);
    assert_eq!(models[2], json!({"name": "elsewhere", "default": false}), "only its name is known here");
    for model in &models[..2] {
        assert_eq!((&model["version"], &model["classes"]), (&"1".into(), &1000.into()), "{model}");
        assert_eq!(model["input"], json!({"height": 224, "width": 224}));
        let files = model["files"].as_array().unwrap();
        assert!(files.iter().any(|file| file["digest"] == model["digest"]), "{model}");
        assert!(files.iter().all(|file| file["bytes"].as_u64() > Some(1_000_000)), "{model}");
        assert!(model.get("labels").is_none(), "{model}");
    }
    let mut shown = get("/v1/models/capitals");
    assert_eq!(shown.as_object_mut().unwrap().remove("ready"), Some(true.into()));
    assert_eq!(shown, models[1]);
    let with_labels = get("/v1/models/capitals?labels=true");
    let labels = with_labels["labels"].as_array().unwrap();
    assert_eq!((labels.len(), &labels[0]["label"]), (1000, &"TENCH".into()), "{}", labels[0]);
    assert_eq!(service.request("GET", "/v1/models/elsewhere?labels=true", &[], b"").status, 503);
    assert_eq!(service.request("GET", "/v1/models?labels=some", &[], b"").status, 400);
}

#[test]
fn web_tier_without_a_model_setting_knows_the_default() {
    let service = Service::start(0, &[], &[]);
    let listed = service.request("GET", "/v1/models", &[], b"").json();
    let models = listed["models"].as_array().unwrap();
    assert_eq!((models.len(), &models[0]["name"], &models[0]["default"]), (1, &SHIPPED.into(), &true.into()));
    assert_eq!(service.request("POST", "/v1/jobs?model=other", &[], &test_image("cup.jpg")).status, 404);
}

#[test]
fn web_tier_refuses_lists_of_models_that_cannot_work() {
    for (flags, says) in [
        (&["--model", "same@1", "--model", "same@2"][..], "two of the models have the name \"same\""),
        (&["--wire", "legacy", "--model", "a", "--model", "b"], "with --wire legacy requests cannot name a model"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = imgcls();
        command.args(["serve-web", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path()).args(flags);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{flags:?}: {error}");
    }
}
