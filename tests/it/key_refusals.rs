//! Refusals of keys and limits in the format of the client that is refused: a dialect, or a browser. And the load generator
//! with a key.

use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{Response, Service, form, imgcls, request, test_image};
use crate::keys::{create_key, keyed_service};

const REKOGNITION: (&str, &str) = ("X-Amz-Target", "RekognitionService.DetectLabels");
const HUGGING_FACE: (&str, &str) = ("User-Agent", "unknown/None; hf_hub/1.2.3");
const BROWSER: (&str, &str) = ("Accept", "text/html,*/*;q=0.8");

/// A call of a dialect: its path and headers, and how its refusals look: the status, and the members that name the problem.
type Call = (&'static str, &'static [(&'static str, &'static str)], fn(u16, &str, &Response));

fn error_member(status: u16, says: &str, response: &Response) {
    let json = response.json();
    assert_eq!((response.status, json.as_object().unwrap().len()), (status, 1), "{json}");
    assert!(json["error"].as_str().unwrap().contains(says), "{json}");
}

fn rekognition(status: u16, says: &str, response: &Response) {
    let json = response.json();
    let kind = match (status, says.contains("no such key")) {
        (401, true) => "UnrecognizedClientException",
        (401, false) => "MissingAuthenticationTokenException",
        (403, _) => "AccessDeniedException",
        _ => "ThrottlingException",
    };
    assert_eq!((response.status, &json["__type"]), (400, &json!(kind)));
    assert_eq!(response.header("content-type"), Some("application/x-amz-json-1.1"));
    assert!(json["message"].as_str().unwrap().contains(says), "{json}");
}

fn sagemaker(status: u16, says: &str, response: &Response) {
    let kind = match (status, says.contains("no such key")) {
        (401, true) => "UnrecognizedClientException",
        (401, false) => "MissingAuthenticationTokenException",
        (403, _) => "AccessDeniedException",
        _ => "ThrottlingException",
    };
    let expected = if status == 401 { 403 } else { status };
    assert_eq!((response.status, response.header("x-amzn-errortype")), (expected, Some(kind)));
    assert!(response.json()["Message"].as_str().unwrap().contains(says), "{}", response.text());
}

fn torchserve(status: u16, says: &str, response: &Response) {
    let json = response.json();
    let kind = if status == 429 { "ServiceUnavailableException" } else { "InvalidKeyException" };
    assert_eq!((response.status, &json["code"], &json["type"]), (status, &json!(status), &json!(kind)));
    assert!(json["message"].as_str().unwrap().contains(says), "{json}");
}

fn photoprism(status: u16, says: &str, response: &Response) {
    let json = response.json();
    assert_eq!((response.status, &json["code"]), (status, &json!(status)));
    assert!(json["error"].as_str().unwrap().contains(says), "{json}");
}

fn problem(status: u16, says: &str, response: &Response) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert!(response.json()["detail"].as_str().unwrap().contains(says), "{}", response.text());
}

fn page(status: u16, _says: &str, response: &Response) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    let title = match status {
        401 => "A key is needed",
        403 => "The key may not do this",
        _ => "Too many requests of this client",
    };
    assert!(response.text().contains(&format!("<h1>{title}</h1>")), "{}", response.text());
}

const CALLS: [Call; 12] = [
    ("/", &[], problem),
    ("/", &[BROWSER], page),
    ("/", &[REKOGNITION], rekognition),
    ("/", &[HUGGING_FACE], error_member),
    ("/models/efficientnet-lite0", &[], error_member),
    ("/v2/models/efficientnet-lite0/infer", &[], error_member),
    ("/v1/models/efficientnet-lite0:predict", &[], error_member),
    ("/predictions/efficientnet-lite0", &[], torchserve),
    ("/endpoints/efficientnet-lite0/invocations", &[], sagemaker),
    ("/invocations", &[], sagemaker),
    ("/api/v1/vision/labels", &[], photoprism),
    ("/v1/predictions", &[], problem),
];

#[test]
fn refusals_of_keys_and_limits_have_the_format_of_the_dialect() {
    let mut limited = Vec::new();
    let service = keyed_service(0, &["--rate-limit", "1/h"], |data_dir| {
        for at in 0..CALLS.len() {
            limited.push(create_key(data_dir, &format!("limited-{at}"), "read", &[]));
        }
    });
    // Each key may send one request, which its scope does not allow.
    let call = |(path, headers, check): Call, key: &str, status: u16, says: &str| {
        let bearer = format!("Bearer {key}");
        let mut headers = headers.to_vec();
        if !key.is_empty() {
            headers.push(("Authorization", &bearer));
        }
        let response = request(service.address, "POST", path, &headers, &test_image("cup.jpg")).unwrap();
        check(status, says, &response);
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
        if status == 429 {
            assert!(response.header("retry-after").is_some() && response.header("ratelimit").is_some(), "{path}");
        }
    };
    for (at, of) in CALLS.into_iter().enumerate() {
        call(of, &limited[at], 403, "scope classify");
        call(of, &limited[at], 429, "requests in");
    }

    let service = keyed_service(0, &[], |data_dir| drop(create_key(data_dir, "one", "read", &[])));
    for (path, headers, check) in CALLS {
        let send = |key: &[(&str, &str)]| {
            let headers = [headers, key].concat();
            request(service.address, "POST", path, &headers, &test_image("cup.jpg")).unwrap()
        };
        check(401, "imgcls keys create", &send(&[]));
        check(401, "no such key", &send(&[("Authorization", "Bearer imgcls_wrong")]));
    }
}

fn loadgen(service: &Service, flags: &[&str], key: Option<&str>) -> (Output, Value) {
    let mut command = imgcls();
    command.args(["loadgen", "--num-request", "3", "--concurrency", "1", "--json", "--url"]);
    command.arg(format!("http://{}/", service.address)).args(flags);
    command.envs(key.map(|key| ("IMGCLS_KEY", key)));
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, report)
}

#[test]
fn loadgen_sends_the_key_of_a_flag_a_variable_or_a_file() {
    let mut key = String::new();
    let service = keyed_service(1, &[], |data_dir| key = create_key(data_dir, "load", "classify", &[]));
    let file = service.dir.path().join("key");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let file = file.to_str().unwrap();
    for (flags, variable) in [
        (&["--key", &key][..], None),
        (&["--key-file", file], None),
        (&[], Some(key.as_str())),
        (&["--api", "legacy"], Some(&key)),
    ] {
        let (output, report) = loadgen(&service, flags, variable);
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{flags:?}: {text}");
        assert_eq!(report["requests"]["failed"], 0, "{report}");
        assert!(!text.contains(&key), "the key is in the report: {text}");
    }
    assert_eq!(loadgen(&service, &[], None).0.status.code(), Some(1), "without a key every request fails");
    let (output, _) = loadgen(&service, &["--key-file", "/no/such/file"], None);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("--key-file /no/such/file"), "{error}");
}

#[test]
fn browser_that_sends_a_form_without_a_key_reads_where_to_sign_in() {
    let service = keyed_service(0, &[], |data_dir| drop(create_key(data_dir, "one", "read", &[])));
    let (content_type, body) = form("myfile", "cup.jpg", &test_image("cup.jpg"));
    let refused = service.request("POST", "/", &[BROWSER, ("Content-Type", &content_type)], &body);
    assert!(refused.status == 401 && refused.text().contains("Sign in on its page"), "{}", refused.text());
}
