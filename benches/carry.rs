//! Measures queues and stores on AWS without a model: it makes the calls that an image costs and nothing else.
//!
//! Run it with `cargo bench --bench carry -- --images 2000 --in-flight 64 --image-bytes 60000`, with the endpoint, region
//! and credentials in the environment, as the SDK reads them. It prints images per second.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a benchmark prints its measurements")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use imgcls::config::Backend;
use imgcls::transport;
use imgcls::transport::queued::object::{ObjectStore, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing, Queue, QueueAttributes, Queues, ReceiveOptions};
use imgcls::transport::{Delivery, MAX_BATCH};
use tokio::sync::Semaphore;

/// The size of a request, of a reply and of a result object.
const MESSAGE_BYTES: usize = 600;
/// The number of receivers of each queue.
const RECEIVERS: usize = 4;

struct Options {
    images: usize,
    in_flight: usize,
    image_bytes: usize,
}

struct Course {
    options: Options,
    queues: Arc<dyn Queues>,
    requests: Arc<dyn Queue>,
    replies: Arc<dyn Queue>,
    images: Arc<dyn ObjectStore>,
    results: Arc<dyn ObjectStore>,
    permits: Semaphore,
    answered: AtomicUsize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let course = Course::open(options).await?;
        let started = Instant::now();
        let receivers = (0..RECEIVERS).flat_map(|_| [Work::Classify, Work::Answer]);
        let receivers = try_join_all(receivers.map(|work| course.receive(work)));
        tokio::try_join!(course.submit(), receivers)?;
        println!("{:.1}", course.options.images as f64 / started.elapsed().as_secs_f64());
        course.clean_up().await
    })
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
        let mut options = Options { images: 2_000, in_flight: 64, image_bytes: 60_000 };
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next().and_then(|value| value.parse().ok()).context("takes a number");
            match argument.as_str() {
                "--images" => options.images = number()?,
                "--in-flight" => options.in_flight = number()?,
                "--image-bytes" => options.image_bytes = number()?,
                "--bench" => {} // `cargo bench` adds it
                other => bail!("unknown argument {other}; see the head of benches/carry.rs"),
            }
        }
        Ok(options)
    }
}

/// The role of a receiver.
#[derive(Clone, Copy)]
enum Work {
    /// Acts as a worker without a model.
    Classify,
    /// Acts as a web tier.
    Answer,
}

impl Course {
    async fn open(options: Options) -> anyhow::Result<Course> {
        let backend = Backend::Aws { region: None, endpoint_url: None };
        let queues = transport::open_queues(&backend).await?;
        let name = |what: &str| format!("carry-{}-{what}", std::process::id());
        let attributes = QueueAttributes::default();
        Ok(Course {
            requests: queues.create(&name("requests"), &attributes).await?,
            replies: queues.create(&name("replies"), &attributes).await?,
            images: transport::open_bucket(&backend, &name("images")).await?,
            results: transport::open_bucket(&backend, &name("results")).await?,
            permits: Semaphore::new(options.in_flight),
            answered: AtomicUsize::new(0),
            queues,
            options,
        })
    }

    async fn submit(&self) -> anyhow::Result<()> {
        let image = Bytes::from(vec![7; self.options.image_bytes]);
        let submissions = (0..self.options.images).map(|index| {
            let image = image.clone();
            async move {
                // `answer` returns the permit.
                self.permits.acquire().await?.forget();
                let key = index.to_string();
                let _ = self.images.put(&key, image, PutOptions::default()).await?;
                let body = format!("{key} {}", "x".repeat(MESSAGE_BYTES));
                anyhow::Ok(queue::send_one(&*self.requests, Outgoing::new(body)).await?)
            }
        });
        try_join_all(submissions).await.map(drop)
    }

    async fn receive(&self, work: Work) -> anyhow::Result<()> {
        let queue = match work {
            Work::Classify => &self.requests,
            Work::Answer => &self.replies,
        };
        let options = ReceiveOptions {
            max: MAX_BATCH,
            wait: Duration::from_secs(1),
            visibility_timeout: Duration::from_secs(30),
        };
        while self.answered.load(Ordering::Acquire) < self.options.images {
            let deliveries = queue.receive(options).await?;
            match work {
                Work::Classify => self.classify(&deliveries).await?,
                Work::Answer => self.answer(&deliveries),
            }
            let receipts: Vec<_> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
            if !receipts.is_empty() {
                queue.ack(&receipts).await?;
            }
        }
        Ok(())
    }

    async fn classify(&self, deliveries: &[Delivery]) -> anyhow::Result<()> {
        let jobs = deliveries.iter().map(|delivery| async move {
            let key = delivery.body.split(' ').next().unwrap_or_default();
            self.images.get(key, u64::MAX).await?.context("the image is gone")?;
            let options = PutOptions { if_none_match: true, ..PutOptions::default() };
            let _ = self.results.put(key, Bytes::from(vec![7; MESSAGE_BYTES]), options).await?;
            anyhow::Ok(Outgoing::new(delivery.body.clone()))
        });
        let replies = try_join_all(jobs).await?;
        if !replies.is_empty() {
            for answer in self.replies.send(&replies).await? {
                answer?;
            }
        }
        Ok(())
    }

    fn answer(&self, deliveries: &[Delivery]) {
        self.answered.fetch_add(deliveries.len(), Ordering::AcqRel);
        self.permits.add_permits(deliveries.len());
    }

    /// Deletes the queues. The objects stay, since the emulators keep them in memory only.
    async fn clean_up(&self) -> anyhow::Result<()> {
        let queues = [&self.requests, &self.replies];
        let gone = join_all(queues.map(|queue| self.queues.delete(queue.name()))).await;
        gone.into_iter().collect::<Result<(), _>>().context("the queues of this run were not deleted")
    }
}
