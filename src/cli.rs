//! Every flag and variable, as clap types. No behaviour: each command's arguments become that room's `Config`.

mod arrivals;
mod data;
mod policy;
mod provision;
mod retention;
mod simulate;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

pub use self::arrivals::ArrivalArgs;
pub use self::data::DataArgs;
pub use self::policy::{PolicyArgs, PolicyKind};
pub use self::provision::ProvisionArgs;
pub use self::retention::{KeepArgs, RetentionArgs};
pub use self::simulate::SimulateArgs;

use self::arrivals::Unbounded;
use self::policy::Defaults;
use crate::aws::Aws;
use crate::config::{self, Backend, BackendKind, Limits, Names};
use crate::model::{self, ModelChoice, Tuning};
use crate::scaling::{Bounds, Policy};
use crate::telemetry::LogFormat;
use crate::transport::{MAX_BATCH, Space};
use crate::{autoscale, classify, loadgen, protocol, queue_command, tune, up, web, worker};

/// Where much waits; of little a worker takes one or two (`queue::fair_share`). Each image of a batch waits for the
/// others, and more than three gain next to nothing (decision 13).
const LOCAL_MAX_BATCH_SIZE: usize = 3;
/// What one call to SQS carries, so that calls are full at load.
const AWS_MAX_BATCH_SIZE: usize = MAX_BATCH;

/// With what JPEGs are decoded by.
static LONG_VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}\nJPEG: {}", env!("CARGO_PKG_VERSION"), model::JPEG_DECODER));

/// Elastic image classification through a queue: one binary, on one machine or on AWS.
#[derive(Debug, Parser)]
#[command(name = "imgcls", version, long_version = LONG_VERSION.as_str(), arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Start with `imgcls up`, open http://127.0.0.1:8080/, drop a photograph on the page.\n\
    Every flag is also an environment variable, IMGCLS_<FLAG>; a flag beats the environment.\n\
    Exit codes: 0 done, 1 failed, 2 usage, 99 a loadgen threshold was missed; `provision plan\n\
    --detailed-exitcode`: 0 nothing to do, 3 changes.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: web tier, queue, store and an elastic set of workers
    Up(UpArgs),
    /// Run the web tier alone
    ServeWeb(ServeWebArgs),
    /// Run one worker: images from the queue, results to the store and back to the web tier
    Worker(WorkerArgs),
    /// Keep the number of workers at what the queue needs: the Auto Scaling group, or processes on this machine
    Autoscale(AutoscaleArgs),
    /// Send load, measure it, check the answers
    Loadgen(LoadgenArgs),
    /// Run scaling policies against a virtual clock: latency and cost of a fleet under a load
    Simulate(SimulateArgs),
    /// Make the AWS side as it is described: queues, buckets, machines, alarms; plan it, look at it, remove it
    Provision(Box<ProvisionArgs>),
    /// Look at queues; list, show and send again what lies in the dead letters
    Queue(QueueArgs),
    /// Look at what is stored on this machine; delete images and results of finished jobs
    Data(DataArgs),
    /// Classify files with the model alone: no queue, no server
    Classify(ClassifyArgs),
    /// Measure how the model runs fastest on this machine; workers that start later take what was found
    Tune(TuneArgs),
}

impl Command {
    pub fn log_format(&self) -> LogFormat {
        match self {
            Command::Up(args) => args.shared.log_format,
            Command::ServeWeb(args) => args.shared.log_format,
            Command::Worker(args) => args.shared.log_format,
            Command::Autoscale(args) => args.shared.log_format,
            Command::Queue(args) => args.command.shared().log_format,
            Command::Data(args) => args.command.shared().log_format,
            Command::Provision(args) => args.stack().shared.log_format,
            Command::Loadgen(_) | Command::Simulate(_) | Command::Classify(_) | Command::Tune(_) => LogFormat::Text,
        }
    }
}

/// Where queues and objects are; the same for every tier.
#[derive(Debug, Args)]
pub struct SharedArgs {
    /// What carries queues and objects; without it: aws where --region, --endpoint-url, AWS_REGION, AWS_DEFAULT_REGION
    /// or AWS_ENDPOINT_URL is set, else local
    #[arg(long, env = "IMGCLS_BACKEND")]
    pub backend: Option<BackendArg>,
    /// AWS: the region of queues and buckets [default: $AWS_REGION, $AWS_DEFAULT_REGION, the profile's, the instance's]
    #[arg(long, env = "IMGCLS_REGION", value_parser = config::region)]
    pub region: Option<String>,
    /// AWS: another address for every service: an emulator, a private endpoint [default: $AWS_ENDPOINT_URL]
    #[arg(long, env = "IMGCLS_ENDPOINT_URL", value_parser = config::endpoint_url)]
    pub endpoint_url: Option<String>,
    /// Local backend: the directory of the queue and the images; made when it is not there
    #[arg(long, env = "IMGCLS_DATA_DIR", default_value = "imgcls-data")]
    pub data_dir: PathBuf,
    /// Several services side by side: any other name prefixes every queue and bucket with `<STACK>-`
    #[arg(long, env = "IMGCLS_STACK", default_value = "imgcls", value_parser = config::stack_name)]
    pub stack: String,
    /// Queue from web tier to workers [default: web-app-image-transport, or $REQUEST_QUEUE_NAME]
    #[arg(long, env = "IMGCLS_REQUEST_QUEUE", value_parser = config::queue_name)]
    pub request_queue: Option<String>,
    /// Queue from workers to web tier, and prefix of the reply queues [default: app-web-result-queue, or
    /// $RESPONSE_QUEUE_NAME]
    #[arg(long, env = "IMGCLS_RESULT_QUEUE", value_parser = config::queue_name)]
    pub result_queue: Option<String>,
    /// Store of the images [default: $INPUT_BUCKET_NAME, else input, on AWS imgcls-<account>-<region>-input]
    #[arg(long, env = "IMGCLS_INPUT_BUCKET", value_parser = config::bucket_name)]
    pub input_bucket: Option<String>,
    /// Store of the results [default: $OUTPUT_BUCKET_NAME, else output, on AWS imgcls-<account>-<region>-output]
    #[arg(long, env = "IMGCLS_OUTPUT_BUCKET", value_parser = config::bucket_name)]
    pub output_bucket: Option<String>,
    /// How long a received image stays with one worker, unless it renews it
    #[arg(long, env = "IMGCLS_VISIBILITY_TIMEOUT", default_value = "30s", value_parser = visibility_timeout)]
    pub visibility_timeout: Duration,
    /// Attempts before an image ends as `attempts_exhausted` and its message goes to the dead letters
    #[arg(long, env = "IMGCLS_MAX_RECEIVE_COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=900))]
    pub max_receive_count: u32,
    /// Logs on standard error: text, or json
    #[arg(long, env = "IMGCLS_LOG_FORMAT", default_value = "text", value_parser = |text: &str| text.parse::<LogFormat>())]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    Local,
    Aws,
}

/// Limits on what comes from outside.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Largest image file that is taken
    #[arg(long, env = "IMGCLS_MAX_UPLOAD_BYTES", default_value = "20MiB", value_parser = config::bytes)]
    pub max_upload_bytes: u64,
    /// Most pixels (width × height, by the header) that are decoded
    #[arg(long, env = "IMGCLS_MAX_PIXELS", default_value_t = 64_000_000)]
    pub max_pixels: u64,
    /// CPU time that decoding one image may take; one that takes more fails as `decode_timeout`
    #[arg(long, env = "IMGCLS_DECODE_TIMEOUT", default_value = "10s", value_parser = positive_duration)]
    pub decode_timeout: Duration,
    /// Memory that one worker may use for decoding, its sessions together; an image that needs more fails as
    /// `too_large_decoded` [default: a quarter of the memory that is available, shared by the workers that `up` may
    /// start; at least 192MiB]
    #[arg(long, env = "IMGCLS_MAX_DECODE_BYTES", value_parser = config::bytes)]
    pub max_decode_bytes: Option<u64>,
}

/// How long a worker keeps an image.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    /// How long a worker may renew its lease of an image that it has not classified; then the image is another worker's
    #[arg(long, env = "IMGCLS_MAX_LEASE", default_value = "2m", value_parser = positive_duration)]
    pub max_lease: Duration,
}

/// Which model runs, and where it is looked for.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A folder with a model.toml, or a name under models/ [default: efficientnet-lite0]
    #[arg(long, env = "IMGCLS_MODEL")]
    pub model: Option<String>,
    /// File of the model to use, as model.toml names it (int8, fp16) [default: as `imgcls tune` found,
    /// else by what this CPU can do]
    #[arg(long, env = "IMGCLS_VARIANT")]
    pub variant: Option<String>,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else searched for near the binary]
    #[arg(long, env = "IMGCLS_ORT_DYLIB")]
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference; two sessions of one thread beat one session of two
    #[arg(long, env = "IMGCLS_INTRA_THREADS")]
    pub intra_threads: Option<usize>,
    /// Where optimised graphs and what `imgcls tune` found are kept [default: $XDG_CACHE_HOME/imgcls, or
    /// ~/.cache/imgcls]
    #[arg(long, env = "IMGCLS_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct HttpArgs {
    /// Address of the web tier; port 0 takes a free one and says which
    #[arg(long, env = "IMGCLS_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// How long an accepted image may take before it ends as `expired`
    #[arg(long, env = "IMGCLS_JOB_TTL", default_value = "1h", value_parser = config::duration)]
    pub job_ttl: Duration,
    /// How long `POST /` waits for its answer before it says 504
    #[arg(long, env = "IMGCLS_SYNC_TIMEOUT", default_value = "600s", value_parser = config::duration)]
    pub sync_timeout: Duration,
    /// Connections at a time; beyond it the one that idles longest is closed, and clients are told 503 where none idles
    /// [default: 1024, or what the limit of open files allows]
    #[arg(long, env = "IMGCLS_MAX_CONNECTIONS", value_parser = positive)]
    pub max_connections: Option<usize>,
    /// Connections of one client address at a time; never applied to this machine's own and to --trusted-proxy
    #[arg(long, env = "IMGCLS_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256, value_parser = positive)]
    pub max_connections_per_address: usize,
    /// A proxy, or a range of them (10.0.0.0/8), whose X-Forwarded-For tells the client that limits per address count;
    /// may be given again
    #[arg(long = "trusted-proxy", env = "IMGCLS_TRUSTED_PROXY", value_delimiter = ',', value_parser = |text: &str| text.parse::<config::Cidr>())]
    pub trusted_proxies: Vec<config::Cidr>,
    /// A name that requests may be for, as a reverse proxy passes it on; may be given again. Listening on a loopback
    /// address, other names than this machine's own are refused (421); elsewhere, once a name is given
    #[arg(long = "allowed-host", env = "IMGCLS_ALLOWED_HOST", value_delimiter = ',', value_parser = config::host_name)]
    pub allowed_hosts: Vec<String>,
    /// Bytes of uploads held in memory at a time, counted as they arrive; beyond it the newest uploads are told 503 and
    /// when to come again
    #[arg(long, env = "IMGCLS_MAX_BUFFERED_BYTES", default_value = "256MiB", value_parser = config::bytes)]
    pub max_buffered_bytes: u64,
    /// Images in the queue, waiting or in work, beyond which clients are told 503 and when to come again
    #[arg(long, env = "IMGCLS_MAX_QUEUE_DEPTH", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_queue_depth: u64,
    /// How long a client may take for its headers, or idle between requests; 2 s where most connections are taken
    #[arg(long, env = "IMGCLS_IDLE_TIMEOUT", default_value = "60s", value_parser = config::duration)]
    pub idle_timeout: Duration,
    /// Longest pause between two pieces of an upload; after 10 s it must also have come at 1 KiB/s on average
    #[arg(long, env = "IMGCLS_BODY_TIMEOUT", default_value = "20s", value_parser = config::duration)]
    pub body_timeout: Duration,
    /// How long a client may read nothing of its answer, or less than 1 KiB/s, before it is cut off
    #[arg(long, env = "IMGCLS_WRITE_TIMEOUT", default_value = "20s", value_parser = positive_duration)]
    pub write_timeout: Duration,
    /// How long a drain keeps the port open with /readyz at 503, so that a load balancer stops sending first
    #[arg(long, env = "IMGCLS_DRAIN_DELAY", default_value = "0s", value_parser = config::duration)]
    pub drain_delay: Duration,
    /// Send images up to this size inside the message too, which saves the worker a read of the store
    #[arg(long, env = "IMGCLS_INLINE_BYTES", default_value = "0", value_parser = config::bytes)]
    pub inline_bytes: u64,
}

#[derive(Debug, Args)]
pub struct ServeWebArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// What to say to workers: v1, or the form of the system that imgcls replaces, for its workers; then images travel
    /// in the messages, which the queue limits, and answers are labels without scores
    #[arg(long, env = "IMGCLS_WIRE", default_value = "v1")]
    pub wire: WireArg,
    /// Where workers reply to: a queue of this process' own, or the result queue, shared by all web processes
    /// [default: own, or shared with --wire seed and where no queue can be made]
    #[arg(long, env = "IMGCLS_RESULT_QUEUE_MODE")]
    pub result_queue_mode: Option<ResultQueueModeArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WireArg {
    V1,
    Seed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResultQueueModeArg {
    Own,
    Shared,
}

#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Images inferred together at most, and as many are taken ahead for each session. The model gains little from it
    /// on a CPU; the calls to the queue are shared by more images, and what is ahead bridges the way to it
    /// [default: 3, on AWS 10]
    #[arg(long, env = "IMGCLS_MAX_BATCH_SIZE", value_parser = positive)]
    pub max_batch_size: Option<usize>,
    /// How long a batch that is not full waits for more once a session is free
    #[arg(long, env = "IMGCLS_MAX_BATCH_DELAY", default_value = "0s", value_parser = config::duration)]
    pub max_batch_delay: Duration,
}

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// Sessions of the model side by side [default: as `imgcls tune` found, else one a core]
    #[arg(long, env = "IMGCLS_SESSIONS", value_parser = positive)]
    pub sessions: Option<usize>,
    #[command(flatten)]
    pub group: GroupArg,
    /// Serve /healthz, /readyz and /metrics at this address
    #[arg(long, env = "IMGCLS_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// Drain when standard input closes, and say `ready` on standard output: how a supervisor holds workers
    #[arg(long, env = "IMGCLS_DRAIN_ON_STDIN_CLOSE")]
    pub drain_on_stdin_close: bool,
}

/// Which group of instances the workers are.
#[derive(Debug, Args)]
pub struct GroupArg {
    /// AWS: the Auto Scaling group of the workers [default: apptierAutoscaling, of another stack
    /// <STACK>-apptierAutoscaling]
    #[arg(long, env = "IMGCLS_AUTO_SCALING_GROUP")]
    pub auto_scaling_group: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "On AWS fewest and most are the group's own. The group's policies move it, as `imgcls provision` made \
    them; this loop starts it from zero within seconds and publishes the backlog that --policy target follows. \
    Any number of these loops may run."
)]
pub struct AutoscaleArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub group: GroupArg,
    /// AWS: resize the group always, not only from zero; then it needs no policies
    #[arg(long, env = "IMGCLS_DIRECT")]
    pub direct: bool,
    /// AWS: how often queue and group are looked at; twice as often where there is no worker
    #[arg(long, env = "IMGCLS_INTERVAL", default_value = "10s", value_parser = positive_duration)]
    pub interval: Duration,
    #[command(flatten)]
    pub workers: WorkersArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
    #[command(flatten)]
    pub workers: WorkersArgs,
}

/// How many worker processes `up` runs.
#[derive(Debug, Args)]
pub struct WorkersArgs {
    /// Fewest worker processes; with 0 the first image waits until one has loaded the model
    #[arg(long, env = "IMGCLS_MIN_WORKERS", default_value_t = 1)]
    pub min_workers: u32,
    /// Most worker processes [default: as many as `imgcls tune` found sessions for, else one a core]
    #[arg(long, env = "IMGCLS_MAX_WORKERS")]
    pub max_workers: Option<u32>,
    /// How their number follows the queue: one at a time at thresholds, or as many as an acceptable latency needs
    #[arg(long, env = "IMGCLS_POLICY", default_value = "step")]
    pub policy: PolicyKind,
    #[command(flatten)]
    pub scaling: PolicyArgs,
    /// `target`: time a worker takes for an image [default: as the workers of `up` measure it while they work]
    #[arg(long, env = "IMGCLS_SERVICE_TIME", value_parser = positive_duration)]
    pub service_time: Option<Duration>,
}

/// A process starts in less than a second, where an instance takes minutes.
const LOCAL_POLICY: Defaults =
    Defaults { scale_out_period: Duration::from_secs(1), scale_in_stabilization: Duration::from_secs(30) };

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 all requests were answered and all thresholds hold; 99 a threshold was missed, \
    whatever else happened; 1 a request failed, or the run could not start or was interrupted; 2 usage.\n\
    Latency is that of good answers, counted from the intended start. A threshold is METRIC OPERATOR VALUE; metrics: \
    p50 p90 p99 p99.9 (any percentile) min mean max, with a unit; accuracy top5, as 0.8 or 80%; failed ok; rate, in \
    images/s. Operators: < <= > >= ==")]
pub struct LoadgenArgs {
    /// Where to send them; a path other than / is posted to as it is
    #[arg(long, env = "IMGCLS_URL", default_value = "http://127.0.0.1:8080/", value_parser = |text: &str| text.parse::<loadgen::BaseUrl>())]
    pub url: loadgen::BaseUrl,
    /// What the target speaks: POST /v1/classify with JSON answers, or the form and plain-text label of the system that
    /// imgcls replaces
    #[arg(long, env = "IMGCLS_API", default_value = "v1")]
    pub api: ApiArg,
    /// Folder of image files, sent in sorted order and again in turn [default: pictures carried in the binary]
    #[arg(long, alias = "image_folder", env = "IMGCLS_IMAGE_FOLDER")]
    pub image_folder: Option<PathBuf>,
    /// Requests in flight at most, each on a connection of its own that is kept
    #[arg(long, short = 'c', env = "IMGCLS_CONCURRENCY", default_value_t = 100, value_parser = positive)]
    pub concurrency: usize,
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// CSV with columns `file` and `class_index` or `label`: the answers are held against it (top-1 and top-5)
    #[arg(long, env = "IMGCLS_EXPECT")]
    pub expect: Option<PathBuf>,
    /// Exit with 99 unless it holds: 'p99<500ms', 'accuracy>=0.8', 'failed==0', 'rate>=100'; may be given again
    #[arg(long = "threshold", env = "IMGCLS_THRESHOLD", value_delimiter = ',', value_parser = |text: &str| text.parse::<loadgen::Threshold>())]
    pub thresholds: Vec<loadgen::Threshold>,
    /// How long one request may take, until its job has ended
    #[arg(long, env = "IMGCLS_TIMEOUT", default_value = "600s", value_parser = config::duration)]
    pub timeout: Duration,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
    /// Print each image and its label as they come, as the original's generator does
    #[arg(long, short = 'v', env = "IMGCLS_VERBOSE")]
    pub verbose: bool,
}

/// What `loadgen` sends where nothing says how much.
const DEFAULT_NUM_REQUEST: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApiArg {
    V1,
    Original,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 done, 1 something that was asked for could not be done, 2 usage.")]
pub struct QueueArgs {
    #[command(subcommand)]
    pub command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// How many messages each queue of the service has, and how old the oldest is, where the backend tells
    Depth {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the dead letters: id, attempts, age, file name, reason
    ///
    /// Queues can only be looked into by receiving: the letters are hidden from others meanwhile (30 s if this is
    /// killed), and their receive counts rise. The dead-letter queue moves nothing on, so that this harms nothing.
    #[command(visible_alias = "list")]
    Dead {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// How many to list
        #[arg(long, env = "IMGCLS_LIMIT", default_value_t = 100, value_parser = positive)]
        limit: usize,
    },
    /// Show one dead letter: its message, why it is dead, how its job ended, its image
    Show {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the job or of the message, as `imgcls queue dead` lists them
        id: String,
        /// Write the image to this file, which must not be there yet
        #[arg(long, env = "IMGCLS_SAVE")]
        save: Option<PathBuf>,
    },
    /// Send dead letters again, with as much time as they had at first
    ///
    /// The failed result of each is removed, never a succeeded one. May be stopped and run again at any moment.
    Redrive {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Ids of jobs or of messages
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// All that are there now
        #[arg(long, env = "IMGCLS_ALL", conflicts_with = "ids")]
        all: bool,
    },
    /// Delete every message of one queue; asks first
    Purge {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Name of the queue, as `imgcls queue depth` lists them
        queue: String,
        /// Do not ask; must be given where nobody can be asked
        #[arg(long, env = "IMGCLS_YES")]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print the result as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// Image files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Predictions a file
    #[arg(long, env = "IMGCLS_TOP_K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top_k: u32,
    /// Print one JSON object a file
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Seconds for all measurements together
    #[arg(long, env = "IMGCLS_SECONDS", default_value = "20", value_parser = seconds)]
    pub seconds: Duration,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl SharedArgs {
    /// The backend that flags and environment ask for, and who said so.
    pub fn backend(&self) -> (Backend, String) {
        let explicit = self.backend.map(|arg| match arg {
            BackendArg::Local => BackendKind::Local,
            BackendArg::Aws => BackendKind::Aws,
        });
        let environment: BTreeMap<String, String> = std::env::vars().collect();
        let (kind, said_by) = config::choose_backend(explicit, self.aws_flag(), &environment);
        let backend = match kind {
            BackendKind::Local => self.local(),
            BackendKind::Aws => Backend::Aws { region: self.region.clone(), endpoint_url: self.endpoint_url.clone() },
        };
        (backend, said_by)
    }

    /// The flag that speaks for AWS, if one was given.
    fn aws_flag(&self) -> Option<&'static str> {
        let region = self.region.as_ref().map(|_| "--region");
        region.or_else(|| self.endpoint_url.as_ref().map(|_| "--endpoint-url"))
    }

    /// The local backend, whatever the environment says: what `up` runs on.
    pub fn local(&self) -> Backend {
        Backend::Local { data_dir: self.data_dir.clone() }
    }

    /// The request queue's name, as [`SharedArgs::names`] finds it.
    fn request_queue(&self) -> anyhow::Result<String> {
        let given = given_name(self.request_queue.as_ref(), "REQUEST_QUEUE_NAME", config::queue_name)?;
        Ok(given.unwrap_or_else(|| Names::local(&self.stack).request_queue))
    }

    /// Queue and bucket names: flag, `IMGCLS_` variable, the original's variable, default. Default bucket names on AWS
    /// contain the account, which AWS is asked for only where one is needed.
    ///
    /// # Errors
    /// Where one of the original's variables holds no valid name, or AWS does not tell the account.
    pub async fn names(&self, backend: &Backend) -> anyhow::Result<Names> {
        let input = given_name(self.input_bucket.as_ref(), "INPUT_BUCKET_NAME", config::bucket_name)?;
        let output = given_name(self.output_bucket.as_ref(), "OUTPUT_BUCKET_NAME", config::bucket_name)?;
        let request = given_name(self.request_queue.as_ref(), "REQUEST_QUEUE_NAME", config::queue_name)?;
        let result = given_name(self.result_queue.as_ref(), "RESPONSE_QUEUE_NAME", config::queue_name)?;
        let defaults = match backend {
            Backend::Aws { region, endpoint_url } if input.is_none() || output.is_none() => {
                let aws = Box::pin(Aws::connect(region.as_deref(), endpoint_url.as_deref())).await?;
                let account = Box::pin(aws.account()).await?;
                Names::aws(&self.stack, &account, aws.region())
            }
            _ => Names::local(&self.stack),
        };
        Ok(Names {
            request_queue: request.unwrap_or(defaults.request_queue),
            result_queue: result.unwrap_or(defaults.result_queue),
            input_bucket: input.unwrap_or(defaults.input_bucket),
            output_bucket: output.unwrap_or(defaults.output_bucket),
        })
    }
}

/// What a flag or the original's variable says; an empty variable says nothing.
fn given_name(flag: Option<&String>, variable: &str, check: NameCheck) -> anyhow::Result<Option<String>> {
    if let Some(name) = flag {
        return Ok(Some(name.clone()));
    }
    match std::env::var(variable) {
        Ok(name) if !name.is_empty() => {
            check(&name).map(Some).map_err(anyhow::Error::msg).with_context(|| format!("{variable}={name:?}"))
        }
        _ => Ok(None),
    }
}

type NameCheck = fn(&str) -> Result<String, String>;

impl LimitArgs {
    /// `workers`: how many processes share the memory of this machine.
    pub fn limits(&self, workers: u32) -> Limits {
        Limits {
            max_upload_bytes: self.max_upload_bytes,
            max_pixels: self.max_pixels,
            decode_timeout: self.decode_timeout,
            max_decode_bytes: self.max_decode_bytes.unwrap_or_else(|| model::default_decode_bytes(workers)),
        }
    }
}

impl BatchArgs {
    /// What was found for the model counts where it is more than what the queue gains by.
    fn max_batch_size(&self, backend: &Backend, tuning: Option<&Tuning>) -> usize {
        let of_the_queue = match backend {
            Backend::Local { .. } | Backend::Named { .. } => LOCAL_MAX_BATCH_SIZE,
            Backend::Aws { .. } => AWS_MAX_BATCH_SIZE,
        };
        let of_the_model = tuning.and_then(|tuning| tuning.max_batch_size).unwrap_or(1);
        self.max_batch_size.unwrap_or(of_the_queue.max(of_the_model))
    }
}

impl ModelArgs {
    pub fn choice(&self) -> ModelChoice {
        ModelChoice {
            model: self.model.clone(),
            variant: self.variant.clone(),
            ort_dylib: self.ort_dylib.clone(),
            intra_threads: self.intra_threads,
            cache_dir: self.cache_dir.clone().or_else(default_cache_dir),
        }
    }

    /// The choice, with what `imgcls tune` found where flags and environment say nothing.
    fn tuned(&self) -> (ModelChoice, Option<Tuning>) {
        let mut choice = self.choice();
        let Some((tuning, path)) = Tuning::read(&choice) else { return (choice, None) };
        tracing::info!(path = %path.display(), ?tuning, "as `imgcls tune` found, where no flag says otherwise");
        choice.variant.get_or_insert_with(|| tuning.variant.clone());
        choice.intra_threads.get_or_insert(tuning.intra_threads);
        (choice, Some(tuning))
    }
}

/// None where the environment names no home: then nothing is kept.
fn default_cache_dir() -> Option<PathBuf> {
    let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("imgcls"))
}

fn web_config(shared: &SharedArgs, http: &HttpArgs, limits: &LimitArgs, backend: Backend, names: Names) -> web::Config {
    web::Config {
        backend,
        stack: shared.stack.clone(),
        names,
        limits: limits.limits(1),
        wire: web::Wire::V1,
        result_queue_mode: web::ResultQueueMode::Own,
        job_ttl: http.job_ttl,
        sync_timeout: http.sync_timeout,
        max_connections: http.max_connections,
        max_connections_per_address: http.max_connections_per_address,
        trusted_proxies: http.trusted_proxies.clone(),
        allowed_hosts: http.allowed_hosts.clone(),
        max_buffered_bytes: http.max_buffered_bytes,
        max_queue_depth: http.max_queue_depth,
        idle_timeout: http.idle_timeout,
        body_timeout: http.body_timeout,
        write_timeout: http.write_timeout,
        drain_delay: http.drain_delay,
        inline_bytes: usize::try_from(http.inline_bytes).unwrap_or(usize::MAX),
        max_receive_count: shared.max_receive_count,
        visibility_timeout: shared.visibility_timeout,
        space: Space::unbounded(),
    }
}

impl ServeWebArgs {
    /// # Errors
    /// A [`clap::Error`] where the flags contradict each other.
    pub fn config(&self, backend: Backend, names: Names) -> anyhow::Result<web::Config> {
        let (wire, result_queue_mode) = match (self.wire, self.result_queue_mode) {
            (WireArg::Seed, Some(ResultQueueModeArg::Own)) => {
                let message = "with --wire seed replies come to the shared result queue; leave --result-queue-mode out";
                return Err(usage("serve-web", message));
            }
            (WireArg::Seed, _) => (web::Wire::Legacy, web::ResultQueueMode::Shared),
            (WireArg::V1, Some(ResultQueueModeArg::Shared)) => (web::Wire::V1, web::ResultQueueMode::Shared),
            (WireArg::V1, _) => (web::Wire::V1, web::ResultQueueMode::Own),
        };
        let web = web_config(&self.shared, &self.http, &self.limits, backend, names);
        Ok(web::Config { wire, result_queue_mode, ..web })
    }
}

impl GroupArg {
    fn name(&self, stack: &str) -> String {
        self.auto_scaling_group.clone().unwrap_or_else(|| protocol::worker_group(stack))
    }
}

impl WorkerArgs {
    pub fn config(&self, backend: Backend, names: Names) -> worker::Config {
        let (model, tuning) = self.model.tuned();
        worker::Config {
            max_batch_size: self.batch.max_batch_size(&backend, tuning.as_ref()),
            backend,
            names,
            limits: self.limits.limits(1),
            model,
            visibility_timeout: self.shared.visibility_timeout,
            max_lease: self.lease.max_lease,
            max_receive_count: self.shared.max_receive_count,
            sessions: self.sessions.or(tuning.map(|tuning| tuning.sessions)),
            max_batch_delay: self.batch.max_batch_delay,
            auto_scaling_group: self.group.name(&self.shared.stack),
            admin_listen: self.admin_listen,
            drain_on_stdin_close: self.drain_on_stdin_close,
        }
    }
}

impl UpArgs {
    /// # Errors
    /// A [`clap::Error`] where the flags contradict each other.
    pub async fn config(&self) -> anyhow::Result<up::Config> {
        if self.shared.backend == Some(BackendArg::Aws) || self.shared.aws_flag().is_some() {
            return Err(usage("up", "`up` always runs on this machine; on AWS it is `serve-web` and `worker`"));
        }
        let backend = here(&self.shared)?;
        let names = self.shared.names(&backend).await?;
        let web = web_config(&self.shared, &self.http, &self.limits, backend.clone(), names.clone());
        let retention = self.retention.config(backend.clone(), names.clone());
        let model = self.model.tuned();
        let autoscale = self.workers.config("up", LOCAL_POLICY, model.1.as_ref())?;
        let workers =
            local_workers(&self.shared, &self.limits, model, (&self.batch, &self.lease), autoscale, backend, names);
        Ok(up::Config { web, retention, workers })
    }
}

impl AutoscaleArgs {
    /// On AWS.
    ///
    /// # Errors
    /// A [`clap::Error`] where the flags contradict each other; one line where a variable holds no valid name.
    pub fn of_group(&self, backend: Backend) -> anyhow::Result<autoscale::aws::Config> {
        let policy = self.workers.scaling.policy(self.workers.policy, Defaults::INSTANCES);
        if matches!(policy, Policy::Target(_)) && self.workers.service_time.is_none() {
            let message = "with --policy target give --service-time: what a worker takes for an image, as `imgcls loadgen` \
                measures it (0.01s on one core, say)";
            return Err(usage("autoscale", message));
        }
        Ok(autoscale::aws::Config {
            backend,
            request_queue: self.shared.request_queue()?,
            stack: self.shared.stack.clone(),
            group: self.group.name(&self.shared.stack),
            policy,
            service_time: self.workers.service_time,
            direct: self.direct,
            interval: self.interval,
        })
    }

    /// On this machine.
    ///
    /// # Errors
    /// As [`UpArgs::config`].
    pub async fn of_processes(&self) -> anyhow::Result<up::Workers> {
        let backend = here(&self.shared)?;
        let names = self.shared.names(&backend).await?;
        let model = self.model.tuned();
        let autoscale = self.workers.config("autoscale", LOCAL_POLICY, model.1.as_ref())?;
        Ok(local_workers(&self.shared, &self.limits, model, (&self.batch, &self.lease), autoscale, backend, names))
    }
}

/// The local backend, as worker processes find it wherever they are started from.
fn here(shared: &SharedArgs) -> anyhow::Result<Backend> {
    Ok(Backend::Local { data_dir: std::path::absolute(&shared.data_dir).context("--data-dir")? })
}

fn local_workers(
    shared: &SharedArgs,
    limits: &LimitArgs,
    model: (ModelChoice, Option<Tuning>),
    (batch, lease): (&BatchArgs, &LeaseArgs),
    autoscale: autoscale::Config,
    backend: Backend,
    names: Names,
) -> up::Workers {
    let (model, tuning) = model;
    let worker = worker::Config {
        max_batch_size: batch.max_batch_size(&backend, tuning.as_ref()),
        backend,
        names,
        limits: limits.limits(autoscale.bounds.max()),
        model,
        visibility_timeout: shared.visibility_timeout,
        max_lease: lease.max_lease,
        max_receive_count: shared.max_receive_count,
        sessions: Some(1),
        max_batch_delay: batch.max_batch_delay,
        auto_scaling_group: protocol::worker_group(&shared.stack),
        admin_listen: None,
        drain_on_stdin_close: true,
    };
    up::Workers { worker, autoscale, log_format: shared.log_format }
}

impl WorkersArgs {
    fn config(&self, command: &str, defaults: Defaults, tuning: Option<&Tuning>) -> anyhow::Result<autoscale::Config> {
        let most = tuning.map_or_else(model::cores, |tuning| tuning.sessions) as u32;
        let max_workers = self.max_workers.unwrap_or_else(|| most.max(self.min_workers));
        let bounds = Bounds::new(self.min_workers, max_workers)
            .map_err(|error| usage(command, &format!("{error}: see --min-workers and --max-workers")))?;
        Ok(autoscale::Config {
            policy: self.scaling.policy(self.policy, defaults),
            bounds,
            service_time: self.service_time,
        })
    }
}

/// Wrong usage that clap cannot see by itself; it ends the process as clap's own errors do.
fn usage(command: &str, message: &str) -> anyhow::Error {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(command).expect("a command of this program");
    command.error(clap::error::ErrorKind::ValueValidation, message).into()
}

impl LoadgenArgs {
    /// # Errors
    /// A [`clap::Error`] where the flags contradict each other; one line where a trace cannot be read.
    pub fn config(&self) -> anyhow::Result<loadgen::Config> {
        let arrivals = self.arrivals.arrivals("loadgen")?;
        Ok(loadgen::Config {
            url: self.url.clone(),
            api: match self.api {
                ApiArg::V1 => loadgen::Api::V1,
                ApiArg::Original => loadgen::Api::Original,
            },
            num_request: match &arrivals {
                Some(arrivals) => self.arrivals.count(arrivals, Unbounded::Requests(DEFAULT_NUM_REQUEST))?,
                None => self.arrivals.closed_loop_count("loadgen")?.unwrap_or(DEFAULT_NUM_REQUEST),
            },
            concurrency: self.concurrency,
            image_folder: self.image_folder.clone(),
            arrivals,
            seed: self.arrivals.seed,
            expect: self.expect.clone(),
            thresholds: self.thresholds.clone(),
            timeout: self.timeout,
            json: self.json,
            verbose: self.verbose,
        })
    }
}

impl QueueArgs {
    /// # Errors
    /// Where the local backend has no data directory: a typing error would make one.
    pub async fn config(&self) -> anyhow::Result<queue_command::Config> {
        let shared = self.command.shared();
        let (backend, _) = shared.backend();
        if matches!(backend, Backend::Local { .. }) && !shared.data_dir.is_dir() {
            anyhow::bail!(
                "there is no data directory {}: nothing ran there; see --data-dir",
                shared.data_dir.display()
            );
        }
        Ok(queue_command::Config {
            names: shared.names(&backend).await?,
            backend,
            json: self.command.output().json,
            action: self.command.action(),
        })
    }
}

impl QueueCommand {
    fn shared(&self) -> &SharedArgs {
        self.common().0
    }

    fn output(&self) -> &OutputArgs {
        self.common().1
    }

    fn common(&self) -> (&SharedArgs, &OutputArgs) {
        match self {
            QueueCommand::Depth { shared, output }
            | QueueCommand::Dead { shared, output, .. }
            | QueueCommand::Show { shared, output, .. }
            | QueueCommand::Redrive { shared, output, .. }
            | QueueCommand::Purge { shared, output, .. } => (shared, output),
        }
    }

    fn action(&self) -> queue_command::Action {
        match self {
            QueueCommand::Depth { .. } => queue_command::Action::Depth,
            QueueCommand::Dead { limit, .. } => queue_command::Action::Dead { limit: *limit },
            QueueCommand::Show { id, save, .. } => queue_command::Action::Show { id: id.clone(), save: save.clone() },
            QueueCommand::Redrive { all: true, .. } => queue_command::Action::Redrive(queue_command::Which::All),
            QueueCommand::Redrive { ids, .. } => queue_command::Action::Redrive(queue_command::Which::Ids(ids.clone())),
            QueueCommand::Purge { queue, yes, .. } => {
                queue_command::Action::Purge { queue: queue.clone(), is_confirmed: *yes }
            }
        }
    }
}

impl ClassifyArgs {
    pub fn config(&self) -> classify::Config {
        classify::Config {
            files: self.files.clone(),
            model: self.model.choice(),
            limits: self.limits.limits(1),
            top_k: self.top_k,
            json: self.json,
        }
    }
}

impl TuneArgs {
    pub fn config(&self) -> tune::Config {
        tune::Config { model: self.model.choice(), duration: self.seconds, json: self.json }
    }
}

/// Bounded, so that one measurement is neither empty nor forgotten.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds, 0.1 to 600".to_owned()),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    config::duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("more than 0".to_owned()),
        more => Ok(more),
    })
}

/// SQS takes 0 s to 12 h; below a second a lease could not be renewed in time.
fn visibility_timeout(text: &str) -> Result<Duration, String> {
    let timeout = config::duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(12 * 3600)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("between 1s and 12h".to_owned())
    }
}
