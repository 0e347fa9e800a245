//! `provision --watch`: a bucket of somebody else tells the workers of each image that is written to it.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Stack, call_s3};
use crate::emulators::{moto_of_stacks, python};
use crate::harness::{Process, imgcls, request, until};
use crate::tiny_model::write_package;

/// The bucket of somebody else, and its other notification.
const PROLOGUE: &str = r#"
import boto3, json, sys
s3, sqs = boto3.client("s3"), boto3.client("sqs")
bucket, queue = sys.argv[1], sys.argv[2]
arn = "arn:aws:sqs:us-east-1:123456789012:"
def notifications():
    found = s3.get_bucket_notification_configuration(Bucket=bucket).get("QueueConfigurations", [])
    rules = lambda one: one.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    return sorted([one["QueueArn"].split(":")[-1], [rule["Value"] for rule in rules(one)]] for one in found)
def statements():
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    policy = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]).get("Attributes", {}).get("Policy")
    return json.loads(policy)["Statement"] if policy else []
"#;

struct Watched {
    stack: Stack,
    bucket: &'static str,
}

impl Watched {
    fn new(name: &'static str, bucket: &'static str) -> Watched {
        let watched = Watched { stack: Stack::at_plain_http_endpoint(name), bucket };
        watched.python(
            "s3.create_bucket(Bucket=bucket); sqs.create_queue(QueueName=f'{bucket}-theirs')\n\
             theirs = {'Id': 'theirs', 'QueueArn': arn + f'{bucket}-theirs', 'Events': ['s3:ObjectCreated:*'],\n\
             \x20 'Filter': {'Key': {'FilterRules': [{'Name': 'prefix', 'Value': 'texts/'}]}}}\n\
             s3.put_bucket_notification_configuration(Bucket=bucket,\n\
             \x20 NotificationConfiguration={'QueueConfigurations': [theirs]}); print('null')",
        );
        watched
    }

    fn python(&self, program: &str) -> Value {
        let queue = format!("{}-web-app-image-transport-bulk", self.stack.name);
        let mut command = Command::new(python());
        command.args(["-c", &format!("{PROLOGUE}\n{program}"), self.bucket, &queue]);
        command.env("AWS_DEFAULT_REGION", "us-east-1").envs(self.stack.environment.clone());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}\n{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn notifications(&self) -> Value {
        self.python("print(json.dumps(notifications()))")
    }

    fn theirs(&self) -> Value {
        json!([format!("{}-theirs", self.bucket), ["texts/"]])
    }

    /// The notification to the stack.
    fn ours(&self, prefix: &str) -> Value {
        json!([format!("{}-web-app-image-transport-bulk", self.stack.name), [prefix]])
    }
}

#[test]
fn watched_bucket_tells_the_workers_and_keeps_its_other_notifications() {
    let watched = Watched::new("watch", "watch-photos");
    let stack = &watched.stack;
    let flags = ["--web-instances", "0", "--watch", "s3://watch-photos/new/", "--watch", "watch-photos/more/"];
    let plan = stack.succeeds(&[&["plan"][..], &flags].concat());
    assert!(plan.contains("+ queue policy       watch-web-app-image-transport-bulk"), "{plan}");
    assert!(plan.contains("+ bucket notification watch-photos"), "{plan}");
    stack.succeeds(&[&["apply"][..], &flags].concat());
    let ran = stack.run(&[&["plan", "--detailed-exitcode"][..], &flags].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    let both = json!([watched.ours("more/"), watched.ours("new/"), watched.theirs()]);
    let sorted = |found: Value| {
        let mut found = found.as_array().unwrap().clone();
        found.sort_by_key(ToString::to_string);
        found
    };
    assert_eq!(sorted(watched.notifications()), sorted(both));
    let statements = watched.python("print(json.dumps(statements()))");
    assert_eq!(statements[0]["Principal"], json!({"Service": "s3.amazonaws.com"}));
    let condition = &statements[0]["Condition"];
    assert_eq!(condition["ArnEquals"]["aws:SourceArn"], json!(["arn:aws:s3:::watch-photos"]));
    assert_eq!(condition["StringEquals"]["aws:SourceAccount"], "123456789012");
    let role = stack.succeeds(&[&["export"][..], &flags].concat());
    assert!(role.contains("arn:aws:s3:::watch-photos/*") && role.contains("AWS::SQS::QueuePolicy"), "{role}");

    // An image that is written to the bucket is classified, whatever else is written.
    let folder = tempfile::tempdir().unwrap();
    write_package(&folder.path().join("model"), "tiny", "1", 5);
    let mut worker = imgcls();
    worker.args(["worker", "--stack", "watch", "--sessions", "1", "--read-bucket", "watch-photos", "--model"]);
    worker.arg(folder.path().join("model")).envs(stack.environment.clone());
    let worker = Process::start(worker, &folder.path().join("worker.log"));
    worker.wait_for_log("ready");
    let image = crate::image_files::encode(&crate::image_files::small(), image::ImageFormat::Png);
    let s3 = [("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request")];
    let at = moto_of_stacks().address;
    let put =
        |key: &str| assert_eq!(request(at, "PUT", &format!("/watch-photos/{key}"), &s3, &image).unwrap().status, 200);
    for key in ["texts/a.txt", "elsewhere/a.png", "new/a.png", "more/b.png"] {
        put(key);
    }
    let results = "watch-imgcls-123456789012-us-east-1-output/results/watch-photos";
    for key in ["new/a.png", "more/b.png"] {
        let result = until(&format!("the result of {key}"), || {
            request(at, "GET", &format!("/{results}/{key}.json"), &s3, b"").ok().filter(|answer| answer.status == 200)
        });
        assert_eq!((&result.json()["status"], &result.json()["key"]), (&json!("succeeded"), &json!(key)));
    }
    let listed = call_s3("GET", "/watch-imgcls-123456789012-us-east-1-output?list-type=2&prefix=results/", "").text();
    assert!(!listed.contains("elsewhere") && !listed.contains("texts"), "{listed}");
    drop(worker);

    // A change by hand is repaired, and fewer prefixes are fewer notifications.
    watched.python(
        "all = s3.get_bucket_notification_configuration(Bucket=bucket)['QueueConfigurations']\n\
         for one in all:\n\
         \x20 if one['Id'] != 'theirs': one['Events'] = ['s3:ObjectCreated:Put']\n\
         s3.put_bucket_notification_configuration(Bucket=bucket,\n\
         \x20 NotificationConfiguration={'QueueConfigurations': all}); print('null')",
    );
    let fewer = ["--web-instances", "0", "--watch", "watch-photos/new/"];
    let applied = stack.succeeds(&[&["apply"][..], &fewer].concat());
    assert!(applied.contains("~ bucket notification watch-photos"), "{applied}");
    assert_eq!(sorted(watched.notifications()), sorted(json!([watched.ours("new/"), watched.theirs()])));

    // An apply without the flag takes everything back, and so does destroy, which is not told the bucket.
    let applied = stack.succeeds(&["apply", "--web-instances", "0"]);
    assert!(applied.contains("− bucket notification watch-photos"), "{applied}");
    assert_eq!(watched.notifications(), json!([watched.theirs()]));
    assert_eq!(watched.python("print(json.dumps(statements()))"), json!([]));
    stack.succeeds(&[&["apply"][..], &flags].concat());
    let destroyed = stack.succeeds(&["destroy", "--yes", "--delete-data"]);
    assert!(destroyed.contains("− bucket notification watch-photos"), "{destroyed}");
    assert_eq!(watched.notifications(), json!([watched.theirs()]));
    assert!(call_s3("GET", "/watch-photos?list-type=2", "").text().contains("new/a.png"), "objects of others stay");
}

#[test]
fn buckets_that_cannot_be_watched_are_refused() {
    let stack = Stack::at_plain_http_endpoint("watch-not");
    for (buckets, reason) in [
        (&["watch-not-imgcls-123456789012-us-east-1-output"][..], "a bucket of the stack itself"),
        (&["photos/a", "photos/a/b"], "watched twice"),
        (&["photos", "s3://photos/a"], "watched twice"),
        (&["Photos"], "a bucket name has"),
    ] {
        let flags: Vec<&str> = buckets.iter().flat_map(|bucket| ["--watch", bucket]).collect();
        let ran = stack.run(&[&["plan"][..], &flags].concat());
        assert!(ran.code == Some(2) && ran.stderr.contains(reason), "{buckets:?}: {}", ran.stderr);
    }
    let missing = stack.fails(&["apply", "--web-instances", "0", "--watch", "watch-nobody-has-this"]);
    assert!(missing.contains("create it first"), "{missing}");
    stack.destroy();
}
