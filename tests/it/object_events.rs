//! Event notifications of S3 in the request queue: a worker on an emulator classifies the objects that they name.

use std::path::PathBuf;
use std::process::Command;

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;

use crate::emulators::{Emulator, ministack, moto, python};
use crate::harness::{Process, imgcls};
use crate::image_files::encode;
use crate::tiny_model::write_package;

/// A worker with queues and buckets of its own.
struct Events {
    emulator: &'static Emulator,
    /// Begins every name.
    name: String,
    directory: tempfile::TempDir,
}

/// The beginning of the programs below. `done` waits until the worker has nothing left to do.
const PROLOGUE: &str = r#"
import boto3, json, sys, time
name, folder = sys.argv[1], sys.argv[2]
s3, sqs = boto3.client("s3"), boto3.client("sqs")
url = lambda queue: sqs.get_queue_url(QueueName=queue)["QueueUrl"]
def depth(queue):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sqs.get_queue_attributes(QueueUrl=url(queue), AttributeNames=names)["Attributes"]
    return sum(int(found[each]) for each in names)
def done():
    end = time.monotonic() + 60
    while depth(name) + depth(f"{name}-bulk") > 0:
        assert time.monotonic() < end, "messages are left"
        time.sleep(0.05)
def put(key, file, bucket=None):
    body = open(f"{folder}/{file}", "rb").read()
    return s3.put_object(Bucket=bucket or f"{name}-photos", Key=key, Body=body)["ETag"].strip('"')
def record(key, sequencer, etag="0", bucket=None, kind="ObjectCreated:Put"):
    found = {
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": "2026-01-01T00:00:00.000Z", "eventName": kind,
        "s3": {
            "s3SchemaVersion": "1.0", "configurationId": "imgcls", "bucket": {"name": bucket or f"{name}-photos"},
            "object": {"key": key, "size": 1, "eTag": etag, "sequencer": sequencer},
        },
    }
    return found
def send(*records, queue=None):
    sqs.send_message(QueueUrl=url(queue or name), MessageBody=json.dumps({"Records": records}))
def event(*arguments, **more):
    send(record(*arguments, **more))
def result(key):
    body = s3.get_object(Bucket=f"{name}-output", Key=f"results/{name}-photos/{key}.json")["Body"].read()
    return json.loads(body)
def results():
    found = s3.list_objects_v2(Bucket=f"{name}-output", Prefix="results/").get("Contents", [])
    return sorted(each["Key"] for each in found)
"#;

impl Events {
    fn new(emulator: &'static Emulator) -> Events {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("events-{:08x}", rand::random::<u32>());
        write_package(&directory.path().join("model"), "tiny", "1", 5);
        for (file, colour) in [("red.png", Rgb([250, 10, 10])), ("green.png", Rgb([10, 250, 10]))] {
            let image = encode(&RgbImage::from_pixel(16, 16, colour), ImageFormat::Png);
            std::fs::write(directory.path().join(file), image).unwrap();
        }
        let events = Events { emulator, name, directory };
        events.python(
            "s3.create_bucket(Bucket=f'{name}-photos'); s3.create_bucket(Bucket=f'{name}-private'); print('null')",
        );
        events
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = imgcls();
        let name = &self.name;
        command.args(["worker", "--backend", "aws", "--sessions", "1", "--request-queue", name, "--model"]);
        command.arg(self.path("model"));
        for (flag, role) in [("--result-queue", "results"), ("--input-bucket", "input"), ("--output-bucket", "output")]
        {
            command.args([flag, &format!("{name}-{role}")]);
        }
        command.args(flags).envs(self.emulator.environment());
        command
    }

    fn worker(&self) -> Process {
        let bucket = format!("{}-photos", self.name);
        let worker = Process::start(self.command(&["--read-bucket", &bucket]), &self.path("worker.log"));
        worker.wait_for_log("ready");
        worker
    }

    /// Runs a program after the prologue, and returns the JSON that it prints.
    fn python(&self, program: &str) -> Value {
        let mut command = Command::new(python());
        command.args(["-c", &format!("{PROLOGUE}\n{program}"), &self.name]).arg(self.directory.path());
        // boto3 reads the region from this variable alone.
        command.env("AWS_DEFAULT_REGION", "us-east-1");
        let output = command.envs(self.emulator.environment()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}\n{stderr}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {program}\n{stderr}"))
    }
}

#[test]
fn object_that_an_event_names_is_classified() {
    for emulator in [moto(), ministack()] {
        let events = Events::new(emulator);
        let _worker = events.worker();
        let found = events.python(
            "sqs.send_message(QueueUrl=url(name), MessageBody=json.dumps({'Service': 'Amazon S3', 'Event': 's3:TestEvent',\n\
             \x20 'Time': '2026-01-01T00:00:00.000Z', 'Bucket': f'{name}-photos', 'RequestId': '0', 'HostId': '0'}))\n\
             etag = put('north/a b+ä.png', 'red.png')\n\
             event('north/a+b%2B%C3%A4.png', '0055AED6DCD90281E5', etag)\n\
             event('gone.png', '01'); event('folder/', '01'); event('removed.png', '01', kind='ObjectRemoved:Delete')\n\
             done()\n\
             print(json.dumps([result('north/a b+ä.png'), result('gone.png'), results(), depth(f'{name}-dead'), etag]))",
        );
        let [classified, gone, results, dead, etag] = &found.as_array().unwrap()[..] else { panic!("{found}") };
        assert_eq!(
            (&classified["status"], &classified["predictions"][0]["class_index"]),
            (&"succeeded".into(), &4.into())
        );
        assert_eq!((&classified["key"], &classified["etag"]), (&"north/a b+ä.png".into(), etag));
        assert_eq!(classified["bucket"], format!("{}-photos", events.name));
        assert_eq!((&gone["status"], &gone["error"]["code"]), (&"failed".into(), &"input_missing".into()));
        assert_eq!((results.as_array().unwrap().len(), dead), (2, &0.into()), "{results}");
    }
}

#[test]
fn result_of_a_later_event_replaces_that_of_an_earlier_one_in_any_order() {
    let events = Events::new(moto());
    let _worker = events.worker();
    let found = events.python(
        "found = []\n\
         def now(file, sequencer):\n\
         \x20 etag = put('x.png', file); event('x.png', sequencer, etag); done()\n\
         \x20 answer = result('x.png'); found.append([answer['sequencer'], answer['predictions'][0]['class_index']])\n\
         now('red.png', '0052')\n\
         now('green.png', '0051')  # comes late\n\
         now('green.png', '0052')  # comes twice\n\
         now('green.png', '00521')\n\
         print(json.dumps(found))",
    );
    assert_eq!(found, serde_json::json!([["0052", 4], ["0052", 4], ["0052", 4], ["00521", 3]]));
    // Many events of one object at the same time, in no order.
    let found = events.python(
        "import random\n\
         numbers = list(range(40)); random.shuffle(numbers); put('y.png', 'red.png')\n\
         [event('y.png', f'{number:04X}') for number in numbers]\n\
         done()\n\
         print(json.dumps([result('y.png')['sequencer'], depth(f'{name}-dead')]))",
    );
    assert_eq!(found, serde_json::json!(["0027", 0]));
}

#[test]
fn only_buckets_that_the_worker_may_read_are_read() {
    let events = Events::new(moto());
    let _worker = events.worker();
    let found = events.python(
        "private = f'{name}-private'\n\
         put('x.png', 'red.png', private); event('x.png', '01', bucket=private)\n\
         sqs.send_message(QueueUrl=url(name), MessageBody=json.dumps({'Records': []}))\n\
         done()\n\
         print(json.dumps([results(), depth(f'{name}-dead')]))",
    );
    assert_eq!(found, serde_json::json!([[], 2]));
    let output = format!("{}-output", events.name);
    let mut command = imgcls();
    command.args(["worker", "--backend", "aws", "--output-bucket", &output, "--read-bucket", &output, "--model"]);
    command.arg(events.path("model")).current_dir(events.directory.path()).envs(events.emulator.environment());
    let refused = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && stderr.contains("bucket of results"), "{stderr}");
}

#[test]
fn message_with_several_events_is_one_message_for_each() {
    for emulator in [moto(), ministack()] {
        let events = Events::new(emulator);
        let _worker = events.worker();
        // 25 events in one message: of three objects in any order and twice, one that is gone, and some that need nothing.
        let found = events.python(
            "import random\n\
             [put(f'{number}.png', 'red.png') for number in range(3)]\n\
             each = [record(f'{number}.png', f'{turn:04X}') for turn in range(7) for number in range(3)]\n\
             each += [record('gone.png', '01'), record('folder/', '01'), each[0],\n\
             \x20 record('0.png', '0009', kind='ObjectRemoved:Delete')]\n\
             random.shuffle(each); send(*each, queue=f'{name}-bulk')\n\
             done()\n\
             answers = [result(f'{number}.png') for number in range(3)]\n\
             print(json.dumps([[[one['status'], one['sequencer']] for one in answers], result('gone.png')['status'],\n\
             \x20 len(results()), depth(f'{name}-dead')]))",
        );
        let newest = serde_json::json!(["succeeded", "0006"]);
        assert_eq!(found, serde_json::json!([[newest, newest, newest], "failed", 4, 0]));
    }
}
