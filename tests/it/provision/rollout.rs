//! New builds: machines are replaced by an instance refresh, and a rollback returns to the bundle before. `strict.py` plays
//! the refresh, which moto does not have. Machines are held back until their service has started by a hook, which
//! `user_data.rs` tests.

use std::process::Command;

use serde_json::Value;

use super::refusals::{ErrorProxy, Wire, refusal};
use super::{Stack, call_emulator, call_s3, small_bundle, write_bundle};
use crate::harness::until;

/// The versions of the launch templates that the machines of a stack were started from.
fn versions_of_machines(stack: &Stack, flags: &[&str]) -> Vec<String> {
    let status: Value = serde_json::from_str(&stack.succeeds(&[&["status", "--json"][..], flags].concat())).unwrap();
    let machines = status["inventory"]["instances"].as_array().unwrap();
    machines.iter().map(|machine| machine["template_version"].as_str().unwrap().to_owned()).collect()
}

fn preferences_of_refresh(group: &str) -> String {
    call_emulator("autoscaling", &format!("Action=DescribeInstanceRefreshes&AutoScalingGroupName={group}")).text()
}

#[test]
fn new_build_updates_the_template_and_replaces_machines() {
    let mut stack = Stack::at_plain_http_endpoint("rollout");
    let flags = ["--web-instances", "0", "--min", "1"];
    let with_flags = |command: &[&'static str]| [command, &flags].concat();
    stack.succeeds(&with_flags(&["apply"]));
    assert!(!stack.succeeds(&with_flags(&["status"])).contains("older version"));
    let folder = tempfile::tempdir().unwrap();
    stack.bundle = write_bundle(folder.path(), "two");
    let file = folder.path().join("plan.json");
    let file = file.to_str().unwrap();
    let plan = stack.succeeds(&[&["plan", "--out", file][..], &flags].concat());
    assert!(plan.contains("+ bundle") && plan.contains("~ launch template    rollout-ApptierTemplate"), "{plan}");
    let applied = stack.succeeds(&["apply", file, "--no-refresh"]);
    assert!(applied.contains("1 to create, 2 to update, 0 to delete"), "{applied}");
    let json = stack.succeeds(&with_flags(&["plan", "--json"]));
    let plan: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["plan"]["changes"], serde_json::json!([]));
    let group = "Action=DescribeAutoScalingGroups&AutoScalingGroupNames.member.1=rollout-apptierAutoscaling";
    assert!(call_emulator("autoscaling", group).text().contains("<Version>2</Version>"));

    let older = "machines of rollout-apptierAutoscaling that run an older version: 1; ";
    assert!(applied.contains(&format!("{older}`imgcls provision apply` replaces them")), "{applied}");
    assert_eq!(versions_of_machines(&stack, &flags), ["1"]);
    let applied = stack.succeeds(&with_flags(&["apply", "--no-wait"]));
    assert!(applied.contains(&format!("{older}they are replaced (0 % done), each after a new one")), "{applied}");
    until("a machine of the new version", || (versions_of_machines(&stack, &flags) == ["2"]).then_some(()));
    let preferences = preferences_of_refresh("rollout-apptierAutoscaling");
    for (name, value) in [("MinHealthyPercentage", "100"), ("MaxHealthyPercentage", "110"), ("SkipMatching", "true")] {
        assert!(preferences.contains(&format!("<{name}>{value}<")), "{preferences}");
    }
    let none = "Action=SetDesiredCapacity&AutoScalingGroupName=rollout-apptierAutoscaling&DesiredCapacity=0";
    call_emulator("autoscaling", none);
    let status = stack.succeeds(&with_flags(&["status"]));
    assert!(!status.contains("machine i-") && !status.contains("older version"), "{status}");

    let refused = stack.fails(&["apply", file]);
    assert!(refused.contains("have changed since this plan was made"), "{refused}");
    stack.bundle = small_bundle().to_owned();
    assert!(stack.fails(&["apply", file]).contains("another build"));
    stack.destroy();
}

#[test]
fn rollback_returns_both_tiers_to_the_bundle_before() {
    let mut stack = Stack::at_plain_http_endpoint("back");
    let flags = ["--min", "1"];
    let with_flags = |command: &[&'static str]| [command, &flags].concat();
    let digest = |stack: &Stack| {
        let plan: Value = serde_json::from_str(&stack.succeeds(&["plan", "--json"])).unwrap();
        plan["plan"]["stack"]["bundle"]["digest"].as_str().unwrap().to_owned()
    };
    stack.succeeds(&with_flags(&["apply"]));
    let first = digest(&stack);
    let nothing = stack.fails(&["rollback"]);
    assert!(nothing.contains("the launch templates of stack \"back\" name no earlier bundle"), "{nothing}");

    let folder = tempfile::tempdir().unwrap();
    stack.bundle = write_bundle(folder.path(), "two");
    let second = digest(&stack);
    stack.succeeds(&with_flags(&["apply", "--no-wait"]));
    // A refresh that runs is cancelled by the next one.
    let rolled_back = stack.succeeds(&["rollback"]);
    for group in ["back-apptierAutoscaling", "back-webtierAutoscaling"] {
        let line = format!("{group}: bundle {} → {}", &second[..12], &first[..12]);
        assert!(rolled_back.contains(&line), "{line}\n{rolled_back}");
    }
    // It returns when both are replaced.
    for group in ["back-apptierAutoscaling", "back-webtierAutoscaling"] {
        assert!(rolled_back.contains(&format!("{group}: all machines run the current version\n")), "{rolled_back}");
    }
    assert_eq!(versions_of_machines(&stack, &flags), ["3", "3"]);
    // A web machine ends only after the new one has started.
    let preferences = preferences_of_refresh("back-webtierAutoscaling");
    assert!(preferences.contains("<MinHealthyPercentage>100<") && preferences.contains("<MaxHealthyPercentage>200<"));
    // The stack is as the first program made it.
    let newer = std::mem::replace(&mut stack.bundle, small_bundle().to_owned());
    assert!(stack.succeeds(&with_flags(&["plan"])).contains("nothing to do"));
    stack.bundle = newer;
    assert!(stack.succeeds(&with_flags(&["plan"])).contains("~ launch template    back-ApptierTemplate"));

    call_s3("DELETE", &format!("/{}/bundle/{second}/imgcls-x86_64.tar.gz", stack.input_bucket()), "");
    let refused = stack.fails(&["rollback"]);
    assert!(refused.contains(&format!("the bundle {second} that back-apptierAutoscaling had before")), "{refused}");
    stack.destroy();
}

/// An answer with one refresh in this state.
fn refreshes(status: &str, reason: &str) -> Vec<u8> {
    let refresh = format!("<Status>{status}</Status><StatusReason>{reason}</StatusReason>");
    let body = format!(
        "<DescribeInstanceRefreshesResponse><DescribeInstanceRefreshesResult><InstanceRefreshes><member>{refresh}</member>\
         </InstanceRefreshes></DescribeInstanceRefreshesResult></DescribeInstanceRefreshesResponse>"
    );
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    (head + &body).into_bytes()
}

#[test]
fn failed_refresh_is_reported_with_its_reason() {
    let (proxy, mut environment) = ErrorProxy::start();
    let url = environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL_S3").unwrap().1.clone();
    // One endpoint, so that the buckets have no policy that refuses plain HTTP.
    environment.push(("AWS_ENDPOINT_URL".to_owned(), url));
    let mut stack = Stack { environment, ..Stack::new("failing") };
    let flags = ["--web-instances", "0", "--min", "1"];
    stack.succeeds(&[&["apply"][..], &flags].concat());
    let folder = tempfile::tempdir().unwrap();
    stack.bundle = write_bundle(folder.path(), "two");
    stack.succeeds(&[&["apply", "--no-refresh"][..], &flags].concat());
    proxy.intercept("DescribeInstanceRefreshes", refreshes("Failed", "The instance failed its lifecycle action."));
    let status = stack.succeeds(&[&["status"][..], &flags].concat());
    assert!(
        status.contains("replacing them failed, and they run on: The instance failed its lifecycle action.; `imgcls provision rollback`"),
        "{status}"
    );
    proxy.intercept("StartInstanceRefresh", refusal(Wire::Query, 403, "AccessDenied", "no"));
    let refused = stack.fails(&[&["apply"][..], &flags].concat());
    assert!(refused.contains("no permission for autoscaling:StartInstanceRefresh"), "{refused}");
    proxy.forward_all();
    stack.destroy();
}

#[test]
fn logs_of_machines_are_printed_and_followed() {
    let stack = Stack::new("logged");
    let log = |message: &str| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let stream = serde_json::json!({"logGroupName": "logged-imgcls", "logStreamName": "i-1"});
        let mut events = stream.clone();
        events["logEvents"] = serde_json::json!([{"timestamp": u64::try_from(now).unwrap(), "message": message}]);
        super::call_logs("CreateLogStream", &stream);
        super::call_logs("PutLogEvents", &events);
    };
    assert!(stack.fails(&["logs"]).contains("there is no log group \"logged-imgcls\" in us-east-1"));
    stack.succeeds(&["apply", "--web-instances", "0"]);
    assert_eq!(stack.succeeds(&["logs"]), "");
    log("the worker is ready");
    let printed = stack.succeeds(&["logs"]);
    assert!(printed.ends_with("Z i-1 the worker is ready\n") && printed.lines().count() == 1, "{printed}");
    let json: Value = serde_json::from_str(&stack.succeeds(&["logs", "--since", "1h", "--json"])).unwrap();
    assert_eq!((&json["machine"], &json["message"]), (&"i-1".into(), &"the worker is ready".into()));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed");
    let mut command = stack.command(&["logs", "--follow"]);
    let mut following = command.stdout(std::fs::File::create(&path).unwrap()).spawn().unwrap();
    let printed = || std::fs::read_to_string(&path).unwrap();
    until("the first line", || printed().contains("the worker is ready").then_some(()));
    log("an image was classified");
    until("the second line", || printed().contains("an image was classified").then_some(()));
    assert!(Command::new("kill").args(["-TERM", &following.id().to_string()]).status().unwrap().success());
    assert_eq!(following.wait().unwrap().code(), Some(0));
    assert_eq!(printed().matches("the worker is ready").count(), 1);
    stack.destroy();
}

#[test]
fn apply_waits_until_the_machines_are_replaced() {
    let (proxy, mut environment) = ErrorProxy::start();
    let url = environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL_S3").unwrap().1.clone();
    environment.push(("AWS_ENDPOINT_URL".to_owned(), url));
    let mut stack = Stack { environment, ..Stack::new("waiting") };
    let flags = ["--web-instances", "0", "--min", "1"];
    stack.succeeds(&[&["apply"][..], &flags].concat());
    let folder = tempfile::tempdir().unwrap();
    stack.bundle = write_bundle(folder.path(), "two");
    let applied = stack.succeeds(&[&["apply"][..], &flags].concat());
    let group = "waiting-apptierAutoscaling";
    assert!(applied.contains(&format!("{group}: 0 % of the machines are replaced; Ctrl-C")), "{applied}");
    assert!(applied.ends_with(&format!("{group}: all machines run the current version\n")), "{applied}");
    assert_eq!(versions_of_machines(&stack, &flags), ["2"]);
    let status = stack.succeeds(&[&["status"][..], &flags].concat());
    assert!(status.contains(&format!(" of {group}: running, ready 95 s after its start\n")), "{status}");

    // A rollout that fails is an error of the command that waits.
    stack.bundle = write_bundle(folder.path(), "three");
    proxy.intercept("DescribeInstanceRefreshes", refreshes("Failed", "The instance failed its lifecycle action."));
    let failed = stack.run(&[&["apply"][..], &flags].concat());
    assert_eq!(failed.code, Some(1), "{}", failed.stdout);
    let expected =
        format!("replacing the machines of {group} failed, and those of the older version run on: The instance");
    assert!(failed.stderr.contains(&expected), "{}", failed.stderr);

    // An interrupted wait leaves the rollout as it is.
    stack.bundle = write_bundle(folder.path(), "four");
    proxy.intercept("DescribeInstanceRefreshes", refreshes("InProgress", "Waiting for an instance."));
    let path = folder.path().join("printed");
    let mut command = stack.command(&[&["apply"][..], &flags].concat());
    command.stdout(std::fs::File::create(&path).unwrap()).stderr(std::process::Stdio::piped());
    let waiting = command.spawn().unwrap();
    let printed = || std::fs::read_to_string(&path).unwrap();
    until("the wait", || printed().contains("Ctrl-C ends the wait alone").then_some(()));
    assert!(Command::new("kill").args(["-INT", &waiting.id().to_string()]).status().unwrap().success());
    let output = waiting.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&format!("interrupted: {group} goes on replacing its machines")), "{error}");
    proxy.forward_all();
    stack.destroy();
}
