//! Accounts that are not like the one of a tutorial: without a default VPC, with other instance types, with a program that
//! the machines cannot run.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Stack, between, call_emulator, call_s3, environment, proxy, small_bundle, write_bundle_with};
use crate::emulators::{Emulator, STRICT, credentials, moto_of_stacks};
use crate::harness::{imgcls, request};
use crate::http_server::{self, Answer, ReceivedRequest};

const REGION: &str = "eu-west-1";

fn ec2(form: &str) -> String {
    let scope = format!("AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/ec2/aws4_request");
    let headers = [("Authorization", scope.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    let form = format!("Version=2016-11-15&{form}");
    let response = request(moto_of_stacks().address, "POST", "/", &headers, form.as_bytes()).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    response.text()
}

/// All values of an element.
fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(open.as_str()).skip(1).map(|rest| rest.split(close.as_str()).next().unwrap()).collect()
}

#[test]
fn private_subnets_of_a_vpc_do_where_there_is_no_default_vpc() {
    let subnets = ec2("Action=DescribeSubnets");
    for subnet in all(&subnets, "subnetId") {
        ec2(&format!("Action=DeleteSubnet&SubnetId={subnet}"));
    }
    for vpc in all(&ec2("Action=DescribeVpcs"), "vpcId") {
        ec2(&format!("Action=DeleteVpc&VpcId={vpc}"));
    }
    let stack = Stack::new("private");
    let base = ["--region", REGION, "--web-instances", "0"];
    let with = |command: &'static str, flags: &[&str]| -> Vec<String> {
        [&[command][..], &base, flags].concat().iter().map(|word| (*word).to_owned()).collect()
    };
    let run = |words: Vec<String>| stack.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let refused = run(with("plan", &[]));
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no default VPC: give --vpc and --subnets"), "{}", refused.stderr);

    let vpc = between(&ec2("Action=CreateVpc&CidrBlock=10.0.0.0/16"), "<vpcId>", "</vpcId>").to_owned();
    let subnet = |zone: &str, number: u32| {
        let form =
            format!("Action=CreateSubnet&VpcId={vpc}&CidrBlock=10.0.{number}.0/24&AvailabilityZone={REGION}{zone}");
        let subnet = between(&ec2(&form), "<subnetId>", "</subnetId>").to_owned();
        // moto takes the first subnet of a zone for a default one, which is public.
        ec2(&format!("Action=ModifySubnetAttribute&SubnetId={subnet}&MapPublicIpOnLaunch.Value=false"));
        subnet
    };
    let subnets = [subnet("a", 1), subnet("b", 2)].join(",");
    let other = between(&ec2("Action=CreateVpc&CidrBlock=10.1.0.0/16"), "<vpcId>", "</vpcId>").to_owned();
    let wrong = run(with("plan", &["--vpc", &other, "--subnets", &subnets]));
    assert!(wrong.stderr.contains(&format!("the subnets are in VPC {vpc}, not in {other}")), "{}", wrong.stderr);
    let wrong = run(with("plan", &["--subnets", "subnet-0123"]));
    assert!(wrong.stderr.contains("there is no subnet \"subnet-0123\""), "{}", wrong.stderr);

    let chosen = ["--subnets", subnets.as_str()];
    let applied = run(with("apply", &chosen));
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    assert!(applied.stdout.contains("they need a NAT gateway, or endpoints of S3, SQS"), "{}", applied.stdout);
    let status = run(with("status", &chosen));
    assert!(status.stdout.contains("nothing to do"), "{}{}", status.stdout, status.stderr);
    // Neither flag is needed to remove what the stack has.
    let destroyed = run(with("destroy", &["--yes"]));
    assert!(destroyed.stdout.ends_with("is left\n"), "{}{}", destroyed.stdout, destroyed.stderr);
    assert!(!ec2("Action=DescribeSecurityGroups").contains("private-imgcls-app-tier"));
}

#[test]
fn zones_without_the_instance_type_are_left_out() {
    // us-east-1e has none of these types, and a default subnet.
    let stack = Stack::new("zones");
    let plan = stack.succeeds(&["plan", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let resources = plan["plan"]["stack"]["resources"].as_array().unwrap();
    let group = resources.iter().find(|resource| resource["id"] == "WorkerGroup").unwrap();
    assert_eq!(group["properties"]["VPCZoneIdentifier"].as_array().unwrap().len(), 5, "{group}");
    let error = stack.fails(&["plan", "--instance-type", "c99.huge"]);
    assert!(error.contains("no zone of VPC") && error.contains("offers c99.huge"), "{error}");
}

#[test]
fn type_without_a_price_is_planned_and_only_a_cost_limit_refuses_it() {
    let stack = Stack::new("priceless");
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    let built_in = include_str!("../../../src/scaling_policy/prices.toml");
    let without: Vec<&str> = built_in.lines().filter(|line| !line.starts_with("\"c7i.")).collect();
    std::fs::write(&prices, without.join("\n")).unwrap();
    let prices = prices.to_str().unwrap();
    for flags in [
        &["--instance-type", "m7i.24xlarge"][..],
        &["--instance-type", "x2idn.32xlarge"],
        &["--instance-type", "c7i.large", "--prices", prices],
    ] {
        let plan = stack.succeeds(&[&["plan"][..], flags].concat());
        assert!(plan.contains(&format!("price unknown for {}", flags[1])), "{plan}");
        let error = stack.fails(&[&["plan", "--max-hourly", "2"][..], flags].concat());
        assert!(error.contains(&format!("the price of {} is unknown", flags[1])), "{error}");
    }
}

#[test]
fn root_volume_is_that_of_the_ami() {
    let stack = Stack::new("rooted");
    // Its root is /dev/sda1, and its snapshot has 15 GB.
    let plan = stack.succeeds(&["plan", "--json", "--image", "ami-12c6146b"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let resources = plan["plan"]["stack"]["resources"].as_array().unwrap();
    for id in ["WorkerTemplate", "WebTemplate"] {
        let template = resources.iter().find(|resource| resource["id"] == id).unwrap();
        let volumes = &template["properties"]["LaunchTemplateData"]["BlockDeviceMappings"];
        assert_eq!(volumes.as_array().map(Vec::len), Some(1));
        assert_eq!((&volumes[0]["DeviceName"], &volumes[0]["Ebs"]["VolumeSize"]), (&"/dev/sda1".into(), &15.into()));
    }
    assert!(stack.fails(&["plan", "--image", "ami-0e9271c829888680e"]).contains("is for arm64, the bundle for x86_64"));
    assert!(stack.fails(&["plan", "--image", "ami-00000000"]).contains("there is no AMI ami-00000000"));
}

#[test]
fn bundle_that_needs_a_newer_c_library_than_the_machines_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let with = |version: &str| write_bundle_with(folder.path(), version, &elf_that_needs(version));
    let stack = Stack { bundle: with("GLIBC_2.41"), ..Stack::new("too-new") };
    let error = stack.fails(&["plan"]);
    assert!(error.contains("the bundle needs glibc 2.41, and the AMI of the machines (Debian 12) has 2.36"), "{error}");
    assert!(error.contains("--image"), "{error}");
    stack.succeeds(&["plan", "--image", "ami-12c6146b"]);
    for bundle in [with("GLIBC_2.36"), small_bundle().to_owned()] {
        Stack { bundle, ..Stack::new("too-new") }.succeeds(&["plan"]);
    }
}

#[test]
fn adopted_queues_and_buckets_keep_their_keys_and_their_old_rules() {
    let stack = Stack::at_plain_http_endpoint("keeper");
    let key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
    let queue = "keeper-web-app-image-transport";
    call_emulator(
        "sqs",
        &format!("Action=CreateQueue&QueueName={queue}&Attribute.1.Name=KmsMasterKeyId&Attribute.1.Value={key}"),
    );
    let bucket = stack.input_bucket();
    call_s3("PUT", &format!("/{bucket}"), "");
    let rule = format!(
        "<Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>{key}</KMSMasterKeyID>\
         </ApplyServerSideEncryptionByDefault></Rule>"
    );
    let encryption = format!("<ServerSideEncryptionConfiguration>{rule}</ServerSideEncryptionConfiguration>");
    call_s3("PUT", &format!("/{bucket}?encryption"), &encryption);
    let old_rule = "<LifecycleConfiguration><Rule><ID>old</ID><Prefix>tmp/</Prefix><Status>Enabled</Status>\
        <Expiration><Days>3</Days></Expiration></Rule></LifecycleConfiguration>";
    call_s3("PUT", &format!("/{bucket}?lifecycle"), old_rule);

    let adopt = ["--adopt", "--web-instances", "0"];
    let plan = stack.succeeds(&[&["plan"][..], &adopt].concat());
    for kept in [format!("queue \"{queue}\""), format!("bucket \"{bucket}\"")] {
        assert!(plan.contains(&format!("{kept} keeps its KMS key {key}: ")), "{plan}");
    }
    assert!(!plan.contains("AES256") && !plan.contains("SqsManagedSseEnabled"), "{plan}");
    stack.succeeds(&[&["apply"][..], &adopt].concat());
    let attributes = "Action=GetQueueAttributes&AttributeName.1=KmsMasterKeyId";
    let url = format!("{}/123456789012/{queue}", moto_of_stacks().url());
    assert!(call_emulator("sqs", &format!("{attributes}&QueueUrl={url}")).text().contains(key));
    assert!(call_s3("GET", &format!("/{bucket}?encryption"), "").text().contains(key));
    let rules = call_s3("GET", &format!("/{bucket}?lifecycle"), "").text();
    assert!(rules.contains("tmp/") && rules.contains("images/"), "{rules}");
    stack.destroy();
}

#[test]
fn own_tags_and_a_permissions_boundary_are_set_and_repaired() {
    let stack = Stack::new("owned");
    let boundary = "arn:aws:iam::123456789012:policy/limits";
    let owned = ["--tag", "Owner=vision team", "--tag", "cost-centre=42", "--permissions-boundary", boundary];
    // moto shows the tags that a launch template was made with, whatever becomes of them.
    stack.succeeds(&[&["apply"][..], &owned].concat());
    let again = stack.succeeds(&[&["plan"][..], &owned].concat());
    assert!(again.contains("nothing to do"), "{again}");
    let role = "owned-web-tier-sqs-access-role";
    let iam = |form: &str| call_emulator("iam", &format!("Version=2010-05-08&{form}&RoleName={role}")).text();
    let found = iam("Action=GetRole");
    assert!(found.contains(boundary) && found.contains("vision team"), "{found}");
    let url = format!("{}/123456789012/owned-web-app-image-transport", moto_of_stacks().url());
    let tags = call_emulator("sqs", &format!("Action=ListQueueTags&QueueUrl={url}")).text();
    assert!(tags.contains("cost-centre") && tags.contains("imgcls:stack"), "{tags}");

    iam("Action=PutRolePermissionsBoundary&PermissionsBoundary=arn:aws:iam::aws:policy/AdministratorAccess");
    iam("Action=UntagRole&TagKeys.member.1=Owner");
    let status = stack.succeeds(&[&["status"][..], &owned].concat());
    let differs = format!("PermissionsBoundary: arn:aws:iam::aws:policy/AdministratorAccess, not {boundary}");
    assert!(status.contains(&differs) && status.contains("Tags"), "{status}");
    stack.succeeds(&[&["apply"][..], &owned].concat());
    let again = stack.succeeds(&[&["plan"][..], &owned].concat());
    assert!(again.contains("nothing to do"), "{again}");
    // Without the flags, what they made is left alone.
    stack.succeeds(&["apply"]);
    assert!(iam("Action=GetRole").contains(boundary));
    for wrong in [["--tag", "imgcls:stack=x"], ["--permissions-boundary", "limits"]] {
        assert_eq!(stack.run(&[&["plan"][..], &wrong].concat()).code, Some(2));
    }
    stack.destroy();
}

#[test]
fn foreign_queues_buckets_and_launch_templates_cost_no_calls_and_hide_nothing() {
    let emulator = Emulator::start(STRICT);
    let address = emulator.address;
    let scope = |service: &str| format!("AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request");
    std::thread::scope(|threads| {
        for lane in 0..4 {
            threads.spawn(move || {
                let kind = ("Content-Type", "application/x-www-form-urlencoded");
                for queue in (lane..1_000).step_by(4) {
                    let form = format!("Action=CreateQueue&QueueName=foreign-{queue}");
                    let signed = scope("sqs");
                    let headers = [("Authorization", signed.as_str()), kind];
                    assert_eq!(request(address, "POST", "/", &headers, form.as_bytes()).unwrap().status, 200);
                }
                for bucket in (lane..200).step_by(4) {
                    let (path, signed) = (format!("/foreign-bucket-{bucket}"), scope("s3"));
                    let headers = [("Authorization", signed.as_str())];
                    assert_eq!(request(address, "PUT", &path, &headers, b"").unwrap().status, 200);
                }
                for template in (lane..40).step_by(4) {
                    let form = format!(
                        "Action=CreateLaunchTemplate&Version=2016-11-15&LaunchTemplateName=foreign-{template}\
                         &LaunchTemplateData.ImageId=ami-12c6146b"
                    );
                    let signed = scope("ec2");
                    let headers = [("Authorization", signed.as_str()), kind];
                    assert_eq!(request(address, "POST", "/", &headers, form.as_bytes()).unwrap().status, 200);
                }
            });
        }
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let proxy = proxy::start(move |call| {
        counted.fetch_add(1, Ordering::Relaxed);
        call.forward_to(address)
    });
    let stack = Stack { environment: environment(&format!("http://{proxy}")), ..Stack::new("crowded") };
    stack.succeeds(&["apply"]);
    calls.store(0, Ordering::Relaxed);
    assert!(stack.succeeds(&["status"]).contains("nothing to do"));
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls <= 100, "{calls} calls");
}

#[test]
fn web_tier_is_reached_from_its_vpc_alone_unless_a_network_is_given() {
    let mut stack = Stack::new("closed");
    let server = http_server::serve(|_: &ReceivedRequest| Answer::text(200, "text/plain", "203.0.113.7\n".to_owned()));
    stack.environment.push(("AWS_ENDPOINT_URL_CHECKIP".to_owned(), format!("http://{server}")));
    // A stack that an earlier release made with its default.
    stack.succeeds(&["apply", "--allow", "0.0.0.0/0"]);
    let plan = stack.succeeds(&["plan"]);
    for expected in [
        "− rule tcp 80 from 0.0.0.0/0",
        "+ rule tcp 80 from 172.31.0.0/16",
        "lets everybody reach the web tier, and will not any more: --allow 0.0.0.0/0 keeps it open",
    ] {
        assert!(plan.contains(expected), "{expected}\n{plan}");
    }
    let applied = stack.succeeds(&["apply"]);
    assert!(
        applied.contains("it is reached from its VPC alone, and --allow CIDR or --allow me lets others in"),
        "{applied}"
    );
    let plan = stack.succeeds(&["plan", "--allow", "me"]);
    assert!(
        plan.contains("+ rule tcp 80 from 203.0.113.7/32") && plan.contains("− rule tcp 80 from 172.31.0.0/16"),
        "{plan}"
    );
    assert!(!plan.contains("lets everybody"), "{plan}");
    stack.destroy();
}

#[test]
fn calls_go_through_the_proxy_of_the_environment() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        line
    });
    let mut command = imgcls();
    command.args(["provision", "plan", "--region", "us-east-1", "--bundle"]).arg(small_bundle());
    command.envs(credentials()).env("HTTPS_PROXY", proxy.to_string()).env("NO_PROXY", "localhost");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(asked.join().unwrap(), "CONNECT sts.us-east-1.amazonaws.com:443 HTTP/1.1\r\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A home directory with a profile, and a command `aws` in its folder `bin` that runs this script.
fn home_with_profile(profile: &str, script: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config"), profile).unwrap();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("aws"), format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(bin.join("aws"), std::fs::Permissions::from_mode(0o755)).unwrap();
    home
}

#[test]
fn profiles_that_sign_in_with_a_browser_get_their_credentials_from_the_command_line_of_aws() {
    let keys = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&keys);
    let address = proxy::start(move |call| {
        let authorization = call.header("authorization").unwrap_or_default();
        seen.lock().unwrap().insert(between(authorization, "Credential=", "/").to_owned());
        call.forward_to(moto_of_stacks().address)
    });
    let plan = |profile: &str, script: &str| {
        let home = home_with_profile(profile, script);
        let mut stack = Stack { environment: environment(&format!("http://{address}")), ..Stack::new("person") };
        stack.environment.retain(|(name, _)| !name.contains("KEY") && name != "AWS_CONFIG_FILE");
        let path = format!("{}:{}", home.path().join("bin").display(), std::env::var("PATH").unwrap());
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        stack.environment.push(set("AWS_CONFIG_FILE", home.path().join("config").to_str().unwrap()));
        stack.environment.extend([set("PATH", &path), set("AWS_PROFILE", "team/me")]);
        let ran = stack.run(&["plan"]);
        let asked = std::fs::read_to_string(home.path().join("config.asked")).unwrap_or_default();
        (ran, asked)
    };
    let print = |key: &str| {
        format!(
            "echo \"$@\" > \"$AWS_CONFIG_FILE.asked\"\n\
             echo '{{\"Version\": 1, \"AccessKeyId\": \"{key}\", \"SecretAccessKey\": \"s\", \"SessionToken\": \"t\"}}'"
        )
    };
    let session = "[profile team/me]\nsso_session = work\nsso_account_id = 123456789012\nsso_role_name = Admin\n\
        [sso-session work]\nsso_start_url = https://work.example\nsso_region = us-east-1\n";
    let old = "[profile team/me]\nsso_start_url = https://work.example\nsso_region = us-east-1\n";
    let login = "[profile team/me]\nlogin_session = arn:aws:iam::123456789012:user/me\n";
    let chained = format!(
        "[profile team/me]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n{}",
        session.replace("team/me", "base")
    );
    for (key, profile) in [("SESSION", session), ("OLD", old), ("LOGIN", login), ("CHAINED", &chained)] {
        let (ran, asked) = plan(profile, &print(key));
        assert_eq!(ran.code, Some(0), "{key}: {}", ran.stderr);
        assert_eq!(asked, "configure export-credentials --format process --profile team/me\n");
        assert!(keys.lock().unwrap().contains(key), "{keys:?}");
    }

    let expired = "echo 'Error loading SSO Token: Token for work has expired' >&2; exit 255";
    for (profile, sign_in) in [(session, "aws sso login"), (login, "aws login")] {
        let (ran, _) = plan(profile, expired);
        assert_eq!(ran.code, Some(1));
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("run `{sign_in} --profile")), "{}", ran.stderr);
        assert!(ran.stderr.contains("Token for work has expired"), "{}", ran.stderr);
    }
}

#[test]
fn shell_by_session_manager_is_made_on_request_alone() {
    let stack = Stack::new("shell");
    let roles = |flags: &[&str]| {
        let plan = stack.succeeds(&[&["plan", "--json"][..], flags].concat());
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let resources = plan["plan"]["stack"]["resources"].as_array().unwrap().clone();
        resources
            .into_iter()
            .filter(|resource| resource["kind"] == "Role")
            .map(|role| role.to_string())
            .collect::<Vec<_>>()
    };
    assert!(roles(&[]).iter().all(|role| !role.contains("ssmmessages")));
    let with_shell = roles(&["--ssm"]);
    assert_eq!(with_shell.len(), 2);
    assert!(with_shell.iter().all(|role| role.contains("ssmmessages:OpenDataChannel")), "{with_shell:?}");
}

#[test]
fn prices_of_another_region_are_named_and_no_limit_is_checked_by_them() {
    let stack = Stack::new("abroad");
    let plan = stack.succeeds(&["plan", "--region", "us-west-2"]);
    assert!(plan.contains("(us-east-1, which are not those of us-west-2): "), "{plan}");
    let error = stack.fails(&["plan", "--region", "us-west-2", "--max-hourly", "100"]);
    assert!(error.contains("the prices are those of us-east-1, not of us-west-2"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    let built_in = include_str!("../../../src/scaling_policy/prices.toml");
    let older = built_in.replace("region = \"us-east-1\"", "region = \"us-west-2\"");
    let older = older.replace("[logs]\ningested_gb = 0.50\n", "");
    std::fs::write(&prices, older).unwrap();
    let own = ["plan", "--region", "us-west-2", "--max-hourly", "100", "--prices", prices.to_str().unwrap()];
    let plan = stack.succeeds(&own);
    assert!(plan.contains("not counted, since the prices lack them: logs") && !plan.contains("not those of"), "{plan}");
}

/// An x86-64 program that consists of little else than the table of the versions that it needs.
pub fn elf_that_needs(version: &str) -> Vec<u8> {
    let names = format!("\0libc.so.6\0{version}\0");
    let number = |value: usize, bytes: usize| {
        let mut number = value.to_le_bytes().to_vec();
        number.resize(bytes, 0);
        number
    };
    // One library with one version; each record has 16 bytes.
    let needed = [
        [number(1, 2), number(1, 2), number(1, 4), number(16, 4), number(0, 4)].concat(),
        [number(0, 4), number(0, 2), number(2, 2), number(11, 4), number(0, 4)].concat(),
    ]
    .concat();
    let (needed_at, names_at) = (64, 64 + needed.len());
    let headers_at = names_at + names.len();
    let section = |kind: usize, at: usize, length: usize, link: usize| {
        [number(0, 4), number(kind, 4), number(0, 16), number(at, 8), number(length, 8), number(link, 4), number(0, 20)]
            .concat()
    };
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(18, 0);
    file.extend(number(62, 2));
    file.resize(40, 0);
    file.extend(number(headers_at, 8));
    file.resize(60, 0);
    file.extend(number(3, 2));
    file.resize(64, 0);
    file.extend(needed.iter().chain(names.as_bytes()));
    file.extend(section(0, 0, 0, 0));
    file.extend(section(0x6fff_fffe, needed_at, needed.len(), 2));
    file.extend(section(3, names_at, names.len(), 0));
    file
}
