//! Streams of NATS that an operator made, limited or deleted, and servers with small messages: one line says what to do, and
//! no accepted job is lost.

use imgcls::config::Names;
use serde_json::{Value, json};

use crate::harness::{label_of, test_image, until};
use crate::nats::{block_on, operator, service};
use crate::nats_server::NatsServer;

/// Makes a call of the API of JetStream, as an operator does with `nats`.
fn jetstream(server: &NatsServer, call: &str, body: &Value) -> Value {
    block_on(async {
        let client = async_nats::connect(server.url()).await.unwrap();
        let answer = client.request(format!("$JS.API.{call}"), body.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    })
}

fn create_stream(server: &NatsServer, config: &Value) {
    let answer = jetstream(server, &format!("STREAM.CREATE.{}", config["name"].as_str().unwrap()), config);
    assert_eq!(answer["error"], Value::Null, "{answer}");
}

#[test]
fn streams_that_would_lose_accepted_jobs_are_refused_in_one_line() {
    let server = NatsServer::start("");
    let queue_of = |stack: &str, more: Value| {
        let queue = Names::local(stack).request_queue;
        let mut config = json!({
            "name": format!("imgcls-queue-{queue}"), "subjects": [format!("imgcls.queue.{queue}.*")], "retention": "workqueue",
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        create_stream(&server, &config);
        config["name"].as_str().unwrap().to_owned()
    };
    let with_limits = queue_of("one", json!({"retention": "limits"}));
    let dropping = queue_of("two", json!({"max_msgs": 5, "discard": "old"}));
    let elsewhere = queue_of("three", json!({"subjects": ["mine.>"]}));
    create_stream(&server, &json!({"name": "mine", "subjects": ["imgcls.queue.four-web-app-image-transport-dead.>"]}));
    let cases = [
        ("one", format!("the stream {with_limits} has retention limits, and workqueue is needed: remove it with")),
        ("two", format!("the stream {dropping} drops its oldest messages when it is full")),
        ("three", format!("the stream {elsewhere} does not take the subject")),
        ("four", "another stream has these subjects; find it with `nats stream report`".to_owned()),
    ];
    for (stack, said) in cases {
        for words in [&["worker"][..], &["serve-web", "--listen", "127.0.0.1:0"]] {
            let output = operator(&server.url(), stack, words);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
            assert_eq!(error.lines().filter(|line| line.contains(&said)).count(), 1, "{words:?}: {error}");
            assert!(!error.contains("the connection to NATS is lost"), "{error}");
        }
    }
    // A bucket is read at the first write to it.
    let images = "KV_imgcls-five-input-images";
    let config = json!({
        "name": images, "subjects": ["$KV.imgcls-five-input-images.>"], "max_bytes": 1_000_000, "discard": "old",
    });
    create_stream(&server, &config);
    let service = service(&server.url(), "five", 1, &[]);
    let refused = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    service.web.wait_for_log(&format!("run `nats stream edit {images} --discard new`"));
    let mut config = jetstream(&server, &format!("STREAM.INFO.{images}"), &json!({}))["config"].take();
    config["discard"] = "new".into();
    let changed = jetstream(&server, &format!("STREAM.UPDATE.{images}"), &config);
    assert_eq!(changed["error"], Value::Null, "{changed}");
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg").as_str());
}

#[test]
fn full_streams_refuse_images_and_keep_those_that_they_have() {
    let server = NatsServer::start("");
    let mut service = service(&server.url(), "full", 0, &[]);
    let kept = service.submit("cat.jpg", &test_image("cat.jpg"));
    let stream = format!("imgcls-queue-{}", Names::local("full").request_queue);
    let mut config = jetstream(&server, &format!("STREAM.INFO.{stream}"), &json!({}))["config"].take();
    config["max_msgs"] = 1.into();
    let changed = jetstream(&server, &format!("STREAM.UPDATE.{stream}"), &config);
    assert_eq!(changed["error"], Value::Null, "{changed}");
    assert_eq!(service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg")).status, 503);
    service.web.wait_for_log(&format!("the stream {stream}: maximum messages exceeded"));
    service.web.wait_for_log("raise the size of the stream with `nats stream edit`");
    service.add_worker();
    assert_eq!(service.finished(&kept)["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let again = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&again)["status"], "succeeded");
}

#[test]
fn a_deleted_queue_is_named_and_made_again_by_a_restart() {
    let server = NatsServer::start("");
    let mut service = service(&server.url(), "gone", 1, &[]);
    let queue = Names::local("gone").request_queue;
    let deleted = jetstream(&server, &format!("STREAM.DELETE.imgcls-queue-{queue}"), &json!({}));
    assert_eq!(deleted["success"], true, "{deleted}");
    assert_eq!(service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg")).status, 503);
    let said = format!("queue \"{queue}\" does not exist; a web process or worker creates it at its start");
    for process in [&service.web, &service.workers[0]] {
        process.wait_for_log(&said);
    }
    // The streams of the bucket are made again at once.
    for stream in ["input-images", "output-results"] {
        jetstream(&server, &format!("STREAM.DELETE.KV_imgcls-gone-{stream}"), &json!({}));
    }
    service.workers[0].kill();
    service.workers[0] = service.spawn_worker();
    let id = until("a queue again", || {
        let answer = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
        (answer.status == 202).then(|| answer.json()["id"].as_str().unwrap().to_owned())
    });
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg").as_str());
}

#[test]
fn images_are_larger_than_the_messages_of_the_server_or_it_is_refused() {
    let small = NatsServer::start("max_payload: 16KB");
    let service = service(&small.url(), "small", 1, &[]);
    let image = test_image("full-chroma.jpg");
    assert!(image.len() > 16 << 10);
    let answer = service.request("POST", "/v1/classify", &[], &image);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("full-chroma.jpg").as_str());
    let smaller = NatsServer::start("max_payload: 4KB");
    let output = operator(&smaller.url(), "small", &["queue", "depth"]);
    let said = format!(
        "imgcls: NATS at {} takes messages of at most 4096 bytes, and 16384 are needed: raise max_payload in its settings\n",
        smaller.url()
    );
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), said.as_str()));
}
