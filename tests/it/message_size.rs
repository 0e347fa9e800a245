//! Queues with a small message limit, which no client notices.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage, imageops};
use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::queued::queue::QueueAttributes;
use serde_json::Value;

use crate::harness::{Service, free_port, imgcls, label_of, metric, test_image, until};

/// A photograph like those of cameras: a test image, enlarged, with the noise of a sensor.
pub fn photograph() -> Vec<u8> {
    let small = image::load_from_memory(&test_image("cat.jpg")).unwrap().to_rgb8();
    let mut large: RgbImage = imageops::resize(&small, 1_600, 1_200, imageops::FilterType::Triangle);
    let mut random = 0x9e37_79b9_u64;
    for channel in large.iter_mut() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *channel = channel.saturating_add((random >> 60) as u8);
    }
    let mut file = Cursor::new(Vec::new());
    large.write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

fn label_of_file(path: &Path) -> String {
    let output = imgcls().args(["classify", "--json"]).arg(path).output().unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    line["predictions"][0]["label"].as_str().unwrap().to_owned()
}

/// A data directory whose queues take at most `max_message_bytes`.
fn with_small_queues(max_message_bytes: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let queues = transport::open_queues(&Backend::Local { data_dir: dir.path().join("data") }).await.unwrap();
        let names = Names::local("imgcls");
        let attributes = QueueAttributes { max_message_bytes, ..QueueAttributes::default() };
        for name in [&names.request_queue, &names.result_queue, &names.dead_letter_queue()] {
            queues.create(name, &attributes).await.unwrap();
        }
    });
    dir
}

#[test]
fn photograph_of_megabytes_passes_queues_that_take_a_kilobyte() {
    let image = photograph();
    assert!(image.len() > 3_000_000, "{} bytes", image.len());
    for limit in [1_024, 6_144] {
        let dir = with_small_queues(limit);
        let file = dir.path().join("photograph.png");
        std::fs::write(&file, &image).unwrap();
        let label = label_of_file(&file);
        let admin = format!("127.0.0.1:{}", free_port());
        // Shared, so that the replies too come through a queue that takes little; inline, where it can be.
        let web_flags = ["--result-queue-mode", "shared", "--inline-bytes", "20MiB"];
        let service = Service::start_in(dir, 1, &web_flags, &["--admin-listen", &admin]);
        let name = format!("attachment; filename*=UTF-8''{}", "%01".repeat(255));
        for (sent, label) in [(image.clone(), label), (test_image("rocket.jpg"), label_of("rocket.jpg"))] {
            let headers = [("Content-Disposition", name.as_str())];
            let answer = service.request("POST", "/v1/classify?top_k=200", &headers, &sent);
            assert_eq!(answer.status, 200, "limit {limit}: {}", answer.text());
            let result = answer.json();
            assert_eq!(result["predictions"][0]["label"], label.as_str());
            assert_eq!(result["predictions"].as_array().unwrap().len(), 200);
            let filename = result["filename"].as_str().unwrap();
            assert!(!filename.is_empty() && "\u{1}".repeat(255).starts_with(filename), "{filename:?}");
        }
        // 200 predictions do not fit: the replies were cut, and woke their waiters all the same.
        // Counted once the transaction is on disk; the answer may be there before.
        until("both replies to be counted", || {
            let cut = metric(admin.parse().unwrap(), r#"imgcls_worker_replies_total{outcome="cut"}"#);
            let woke = metric(service.address, r#"imgcls_web_replies_total{outcome="waited_for"}"#);
            (cut >= 2.0 && woke >= 2.0).then_some(())
        });
    }
}

#[test]
fn lowered_limit_is_learned() {
    let service = Service::start(1, &["--inline-bytes", "1MiB"], &[]);
    let file = rusqlite::Connection::open(service.data_dir().join("imgcls.sqlite3")).unwrap();
    file.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let changed = file.execute("UPDATE queues SET max_message_bytes = 1024 WHERE name = 'web-app-image-transport'", []);
    assert_eq!(changed, Ok(1));
    for _ in 0..2 {
        let answer = service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let line = "the message limit of the queue was lowered";
    service.web.wait_for_log(line);
    assert_eq!(service.web.log().matches(line).count(), 1);
}

#[test]
fn raised_limit_is_learned() {
    let service = Service::start_in(with_small_queues(1_024), 0, &["--inline-bytes", "1MiB"], &[]);
    let queue = "web-app-image-transport";
    let file = service.database();
    file.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let inline = || -> usize {
        let sql = "SELECT count(*) FROM messages WHERE CAST(body AS TEXT) LIKE '%\"image_data\":%'";
        file.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    service.submit("rocket.jpg", &test_image("rocket.jpg"));
    assert_eq!(inline(), 0, "it does not fit");
    let changed = file.execute("UPDATE queues SET max_message_bytes = 1048576 WHERE name = ?1", [queue]);
    assert_eq!(changed, Ok(1));
    until("an image in its message", || {
        service.submit("rocket.jpg", &test_image("rocket.jpg"));
        (inline() > 0).then_some(())
    });
}
