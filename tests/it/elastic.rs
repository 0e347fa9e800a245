//! `autoscale` resizes an Auto Scaling group whose instances are worker processes (`cloud.rs`). moto emulates the group,
//! ministack queue and store. `closed_loop.rs` tests the group's alarms and policies.

use std::time::{Duration, Instant};

use crate::cloud::{Cloud, Setting, call};
use crate::emulators::{ministack, moto};
use crate::harness::{Service, imgcls, test_image, until};
use crate::legacy_tiers::AwsFixture;

const IMAGES: usize = 60;
/// Maximum time from the first image in the queue until the first worker is requested.
const FIRST_WORKER_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_group_grows_from_zero_and_shrinks_again_without_losing_an_image() {
    let fixture = AwsFixture::new(ministack());
    let service = fixture.service_with(0, &[], &[]);
    let cloud = cloud(&fixture, 2);
    let _autoscale = cloud.autoscale(&[
        "--direct",
        "--interval",
        "500ms",
        "--scale-out-period",
        "500ms",
        "--scale-in-period",
        "500ms",
    ]);
    let image = slow_image();
    let submitted = Instant::now();
    let ids: Vec<String> = (0..IMAGES).map(|index| service.submit(&format!("{index}.png"), &image)).collect();
    until("the first worker", || (cloud.count() > 0).then_some(()));
    assert!(submitted.elapsed() < FIRST_WORKER_WITHIN, "{:?}", submitted.elapsed());
    until("the second worker", || (cloud.count() > 1).then_some(()));
    for id in &ids {
        let job = service.finished(id);
        // A second attempt means that the worker of the image was removed.
        assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{id}: {job}");
    }
    until("the group to shrink to zero", || (cloud.count() == 0).then_some(()));
    let gone = cloud.terminated();
    assert!(gone.len() >= 2, "{gone:?}");
    assert!(gone.iter().all(|machine| machine.exit_code == Some(0) && machine.has_drained), "{gone:?}");
}

#[test]
fn a_group_of_size_zero_is_started_and_then_left_to_its_policies() {
    let fixture = AwsFixture::new(ministack());
    let service = fixture.service_with(0, &[], &[]);
    let cloud = cloud(&fixture, 2);
    let mut autoscales = [cloud.autoscale(&["--interval", "1s"]), cloud.autoscale(&["--interval", "1s"])];
    let image = slow_image();
    let ids: Vec<String> = (0..IMAGES).map(|index| service.submit(&format!("{index}.png"), &image)).collect();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    // The backlog first called for a worker and then for none. The group has no policies, so its size does not change.
    assert_eq!(cloud.count(), 1);
    for autoscale in &mut autoscales {
        autoscale.signal("TERM");
        assert_eq!(autoscale.wait(), Some(0), "{}", autoscale.log());
    }
}

#[test]
fn a_spot_instance_that_is_reclaimed_drains_and_receives_nothing_more() {
    let fixture = AwsFixture::new(ministack());
    let service = fixture.service_with(0, &[], &[]);
    let cloud = cloud(&fixture, 1);
    cloud.ec2.group.change(|_| Some(1));
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&id)["status"], "succeeded");
    cloud.interrupt_all();
    // The harness starts it again, as systemd does.
    until("a worker that receives nothing", || cloud.logs().contains("nothing is received").then_some(()));
    let waiting = service.submit("cat.jpg", &test_image("cat.jpg"));
    let depth = until("the request in the queue", || {
        let depth = fixture.queue_json(&["depth"]);
        let requests = depth["queues"].as_array().unwrap().iter().find(|queue| queue["role"] == "requests").cloned();
        requests.filter(|requests| requests["visible"] == 1)
    });
    assert_eq!(depth["in_flight"], 0, "{depth} {waiting}");
    assert!(cloud.logs().contains("drained"), "{}", cloud.logs());
}

#[test]
fn a_missing_queue_or_group_is_one_line_that_names_it() {
    let fixture = AwsFixture::new(ministack());
    let no_queue = imgcls().args(["autoscale", "--backend", "aws"]).envs(fixture.environment()).output().unwrap();
    let stderr = String::from_utf8_lossy(&no_queue.stderr).into_owned();
    assert_eq!(no_queue.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.lines().last().is_some_and(|line| line.contains("no queue") && line.contains("provision")),
        "{stderr}"
    );

    let _service: Service = fixture.service_with(0, &[], &[]);
    let group = ["autoscale", "--backend", "aws", "--auto-scaling-group", "no-such-group"];
    let environment =
        [fixture.environment(), vec![("AWS_ENDPOINT_URL_AUTO_SCALING".to_owned(), moto().url())]].concat();
    let no_group = imgcls().args(group).envs(environment).output().unwrap();
    let stderr = String::from_utf8_lossy(&no_group.stderr).into_owned();
    assert_eq!(no_group.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.lines().last().is_some_and(|line| line.contains("no-such-group") && line.contains("provision")),
        "{stderr}"
    );
}

/// Returns a large image in a small file, which a worker decodes more slowly than a test sends it. It is not a JPEG,
/// since a large JPEG is decoded only in part.
pub fn slow_image() -> Vec<u8> {
    let gradient = image::RgbImage::from_fn(6_000, 4_000, |x, y| image::Rgb([(x / 32) as u8, (y / 32) as u8, 90]));
    let mut file = std::io::Cursor::new(Vec::new());
    gradient.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// Creates a group without policies. It has the name of the fixture.
fn cloud(fixture: &AwsFixture, most: u32) -> Cloud {
    let name = fixture.name.as_str();
    let launch = [("LaunchConfigurationName", name), ("ImageId", "ami-12c6146b"), ("InstanceType", "c7i.large")];
    call(moto(), "CreateLaunchConfiguration", name, &launch);
    let most = most.to_string();
    let sizes = [
        ("LaunchConfigurationName", name),
        ("MinSize", "0"),
        ("MaxSize", &most),
        ("DesiredCapacity", "0"),
        ("AvailabilityZones.member.1", "us-east-1a"),
    ];
    call(moto(), "CreateAutoScalingGroup", name, &sizes);
    Cloud::start(Setting {
        emulator: moto(),
        group: name.to_owned(),
        environment: fixture.environment(),
        flags: ["--auto-scaling-group", name].map(str::to_owned).to_vec(),
    })
}
