//! Runs of `imgcls classify --through queue`: the same table as without a service, also when processes are killed; and the
//! effect of a batch on callers that wait.

use std::fs;
use std::process::{Child, Command};

use serde_json::Value;

use crate::emulators::{ministack, moto, python};
use crate::harness::{Service, count_results, imgcls, test_image, until};
use crate::legacy_tiers::AwsFixture;
use crate::pile_folder::{Ended, Pile, length, paths};

/// A pile, and a service with its model.
struct Setting {
    pile: Pile,
    service: Service,
}

impl Setting {
    fn new(images: usize, workers: usize) -> Setting {
        let pile = Pile::of(images);
        let model = pile.path("model").to_str().unwrap().to_owned();
        let worker_flags = ["--model", &model, "--visibility-timeout", "3s"];
        let service = Service::start(workers, &["--model", &model], &worker_flags);
        Setting { pile, service }
    }

    /// A run through the service.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.pile.command(arguments);
        command.args(["--through", "queue", "--backend", "local", "--data-dir"]).arg(self.service.data_dir());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().unwrap())
    }

    /// Depths by the role of the queue.
    fn depth(&self, role: &str) -> u64 {
        let output =
            imgcls().args(["queue", "depth", "--json", "--data-dir"]).arg(self.service.data_dir()).output().unwrap();
        let depths: Value = serde_json::from_slice(&output.stdout).unwrap();
        let queues = depths["queues"].as_array().unwrap().clone();
        let queue = queues.into_iter().find(|queue| queue["role"] == role).unwrap();
        ["visible", "in_flight", "delayed"].iter().map(|state| queue[state].as_u64().unwrap()).sum()
    }
}

/// The batch that a run printed.
fn batch_of(stderr: &str) -> String {
    let line = stderr.lines().find_map(|line| line.strip_prefix("classify: batch ")).expect("the line of the batch");
    line.split_whitespace().next().unwrap().to_owned()
}

/// Starts the run, and kills it once its log has grown, or so many further images have results: a fast run writes its log only
/// a few times. Returns true if it came to its end before.
fn killed_after(setting: &Setting, arguments: &[&str], log: &str, results: usize) -> bool {
    let (log, database) = (setting.pile.path(log), setting.service.database());
    let (bytes, results) = (length(&log) + 20_000, count_results(&database) + results);
    let mut child: Child = setting.command(arguments).spawn().unwrap();
    let has_progress = || length(&log) > bytes || count_results(&database) >= results;
    until("progress", || (child.try_wait().unwrap().is_some() || has_progress()).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap().code() == Some(1)
}

#[test]
fn table_is_that_of_a_run_without_a_service() {
    let setting = Setting::new(300, 2);
    setting.pile.run(&["images", "--out", "alone.csv", "--top-k", "3"]);
    let run = setting.run(&["images", "--out", "queue.csv", "--top-k", "3", "--errors", "errors.csv", "--jobs", "7"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(setting.pile.read("queue.csv"), setting.pile.read("alone.csv"));
    assert_eq!(paths(&setting.pile.read("errors.csv")).len(), 6);
    assert_eq!(count_results(&setting.service.database()), 300);
    assert_eq!(setting.service.images(), Vec::<String>::new(), "the copies of finished images are deleted");

    // The failed images are classified again, and the others are not.
    for number in (0..300).filter(|number| number % 50 == 49) {
        let good = fs::read(setting.pile.path(&format!("images/{:03}/{:05}.png", number / 100, number - 1))).unwrap();
        setting.pile.write(&format!("images/{:03}/{number:05}.png", number / 100), &good);
    }
    let arguments = ["images", "--out", "queue.csv", "--top-k", "3", "--retry-errors", "--max-failures", "0"];
    let again = setting.run(&arguments);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_ne!(batch_of(&again.stderr), batch_of(&run.stderr));
    let counts = paths(&setting.pile.read("queue.csv"));
    assert!(counts.len() == 300 && counts.values().all(|count| *count == 1));
    assert_eq!(count_results(&setting.service.database()), 306);
}

#[test]
fn killed_senders_and_workers_leave_one_row_and_one_result_for_each_image() {
    let images = if std::env::var_os("IMGCLS_TEST_LONG").is_some() { 20_000 } else { 1_200 };
    let mut setting = Setting::new(images, 2);
    setting.pile.run(&["images", "--out", "alone.csv"]);
    // So few jobs wait at a time that their results, which are there when the run begins again, do not end it.
    let arguments = ["images", "--out", "queue.csv", "--jobs", "50"];
    let mut kills = 0;
    while !killed_after(&setting, &arguments, "queue.csv.part", images / 4) {
        kills += 1;
        setting.service.workers[kills % 2].kill();
        let worker = setting.service.spawn_worker();
        setting.service.workers[kills % 2] = worker;
    }
    assert!(kills >= 2, "killed {kills} times");
    let last = setting.run(&arguments);
    assert_eq!(last.code, Some(1), "{}", last.stderr);
    assert_eq!(setting.pile.read("queue.csv"), setting.pile.read("alone.csv"));
    assert_eq!(count_results(&setting.service.database()), images);
    // The jobs that killed runs and workers left are completed too, without another result.
    until("the queue to be empty", || (setting.depth("bulk_requests") == 0).then_some(()));
    assert_eq!(setting.depth("dead_letters"), 0);
    assert_eq!(count_results(&setting.service.database()), images);
}

#[test]
fn batch_is_continued_on_another_machine_by_its_id() {
    let mut setting = Setting::new(200, 1);
    let first = setting.run(&["images", "--out", "first.csv"]);
    let batch = batch_of(&first.stderr);
    // No worker is left, so every row comes from a stored result.
    setting.service.workers.clear();
    let second = setting.run(&["images", "--out", "second.csv", "--batch", &batch]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert_eq!(batch_of(&second.stderr), batch);
    assert_eq!(setting.pile.read("second.csv"), setting.pile.read("first.csv"));
    let without = setting.pile.run(&["images", "--batch", &batch]);
    assert_eq!(without.code, Some(2), "{}", without.stderr);
}

#[test]
fn callers_that_wait_come_before_a_batch() {
    let mut setting = Setting::new(150, 0);
    let mut sender = setting.command(&["images", "--out", "queue.csv", "--jobs", "100"]).spawn().unwrap();
    until("a backlog of the batch", || (setting.depth("bulk_requests") == 100).then_some(()));
    assert_eq!(setting.depth("requests"), 0);
    let image = test_image("cup.jpg");
    let waiting: Vec<String> = (0..5).map(|_| setting.service.submit("cup.jpg", &image)).collect();
    assert_eq!(setting.depth("requests"), 5);
    setting.service.add_worker();
    for id in &waiting {
        assert_eq!(setting.service.finished(id)["status"], "succeeded");
    }
    until("the end of the batch", || sender.try_wait().unwrap());
    // The rows of results are in the order in which jobs were completed.
    let database = setting.service.database();
    let rank = |id: &String| -> usize {
        let sql = "SELECT count(*) FROM objects WHERE bucket = 'output' AND key GLOB 'results/*' AND rowid <
                   (SELECT rowid FROM objects WHERE bucket = 'output' AND key = ?1)";
        database.query_row(sql, [format!("results/{id}.json")], |row| row.get(0)).unwrap()
    };
    let last = waiting.iter().map(rank).max().unwrap();
    assert!(last < waiting.len() + 5, "the last of {} callers was answered as number {last}", waiting.len());
    let counts = paths(&setting.pile.read("queue.csv"));
    assert!(counts.len() == 150 && counts.values().all(|count| *count == 1));
}

#[test]
fn pile_goes_through_sqs_and_s3() {
    let fixture = AwsFixture::new(ministack());
    let pile = Pile::of(120);
    let model = pile.path("model").to_str().unwrap().to_owned();
    let _service = fixture.service_with(2, &["--model", &model], &["--model", &model]);
    pile.run(&["images", "--out", "alone.csv"]);
    let command = || {
        let mut command = pile.command(&["images", "--out", "queue.csv", "--jobs", "16", "--through", "queue"]);
        command.args(["--backend", "aws"]).envs(fixture.environment());
        command
    };
    let log = pile.path("queue.csv.part");
    let mut first = command().spawn().unwrap();
    until("progress", || (length(&log) > 3_000 || first.try_wait().unwrap().is_some()).then_some(()));
    first.kill().unwrap();
    first.wait().unwrap();
    let last = Ended::of(command().output().unwrap());
    assert_eq!(last.code, Some(1), "{}", last.stderr);
    assert_eq!(pile.read("queue.csv"), pile.read("alone.csv"));
    let depths = fixture.queue_json(&["depth"]);
    let bulk =
        depths["queues"].as_array().unwrap().iter().find(|queue| queue["role"] == "bulk_requests").unwrap().clone();
    assert!(bulk["name"].as_str().unwrap().ends_with("-requests-bulk"), "{bulk}");
}

/// Runs a program with a client of S3, and returns the JSON that it prints.
fn with_s3(fixture: &AwsFixture, program: &str, arguments: &[&str]) -> Value {
    let prologue = "import boto3, json, os, sys\ns3 = boto3.client('s3')\n";
    let mut command = Command::new(python());
    command.args(["-c", &format!("{prologue}{program}")]).args(arguments).envs(fixture.environment());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn objects_of_a_bucket_go_by_reference_and_none_is_copied() {
    for emulator in [moto(), ministack()] {
        let fixture = AwsFixture::new(emulator);
        let pile = Pile::of(60);
        let (bucket, folder) = (fixture.name_of("photos"), pile.path("images"));
        let put = "s3.create_bucket(Bucket=sys.argv[1])\n\
                   for root, _, names in os.walk(sys.argv[2]):\n\
                   \x20 for name in names:\n\
                   \x20   path = os.path.join(root, name)\n\
                   \x20   key = 'camera 1/' + os.path.relpath(path, sys.argv[2])\n\
                   \x20   s3.put_object(Bucket=sys.argv[1], Key=key, Body=open(path, 'rb').read())\n\
                   print('null')";
        with_s3(&fixture, put, &[&bucket, folder.to_str().unwrap()]);
        let copies = || {
            let list = "print(json.dumps(s3.list_objects_v2(Bucket=sys.argv[1]).get('KeyCount')))";
            with_s3(&fixture, list, &[&fixture.name_of("in")])
        };
        let model = pile.path("model").to_str().unwrap().to_owned();
        let flags = ["--model", &model, "--read-bucket", &bucket];
        let mut service = fixture.service_with(0, &flags, &flags);
        pile.run(&["images", "--out", "alone.csv"]);
        let source = format!("s3://{bucket}/camera 1/");
        let command = |out: &str, more: &[&str]| {
            let mut command = pile.command(&[&source, "--out", out, "--through", "queue", "--backend", "aws"]);
            command.args(more).envs(fixture.environment());
            command
        };
        // Every image is under way and no worker runs yet: a copy would be there.
        let mut first = command("queue.csv", &["--read-bucket", &bucket]).spawn().unwrap();
        let bulk = || {
            let depths = fixture.queue_json(&["depth"]);
            let queues = depths["queues"].as_array().unwrap().clone();
            queues.into_iter().find(|queue| queue["role"] == "bulk_requests").unwrap()["visible"].as_u64()
        };
        until("all requests", || bulk().filter(|visible| *visible == 60));
        assert_eq!(copies(), 0, "objects were copied");
        first.kill().unwrap();
        first.wait().unwrap();
        service.add_worker();
        let last = Ended::of(command("queue.csv", &["--read-bucket", &bucket]).output().unwrap());
        assert_eq!(last.code, Some(1), "{}", last.stderr);
        assert_eq!(pile.read("queue.csv"), pile.read("alone.csv"));
        assert_eq!((copies(), bulk()), (0.into(), Some(0)), "each image was sent once");
        // Without the flag the sender reads and sends the images itself.
        let copied = Ended::of(command("copied.csv", &[]).output().unwrap());
        assert_eq!(copied.code, Some(1), "{}", copied.stderr);
        assert_eq!(pile.read("copied.csv"), pile.read("alone.csv"));
    }
}

#[test]
fn run_that_is_stopped_continues_and_says_how() {
    let setting = Setting::new(400, 0);
    let mut child = setting.command(&["images", "--out", "queue.csv"]).spawn().unwrap();
    until("jobs under way", || (setting.depth("bulk_requests") > 0).then_some(()));
    let stopped = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert_eq!(until("its end", || child.try_wait().unwrap()).code(), Some(1));
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert!(stderr.contains("the same command continues there"), "{stderr}");
}
