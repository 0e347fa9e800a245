//! Problems outside of the program are reported in one line that names what to do.

use std::sync::{Arc, Mutex};

use super::proxy::{self, Call};
use super::{Stack, call_emulator, call_s3, environment, small_bundle};
use crate::emulators::{self, moto_of_stacks};
use crate::harness::{free_port, imgcls};

#[test]
fn existing_name_is_refused_unless_adopted() {
    let stack = Stack::new("taken");
    call_emulator("sqs", "Action=CreateQueue&QueueName=taken-web-app-image-transport");
    let refused = stack.fails(&["apply"]);
    assert!(refused.contains("queue \"taken-web-app-image-transport\" exists already"), "{refused}");
    assert!(refused.contains("--adopt"), "{refused}");
    let nothing = stack.succeeds(&["destroy", "--yes"]);
    assert!(nothing.contains("0 to delete"), "{nothing}");
    stack.succeeds(&["apply", "--adopt", "--web-instances", "0"]);
    let plan = stack.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    stack.destroy();
}

#[test]
fn instance_types_of_another_processor_are_refused() {
    let error = Stack::new("cpu").fails(&["plan", "--instance-type", "c7g.large"]);
    assert!(error.contains("instance type c7g.large is arm64, the bundle x86_64"), "{error}");
    assert!(error.contains("--bundle FILE"), "{error}");
}

#[test]
fn plan_above_the_cost_limit_is_refused() {
    let error = Stack::new("money").fails(&["plan", "--max", "100", "--max-hourly", "2"]);
    assert!(error.contains("more than --max-hourly 2"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    std::fs::write(&prices, "date = 1").unwrap();
    let error = Stack::new("money").fails(&["plan", "--prices", prices.to_str().unwrap()]);
    assert!(error.contains("prices.toml: line 1"), "{error}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for (flags, expected) in [
        (&["plan", "--min", "5", "--max", "2"][..], "see --min and --max"),
        (&["plan", "--policy", "target"], "--service-time"),
        (&["plan", "--backend", "local"], "`up`"),
        (&["plan", "--region", "mars/north"], "a region is named like"),
        (&["plan", "--allow", "everybody"], "203.0.113.0/24"),
        (&["plan", "--vpc", "default"], "vpc-0123456789abcdef0"),
        (&["plan", "--subnets", "subnet-1,private"], "subnet-0123456789abcdef0"),
    ] {
        let ran = Stack::new("usage").run(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
    }
}

#[test]
fn no_variable_and_no_file_confirms_a_deletion() {
    let stack = Stack::at_plain_http_endpoint("unconfirmed");
    stack.succeeds(&["apply", "--web-instances", "0"]);
    call_s3("PUT", &format!("/{}/images/1", stack.input_bucket()), "an image");
    let with_variables = |command: &[&str]| {
        let mut process = stack.command(command);
        for name in ["IMGCLS_YES", "IMGCLS_DELETE_DATA", "IMGCLS_FORCE"] {
            process.env(name, "true");
        }
        let output = process.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(with_variables(&["destroy", "--delete-data"]).contains("give --yes"));
    assert!(with_variables(&["destroy", "--yes"]).contains("give --delete-data"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stack.toml");
    for key in ["yes", "delete-data"] {
        std::fs::write(&file, format!("[provision]\n{key} = true\n")).unwrap();
        let ran = stack.run(&["destroy", "--config", file.to_str().unwrap()]);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains(key), "{}", ran.stderr);
    }
    stack.destroy();
}

#[test]
fn stack_whose_security_groups_would_have_a_reserved_name_is_refused() {
    for name in ["sg", "sg-images"] {
        let ran = Stack::new(name).run(&["plan"]);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains("begins with `sg-`"), "{}", ran.stderr);
    }
}

#[test]
fn missing_credentials_and_unreachable_endpoints_are_explained() {
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
    let unused_address = format!("http://127.0.0.1:{}", free_port());
    let mut no_keys = environment(&unused_address);
    no_keys.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    assert!(fails(no_keys, &[]).contains("no AWS credentials"));
    let error = fails(environment(&unused_address), &[]);
    assert!(error.contains("sts:GetCallerIdentity: no answer from"), "{error}");
    let error = fails(emulators::credentials(), &["--region", "mars-north-1"]);
    assert!(error.contains("AWS region mars-north-1"), "{error}");
    let error = fails(emulators::credentials(), &["--bundle", "/dev/null", "--region", "us-east-1"]);
    assert!(error.contains("sts:GetCallerIdentity") || error.contains("is not a bundle"), "{error}");
}

/// A proxy that answers one operation itself, mostly with an error, and forwards all others.
#[derive(Clone, Default)]
pub struct ErrorProxy(Arc<Mutex<Option<Intercepted>>>);

struct Intercepted {
    operation: String,
    answer: Vec<u8>,
    /// Number of calls to answer. Later ones are forwarded.
    left: usize,
}

impl ErrorProxy {
    /// Starts a proxy that forwards every operation. Returns it with the environment of a stack that uses it.
    pub fn start() -> (ErrorProxy, Vec<(String, String)>) {
        let proxy = ErrorProxy::default();
        let shared = proxy.clone();
        let address = proxy::start(move |call| match &mut *shared.0.lock().unwrap() {
            Some(intercepted) if intercepted.operation == name(call) && intercepted.left > 0 => {
                intercepted.left -= 1;
                Some(intercepted.answer.clone())
            }
            _ => call.forward_to(moto_of_stacks().address),
        });
        (proxy, environment(&format!("http://{address}")))
    }

    /// Answers an operation itself from now on, and forwards all others.
    pub fn intercept(&self, operation: &str, answer: Vec<u8>) {
        self.intercept_times(operation, answer, usize::MAX);
    }

    /// Answers an operation itself so many times.
    pub fn intercept_times(&self, operation: &str, answer: Vec<u8>, left: usize) {
        *self.0.lock().unwrap() = Some(Intercepted { operation: operation.to_owned(), answer, left });
    }

    /// How many calls are still to be answered here.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap().as_ref().map_or(0, |intercepted| intercepted.left)
    }

    pub fn forward_all(&self) {
        *self.0.lock().unwrap() = None;
    }
}

/// Returns the name of an operation. The protocol of S3 has no names, so they consist of method and kind of resource.
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

/// The protocol in which a service writes an error.
#[derive(Clone, Copy)]
pub enum Wire {
    S3,
    Ec2,
    Query,
    Json,
    Cbor,
}

pub fn refusal(wire: Wire, status: u16, code: &str, message: &str) -> Vec<u8> {
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

/// A CBOR map of strings that are shorter than 64 KiB.
fn cbor(members: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[0x79][..], &u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let map = [0xa0 + u8::try_from(members.len()).unwrap()];
    members.iter().fold(map.to_vec(), |bytes, (name, value)| [bytes, text(name), text(value)].concat())
}

#[test]
fn missing_permissions_and_quotas_are_named_and_the_next_run_continues() {
    use Wire::{Cbor, Ec2, Json, Query, S3};
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("refused") };
    let apply = ["apply", "--web-instances", "0"];
    let user = "User: arn:aws:iam::123456789012:user/somebody is not authorized to perform";
    // The order is that of the creation of a stack, so that each run proceeds further than the one before.
    let denied = [
        ("DescribeAlarms", Cbor, 403, "AccessDenied", "cloudwatch:DescribeAlarms on the alarms", None),
        ("CreateLogGroup", Json, 400, "AccessDeniedException", "logs:CreateLogGroup on log group", Some(0)),
        ("CreateQueue", Json, 403, "AccessDeniedException", "sqs:CreateQueue on queue", Some(1)),
        ("PUT bucket", S3, 403, "AccessDenied", "s3:CreateBucket on bucket", Some(5)),
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
        ("PutMetricAlarm", Cbor, 403, "AccessDenied", "cloudwatch:PutMetricAlarm on alarm", Some(6)),
    ];
    for (operation, wire, status, code, expected, made) in denied {
        proxy.intercept(operation, refusal(wire, status, code, user));
        let error = stack.fails(&apply);
        assert!(error.contains(&format!("no permission for {expected}")) && error.contains(code), "{error}");
        if let Some(made) = made {
            let made = format!("imgcls: {made} of ");
            let continues =
                error.contains(" changes are made, the next one is + ") && error.contains("the same command");
            assert!(error.starts_with(&made) && continues, "{error}");
        }
    }
    proxy.forward_all();
    let status = stack.succeeds(&["status", "--web-instances", "0"]);
    assert!(status.contains("exists   Auto Scaling group") && status.contains("missing  alarm"), "{status}");
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
        proxy.intercept(operation, refusal(wire, status, code, "the most there may be is 5"));
        let error = stack.fails(&apply);
        assert!(error.contains(action) && error.contains("a quota of this account is reached"), "{error}");
        assert!(error.contains("the most there may be is 5") && error.contains("Service Quotas"), "{error}");
    }
    proxy.forward_all();
    stack.destroy();
}

#[test]
fn bucket_of_another_account_is_refused() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("somebody") };
    let assert_refused = |error: &str| {
        let expected =
            format!("bucket \"{}\" belongs to another account: give another --input-bucket", stack.input_bucket());
        assert!(error.contains(&expected), "{error}");
    };
    proxy.intercept("GET bucket", refusal(Wire::S3, 403, "AccessDenied", "Access Denied"));
    assert_refused(&stack.fails(&["plan"]));
    // The name is taken between plan and apply.
    proxy
        .intercept("PUT bucket", refusal(Wire::S3, 409, "BucketAlreadyExists", "The requested name is not available."));
    let error = stack.fails(&["apply", "--web-instances", "0"]);
    assert_refused(&error);
    assert!(
        error.contains("imgcls: 6 of ") && error.contains(" changes are made, the next one is + bucket"),
        "{error}"
    );
    proxy.forward_all();
    stack.destroy();
}

#[test]
fn group_that_cannot_start_machines_reports_the_reason() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("starved") };
    stack.succeeds(&["apply", "--web-instances", "0"]);
    let failed = "<DescribeScalingActivitiesResponse><DescribeScalingActivitiesResult><Activities><member>\
        <ActivityId>1</ActivityId><AutoScalingGroupName>starved-apptierAutoscaling</AutoScalingGroupName>\
        <Cause>a difference between desired and actual capacity</Cause><StartTime>2026-01-01T00:00:00Z</StartTime>\
        <StatusCode>Failed</StatusCode><StatusMessage>You have requested more vCPU capacity than your current\n vCPU \
        limit of 0 allows. Launching EC2 instance failed.</StatusMessage></member></Activities>\
        </DescribeScalingActivitiesResult></DescribeScalingActivitiesResponse>";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", failed.len());
    proxy.intercept("DescribeScalingActivities", [head.as_bytes(), failed.as_bytes()].concat());
    let status = stack.succeeds(&["status", "--web-instances", "0"]);
    let expected = "starved-apptierAutoscaling could not start a machine and retries by itself: You have requested \
        more vCPU capacity than your current vCPU limit of 0 allows.";
    assert!(status.contains(expected), "{status}");
    proxy.forward_all();
    stack.destroy();
}
