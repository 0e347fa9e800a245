//! The number of calls to AWS for each image under load, as the tiers count them, on an emulator.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::emulators::ministack;
use crate::harness::{free_port, label_of, metrics, request, test_image};
use crate::legacy_tiers::AwsFixture;

const IMAGES: usize = 600;
const CLIENTS: usize = 40;
/// An image takes one PUT, one GET and one PUT of the result. Its six operations of SQS take 0.6 calls in batches of
/// ten.
const MAX_CALLS_PER_IMAGE: f64 = 4.0;

#[test]
fn image_takes_at_most_four_calls_under_load() {
    let fixture = AwsFixture::new(ministack());
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let service = fixture.service_with(1, &[], &["--admin-listen", &admin.to_string()]);
    let tiers = [service.address, admin];
    let before = tiers.map(calls);
    let (image, label) = (test_image("cat.jpg"), label_of("cat.jpg"));
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::AcqRel) < IMAGES {
                    let answer = request(service.address, "POST", "/v1/classify?wait=60", &[], &image).unwrap();
                    assert_eq!(
                        (answer.status, answer.json()["predictions"][0]["label"].as_str()),
                        (200, Some(&*label))
                    );
                }
            });
        }
    });
    let after = tiers.map(calls);
    let spent: f64 = after.iter().sum::<f64>() - before.iter().sum::<f64>();
    let per_image = spent / IMAGES as f64;
    // A number below three would mean that calls are not counted.
    assert!(
        (3.0..=MAX_CALLS_PER_IMAGE).contains(&per_image),
        "{per_image:.2} calls an image\n{}\n{}",
        table(service.address),
        table(admin)
    );
}

/// The number of attempts of all calls of a tier.
fn calls(tier: SocketAddr) -> f64 {
    counts(tier).iter().map(|(_, count)| count).sum()
}

fn table(tier: SocketAddr) -> String {
    counts(tier).iter().map(|(labels, count)| format!("{labels} {count}\n")).collect()
}

fn counts(tier: SocketAddr) -> Vec<(String, f64)> {
    metrics(tier, "imgcls_aws_call_seconds_count")
}
