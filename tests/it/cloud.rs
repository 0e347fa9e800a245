//! Simulates the parts of EC2 that no emulator has. moto keeps an Auto Scaling group; this module runs its instances as
//! worker processes, each with an instance metadata service. An instance is terminated after it has completed its
//! lifecycle hook.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::emulators::Emulator;
use crate::harness::{Process, Response, imgcls, request};
use crate::http_server::{Answer, ReceivedRequest, serve};

/// XML namespace of the answers of Auto Scaling.
pub const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";

/// The group, and the settings of its processes.
pub struct Setting {
    pub emulator: &'static Emulator,
    pub group: String,
    /// Environment of every process.
    pub environment: Vec<(String, String)>,
    /// Flags that name the group to workers and to `autoscale`.
    pub flags: Vec<String>,
}

/// An Auto Scaling group and its instances. A thread starts and terminates instances as the group demands.
pub struct Cloud {
    pub ec2: Arc<Ec2>,
    stop: Arc<AtomicBool>,
    reconciling: Option<std::thread::JoinHandle<()>>,
}

pub struct Ec2 {
    pub group: Arc<Group>,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
    intercepted: Arc<Intercepted>,
    machines: Mutex<BTreeMap<String, Machine>>,
    terminated: Mutex<Vec<Terminated>>,
    directory: tempfile::TempDir,
}

/// Calls that were intercepted on the way to the emulator.
#[derive(Default)]
struct Intercepted {
    /// Instances that have completed their lifecycle hook.
    drained: Mutex<BTreeSet<String>>,
    /// Bodies of `PutMetricData`, until a test takes them.
    metrics: Mutex<Vec<Vec<u8>>>,
}

/// A group on the emulator.
pub struct Group {
    emulator: &'static Emulator,
    name: String,
    /// Serializes reads and changes, which the emulator does not do.
    lock: Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: BTreeSet<String>,
}

struct Machine {
    worker: Process,
    metadata: Arc<Metadata>,
    metadata_address: SocketAddr,
    started: Instant,
    is_terminating: bool,
}

/// A terminated instance.
#[derive(Debug, Clone)]
pub struct Terminated {
    pub exit_code: Option<i32>,
    /// True if it completed its lifecycle hook before.
    pub has_drained: bool,
}

impl Cloud {
    pub fn start(setting: Setting) -> Cloud {
        let Setting { emulator, group, environment, flags } = setting;
        let group = Arc::new(Group { emulator, name: group, lock: Mutex::default() });
        let intercepted = Arc::<Intercepted>::default();
        let proxy = format!("http://{}", start_proxy(Arc::clone(&group), Arc::clone(&intercepted)));
        let proxied = ["AWS_ENDPOINT_URL_AUTO_SCALING", "AWS_ENDPOINT_URL_CLOUDWATCH"];
        let proxied = proxied.map(|variable| (variable.to_owned(), proxy.clone()));
        let environment = [environment, proxied.to_vec()].concat();
        let directory = tempfile::tempdir().unwrap();
        let (machines, terminated) = (Mutex::default(), Mutex::default());
        let ec2 = Arc::new(Ec2 { group, environment, flags, intercepted, machines, terminated, directory });
        let stop = Arc::new(AtomicBool::new(false));
        let (reconciled, stopped) = (Arc::clone(&ec2), Arc::clone(&stop));
        let reconciling = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                reconciled.reconcile();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Cloud { ec2, stop, reconciling: Some(reconciling) }
    }

    pub fn autoscale(&self, flags: &[&str]) -> Process {
        let mut command = self.ec2.command("autoscale");
        command.args(flags);
        let log = self.ec2.directory.path().join(format!("autoscale-{}", rand::random::<u32>()));
        let autoscale = Process::start(command, &log);
        autoscale.wait_for_log("ready");
        autoscale
    }

    /// The number of instances, including those that are terminating.
    pub fn count(&self) -> usize {
        self.ec2.machines.lock().unwrap().len()
    }

    pub fn terminated(&self) -> Vec<Terminated> {
        self.ec2.terminated.lock().unwrap().clone()
    }

    /// Announces a Spot interruption to all instances.
    pub fn interrupt_all(&self) {
        for machine in self.ec2.machines.lock().unwrap().values() {
            machine.metadata.is_interrupted.store(true, Ordering::Release);
        }
    }

    pub fn logs(&self) -> String {
        self.ec2.machines.lock().unwrap().values().map(|machine| machine.worker.log()).collect()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(reconciling) = self.reconciling.take() {
            let _ = reconciling.join();
        }
    }
}

impl Ec2 {
    /// For each instance, the time since its start and whether it is terminating.
    pub fn ages(&self) -> Vec<(Duration, bool)> {
        let machines = self.machines.lock().unwrap();
        machines.values().map(|machine| (machine.started.elapsed(), machine.is_terminating)).collect()
    }

    /// Bodies of `PutMetricData` since the last call.
    pub fn take_metrics(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.intercepted.metrics.lock().unwrap())
    }

    /// Starts the instances that the group has added, and terminates those that it has removed.
    fn reconcile(&self) {
        // An instance that was protected from scale-in stays. A real group tries again to remove it, which moto does
        // not.
        let wanted = self.group.change(|size| (size.instances.len() > size.desired as usize).then_some(size.desired));
        let wanted = wanted.instances;
        let mut machines = self.machines.lock().unwrap();
        for id in &wanted {
            machines.entry(id.clone()).or_insert_with(|| self.start(id));
        }
        let mut ended = Vec::new();
        for (id, machine) in machines.iter_mut() {
            if !wanted.contains(id) && !machine.is_terminating {
                machine.is_terminating = true;
                *machine.metadata.target_state.lock().unwrap() = "Terminated";
            }
            let has_drained = self.intercepted.drained.lock().unwrap().contains(id);
            if machine.is_terminating && has_drained {
                machine.worker.signal("TERM");
                ended.push((id.clone(), Terminated { exit_code: machine.worker.wait(), has_drained }));
            } else if machine.worker.has_ended() {
                // Restarts the worker, as the service manager of an instance does.
                machine.worker = self.start_worker(id, machine.metadata_address);
            }
        }
        for (id, terminated) in ended {
            machines.remove(&id);
            self.terminated.lock().unwrap().push(terminated);
        }
    }

    fn start(&self, id: &str) -> Machine {
        let metadata = Arc::new(Metadata {
            id: id.to_owned(),
            target_state: Mutex::new("InService"),
            is_interrupted: AtomicBool::new(false),
        });
        let answering = Arc::clone(&metadata);
        let metadata_address = serve(move |received| answering.answer(received));
        let worker = self.start_worker(id, metadata_address);
        Machine { worker, metadata, metadata_address, started: Instant::now(), is_terminating: false }
    }

    fn start_worker(&self, id: &str, metadata: SocketAddr) -> Process {
        let mut command = self.command("worker");
        command.args(["--sessions", "1"]);
        command.env("AWS_EC2_METADATA_DISABLED", "false");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{metadata}/"));
        Process::start(command, &self.directory.path().join(id))
    }

    fn command(&self, name: &str) -> std::process::Command {
        let mut command = imgcls();
        command.args([name, "--backend", "aws"]).args(&self.flags).envs(self.environment.iter().cloned());
        command
    }
}

impl Group {
    /// Reads the group, and sets its desired capacity if `decide` returns one. Returns the group after that.
    pub fn change(&self, decide: impl FnOnce(&Size) -> Option<u32>) -> Size {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.describe();
        let Some(desired) = decide(&size) else { return size };
        self.call("SetDesiredCapacity", &[("DesiredCapacity", &desired.to_string())]);
        self.describe()
    }

    fn describe(&self) -> Size {
        let answer = self.call("DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", &self.name)]);
        let document = roxmltree::Document::parse(&answer).unwrap();
        let texts = |name: &str| -> Vec<String> {
            let named = document.descendants().filter(|node| node.has_tag_name((NAMESPACE, name)));
            named.filter_map(|node| node.text()).map(str::to_owned).collect()
        };
        let number = |name: &str| texts(name)[0].parse().unwrap();
        let instances = texts("InstanceId").into_iter().collect();
        Size { min: number("MinSize"), max: number("MaxSize"), desired: number("DesiredCapacity"), instances }
    }

    pub fn policies(&self) -> String {
        self.call("DescribePolicies", &[])
    }

    fn call(&self, action: &str, arguments: &[(&str, &str)]) -> String {
        call(self.emulator, action, &self.name, arguments)
    }
}

/// Makes one call of Auto Scaling for a group.
pub fn call(emulator: &Emulator, action: &str, group: &str, arguments: &[(&str, &str)]) -> String {
    let mut body = format!("Action={action}&Version=2011-01-01&AutoScalingGroupName={group}");
    for (name, value) in arguments {
        let _ = write!(body, "&{name}={value}");
    }
    let scope = scope("autoscaling");
    let headers = [("Authorization", scope.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    let answer = request(emulator.address, "POST", "/", &headers, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{action}: {}", answer.text());
    answer.text()
}

/// An authorization header. The emulator reads the service from its scope, and does not check the signature.
pub fn scope(service: &str) -> String {
    let key = "123456789012/20260101/us-east-1";
    format!("AWS4-HMAC-SHA256 Credential={key}/{service}/aws4_request, SignedHeaders=host, Signature=0")
}

/// The metadata of an instance.
struct Metadata {
    id: String,
    target_state: Mutex<&'static str>,
    is_interrupted: AtomicBool,
}

impl Metadata {
    /// Answers as IMDSv2: requests without a token are refused.
    fn answer(&self, received: &ReceivedRequest) -> Answer {
        let plain = |text: &str| Answer::text(200, "text/plain", text);
        if received.method == "PUT" && received.path == "/latest/api/token" {
            let mut answer = plain("a token");
            answer.headers.push(("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned()));
            return answer;
        }
        if received.header("x-aws-ec2-metadata-token") != Some("a token") {
            return Answer::text(401, "text/plain", "");
        }
        match received.path.as_str() {
            "/latest/meta-data/instance-id" => plain(&self.id),
            "/latest/meta-data/autoscaling/target-lifecycle-state" => plain(*self.target_state.lock().unwrap()),
            "/latest/meta-data/spot/instance-action" if self.is_interrupted.load(Ordering::Acquire) => {
                plain(r#"{"action": "terminate", "time": "2026-01-01T00:00:00Z"}"#)
            }
            _ => Answer::text(404, "text/plain", ""),
        }
    }
}

/// A proxy in front of the emulator's Auto Scaling and CloudWatch. It answers `CompleteLifecycleAction`, which the
/// emulator does not have, and records `PutMetricData`.
fn start_proxy(group: Arc<Group>, intercepted: Arc<Intercepted>) -> SocketAddr {
    serve(move |received| {
        let body = String::from_utf8_lossy(&received.body);
        let argument = |name: &str| {
            let mut pairs = body.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        if argument("Action").as_deref() == Some("CompleteLifecycleAction") {
            assert_eq!(argument("LifecycleHookName").as_deref(), Some("drain"));
            intercepted.drained.lock().unwrap().insert(argument("InstanceId").unwrap());
            let done = format!(
                "<CompleteLifecycleActionResponse xmlns=\"{NAMESPACE}\"><CompleteLifecycleActionResult/></CompleteLifecycleActionResponse>"
            );
            return Answer::text(200, "text/xml", done);
        }
        if received.path.ends_with("/PutMetricData") {
            intercepted.metrics.lock().unwrap().push(received.body.clone());
        }
        let _guard = group.lock.lock().unwrap_or_else(PoisonError::into_inner);
        forward(received, group.emulator)
    })
}

fn forward(received: &ReceivedRequest, emulator: &Emulator) -> Answer {
    let passed = ["accept", "authorization", "content-encoding", "content-type", "smithy-protocol", "x-amz-date"];
    let headers: Vec<(&str, &str)> =
        passed.into_iter().filter_map(|name| Some((name, received.header(name)?))).collect();
    let answer: Response =
        request(emulator.address, &received.method, &received.path, &headers, &received.body).unwrap();
    let returned = ["Content-Type", "smithy-protocol"];
    let headers = returned.into_iter().filter_map(|name| Some((name, answer.header(name)?.to_owned()))).collect();
    Answer { status: answer.status, headers, body: answer.body }
}
