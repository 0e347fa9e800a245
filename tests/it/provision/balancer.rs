//! `--certificate`: HTTPS by a load balancer in front of the web tier.

use std::net::SocketAddr;

use serde_json::Value;

use super::crash::Killer;
use super::{Stack, between, call_emulator, environment};
use crate::emulators::{Emulator, STRICT, moto_of_stacks};
use crate::harness::request;

/// The ARN of a certificate that no emulator has, for commands that make nothing.
pub const CERTIFICATE: &str = "arn:aws:acm:us-east-1:123456789012:certificate/11111111-2222-3333-4444-555555555555";
const POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";

/// Makes a certificate in the emulator, and returns its ARN.
pub fn certificate_in(emulator: SocketAddr) -> String {
    let headers = [
        ("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/acm/aws4_request"),
        ("X-Amz-Target", "CertificateManager.RequestCertificate"),
        ("Content-Type", "application/x-amz-json-1.1"),
    ];
    let body = br#"{"DomainName": "images.example.org"}"#;
    let response = request(emulator, "POST", "/", &headers, body).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    let answer: Value = serde_json::from_str(&response.text()).unwrap();
    answer["CertificateArn"].as_str().unwrap().to_owned()
}

pub fn certificate() -> String {
    certificate_in(moto_of_stacks().address)
}

fn elb(form: &str) -> String {
    call_emulator("elasticloadbalancing", &format!("Version=2015-12-01&{form}")).text()
}

/// The ARN of the load balancer, its listener or its target group with this name.
fn arn_of(what: &str, name: &str) -> String {
    match what {
        "load balancer" => {
            let found = elb(&format!("Action=DescribeLoadBalancers&Names.member.1={name}"));
            between(&found, "<LoadBalancerArn>", "</LoadBalancerArn>").to_owned()
        }
        "listener" => {
            let balancer = arn_of("load balancer", name);
            let found = elb(&format!("Action=DescribeListeners&LoadBalancerArn={balancer}"));
            between(&found, "<ListenerArn>", "</ListenerArn>").to_owned()
        }
        _ => {
            let found = elb(&format!("Action=DescribeTargetGroups&Names.member.1={name}"));
            between(&found, "<TargetGroupArn>", "</TargetGroupArn>").to_owned()
        }
    }
}

fn security_group(name: &str) -> String {
    let filter = format!("Filter.1.Name=group-name&Filter.1.Value.1={name}");
    call_emulator("ec2", &format!("Action=DescribeSecurityGroups&Version=2016-11-15&{filter}")).text()
}

fn id_of_group(name: &str) -> String {
    between(&security_group(name), "<groupId>", "</groupId>").to_owned()
}

fn web_group(stack: &str) -> String {
    let form = format!("Action=DescribeAutoScalingGroups&AutoScalingGroupNames.member.1={stack}-webtierAutoscaling");
    call_emulator("autoscaling", &form).text()
}

#[test]
fn load_balancer_with_a_certificate_is_made_repaired_and_removed() {
    let stack = Stack::new("tls");
    let certificate = certificate();
    let with = |command: &'static str| [command, "--certificate", &certificate];
    let plan = stack.succeeds(&with("plan"));
    for expected in [
        "+ load balancer      tls-imgcls-vpc\n",
        "+ listener           tls-imgcls-vpc/443\n",
        "+ target group       tls-imgcls-vpc\n",
        "+ security group     tls-imgcls-balancer\n",
        "the load balancer adds 0.008 USD a gigabyte of images",
    ] {
        assert!(plan.contains(expected), "{expected}\n{plan}");
    }
    let applied = stack.succeeds(&with("apply"));
    let address = "web tier: https://tls-imgcls-vpc-1.us-east-1.elb.amazonaws.com/ (";
    assert!(applied.contains(address) && applied.contains("from its VPC alone"), "{applied}");
    assert!(stack.succeeds(&with("status")).contains(address));
    let again = stack.succeeds(&with("plan"));
    assert!(again.contains("nothing to do"), "{again}");

    // Only the load balancer reaches the machines, and only their health lets them stay.
    let group = web_group("tls");
    assert!(group.contains(&arn_of("target group", "tls-imgcls-vpc")), "{group}");
    assert!(group.contains("<HealthCheckType>ELB<"), "{group}");
    let (balancer, rules) = (id_of_group("tls-imgcls-balancer"), security_group("tls-imgcls-web-tier"));
    let ingress = between(&rules, "<ipPermissions>", "</ipPermissions>");
    assert!(ingress.contains(&format!("<groupId>{balancer}</groupId>")) && !ingress.contains("cidrIp"), "{ingress}");
    let attributes = elb(&format!(
        "Action=DescribeLoadBalancerAttributes&LoadBalancerArn={}",
        arn_of("load balancer", "tls-imgcls-vpc")
    ));
    let idle = attributes.split("idle_timeout.timeout_seconds").nth(1).unwrap();
    assert!(idle.split("</member>").next().unwrap().contains("<Value>660</Value>"), "{attributes}");
    let doctor = stack.run(&with("doctor"));
    assert!(!doctor.stdout.contains("load balancer") && !doctor.stdout.contains("target group"), "{}", doctor.stdout);

    change_by_hand(&balancer);
    let found = stack.run(&with("doctor")).stdout;
    for expected in [
        "risk    Auto Scaling group \"tls-webtierAutoscaling\": its HealthCheckType is EC2",
        "risk    load balancer \"tls-imgcls-vpc\": its idle_timeout.timeout_seconds is 60",
        "risk    load balancer \"tls-imgcls-vpc\": the SslPolicy of its listener 443 is ELBSecurityPolicy-2016-08",
        "risk    load balancer \"tls-imgcls-vpc\": its listener 80 forwards HTTP",
        "risk    security group \"tls-imgcls-web-tier\": rule tcp 80 lets everybody pass the load balancer by",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
    let status = stack.succeeds(&with("status"));
    for expected in [
        "SslPolicy: ELBSecurityPolicy-2016-08, not ELBSecurityPolicy-TLS13-1-2-2021-06",
        "foreign rule tcp 80 from 0.0.0.0/0",
        "unwanted listener           tls-imgcls-vpc/80",
        "HealthCheckType: EC2, not ELB",
        "HealthCheckPath: /, not /healthz",
        "60, not 660",
    ] {
        assert!(status.contains(expected), "{expected}\n{status}");
    }
    stack.succeeds(&with("apply"));
    let again = stack.succeeds(&with("plan"));
    assert!(again.contains("nothing to do"), "{again}");

    stack.destroy();
    stack.succeeds(&with("apply"));
    // Neither flag is needed to remove what the stack has.
    stack.destroy();
    assert!(!elb("Action=DescribeLoadBalancers").contains("tls-imgcls-"));
    assert!(!elb("Action=DescribeTargetGroups").contains("tls-imgcls-"));
}

/// Makes changes that somebody may make at a console.
fn change_by_hand(balancer_group: &str) {
    let (balancer, listener) = (arn_of("load balancer", "tls-imgcls-vpc"), arn_of("listener", "tls-imgcls-vpc"));
    let target_group = arn_of("target group", "tls-imgcls-vpc");
    let forward = format!("DefaultActions.member.1.Type=forward&DefaultActions.member.1.TargetGroupArn={target_group}");
    elb(&format!("Action=CreateListener&LoadBalancerArn={balancer}&Port=80&Protocol=HTTP&{forward}"));
    elb(&format!("Action=ModifyListener&ListenerArn={listener}&SslPolicy=ELBSecurityPolicy-2016-08&{forward}"));
    elb(&format!("Action=ModifyTargetGroup&TargetGroupArn={target_group}&HealthCheckPath=/"));
    let idle = "Attributes.member.1.Key=idle_timeout.timeout_seconds&Attributes.member.1.Value=60";
    elb(&format!("Action=ModifyLoadBalancerAttributes&LoadBalancerArn={balancer}&{idle}"));
    let workers = id_of_group("tls-imgcls-app-tier");
    let groups = format!("SecurityGroups.member.1={balancer_group}&SecurityGroups.member.2={workers}");
    elb(&format!("Action=SetSecurityGroups&LoadBalancerArn={balancer}&{groups}"));
    let open = "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=80&IpPermissions.1.ToPort=80\
                &IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0";
    let web = id_of_group("tls-imgcls-web-tier");
    call_emulator("ec2", &format!("Action=AuthorizeSecurityGroupIngress&Version=2016-11-15&GroupId={web}&{open}"));
    let group = "Action=UpdateAutoScalingGroup&AutoScalingGroupName=tls-webtierAutoscaling&HealthCheckType=EC2";
    call_emulator("autoscaling", group);
}

#[test]
fn load_balancer_for_others_than_the_vpc_is_another_one_with_public_addresses() {
    let stack = Stack::new("open");
    let certificate = certificate();
    let balanced = ["--certificate", certificate.as_str()];
    let public = [&balanced[..], &["--allow", "203.0.113.0/24"]].concat();
    let with = |command: &'static str, flags: &[&str]| stack.succeeds(&[&[command][..], flags].concat());
    let applied = with("apply", &public);
    assert!(applied.contains("web tier: https://open-imgcls-web-1.") && !applied.contains("VPC alone"), "{applied}");
    assert!(elb("Action=DescribeLoadBalancers&Names.member.1=open-imgcls-web").contains("<Scheme>internet-facing<"));
    assert!(security_group("open-imgcls-balancer").contains("203.0.113.0/24"));

    // A load balancer cannot change whether it has public addresses: the other one is made first.
    let plan = with("plan", &balanced);
    let (made, removed) =
        (plan.find("+ load balancer      open-imgcls-vpc"), plan.find("− load balancer      open-imgcls-web"));
    assert!(made.unwrap() < removed.unwrap(), "{plan}");
    with("apply", &balanced);
    assert!(with("plan", &balanced).contains("nothing to do"));
    // A private network is reached by private addresses.
    let inner = with("plan", &[&balanced[..], &["--allow", "10.0.0.0/8"]].concat());
    assert!(inner.contains("the load balancer has private addresses") && !inner.contains("open-imgcls-web"), "{inner}");

    // Without a certificate the machines answer by themselves.
    let applied = with("apply", &[]);
    assert!(applied.contains("web tier: http://ec2-"), "{applied}");
    assert!(web_group("open").contains("<HealthCheckType>EC2<"));
    stack.assert_plan_is_empty();
    assert!(!elb("Action=DescribeLoadBalancers").contains("open-imgcls-"));
    stack.destroy();
}

#[test]
fn load_balancer_that_cannot_be_is_refused_before_anything_is_made() {
    let stack = Stack::new("refused");
    let subnets = call_emulator("ec2", "Action=DescribeSubnets&Version=2016-11-15").text();
    let first = between(&subnets, "<subnetId>", "</subnetId>");
    let certificate = ["plan", "--certificate", CERTIFICATE];
    let fails = |flags: &[&str]| stack.fails(&[&certificate[..], flags].concat());
    let one_zone = fails(&["--subnets", first]);
    assert!(one_zone.contains("needs subnets in at least two zones") && one_zone.contains("are in 1"), "{one_zone}");
    let one_zone = fails(&["--balancer-subnets", first]);
    assert!(one_zone.contains("none of --balancer-subnets is in zone"), "{one_zone}");
    let unknown = fails(&["--balancer-subnets", "subnet-0123"]);
    assert!(unknown.contains("there is no subnet \"subnet-0123\" in VPC"), "{unknown}");
    let other = CERTIFICATE.replace("us-east-1", "eu-west-1");
    let elsewhere = stack.fails(&["plan", "--certificate", &other]);
    assert!(elsewhere.contains("the certificate is in region eu-west-1"), "{elsewhere}");
    let preflight = stack.run(&["doctor", "--preflight", "--certificate", &other]);
    assert!(preflight.stdout.contains("broken  load balancer: the certificate is in region"), "{}", preflight.stdout);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stack.toml");
    std::fs::write(&file, "[web]\nsync-timeout = \"2h\"\n").unwrap();
    let target_group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/a/1";
    for (flags, expected) in [
        (&["--target-group", target_group][..], "give either --certificate"),
        (&["--web-instances", "0"], "--certificate needs a web tier"),
        (&["--stack", "internal-x"], "no name that begins with `internal-`"),
        (&["--config", file.to_str().unwrap()], "a load balancer waits for 4000 s at most"),
        (&["--certificate", "images.example.org"], "give the ARN of a certificate"),
    ] {
        let mut process = crate::harness::imgcls();
        process.args(["provision", "plan"]).args(flags).envs(stack.environment.clone());
        if flags[0] != "--certificate" {
            process.args(["--certificate", CERTIFICATE]);
        }
        let output = process.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(expected), "{flags:?}: {error}");
    }
    let ran = stack.run(&["plan", "--balancer-subnets", first]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--balancer-subnets needs --certificate"), "{}", ran.stderr);
}

#[test]
fn longer_waits_of_the_web_tier_lengthen_the_idle_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stack.toml");
    std::fs::write(&file, format!("certificate = \"{CERTIFICATE}\"\n[web]\nsync-timeout = \"20m\"\n")).unwrap();
    let plan = Stack::new("patient").succeeds(&["plan", "--json", "--config", file.to_str().unwrap()]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let resources = plan["plan"]["stack"]["resources"].as_array().unwrap();
    let balancer = resources.iter().find(|resource| resource["id"] == "WebBalancer").unwrap();
    let idle = &balancer["properties"]["LoadBalancerAttributes"][0];
    assert_eq!((&idle["Key"], &idle["Value"]), (&"idle_timeout.timeout_seconds".into(), &"1260".into()));
    let listener = resources.iter().find(|resource| resource["id"] == "WebListener").unwrap();
    assert_eq!(listener["properties"]["SslPolicy"], POLICY);
}

#[test]
fn load_balancer_that_is_added_to_a_stack_may_be_killed_at_any_call() {
    let emulator = Emulator::start(STRICT);
    let killer = Killer::start(emulator.address);
    let stack = |address| Stack { environment: environment(&format!("http://{address}")), ..Stack::new("killed") };
    let (mortal, direct) = (stack(killer.address), stack(emulator.address));
    let certificate = certificate_in(emulator.address);
    let balanced = ["apply", "--certificate", certificate.as_str(), "--no-refresh"];
    let plain = ["apply", "--no-refresh"];
    direct.succeeds(&plain);
    let mut kills = 0;
    while killer.kill_at(&mortal, &balanced, kills + 1) {
        kills += 1;
        // It ends by planning again, and fails if there is something left to do.
        direct.succeeds(&balanced);
        killer.kill_at(&mortal, &plain, kills);
        direct.succeeds(&plain);
    }
    assert!(kills >= 10, "only {kills} kills");
    direct.destroy();
}
