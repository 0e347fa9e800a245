//! The user data of machines, run in a clean Debian 12: it downloads the bundle that `apply` uploaded, with the role of a
//! simulated metadata service, checks its digest, and the units that it writes start a worker and a web tier, which
//! classify an image.
//!
//! There is no systemd here: a `systemctl` script records its arguments, systemd's own checker reads the units, and the
//! test runs their commands as a user without rights. Calls go to moto, which checks no signatures, so that the signature
//! of curl is checked here. Without root and a clean Debian 12 the test is skipped, and both it and `scripts/test` report
//! that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_types::date_time::{DateTime, Format};
use base64::Engine as _;

use super::proxy::{self, Call};
use super::{Stack, between, call_emulator, small_bundle};
use crate::emulators::moto_of_stacks;
use crate::harness::{Process, free_port, imgcls, label_of, request, test_image, until};
use crate::http_server::{self, Answer, ReceivedRequest};

const SYSTEMCTL: &str = "#!/bin/bash\necho \"$@\" >>/systemctl\n";
const SYSTEMD_RUN: &str = "#!/bin/bash\necho \"run $@\" >>/systemctl\n";
const JOURNALCTL: &str = "#!/bin/bash\nexec tail --lines=+1 --follow=name --retry /var/log/imgcls.log\n";
/// Highest exposure level of a unit, as `systemd-analyze security` measures it: from 0 to 100, and OK up to 49.
const MAX_EXPOSURE: &str = "20";
const UNITS: &str = "/etc/systemd/system";
/// The user that runs the units here, instead of one that `DynamicUser` creates.
const NOBODY: &str = "--userspec=65534:65534";
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
/// Credentials of the machines' role.
const ACCESS_KEY: &str = "ASIAROLEOFTHEMACHINE";
const SECRET_KEY: &str = "secret/of+the=role";
const SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjE//////////wEaCXVzLWVhc3QtMSJ+a+session==";

/// A machine picks a variant by its CPU, or by its settings; no bundle has one that no machine picks.
#[test]
fn bundle_has_the_variants_that_machines_pick() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, bundle) = (folder.path().join("service.toml"), folder.path().join("bundle.tar.gz"));
    let export = |text: &str| {
        std::fs::write(&settings, text).unwrap();
        let mut command = imgcls();
        command.args(["provision", "export", "--backend", "aws", "--config"]).arg(&settings);
        command.arg("--bundle-to").arg(&bundle).output().unwrap()
    };
    let of_model = |file: &str| format!("share/imgcls/models/efficientnet-lite0/{file}");
    for (text, variants) in [("", &["int7", "int8"][..]), ("[worker]\nvariant = \"fp16\"\n", &["fp16"])] {
        let output = export(text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let files = run_to_success(Command::new("tar").arg("-tzf").arg(&bundle));
        let mut files: Vec<&str> = files.lines().filter(|name| name.contains("/models/")).collect();
        files.sort_unstable();
        let networks = variants.iter().map(|variant| of_model(&format!("efficientnet-lite0-{variant}.onnx")));
        let others = ["NOTICE", "labels.txt", "model.toml"].map(of_model);
        let mut expected: Vec<String> = networks.chain(others).collect();
        expected.sort_unstable();
        assert_eq!(files, expected);
        let description = Command::new("tar").arg("-xOzf").arg(&bundle).arg(of_model("model.toml")).output().unwrap();
        let description: toml::Table = String::from_utf8(description.stdout).unwrap().parse().unwrap();
        assert_eq!(description["files"].as_table().unwrap().keys().collect::<Vec<_>>(), variants);
    }
    let refused = export("[worker]\nvariant = \"fp8\"\n");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("no variant \"fp8\"; there are: fp16, int7, int8"), "{error}");
}

#[test]
fn settings_for_machines_change_the_launch_template_of_their_tier() {
    let stack = Stack::new("settings");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("service.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let with_file = |command: &'static str| [command, "--config", file.to_str().unwrap()].map(str::to_owned);
    let run = |command: &'static str| {
        let words = with_file(command);
        stack.succeeds(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    write("[worker]\nmax-pixels = 1000000\n");
    run("apply");
    assert!(run("plan").contains("nothing to do"));
    let script = String::from_utf8(user_data_of("settings-ApptierTemplate")).unwrap();
    assert!(script.contains("[worker]\nmax-pixels = \"1000000\"\n"), "{script}");
    write("[worker]\nmax-pixels = 2000000\n");
    let plan = run("plan");
    assert!(
        plan.contains("~ launch template    settings-ApptierTemplate") && !plan.contains("WebtierTemplate"),
        "{plan}"
    );
    write("[worker]\nmax-pixels = 1000000\n[web]\njob-ttl = \"2h\"\n");
    let plan = run("plan");
    assert!(
        plan.contains("~ launch template    settings-WebtierTemplate") && !plan.contains("ApptierTemplate"),
        "{plan}"
    );
    stack.destroy();
}

#[test]
fn clean_machines_download_the_bundle_and_classify() {
    if !Machine::can_be_simulated() {
        eprintln!(
            "SKIPPED: no root, or no clean Debian 12 (scripts/clean-root); the user data of machines was not run"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (router, completed) = start_router();
    let stack = Stack { bundle: export_bundle(folder.path()), ..Stack::at_plain_http_endpoint("machine") };
    let at_router = ["--endpoint-url", router.as_str()];
    stack.succeeds(&[&["apply"][..], &at_router].concat());

    let worker = Machine::start(folder.path(), "machine-ApptierTemplate", "i-0123456789abcdef0");
    assert!(worker.output.contains("is not the one with digest"), "the wrong bundle was accepted: {}", worker.output);
    assert_eq!(worker.systemctl("start"), ["--no-block imgcls-logs.service imgcls.service"]);
    assert_eq!(worker.systemctl("enable"), ["imgcls-logs.service imgcls.service"]);
    assert_eq!(worker.systemctl("daemon-reload"), [""]);
    // The worker does not run yet, so that this machine would be replaced.
    assert_eq!(worker.systemctl("run"), ["--unit=imgcls-check-start /opt/imgcls/check-start"]);
    worker.check_start();
    assert_eq!((worker.systemctl("poweroff").len(), completed.lock().unwrap().len()), (1, 0));
    let web = Machine::start(folder.path(), "machine-WebtierTemplate", "i-0123456789abcdef1");
    let web_units = "imgcls-logs.service imgcls.service imgcls-autoscale.service";
    assert_eq!(web.systemctl("enable"), [web_units]);

    // The ports are replaced, since 9090 and 80 may be taken on this machine.
    let admin = format!("127.0.0.1:{}", free_port());
    let _worker = worker.run("imgcls.service", &[("127.0.0.1:9090", &admin)]);
    let _logs = worker.run("imgcls-logs.service", &[]);
    let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let _web = web.run("imgcls.service", &[("0.0.0.0:80", &address.to_string())]);
    let autoscale = web.run("imgcls-autoscale.service", &[]);
    until("the web tier", || request(address, "GET", "/readyz", &[], b"").ok().filter(|answer| answer.status == 200));
    // The hook that holds the worker back is completed once it is ready.
    let check = worker.root.join("opt/imgcls/check-start");
    let text = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, text.replace("127.0.0.1:9090", &admin)).unwrap();
    until("the worker", || {
        worker.check_start();
        completed.lock().unwrap().pop()
    });
    let answer = request(address, "POST", "/v1/classify?wait=50", &[], &test_image("cat.jpg")).unwrap();
    assert_eq!(answer.status, 200, "{}\n{}\n{}", answer.text(), worker.log(), web.log());
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("cat.jpg").as_str());
    until("the log of the worker in CloudWatch Logs", || worker_log_in_cloudwatch().contains("ready").then_some(()));
    until("the first observation of the queue", || {
        autoscale.log().contains("machine-apptierAutoscaling").then_some(())
    });
    stack.succeeds(&[&["destroy", "--yes", "--delete-data"][..], &at_router].concat());
}

/// A simulated machine: the root directory of a clean Debian that has run a template's user data.
struct Machine {
    root: PathBuf,
    metadata: String,
    /// Output of the user data.
    output: String,
}

impl Machine {
    fn can_be_simulated() -> bool {
        let id = Command::new("id").arg("--user").output().unwrap();
        clean_root().with_file_name("debian-12.complete").exists() && id.stdout == b"0\n"
    }

    /// Runs the user data of a template to its end, and has systemd check the units.
    fn start(folder: &Path, template: &str, id: &'static str) -> Machine {
        let root = folder.join(id);
        run_to_success(Command::new("cp").arg("--archive").arg(clean_root()).arg(&root));
        let scripts = [
            ("systemctl", SYSTEMCTL),
            ("systemd-run", SYSTEMD_RUN),
            ("journalctl", JOURNALCTL),
            ("sleep", "#!/bin/bash\n"),
        ];
        for (name, text) in scripts {
            let path = root.join("usr/local/bin").join(name);
            std::fs::write(&path, text).unwrap();
            run_to_success(Command::new("chmod").arg("755").arg(path));
        }
        std::fs::write(root.join("user-data"), user_data_of(template)).unwrap();
        let mut machine = Machine { root, metadata: start_metadata_service(id), output: String::new() };
        let mut script = machine.inside(None);
        script.args(["/bin/bash", "/user-data"]).env(METADATA, &machine.metadata);
        machine.output = run_to_success(&mut script);
        for unit in machine.units() {
            let path = format!("{UNITS}/{unit}");
            run_to_success(machine.inside(None).args(["systemd-analyze", "verify", "--man=no", &path]));
            let security = ["systemd-analyze", "security", "--offline=yes", "--threshold", MAX_EXPOSURE, &path];
            run_to_success(machine.inside(None).args(security));
        }
        machine
    }

    fn check_start(&self) {
        run_to_success(self.inside(None).arg("/opt/imgcls/check-start").env(METADATA, &self.metadata));
    }

    /// Returns the arguments of each recorded call of `systemctl` with this verb.
    fn systemctl(&self, verb: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.root.join("systemctl")).unwrap();
        let calls = text.lines().map(|line| line.split_once(' ').unwrap_or((line, "")));
        calls.filter(|(called, _)| *called == verb).map(|(_, arguments)| arguments.to_owned()).collect()
    }

    fn units(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(&UNITS[1..])).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("imgcls") && name.ends_with(".service")).collect()
    }

    /// Returns a command that runs in the root. When it is killed, every process that it started ends as well.
    fn inside(&self, user: Option<&str>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child"]);
        command.arg(format!("--mount-proc={}", self.root.join("proc").display()));
        // The kernel does not kill a child that has changed its user. The shell stays root, so it is killed, and every
        // process in its PID namespace with it.
        command.args(["/bin/sh", "-c", "chroot \"$@\"; exit $?", "sh"]);
        command.args(user).arg(&self.root).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }

    /// Starts the command of a unit. `replaced` lists words of the command and their replacements.
    fn run(&self, unit: &str, replaced: &[(&str, &str)]) -> Process {
        let text = std::fs::read_to_string(self.root.join(&UNITS[1..]).join(unit)).unwrap();
        let unit_settings = settings(&text);
        let mut command = self.inside(Some(NOBODY));
        for word in unit_settings["ExecStart"].split(' ') {
            command.arg(replaced.iter().find(|(from, _)| *from == word).map_or(word, |(_, to)| to));
        }
        command.env(METADATA, &self.metadata);
        Process::start(command, &self.root.join("var/log").join(unit.replace(".service", ".log")))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("var/log/imgcls.log")).unwrap_or_default()
    }
}

fn clean_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/debian-12")
}

/// Returns the lines of a unit that have the form `name=value`.
fn settings(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Runs a command that has to succeed, and returns its output on both streams.
fn run_to_success(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn export_bundle(folder: &Path) -> PathBuf {
    let path = folder.join("bundle.tar.gz");
    run_to_success(imgcls().args(["provision", "export", "--backend", "aws", "--bundle-to"]).arg(&path));
    path
}

/// Returns the user data in a launch template, decoded as a machine receives it.
fn user_data_of(template: &str) -> Vec<u8> {
    let form = format!(
        "Action=DescribeLaunchTemplateVersions&Version=2016-11-15\
         &LaunchTemplateName={template}&LaunchTemplateVersion.1=$Latest"
    );
    let answer = call_emulator("ec2", &form).text();
    let encoded = between(&answer, "<userData>", "</userData>");
    base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()
}

fn worker_log_in_cloudwatch() -> String {
    let scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/logs/aws4_request";
    let headers = [
        ("Authorization", scope),
        ("X-Amz-Target", "Logs_20140328.GetLogEvents"),
        ("Content-Type", "application/x-amz-json-1.1"),
    ];
    let body = r#"{"logGroupName":"machine-imgcls","logStreamName":"i-0123456789abcdef0","startFromHead":true}"#;
    request(moto_of_stacks().address, "POST", "/", &headers, body.as_bytes()).unwrap().text()
}

/// Forwards calls to moto. A request for the bundle has to be signed, and the first one is answered with another bundle.
/// Completed lifecycle hooks, which moto does not know, are collected.
fn start_router() -> (String, Arc<Mutex<Vec<String>>>) {
    let bundle_requests = AtomicUsize::new(0);
    let completed = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&completed);
    let address = proxy::start(move |call| {
        let is_for_bundle = call.method() == "GET" && call.path().contains("/bundle/");
        if is_for_bundle && !is_signed_by_role(call) {
            return Some(http_answer(403, b""));
        }
        if is_for_bundle && bundle_requests.fetch_add(1, Ordering::Relaxed) == 0 {
            return Some(http_answer(200, &std::fs::read(small_bundle()).unwrap()));
        }
        let body = String::from_utf8_lossy(&call.body);
        if body.contains("Action=CompleteLifecycleAction") && body.contains("LifecycleHookName=start") {
            let expected = "Action=CompleteLifecycleAction&Version=2011-01-01\
                &AutoScalingGroupName=machine-apptierAutoscaling&LifecycleHookName=start&LifecycleActionResult=CONTINUE\
                &InstanceId=i-0123456789abcdef0";
            assert_eq!(body, expected);
            assert!(call.header("authorization").is_some_and(|text| text.contains("/autoscaling/aws4_request")));
            collected.lock().unwrap().push(body.into_owned());
            return Some(http_answer(200, b""));
        }
        call.forward_to(moto_of_stacks().address)
    });
    (format!("http://{address}"), completed)
}

fn http_answer(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Checks the signature as S3 does: signs the same call with the same keys and the time in its headers, and compares.
fn is_signed_by_role(call: &Call) -> bool {
    let (Some(date), Some(host)) = (call.header("x-amz-date"), call.header("host")) else { return false };
    let (day, time) = date.split_at(8);
    let time = format!("{}-{}-{}T{}:{}:{}Z", &day[..4], &day[4..6], &day[6..], &time[1..3], &time[3..5], &time[5..7]);
    let time = SystemTime::try_from(DateTime::from_str(&time, Format::DateTime).unwrap()).unwrap();
    let identity = Credentials::new(ACCESS_KEY, SECRET_KEY, Some(SESSION_TOKEN.to_owned()), None, "role").into();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let parameters = v4::SigningParams::builder().identity(&identity).region("us-east-1").name("s3");
    let parameters = parameters.time(time).settings(settings).build().unwrap().into();
    let url = format!("http://{host}{}", call.path());
    let no_headers = std::iter::empty::<(&str, &str)>();
    let request = SignableRequest::new("GET", &url, no_headers, SignableBody::UnsignedPayload).unwrap();
    let signature = sign(request, &parameters).unwrap().signature().to_owned();
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    let authorization = call.header("authorization").unwrap_or_default();
    age.as_secs() < 300 && authorization.ends_with(&format!("Signature={signature}"))
}

/// Starts a metadata service that speaks only version 2 of the protocol: it refuses requests without a token.
fn start_metadata_service(id: &'static str) -> String {
    let text = |status: u16, body: &str| Answer::text(status, "text/plain", body.to_owned());
    let answer = move |received: &ReceivedRequest| {
        let path = received.path.strip_prefix("/latest/").unwrap_or_default();
        if received.method == "PUT" && path == "api/token" {
            let ttl = received.header("x-aws-ec2-metadata-token-ttl-seconds").unwrap_or("0").to_owned();
            let mut token = text(200, "a-token");
            token.headers.push(("X-aws-ec2-metadata-token-ttl-seconds", ttl));
            return token;
        }
        match (received.header("x-aws-ec2-metadata-token"), path) {
            (Some("a-token"), "meta-data/instance-id") => text(200, id),
            (Some("a-token"), "meta-data/iam/security-credentials/") => text(200, "the-role"),
            (Some("a-token"), "meta-data/iam/security-credentials/the-role") => text(200, &role_credentials()),
            (Some("a-token"), _) => text(404, "not found"),
            _ => text(401, "no token"),
        }
    };
    format!("http://{}", http_server::serve(answer))
}

/// Returns the credentials on several lines, as the metadata service of EC2 writes them.
fn role_credentials() -> String {
    format!(
        "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2026-01-01T00:00:00Z\",\n  \"Type\" : \"AWS-HMAC\",\n  \
         \"AccessKeyId\" : \"{ACCESS_KEY}\",\n  \"SecretAccessKey\" : \"{SECRET_KEY}\",\n  \
         \"Token\" : \"{SESSION_TOKEN}\",\n  \"Expiration\" : \"2099-01-01T00:00:00Z\"\n}}"
    )
}
