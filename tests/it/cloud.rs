//! EC2, as far as no emulator plays it: moto keeps an Auto Scaling group, and here its instances are worker processes,
//! each with a metadata service of its own. One that is taken away waits until it says that it has drained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::emulators::Emulator;
use crate::harness::{Process, Response, imgcls, request};
use crate::http_server::{Answer, ReceivedRequest, serve};

/// Of Auto Scaling's answers.
pub const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";

/// The group, and what its processes are told.
pub struct Setting {
    pub emulator: &'static Emulator,
    pub group: String,
    /// Of every process.
    pub environment: Vec<(String, String)>,
    /// That name the group to workers and to `autoscale`.
    pub flags: Vec<String>,
}

/// An Auto Scaling group and its instances. A thread carries out what the group says.
pub struct Cloud {
    pub ec2: Arc<Ec2>,
    stop: Arc<AtomicBool>,
    carrying_out: Option<std::thread::JoinHandle<()>>,
}

pub struct Ec2 {
    pub group: Arc<Group>,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
    heard: Arc<Heard>,
    machines: Mutex<BTreeMap<String, Machine>>,
    gone: Mutex<Vec<Gone>>,
    directory: tempfile::TempDir,
}

/// What passed by on the way to the emulator.
#[derive(Default)]
struct Heard {
    /// Instances that said that they have drained.
    drained: Mutex<BTreeSet<String>>,
    /// Bodies of `PutMetricData`, until somebody takes them.
    metrics: Mutex<Vec<Vec<u8>>>,
}

/// A group that the emulator plays.
pub struct Group {
    emulator: &'static Emulator,
    name: String,
    /// Looked at and changed by one at a time: a real group is, the emulator's is not.
    turn: Mutex<()>,
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
    is_leaving: bool,
}

/// How an instance ended.
#[derive(Debug, Clone)]
pub struct Gone {
    pub exit_code: Option<i32>,
    pub said_drained: bool,
}

impl Cloud {
    pub fn start(setting: Setting) -> Cloud {
        let Setting { emulator, group, environment, flags } = setting;
        let group = Arc::new(Group { emulator, name: group, turn: Mutex::default() });
        let heard = Arc::<Heard>::default();
        let front = format!("http://{}", front(Arc::clone(&group), Arc::clone(&heard)));
        let through = ["AWS_ENDPOINT_URL_AUTO_SCALING", "AWS_ENDPOINT_URL_CLOUDWATCH"];
        let through = through.map(|variable| (variable.to_owned(), front.clone()));
        let environment = [environment, through.to_vec()].concat();
        let directory = tempfile::tempdir().unwrap();
        let (machines, gone) = (Mutex::default(), Mutex::default());
        let ec2 = Arc::new(Ec2 { group, environment, flags, heard, machines, gone, directory });
        let stop = Arc::new(AtomicBool::new(false));
        let (carried, stopped) = (Arc::clone(&ec2), Arc::clone(&stop));
        let carrying_out = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                carried.carry_out();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Cloud { ec2, stop, carrying_out: Some(carrying_out) }
    }

    pub fn autoscale(&self, flags: &[&str]) -> Process {
        let mut command = self.ec2.command("autoscale");
        command.args(flags);
        let log = self.ec2.directory.path().join(format!("autoscale-{}", rand::random::<u32>()));
        let autoscale = Process::start(command, &log);
        autoscale.wait_for_log("ready");
        autoscale
    }

    /// Instances, leaving ones too.
    pub fn count(&self) -> usize {
        self.ec2.machines.lock().unwrap().len()
    }

    pub fn gone(&self) -> Vec<Gone> {
        self.ec2.gone.lock().unwrap().clone()
    }

    pub fn want_all_back(&self) {
        for machine in self.ec2.machines.lock().unwrap().values() {
            machine.metadata.is_wanted_back.store(true, Ordering::Release);
        }
    }

    pub fn logs(&self) -> String {
        self.ec2.machines.lock().unwrap().values().map(|machine| machine.worker.log()).collect()
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

impl Ec2 {
    /// Of each instance how long ago it started, and whether it is leaving.
    pub fn ages(&self) -> Vec<(Duration, bool)> {
        let machines = self.machines.lock().unwrap();
        machines.values().map(|machine| (machine.started.elapsed(), machine.is_leaving)).collect()
    }

    /// Bodies of `PutMetricData` since the last call.
    pub fn take_metrics(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.heard.metrics.lock().unwrap())
    }

    /// One round of EC2: instances that the group has got, and those that it wants no more.
    fn carry_out(&self) {
        // As a real group does, and moto does not: what could not be taken away, protected as it was, is tried again.
        let wanted = self.group.change(|size| (size.instances.len() > size.desired as usize).then_some(size.desired));
        let wanted = wanted.instances;
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
            let said_drained = self.heard.drained.lock().unwrap().contains(id);
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
        let worker = self.start_worker(id, metadata_address);
        Machine { worker, metadata, metadata_address, started: Instant::now(), is_leaving: false }
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
    /// Looks, and sets the desired capacity to what `decide` says, if anything; the group after that.
    pub fn change(&self, decide: impl FnOnce(&Size) -> Option<u32>) -> Size {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.look();
        let Some(desired) = decide(&size) else { return size };
        self.call("SetDesiredCapacity", &[("DesiredCapacity", &desired.to_string())]);
        self.look()
    }

    fn look(&self) -> Size {
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

/// One call of Auto Scaling about a group.
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

/// An emulator tells services by the scope of the signature, which it does not check.
pub fn scope(service: &str) -> String {
    let key = "123456789012/20260101/us-east-1";
    format!("AWS4-HMAC-SHA256 Credential={key}/{service}/aws4_request, SignedHeaders=host, Signature=0")
}

/// What an instance hears of itself.
struct Metadata {
    id: String,
    target_state: Mutex<&'static str>,
    is_wanted_back: AtomicBool,
}

impl Metadata {
    /// Version 2 alone: without a token nothing is said.
    fn answer(&self, asked: &ReceivedRequest) -> Answer {
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

/// Before the emulator's Auto Scaling and CloudWatch: takes the word of an instance that it has drained, which the
/// emulator does not know, and hears what is put into metrics.
fn front(group: Arc<Group>, heard: Arc<Heard>) -> SocketAddr {
    serve(move |asked| {
        let body = String::from_utf8_lossy(&asked.body);
        let argument = |name: &str| {
            let mut pairs = body.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        if argument("Action").as_deref() == Some("CompleteLifecycleAction") {
            assert_eq!(argument("LifecycleHookName").as_deref(), Some("drain"));
            heard.drained.lock().unwrap().insert(argument("InstanceId").unwrap());
            let done = format!(
                "<CompleteLifecycleActionResponse xmlns=\"{NAMESPACE}\"><CompleteLifecycleActionResult/></CompleteLifecycleActionResponse>"
            );
            return Answer::text(200, "text/xml", done);
        }
        if asked.path.ends_with("/PutMetricData") {
            heard.metrics.lock().unwrap().push(asked.body.clone());
        }
        let _turn = group.turn.lock().unwrap_or_else(PoisonError::into_inner);
        hand_on(asked, group.emulator)
    })
}

fn hand_on(asked: &ReceivedRequest, emulator: &Emulator) -> Answer {
    let passed = ["accept", "authorization", "content-encoding", "content-type", "smithy-protocol", "x-amz-date"];
    let headers: Vec<(&str, &str)> = passed.into_iter().filter_map(|name| Some((name, asked.header(name)?))).collect();
    let answer: Response = request(emulator.address, &asked.method, &asked.path, &headers, &asked.body).unwrap();
    let returned = ["Content-Type", "smithy-protocol"];
    let headers = returned.into_iter().filter_map(|name| Some((name, answer.header(name)?.to_owned()))).collect();
    Answer { status: answer.status, headers, body: answer.body }
}
