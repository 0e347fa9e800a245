//! What is wrong outside, in one line each with the way out.

use std::sync::{Arc, Mutex};

use super::proxy::{self, Call};
use super::{Stack, by_hand, environment, small_bundle};
use crate::emulators::{self, moto_of_stacks};
use crate::harness::{free_port, imgcls};

#[test]
fn a_name_that_stands_is_refused_unless_it_is_given() {
    let stack = Stack::new("taken");
    by_hand("sqs", "Action=CreateQueue&QueueName=taken-web-app-image-transport");
    let refused = stack.fails(&["apply"]);
    assert!(refused.contains("queue \"taken-web-app-image-transport\" stands already"), "{refused}");
    assert!(refused.contains("--adopt"), "{refused}");
    let nothing = stack.succeeds(&["destroy", "--yes"]);
    assert!(nothing.contains("0 to remove"), "{nothing}");
    stack.succeeds(&["apply", "--adopt", "--web-instances", "0"]);
    let plan = stack.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    stack.destroy();
}

#[test]
fn machines_of_another_processor_are_refused() {
    let said = Stack::new("cpu").fails(&["plan", "--instance-type", "c7g.large"]);
    assert!(said.contains("instance type c7g.large is arm64, the bundle x86_64"), "{said}");
    assert!(said.contains("--bundle FILE"), "{said}");
}

#[test]
fn a_plan_that_costs_too_much_is_refused() {
    let said = Stack::new("money").fails(&["plan", "--max", "100", "--max-hourly", "2"]);
    assert!(said.contains("more than --max-hourly 2"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    std::fs::write(&prices, "date = 1").unwrap();
    let said = Stack::new("money").fails(&["plan", "--prices", prices.to_str().unwrap()]);
    assert!(said.contains("prices.toml: line 1"), "{said}");
}

#[test]
fn wrong_usage_is_told_as_such() {
    for (flags, expected) in [
        (&["plan", "--min", "5", "--max", "2"][..], "see --min and --max"),
        (&["plan", "--policy", "target"], "--service-time"),
        (&["plan", "--backend", "local"], "`up`"),
        (&["plan", "--region", "mars/north"], "a region is named like"),
        (&["plan", "--allow", "everybody"], "203.0.113.0/24"),
    ] {
        let ran = Stack::new("usage").run(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
    }
}

#[test]
fn without_credentials_or_an_answer_it_says_what_to_do() {
    let fails = |environment: Vec<(String, String)>, flags: &[&str]| {
        let mut command = imgcls();
        command.args(["provision", "plan"]).args(flags).envs(environment);
        if !flags.contains(&"--bundle") {
            command.arg("--bundle").arg(small_bundle());
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut no_keys = environment(&nobody);
    no_keys.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    assert!(fails(no_keys, &[]).contains("no AWS credentials"));
    let said = fails(environment(&nobody), &[]);
    assert!(said.contains("sts:GetCallerIdentity: no answer from"), "{said}");
    let said = fails(emulators::credentials(), &["--region", "mars-north-1"]);
    assert!(said.contains("AWS region mars-north-1"), "{said}");
    let said = fails(emulators::credentials(), &["--bundle", "/dev/null", "--region", "us-east-1"]);
    assert!(said.contains("sts:GetCallerIdentity") || said.contains("is no bundle"), "{said}");
}

/// Between the program and the emulator: one operation is answered as AWS refuses it.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Option<Refused>>>);

struct Refused {
    operation: String,
    answer: Vec<u8>,
}

impl Gate {
    /// A gate, and the environment of a stack behind it.
    fn start() -> (Gate, Vec<(String, String)>) {
        let gate = Gate::default();
        let shared = gate.clone();
        let address = proxy::start(move |call| match &*shared.0.lock().unwrap() {
            Some(refused) if refused.operation == name(call) => Some(refused.answer.clone()),
            _ => call.pass_to(moto_of_stacks().address),
        });
        (gate, environment(&format!("http://{address}")))
    }

    fn answer(&self, operation: &str, answer: Vec<u8>) {
        *self.0.lock().unwrap() = Some(Refused { operation: operation.to_owned(), answer });
    }

    fn open(&self) {
        *self.0.lock().unwrap() = None;
    }
}

/// Operations of S3 have no name on the wire: method and what is meant.
fn name(call: &Call) -> String {
    call.operation().unwrap_or_else(|| {
        let path = call.path().split('?').next().unwrap_or_default().trim_matches('/');
        let of = match path {
            "" => "buckets",
            path if path.contains('/') => "object",
            _ => "bucket",
        };
        format!("{} {of}", call.method())
    })
}

/// How a service writes a refusal.
#[derive(Clone, Copy)]
enum Wire {
    S3,
    Ec2,
    Query,
    Json,
    Cbor,
}

fn refusal(wire: Wire, status: u16, code: &str, message: &str) -> Vec<u8> {
    let error = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let (kind, body) = match wire {
        Wire::S3 => ("application/xml", error.into_bytes()),
        Wire::Ec2 => ("text/xml", format!("<Response><Errors>{error}</Errors></Response>").into_bytes()),
        Wire::Query => ("text/xml", format!("<ErrorResponse>{error}</ErrorResponse>").into_bytes()),
        Wire::Json => {
            let body = serde_json::json!({"__type": format!("com.amazonaws#{code}"), "message": message});
            ("application/x-amz-json-1.0", body.to_string().into_bytes())
        }
        Wire::Cbor => ("application/cbor", cbor(&[("__type", &format!("com.amazonaws#{code}")), ("message", message)])),
    };
    let protocol = if matches!(wire, Wire::Cbor) { "smithy-protocol: rpc-v2-cbor\r\n" } else { "" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Refused\r\nContent-Type: {kind}\r\n{protocol}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.into_bytes(), body].concat()
}

/// A map of texts, each shorter than 64 KiB.
fn cbor(members: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[0x79][..], &u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let map = [0xa0 + u8::try_from(members.len()).unwrap()];
    members.iter().fold(map.to_vec(), |bytes, (name, value)| [bytes, text(name), text(value)].concat())
}

#[test]
fn what_is_not_permitted_or_too_many_is_named_and_the_next_run_goes_on() {
    use Wire::{Cbor, Ec2, Json, Query, S3};
    let (gate, environment) = Gate::start();
    let stack = Stack { environment, ..Stack::new("refused") };
    let apply = ["apply", "--web-instances", "0"];
    let user = "User: arn:aws:iam::123456789012:user/somebody is not authorized to perform";
    // In the order in which a stack is made: each run comes one step further.
    let denied = [
        ("DescribeAlarms", Cbor, 403, "AccessDenied", "cloudwatch:DescribeAlarms on the alarms", None),
        ("CreateLogGroup", Json, 400, "AccessDeniedException", "logs:CreateLogGroup on log group", Some(0)),
        ("CreateQueue", Json, 403, "AccessDeniedException", "sqs:CreateQueue on queue", Some(1)),
        ("PUT bucket", S3, 403, "AccessDenied", "s3:CreateBucket on bucket", Some(3)),
        ("CreateRole", Query, 403, "AccessDenied", "iam:CreateRole on role", Some(5)),
        (
            "CreateSecurityGroup",
            Ec2,
            403,
            "UnauthorizedOperation",
            "ec2:CreateSecurityGroup on security group",
            Some(4),
        ),
        ("CreateAutoScalingGroup", Query, 403, "AccessDenied", "autoscaling:CreateAutoScalingGroup on", Some(3)),
        ("PutMetricAlarm", Cbor, 403, "AccessDenied", "cloudwatch:PutMetricAlarm on alarm", Some(5)),
    ];
    for (operation, wire, status, code, expected, made) in denied {
        gate.answer(operation, refusal(wire, status, code, user));
        let said = stack.fails(&apply);
        assert!(said.contains(&format!("no permission for {expected}")) && said.contains(code), "{said}");
        if let Some(made) = made {
            let stands = format!("imgcls: {made} of ");
            let goes_on = said.contains(" changes are made, the next one is + ") && said.contains("the same command");
            assert!(said.starts_with(&stands) && goes_on, "{said}");
        }
    }
    gate.open();
    let status = stack.succeeds(&["status", "--web-instances", "0"]);
    assert!(status.contains("stands   Auto Scaling group") && status.contains("missing  alarm"), "{status}");
    stack.succeeds(&apply);
    let plan = stack.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    stack.destroy();

    let too_many = [
        ("CreateLogGroup", Json, 400, "LimitExceededException", "logs:CreateLogGroup"),
        ("PUT bucket", S3, 400, "TooManyBuckets", "s3:CreateBucket"),
        ("CreateRole", Query, 409, "LimitExceeded", "iam:CreateRole"),
        ("CreateSecurityGroup", Ec2, 400, "SecurityGroupLimitExceeded", "ec2:CreateSecurityGroup"),
        ("CreateAutoScalingGroup", Query, 400, "LimitExceeded", "autoscaling:CreateAutoScalingGroup"),
        ("PutMetricAlarm", Cbor, 400, "LimitExceededFault", "cloudwatch:PutMetricAlarm"),
    ];
    for (operation, wire, status, code, action) in too_many {
        gate.answer(operation, refusal(wire, status, code, "the most there may be is 5"));
        let said = stack.fails(&apply);
        assert!(said.contains(action) && said.contains("a quota of this account is reached"), "{said}");
        assert!(said.contains("the most there may be is 5") && said.contains("Service Quotas"), "{said}");
    }
    gate.open();
    stack.destroy();
}

#[test]
fn a_bucket_of_somebody_else_is_no_place_for_a_stack() {
    let (gate, environment) = Gate::start();
    let stack = Stack { environment, ..Stack::new("somebody") };
    let says_so = |said: &str| {
        let expected = format!("bucket \"{}\" is another account's: give another --input-bucket", stack.input_bucket());
        assert!(said.contains(&expected), "{said}");
    };
    gate.answer("GET bucket", refusal(Wire::S3, 403, "AccessDenied", "Access Denied"));
    says_so(&stack.fails(&["plan"]));
    // Taken between the plan and its making.
    gate.answer("PUT bucket", refusal(Wire::S3, 409, "BucketAlreadyExists", "The requested name is not available."));
    let said = stack.fails(&["apply", "--web-instances", "0"]);
    says_so(&said);
    assert!(said.contains("4 of 25 changes are made, the next one is + bucket"), "{said}");
    gate.open();
    stack.destroy();
}

#[test]
fn a_group_that_cannot_start_machines_says_why() {
    let (gate, environment) = Gate::start();
    let stack = Stack { environment, ..Stack::new("starved") };
    stack.succeeds(&["apply", "--web-instances", "0"]);
    let failed = "<DescribeScalingActivitiesResponse><DescribeScalingActivitiesResult><Activities><member>\
        <ActivityId>1</ActivityId><AutoScalingGroupName>starved-apptierAutoscaling</AutoScalingGroupName>\
        <Cause>a difference between desired and actual capacity</Cause><StartTime>2026-01-01T00:00:00Z</StartTime>\
        <StatusCode>Failed</StatusCode><StatusMessage>You have requested more vCPU capacity than your current\n vCPU \
        limit of 0 allows. Launching EC2 instance failed.</StatusMessage></member></Activities>\
        </DescribeScalingActivitiesResult></DescribeScalingActivitiesResponse>";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", failed.len());
    gate.answer("DescribeScalingActivities", [head.as_bytes(), failed.as_bytes()].concat());
    let said = stack.succeeds(&["status", "--web-instances", "0"]);
    let expected = "starved-apptierAutoscaling could not start a machine, and tries again by itself: You have requested \
        more vCPU capacity than your current vCPU limit of 0 allows.";
    assert!(said.contains(expected), "{said}");
    gate.open();
    stack.destroy();
}
