//! `imgcls provision` against an emulator: creates, changes, repairs and deletes stacks.

mod accounts;
mod adopt;
mod balancer;
mod crash;
mod doctor;
mod drift;
mod export;
mod legacy_stack;
mod models;
mod notify;
mod policy;
mod preflight;
pub mod proxy;
mod refusals;
mod rollout;
mod second_opinion;
mod strict;
mod terraform;
mod user_data;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::emulators::{self, moto_of_stacks};
use crate::harness::{Process, Response, free_port, imgcls, request, until};

/// Each service gets an endpoint variable of its own. The stack is then the same as on AWS itself, whereas one endpoint
/// for all services would change it.
const SERVICES: [&str; 14] = [
    "SQS",
    "S3",
    "IAM",
    "CLOUDWATCH",
    "AUTO_SCALING",
    "STS",
    "EC2",
    "CLOUDWATCH_LOGS",
    "RESOURCE_GROUPS_TAGGING_API",
    "SERVICE_QUOTAS",
    "SNS",
    "BUDGETS",
    "ELASTIC_LOAD_BALANCING_V2",
    "FREETIER",
];

/// The variables with which all calls go to `url`.
pub fn environment(url: &str) -> Vec<(String, String)> {
    let mut environment = emulators::credentials();
    environment.push(("AWS_REGION".to_owned(), "us-east-1".to_owned()));
    environment.extend(SERVICES.map(|service| (format!("AWS_ENDPOINT_URL_{service}"), url.to_owned())));
    environment
}

/// A bundle of a few bytes. Nothing runs it in these tests.
pub fn small_bundle() -> &'static Path {
    static BUNDLE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUNDLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = write_bundle(folder.path(), "one");
        (folder, path)
    });
    path
}

fn write_bundle(folder: &Path, version: &str) -> PathBuf {
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(18, 0);
    program.extend([62, 0]);
    program.extend(version.bytes());
    write_bundle_with(folder, version, &program)
}

fn write_bundle_with(folder: &Path, version: &str, program: &[u8]) -> PathBuf {
    let path = folder.join(format!("bundle-{version}.tar.gz"));
    let file = std::fs::File::create(&path).unwrap();
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    for (name, bytes) in [("bin/imgcls", program), ("share/imgcls/models/tiny/model.toml", &[][..])] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap();
    path
}

/// A stack on the emulator. Each test uses another name.
struct Stack {
    name: &'static str,
    bundle: PathBuf,
    environment: Vec<(String, String)>,
}

/// The outcome of a command.
struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Stack {
    fn new(name: &'static str) -> Stack {
        Stack { name, bundle: small_bundle().to_owned(), environment: environment(&moto_of_stacks().url()) }
    }

    /// A stack whose buckets are used in the test. Its endpoint is plain HTTP, so its buckets have no policy: moto
    /// would refuse requests without TLS.
    fn at_plain_http_endpoint(name: &'static str) -> Stack {
        let mut environment = emulators::credentials();
        environment.push(("AWS_REGION".to_owned(), "us-east-1".to_owned()));
        environment.push(("AWS_ENDPOINT_URL".to_owned(), moto_of_stacks().url()));
        Stack { environment, ..Stack::new(name) }
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut process = imgcls();
        process.arg("provision").args(command).args(["--stack", self.name, "--bundle"]).arg(&self.bundle);
        // Most tests send no key. The flag takes precedence over this.
        process.env("IMGCLS_AUTH", "none");
        process.envs(self.environment.clone()).stdin(std::process::Stdio::null());
        process
    }

    fn run(&self, command: &[&str]) -> Finished {
        let output = self.command(command).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn succeeds(&self, command: &[&str]) -> String {
        let ran = self.run(command);
        assert_eq!(ran.code, Some(0), "{command:?}: {}\n{}", ran.stderr, ran.stdout);
        ran.stdout
    }

    /// Runs a command that fails, and returns its one line of error.
    fn fails(&self, command: &[&str]) -> String {
        let ran = self.run(command);
        assert_eq!(ran.code, Some(1), "{command:?}: {}\n{}", ran.stderr, ran.stdout);
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert!(lines.len() == 1 && lines[0].starts_with("imgcls: "), "{}", ran.stderr);
        ran.stderr
    }

    /// Asserts that a plan is empty.
    fn assert_plan_is_empty(&self) {
        let ran = self.run(&["plan", "--detailed-exitcode"]);
        assert_eq!(ran.code, Some(0), "{}\n{}", ran.stderr, ran.stdout);
        assert!(ran.stdout.contains("nothing to do"), "{}", ran.stdout);
    }

    fn destroy(&self) {
        let output = self.succeeds(&["destroy", "--yes", "--delete-data"]);
        assert!(output.contains("no resource with the tag imgcls:stack="), "{output}");
    }

    fn input_bucket(&self) -> String {
        format!("{}-imgcls-123456789012-us-east-1-input", self.name)
    }
}

/// Calls the emulator without imgcls. The emulator reads the service from the signature's scope, and does not check the
/// signature.
fn call_emulator(service: &str, form: &str) -> Response {
    call_at(moto_of_stacks().address, service, form)
}

fn call_at(emulator: SocketAddr, service: &str, form: &str) -> Response {
    let scope = format!("AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request");
    let headers = [("Authorization", scope.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    let response = request(emulator, "POST", "/", &headers, form.as_bytes()).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

/// Calls the emulator's CloudWatch Logs without imgcls. A log stream that exists already is no error.
fn call_logs(operation: &str, body: &Value) {
    let target = format!("Logs_20140328.{operation}");
    let headers = [
        ("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/logs/aws4_request"),
        ("X-Amz-Target", target.as_str()),
        ("Content-Type", "application/x-amz-json-1.1"),
    ];
    let response = request(moto_of_stacks().address, "POST", "/", &headers, body.to_string().as_bytes()).unwrap();
    let is_known = response.text().contains("ResourceAlreadyExists");
    assert!(response.status == 200 || is_known, "{operation}: {}", response.text());
}

/// Calls the emulator's S3 without imgcls.
fn call_s3(method: &str, path: &str, body: &str) -> Response {
    let scope = [("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request")];
    let response = request(moto_of_stacks().address, method, path, &scope, body.as_bytes()).unwrap();
    assert!(response.status < 300, "{method} {path}: {} {}", response.status, response.text());
    response
}

#[test]
fn stack_is_created_repaired_and_destroyed_beside_another() {
    let (stack, neighbour) = (Stack::at_plain_http_endpoint("whole"), Stack::new("whole-2"));
    neighbour.succeeds(&["apply"]);
    let plan = stack.run(&["plan", "--detailed-exitcode"]);
    assert_eq!(plan.code, Some(3), "{}", plan.stderr);
    assert!(plan.stdout.contains("29 to create, 0 to update, 0 to delete") && plan.stdout.contains("a month at rest"));

    let applied = stack.succeeds(&[]);
    assert!(applied.contains("web tier: http://ec2-"), "{applied}");
    stack.assert_plan_is_empty();

    // Manual changes are found and repaired.
    call_emulator(
        "autoscaling",
        "Action=UpdateAutoScalingGroup&AutoScalingGroupName=whole-apptierAutoscaling&MaxSize=9",
    );
    call_emulator("monitoring", "Action=DeleteAlarms&AlarmNames.member.1=whole-ScaleDownAlarm");
    let status = stack.succeeds(&["status"]);
    assert!(status.contains("MaxSize: 9, not 4") && status.contains("missing  alarm"), "{status}");
    stack.succeeds(&["apply"]);
    stack.assert_plan_is_empty();

    // A web process that is killed leaves its reply queue behind.
    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut web = imgcls();
    web.args(["serve-web", "--stack", "whole", "--listen", &address]).envs(stack.environment.clone());
    let mut web = Process::start(web, &folder.path().join("web.log"));
    let port = address.parse().unwrap();
    until("the web tier", || request(port, "GET", "/readyz", &[], b"").ok().filter(|answer| answer.status == 200));
    web.kill();

    // A bucket with an image is not destroyed unless data may be deleted.
    call_s3("PUT", &format!("/{}/images/1", stack.input_bucket()), "an image");
    let refused = stack.fails(&["destroy", "--yes"]);
    assert!(refused.contains(&stack.input_bucket()) && refused.contains("--delete-data"), "{refused}");
    assert!(stack.fails(&["destroy", "--delete-data"]).contains("give --yes"));
    stack.assert_plan_is_empty();

    let destroyed = stack.succeeds(&["destroy", "--yes", "--delete-data"]);
    assert!(destroyed.contains("− queue              whole-app-web-result-queue-"), "{destroyed}");
    assert!(destroyed.ends_with("no resource with the tag imgcls:stack=whole is left\n"), "{destroyed}");
    assert!(stack.succeeds(&["destroy", "--yes"]).contains("0 to delete"));
    neighbour.assert_plan_is_empty();
    neighbour.destroy();
}

#[test]
fn policy_and_settings_file_change_the_stack() {
    let stack = Stack::new("policies");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stack.toml");
    std::fs::write(&file, "max = 6\npolicy = \"target\"\nservice-time = \"20ms\"\nweb-instances = 0\n").unwrap();
    let file = file.to_str().unwrap();
    stack.succeeds(&["apply", "--web-instances", "0"]);
    let plan = stack.succeeds(&["plan", "--config", file, "--max", "5"]);
    assert!(plan.contains("MaxSize: 4 → 5") && plan.contains("− alarm              policies-ScaleUpAlarm"), "{plan}");
    stack.succeeds(&["apply", "--config", file, "--max", "5"]);
    let plan = stack.run(&["plan", "--detailed-exitcode", "--config", file, "--max", "5"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    stack.destroy();
}

#[test]
fn existing_launch_template_and_target_group_are_used_and_not_changed() {
    let stack = Stack::new("given");
    let missing = stack.fails(&["apply", "--existing-launch-template", "no-such-template"]);
    assert!(missing.contains("there is no launch template \"no-such-template\" in us-east-1"), "{missing}");
    call_emulator(
        "ec2",
        "Action=CreateLaunchTemplate&Version=2016-11-15&LaunchTemplateName=existing\
         &LaunchTemplateData.ImageId=ami-12c6146b&LaunchTemplateData.InstanceType=c7i.large",
    );
    let network = call_emulator("ec2", "Action=DescribeVpcs&Version=2016-11-15").text();
    let target_group = |name: &str| {
        let form = format!(
            "Action=CreateTargetGroup&Version=2015-12-01&Name={name}&Protocol=HTTP&Port=80&VpcId={}",
            between(&network, "<vpcId>", "</vpcId>")
        );
        between(&call_emulator("elasticloadbalancing", &form).text(), "<TargetGroupArn>", "</TargetGroupArn>")
            .to_owned()
    };
    let (first, second) = (target_group("given-first"), target_group("given-second"));
    let group_of = |name: &str| {
        let form = format!("Action=DescribeAutoScalingGroups&AutoScalingGroupNames.member.1=given-{name}");
        call_emulator("autoscaling", &form).text()
    };

    stack.succeeds(&with_existing("apply", &first));
    let workers = group_of("apptierAutoscaling");
    assert!(workers.contains("<LaunchTemplateName>existing<") && workers.contains("<Version>$Default<"), "{workers}");
    let web = group_of("webtierAutoscaling");
    assert!(web.contains(&first) && web.contains("<HealthCheckType>ELB<"), "{web}");
    let plan = stack.succeeds(&with_existing("plan", &first));
    assert!(plan.contains("nothing to do") && !plan.contains("ApptierTemplate"), "{plan}");

    // Another target group replaces the first. Without one, the web tier leaves it.
    stack.succeeds(&with_existing("apply", &second));
    let web = group_of("webtierAutoscaling");
    assert!(web.contains(&second) && !web.contains(&first), "{web}");
    let applied = stack.succeeds(&["apply"]);
    assert!(applied.contains("+ launch template    given-ApptierTemplate"), "{applied}");
    let web = group_of("webtierAutoscaling");
    assert!(!web.contains(&second) && web.contains("<HealthCheckType>EC2<"), "{web}");
    stack.assert_plan_is_empty();

    stack.destroy();
    call_emulator("ec2", "Action=DeleteLaunchTemplate&Version=2016-11-15&LaunchTemplateName=existing");
    call_emulator(
        "elasticloadbalancing",
        &format!("Action=DeleteTargetGroup&Version=2015-12-01&TargetGroupArn={first}"),
    );
}

/// Returns a command with the flags that name the existing resources.
fn with_existing<'a>(command: &'a str, target_group: &'a str) -> [&'a str; 5] {
    [command, "--existing-launch-template", "existing", "--target-group", target_group]
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from} in {text}"));
    rest.split(to).next().unwrap()
}

#[test]
fn first_apply_prints_a_key_that_the_web_tier_accepts() {
    let stack = Stack::at_plain_http_endpoint("keyed");
    let apply = ["apply", "--auth", "required"];
    let applied = stack.succeeds(&apply);
    let key = applied.lines().find_map(|line| line.strip_prefix("key for clients, printed only now: "));
    let key = format!("Bearer {}", key.expect("a key"));
    assert!(key.starts_with("Bearer imgcls_"), "{applied}");
    assert!(!stack.succeeds(&apply).contains("imgcls_"), "the key is printed once");

    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut web = imgcls();
    web.args(["serve-web", "--stack", "keyed", "--auth", "required", "--listen", &address]);
    web.envs(stack.environment.clone());
    let mut web = Process::start(web, &folder.path().join("web.log"));
    let address = address.parse().unwrap();
    until("the web tier", || request(address, "GET", "/healthz", &[], b"").ok());
    let status = |headers: &[(&str, &str)]| request(address, "GET", "/metrics", headers, b"").unwrap().status;
    assert_eq!(status(&[]), 401);
    assert_eq!(status(&[("Authorization", &key)]), 200);
    web.signal("TERM");
    web.wait();
    // Keys are no data that has to be kept.
    stack.succeeds(&["destroy", "--yes"]);
}
