//! The pool of worker processes: it starts and ends them, and leaves none behind. The workers here are shell scripts
//! that keep the three-pipe protocol of `imgcls worker`.

use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgcls::autoscaler::{self, DRAIN_TIMEOUT, WorkerCommand, WorkerPool};
use imgcls::config::{Backend, Names};
use imgcls::scaling_policy::{Bounds, Policy, StepPolicy};
use imgcls::shutdown::CancellationToken;
use imgcls::transport::queued::queue::{Outgoing, Queue};
use imgcls::transport::{self, ServiceOptions, Transport};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::nats_server::NatsServer;

/// Far longer than any step takes. Only a failing test waits that long.
const DEADLINE: Duration = Duration::from_mins(1);
/// Interval between two readings of the queue.
const INTERVAL: Duration = Duration::from_millis(250);

/// A folder where scripted workers leave their process ids (`pids`), and whatever else their script writes.
struct Nest(TempDir);

impl Nest {
    fn new() -> Self {
        Nest(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A worker that notes its process id and then runs `script`, in which `$nest` is this folder.
    fn worker(&self, script: &str) -> WorkerCommand {
        let script = format!("nest='{}'\necho $$ >> $nest/pids\n{script}", self.path().display());
        WorkerCommand { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], variables: vec![] }
    }

    /// Every worker that was ever started, oldest first.
    fn pids(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.path().join("pids")).unwrap_or_default();
        let whole_lines = text.rfind('\n').map_or("", |end| &text[..end]);
        whole_lines.lines().map(|line| Pid::from_raw(line.parse().expect("a number")).expect("not 0")).collect()
    }

    fn files(&self, beginning: &str) -> usize {
        let entries = fs::read_dir(self.path()).expect("a readable folder");
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning)).count()
    }

    /// Gone, and waited for: a zombie would still take signals.
    async fn all_gone(&self) {
        until("every worker is gone", || self.pids().into_iter().all(|pid| test_kill_process(pid).is_err())).await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ready(watch: &mut watch::Receiver<usize>, count: usize) {
    let reached = tokio::time::timeout(DEADLINE, watch.wait_for(|ready| *ready == count)).await;
    reached.expect("in time").expect("the pool holds the sender");
}

fn pool(command: WorkerCommand) -> (WorkerPool, watch::Receiver<usize>) {
    let (sender, receiver) = watch::channel(0);
    (WorkerPool::new(command, DRAIN_TIMEOUT, sender), receiver)
}

/// Ready at once, ends when its standard input closes.
const OBEDIENT: &str = "echo ready; exec cat > /dev/null";

#[tokio::test]
async fn pool_grows_and_shrinks_and_leaves_no_process_behind() {
    let nest = Nest::new();
    let (mut pool, mut watch) = pool(nest.worker(OBEDIENT));
    pool.resize(3);
    ready(&mut watch, 3).await;
    pool.resize(1);
    ready(&mut watch, 1).await;
    let gone = || nest.pids().into_iter().filter(|pid| test_kill_process(*pid).is_err()).count();
    tokio::select! {
        error = pool.failure() => panic!("{error:#}"),
        () = until("two are gone", || gone() == 2) => {}
    }
    assert_eq!((pool.size(), nest.pids().len()), (1, 3));
    pool.drain().await;
    assert_eq!(gone(), 3);
}

#[tokio::test]
async fn killed_worker_is_replaced() {
    let nest = Nest::new();
    let (mut pool, mut watch) = pool(nest.worker(OBEDIENT));
    pool.resize(1);
    for life in 1..4 {
        until("it lives", || nest.pids().len() == life).await;
        ready(&mut watch, 1).await;
        kill_process(nest.pids()[life - 1], Signal::KILL).expect("it lives");
        until("it is replaced", || nest.pids().len() == life + 1).await;
    }
    pool.drain().await;
    nest.all_gone().await;
}

#[tokio::test]
async fn worker_that_dies_after_ready_is_restarted_at_once_every_time() {
    let nest = Nest::new();
    let (mut pool, _watch) = pool(nest.worker("echo ready; [ $(wc -l < $nest/pids) -lt 12 ] && exit 1; exec cat"));
    pool.resize(1);
    tokio::select! {
        error = pool.failure() => panic!("{error:#}"),
        () = until("the twelfth lives", || nest.pids().len() == 12) => {}
    }
    pool.drain().await;
    nest.all_gone().await;
}

#[tokio::test]
async fn permanent_failure_ends_the_pool_with_one_reason() {
    let usage = Nest::new();
    let (mut refused, _watch) = pool(usage.worker("exit 2"));
    refused.resize(1);
    let error = format!("{:#}", refused.failure().await);
    assert!(error.contains("rejects its settings") && error.contains("exit status: 2"), "{error}");
    assert_eq!(usage.pids().len(), 1);

    let broken = Nest::new();
    let (mut dying, _watch) = pool(broken.worker("exit 1"));
    dying.resize(1);
    let error = format!("{:#}", dying.failure().await);
    assert!(error.contains("5 starts failed") && error.contains("exit status: 1"), "{error}");
    assert_eq!(broken.pids().len(), 5);

    let command = WorkerCommand { program: "/nonexistent/imgcls".into(), arguments: vec![], variables: vec![] };
    let (mut absent, _watch) = pool(command);
    absent.resize(1);
    let error = format!("{:#}", absent.failure().await);
    assert!(error.contains("cannot start /nonexistent/imgcls"), "{error}");
    for pool in [refused, dying, absent] {
        pool.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_starts_do_not_end_the_pool_while_the_queue_is_away() {
    let nest = Nest::new();
    let mut server = NatsServer::start("");
    let queue = transport::open(&server.backend(), &Names::local("imgcls")).await.expect("a server");
    let options = ServiceOptions { visibility_timeout: Duration::from_secs(30), max_receive_count: 5 };
    queue.prepare(options).await.expect("queues");
    tokio::task::block_in_place(|| server.kill());
    let (pool, mut watch) = pool(nest.worker("[ $(wc -l < $nest/pids) -lt 7 ] && exit 1; echo ready; exec cat"));
    let mut pool = pool.releasing(queue);
    pool.resize(1);
    tokio::select! {
        error = pool.failure() => panic!("{error:#}"),
        () = ready(&mut watch, 1) => {}
    }
    assert_eq!(nest.pids().len(), 7);
    pool.drain().await;
    nest.all_gone().await;
}

#[tokio::test]
async fn all_workers_drain_at_the_same_time() {
    let nest = Nest::new();
    let script = "echo ready; cat > /dev/null; : > $nest/draining.$$\n\
        while [ $(ls $nest | grep -c draining) -lt 3 ]; do sleep 0.01; done; : > $nest/ended.$$";
    let (mut pool, mut watch) = pool(nest.worker(script));
    pool.resize(3);
    ready(&mut watch, 3).await;
    pool.drain().await;
    assert_eq!(nest.files("ended"), 3, "each had to see the others drain, or was killed waiting");
    nest.all_gone().await;
}

#[tokio::test]
async fn worker_that_does_not_end_is_killed_with_its_children() {
    let nest = Nest::new();
    let (sender, mut watch) = watch::channel(0);
    let command = nest.worker("sh -c 'echo $$; exec sleep 1000' >> $nest/pids & echo ready; wait");
    let mut pool = WorkerPool::new(command, Duration::from_millis(50), sender);
    pool.resize(1);
    ready(&mut watch, 1).await;
    until("its child lives", || nest.pids().len() == 2).await;
    pool.drain().await;
    nest.all_gone().await;
}

#[tokio::test]
async fn worker_is_drained_while_it_starts() {
    let nest = Nest::new();
    let (mut pool, _watch) = pool(nest.worker("exec cat > /dev/null"));
    pool.resize(1);
    until("it lives", || nest.pids().len() == 1).await;
    pool.drain().await;
    nest.all_gone().await;
}

/// The transport of a service whose workers are scripts, and its request queue.
async fn service(nest: &Nest) -> (Arc<dyn Transport>, Arc<dyn Queue>) {
    let backend = Backend::Local { data_dir: nest.path().join("data") };
    let names = Names::local("imgcls");
    let transport = transport::open(&backend, &names).await.expect("a data directory");
    let options = ServiceOptions { visibility_timeout: Duration::from_secs(30), max_receive_count: 5 };
    transport.prepare(options).await.expect("queues");
    let queues = transport::open_queues(&backend).await.expect("a queue file");
    let requests = queues.open(&names.request_queue).await.expect("made by prepare");
    (transport, requests)
}

#[tokio::test]
async fn loop_follows_the_queue_and_ends_all_workers() {
    let nest = Nest::new();
    let (transport, requests) = service(&nest).await;
    let config = autoscaler::Config {
        policy: Policy::Step(StepPolicy {
            scale_out_above: 2,
            scale_out_period: Duration::ZERO,
            scale_in_below: 1,
            scale_in_period: Duration::ZERO,
        }),
        bounds: Bounds::new(0, 3).expect("valid bounds"),
        service_time: None,
        interval: INTERVAL,
    };
    let shutdown = CancellationToken::new();
    let (pool, mut watch) = pool(nest.worker(OBEDIENT));
    let (stop, messages) = (shutdown.clone(), requests);
    let looping = tokio::spawn(async move { autoscaler::run(config, transport.as_ref(), pending(), pool, stop).await });

    messages.send(&[Outgoing::new("one")]).await.expect("sent");
    ready(&mut watch, 1).await;
    messages.send(&[Outgoing::new("two"), Outgoing::new("three")]).await.expect("sent");
    ready(&mut watch, 3).await;
    messages.purge().await.expect("purged");
    ready(&mut watch, 0).await;
    messages.send(&[Outgoing::new("four")]).await.expect("sent");
    ready(&mut watch, 1).await;
    shutdown.cancel();
    looping.await.expect("no panic").expect("an orderly end");
    assert!(nest.pids().into_iter().all(|pid| test_kill_process(pid).is_err()));
}

#[tokio::test]
async fn refused_requests_add_a_worker() {
    let nest = Nest::new();
    let (transport, _) = service(&nest).await;
    let policy = StepPolicy { scale_out_period: Duration::ZERO, ..StepPolicy::LEGACY };
    let bounds = Bounds::new(1, 2).expect("valid bounds");
    let config = autoscaler::Config { policy: Policy::Step(policy), bounds, service_time: None, interval: INTERVAL };
    let shutdown = CancellationToken::new();
    let (pool, mut watch) = pool(nest.worker(OBEDIENT));
    let (stop, refused) = (shutdown.clone(), pool.refused());
    let looping = tokio::spawn(async move { autoscaler::run(config, transport.as_ref(), pending(), pool, stop).await });
    ready(&mut watch, 1).await;
    refused.fetch_add(100, std::sync::atomic::Ordering::Relaxed);
    ready(&mut watch, 2).await;
    shutdown.cancel();
    looping.await.expect("no panic").expect("an orderly end");
}

#[tokio::test]
async fn failure_of_the_queues_drains_the_pool_and_ends_the_loop_with_the_reason() {
    let nest = Nest::new();
    let (transport, _) = service(&nest).await;
    let bounds = Bounds::new(1, 1).expect("valid bounds");
    let policy = Policy::Step(StepPolicy::LEGACY);
    let config = autoscaler::Config { policy, bounds, service_time: None, interval: INTERVAL };
    let (pool, mut watch) = pool(nest.worker(OBEDIENT));
    let (fail, failure) = tokio::sync::oneshot::channel::<String>();
    let failure = async { failure.await.expect("the sender lives until it has sent") };
    let looping = autoscaler::run(config, transport.as_ref(), failure, pool, CancellationToken::new());
    let failing = async {
        ready(&mut watch, 1).await;
        fail.send("the disk is full".to_owned()).expect("the loop runs");
    };
    let (ended, ()) = tokio::join!(looping, failing);
    assert_eq!(ended.expect_err("the queues have failed").to_string(), "the disk is full");
    nest.all_gone().await;
}

/// Otherwise the end of this process would not close it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_worker_holds_the_pipe_of_another() {
    let nest = Nest::new();
    let (mut pool, mut watch) = pool(nest.worker(OBEDIENT));
    for size in 1..4 {
        pool.resize(size);
        ready(&mut watch, size as usize).await;
    }
    let open_files = |pid: Pid| -> Vec<PathBuf> {
        let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("it lives").flatten();
        // The shell opens and closes while this looks; what is closed by now is not held.
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).collect()
    };
    for pid in nest.pids() {
        let stdin = fs::read_link(format!("/proc/{}/fd/0", pid.as_raw_nonzero())).expect("it lives");
        assert!(stdin.to_string_lossy().starts_with("pipe:"), "{stdin:?}");
        for other in nest.pids().into_iter().filter(|other| *other != pid) {
            assert!(!open_files(other).contains(&stdin), "{other:?} holds the pipe of {pid:?}");
        }
    }
    pool.drain().await;
}

#[tokio::test]
async fn service_time_is_what_the_workers_report() {
    let nest = Nest::new();
    let script = "echo ready; echo worked 10 1000000; echo a stray line; exec cat > /dev/null";
    let (mut pool, mut watch) = pool(nest.worker(script));
    assert_eq!(pool.service_time().long_term(), None);
    pool.resize(2);
    ready(&mut watch, 2).await;
    let told = Duration::from_millis(100);
    until("they have said it", || pool.service_time().long_term() == Some(told)).await;
    pool.drain().await;
    nest.all_gone().await;
}
