//! The loop closed: `autoscale` moves an Auto Scaling group whose instances are worker processes. moto plays the group,
//! ministack queue and store; the rest of EC2 is played here: an instance is a process with a metadata service of its
//! own, and one that is taken away waits until it says that it has drained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::emulators::{Emulator, ministack, moto};
use crate::harness::{Process, Service, imgcls, picture, request, until};
use crate::http_server::{Answer, Asked, serve};
use crate::original::Stage;

const IMAGES: usize = 60;
/// From the first image in the queue to the first worker that is asked for.
const FIRST_WORKER_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn from_nothing_to_many_and_back_and_no_image_is_lost() {
    let stage = Stage::new(ministack());
    let service = stage.service_with(0, &[], &[]);
    let cloud = Cloud::start(&stage, 2);
    let _autoscale = cloud.autoscale(&[
        "--direct",
        "--interval",
        "500ms",
        "--scale-out-period",
        "500ms",
        "--scale-in-period",
        "500ms",
    ]);
    let image = slow_picture();
    let submitted = Instant::now();
    let ids: Vec<String> = (0..IMAGES).map(|index| service.submit(&format!("{index}.jpg"), &image)).collect();
    until("the first worker", || (cloud.count() > 0).then_some(()));
    assert!(submitted.elapsed() < FIRST_WORKER_WITHIN, "{:?}", submitted.elapsed());
    until("the second worker", || (cloud.count() > 1).then_some(()));
    for id in &ids {
        let job = service.finished(id);
        // A second attempt would be that of an image whose worker was taken away.
        assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{id}: {job}");
    }
    until("back to nothing", || (cloud.count() == 0).then_some(()));
    let gone = cloud.gone();
    assert!(gone.len() >= 2, "{gone:?}");
    assert!(gone.iter().all(|machine| machine.exit_code == Some(0) && machine.said_drained), "{gone:?}");
}

#[test]
fn a_group_that_stands_at_zero_is_started_and_then_left_to_its_policies() {
    let stage = Stage::new(ministack());
    let service = stage.service_with(0, &[], &[]);
    let cloud = Cloud::start(&stage, 2);
    let mut autoscales = [cloud.autoscale(&["--interval", "1s"]), cloud.autoscale(&["--interval", "1s"])];
    let image = slow_picture();
    let ids: Vec<String> = (0..IMAGES).map(|index| service.submit(&format!("{index}.jpg"), &image)).collect();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    // More waited than one worker more is for, and afterwards nothing: no policy of the group says so, so nothing moves.
    assert_eq!(cloud.count(), 1);
    for autoscale in &mut autoscales {
        autoscale.signal("TERM");
        assert_eq!(autoscale.wait(), Some(0), "{}", autoscale.log());
    }
}

#[test]
fn a_spot_instance_that_is_wanted_back_drains_and_takes_nothing_more() {
    let stage = Stage::new(ministack());
    let service = stage.service_with(0, &[], &[]);
    let cloud = Cloud::start(&stage, 1);
    cloud.set_desired(1);
    let id = service.submit("cat.jpg", &picture("cat.jpg"));
    assert_eq!(service.finished(&id)["status"], "succeeded");
    cloud.want_all_back();
    // As systemd does, the harness starts it again.
    until("a worker that takes nothing", || cloud.logs().contains("nothing is received").then_some(()));
    let waiting = service.submit("cat.jpg", &picture("cat.jpg"));
    let depth = until("the request in the queue", || {
        let depth = stage.queue_json(&["depth"]);
        let requests = depth["queues"].as_array().unwrap().iter().find(|queue| queue["role"] == "requests").cloned();
        requests.filter(|requests| requests["visible"] == 1)
    });
    assert_eq!(depth["in_flight"], 0, "{depth} {waiting}");
    assert!(cloud.logs().contains("drained"), "{}", cloud.logs());
}

#[test]
fn what_autoscale_cannot_find_is_one_line() {
    let stage = Stage::new(ministack());
    let no_queue = imgcls().args(["autoscale", "--backend", "aws"]).envs(stage.environment()).output().unwrap();
    let said = String::from_utf8_lossy(&no_queue.stderr).into_owned();
    assert_eq!(no_queue.status.code(), Some(1), "{said}");
    assert!(said.lines().last().is_some_and(|line| line.contains("no queue") && line.contains("provision")), "{said}");

    let _service: Service = stage.service_with(0, &[], &[]);
    let group = ["autoscale", "--backend", "aws", "--auto-scaling-group", "nobody-s"];
    let environment = [stage.environment(), vec![autoscaling_at(moto().address)]].concat();
    let no_group = imgcls().args(group).envs(environment).output().unwrap();
    let said = String::from_utf8_lossy(&no_group.stderr).into_owned();
    assert_eq!(no_group.status.code(), Some(1), "{said}");
    assert!(said.lines().last().is_some_and(|line| line.contains("nobody-s") && line.contains("provision")), "{said}");
}

/// A small file and a large picture, so that images wait however fast they are sent.
fn slow_picture() -> Vec<u8> {
    let gradient = image::RgbImage::from_fn(6_000, 4_000, |x, y| image::Rgb([(x / 32) as u8, (y / 32) as u8, 90]));
    let mut file = std::io::Cursor::new(Vec::new());
    gradient.write_to(&mut file, image::ImageFormat::Jpeg).unwrap();
    file.into_inner()
}

fn autoscaling_at(address: SocketAddr) -> (String, String) {
    ("AWS_ENDPOINT_URL_AUTO_SCALING".to_owned(), format!("http://{address}"))
}

/// An Auto Scaling group and its instances. A thread carries out what the group says.
struct Cloud {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    carrying_out: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    environment: Vec<(String, String)>,
    group: Group,
    /// Instances that said that they have drained.
    drained: Arc<Mutex<BTreeSet<String>>>,
    machines: Mutex<BTreeMap<String, Machine>>,
    gone: Mutex<Vec<Gone>>,
    directory: tempfile::TempDir,
}

/// A group that moto plays.
struct Group {
    emulator: &'static Emulator,
    name: String,
}

struct Machine {
    worker: Process,
    metadata: Arc<Metadata>,
    metadata_address: SocketAddr,
    is_leaving: bool,
}

/// How an instance ended.
#[derive(Debug, Clone)]
struct Gone {
    exit_code: Option<i32>,
    said_drained: bool,
}

impl Cloud {
    fn start(stage: &Stage, most: u32) -> Cloud {
        let group = Group { emulator: moto(), name: stage.name.clone() };
        group.make(most);
        let drained = Arc::<Mutex<BTreeSet<String>>>::default();
        let front = front(moto(), Arc::clone(&drained));
        let environment = [stage.environment(), vec![autoscaling_at(front)]].concat();
        let directory = tempfile::tempdir().unwrap();
        let (machines, gone) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { environment, group, drained, machines, gone, directory });
        let stop = Arc::new(AtomicBool::new(false));
        let (carried, stopped) = (Arc::clone(&shared), Arc::clone(&stop));
        let carrying_out = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                carried.carry_out();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Cloud { shared, stop, carrying_out: Some(carrying_out) }
    }

    fn autoscale(&self, flags: &[&str]) -> Process {
        let mut command = imgcls();
        command.args(["autoscale", "--backend", "aws", "--auto-scaling-group", &self.shared.group.name]).args(flags);
        command.envs(self.shared.environment.iter().cloned());
        let autoscale =
            Process::start(command, &self.shared.directory.path().join(format!("autoscale-{}", rand::random::<u32>())));
        autoscale.wait_for_log("ready");
        autoscale
    }

    fn set_desired(&self, desired: u32) {
        self.shared.group.call("SetDesiredCapacity", &[("DesiredCapacity", &desired.to_string())]);
    }

    /// Instances, leaving ones too.
    fn count(&self) -> usize {
        self.shared.machines.lock().unwrap().len()
    }

    fn gone(&self) -> Vec<Gone> {
        self.shared.gone.lock().unwrap().clone()
    }

    fn want_all_back(&self) {
        for machine in self.shared.machines.lock().unwrap().values() {
            machine.metadata.is_wanted_back.store(true, Ordering::Release);
        }
    }

    fn logs(&self) -> String {
        self.shared.machines.lock().unwrap().values().map(|machine| machine.worker.log()).collect()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(carrying_out) = self.carrying_out.take() {
            let _ = carrying_out.join();
        }
    }
}

impl Shared {
    /// One round of EC2: instances that the group has got, and those that it wants no more.
    fn carry_out(&self) {
        let (wanted, desired) = self.group.look();
        if wanted.len() > desired {
            // As a real group does, and moto does not: what could not be taken away, protected as it was, is tried again.
            self.group.call("SetDesiredCapacity", &[("DesiredCapacity", &desired.to_string())]);
        }
        let mut machines = self.machines.lock().unwrap();
        for id in &wanted {
            machines.entry(id.clone()).or_insert_with(|| self.start(id));
        }
        let mut ended = Vec::new();
        for (id, machine) in machines.iter_mut() {
            if !wanted.contains(id) && !machine.is_leaving {
                machine.is_leaving = true;
                *machine.metadata.target_state.lock().unwrap() = "Terminated";
            }
            let said_drained = self.drained.lock().unwrap().contains(id);
            if machine.is_leaving && said_drained {
                machine.worker.signal("TERM");
                ended.push((id.clone(), Gone { exit_code: machine.worker.wait(), said_drained }));
            } else if machine.worker.has_ended() {
                // As the service manager of an instance does.
                machine.worker = self.start_worker(id, machine.metadata_address);
            }
        }
        for (id, gone) in ended {
            machines.remove(&id);
            self.gone.lock().unwrap().push(gone);
        }
    }

    fn start(&self, id: &str) -> Machine {
        let metadata = Arc::new(Metadata {
            id: id.to_owned(),
            target_state: Mutex::new("InService"),
            is_wanted_back: AtomicBool::new(false),
        });
        let answering = Arc::clone(&metadata);
        let metadata_address = serve(move |asked| answering.answer(asked));
        Machine { worker: self.start_worker(id, metadata_address), metadata, metadata_address, is_leaving: false }
    }

    fn start_worker(&self, id: &str, metadata: SocketAddr) -> Process {
        let mut command = imgcls();
        command.args(["worker", "--backend", "aws", "--sessions", "1", "--auto-scaling-group", &self.group.name]);
        command.envs(self.environment.iter().cloned());
        command.env("AWS_EC2_METADATA_DISABLED", "false");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{metadata}/"));
        Process::start(command, &self.directory.path().join(id))
    }
}

impl Group {
    fn make(&self, most: u32) {
        let launch = [
            ("LaunchConfigurationName", self.name.as_str()),
            ("ImageId", "ami-12c6146b"),
            ("InstanceType", "c7i.large"),
        ];
        self.call("CreateLaunchConfiguration", &launch);
        let sizes = [
            ("LaunchConfigurationName", self.name.as_str()),
            ("MinSize", "0"),
            ("MaxSize", &most.to_string()),
            ("DesiredCapacity", "0"),
            ("AvailabilityZones.member.1", "us-east-1a"),
        ];
        self.call("CreateAutoScalingGroup", &sizes);
    }

    /// Its instances, and how many it should have.
    fn look(&self) -> (BTreeSet<String>, usize) {
        let answer = self.call("DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", &self.name)]);
        let ids = answer.split("<InstanceId>").skip(1).filter_map(|rest| rest.split('<').next());
        let desired = answer.split("<DesiredCapacity>").nth(1).and_then(|rest| rest.split('<').next());
        (ids.map(str::to_owned).collect(), desired.unwrap().parse().unwrap())
    }

    fn call(&self, action: &str, arguments: &[(&str, &str)]) -> String {
        let mut body = format!("Action={action}&Version=2011-01-01&AutoScalingGroupName={}", self.name);
        for (name, value) in arguments {
            let _ = write!(body, "&{name}={value}");
        }
        let headers = [
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=t/20260101/us-east-1/autoscaling/aws4_request, SignedHeaders=host, Signature=0",
            ),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        let answer = request(self.emulator.address, "POST", "/", &headers, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{action}: {}", answer.text());
        answer.text()
    }
}

/// What an instance hears of itself.
struct Metadata {
    id: String,
    target_state: Mutex<&'static str>,
    is_wanted_back: AtomicBool,
}

impl Metadata {
    /// Version 2 alone: without a token nothing is said.
    fn answer(&self, asked: &Asked) -> Answer {
        let plain = |text: &str| Answer::text(200, "text/plain", text);
        if asked.method == "PUT" && asked.path == "/latest/api/token" {
            let mut answer = plain("a token");
            answer.headers.push(("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned()));
            return answer;
        }
        if asked.header("x-aws-ec2-metadata-token") != Some("a token") {
            return Answer::text(401, "text/plain", "");
        }
        match asked.path.as_str() {
            "/latest/meta-data/instance-id" => plain(&self.id),
            "/latest/meta-data/autoscaling/target-lifecycle-state" => plain(*self.target_state.lock().unwrap()),
            "/latest/meta-data/spot/instance-action" if self.is_wanted_back.load(Ordering::Acquire) => {
                plain(r#"{"action": "terminate", "time": "2026-01-01T00:00:00Z"}"#)
            }
            _ => Answer::text(404, "text/plain", ""),
        }
    }
}

/// What moto cannot: it takes the word of an instance that it has drained.
fn front(behind: &'static Emulator, drained: Arc<Mutex<BTreeSet<String>>>) -> SocketAddr {
    serve(move |asked| {
        let body = String::from_utf8_lossy(&asked.body);
        let argument = |name: &str| {
            let mut pairs = body.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        if argument("Action").as_deref() == Some("CompleteLifecycleAction") {
            assert_eq!(argument("LifecycleHookName").as_deref(), Some("drain"));
            drained.lock().unwrap().insert(argument("InstanceId").unwrap());
            let xmlns = "http://autoscaling.amazonaws.com/doc/2011-01-01/";
            let done = format!(
                "<CompleteLifecycleActionResponse xmlns=\"{xmlns}\"><CompleteLifecycleActionResult/></CompleteLifecycleActionResponse>"
            );
            return Answer::text(200, "text/xml", done);
        }
        let passed = ["authorization", "content-type", "x-amz-date"];
        let headers: Vec<(&str, &str)> =
            passed.into_iter().filter_map(|name| Some((name, asked.header(name)?))).collect();
        let answer = request(behind.address, &asked.method, &asked.path, &headers, &asked.body).unwrap();
        Answer::text(answer.status, "text/xml", answer.text())
    })
}
