//! Arguments that every tier and every command about a service has.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::parse::{backend_kind, visibility_timeout};
use super::settings::aws_variables;
use crate::config::{self, Backend, BackendKind, DEFAULT_NATS_URL, Document, NameChoice, NatsLocation};
use crate::telemetry::LogFormat;

/// Variables of the legacy system, by the flag whose value they give. The flag's own variable takes precedence.
pub(super) const LEGACY_VARIABLES: [(&str, &str); 4] = [
    ("request-queue", "REQUEST_QUEUE_NAME"),
    ("result-queue", "RESPONSE_QUEUE_NAME"),
    ("input-bucket", "INPUT_BUCKET_NAME"),
    ("output-bucket", "OUTPUT_BUCKET_NAME"),
];

/// The queues and objects of a service, and limits that all of its processes share.
#[derive(Debug, Args)]
pub struct SharedArgs {
    /// A TOML file of settings: keys are the names of flags, at the top level or in the tables [up], [web], [worker],
    /// [autoscale] and [provision]; flags and variables take precedence. No file is read unless it is named
    #[arg(long, env = "IMGCLS_CONFIG")]
    pub config: Option<PathBuf>,
    /// Backend of queues and objects [default: nats if --nats-url is set, aws if --region, --endpoint-url, AWS_REGION,
    /// AWS_DEFAULT_REGION or AWS_ENDPOINT_URL is, else local]
    #[arg(long, env = "IMGCLS_BACKEND", value_parser = backend_kind())]
    pub backend: Option<BackendKind>,
    /// AWS: the region of queues and buckets [default: $AWS_REGION, $AWS_DEFAULT_REGION, the profile's, the instance's]
    #[arg(long, env = "IMGCLS_REGION", value_parser = config::region)]
    pub region: Option<String>,
    /// AWS: another address for every service: an emulator, a private endpoint [default: $AWS_ENDPOINT_URL]
    #[arg(long, env = "IMGCLS_ENDPOINT_URL", value_parser = config::endpoint_url)]
    pub endpoint_url: Option<String>,
    /// NATS: addresses of servers with JetStream, separated by commas; tls://HOST for TLS. User and password or a token may
    /// stand before the host, as in nats://USER:PASSWORD@HOST: better in the variable than on the command line
    /// [default: nats://127.0.0.1:4222]
    #[arg(long, env = "IMGCLS_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// NATS: a file of credentials (a JWT and the seed of its key) [default: none]
    #[arg(long, env = "IMGCLS_NATS_CREDENTIALS", value_name = "FILE")]
    pub nats_credentials: Option<PathBuf>,
    /// NATS: certificates in PEM of the authority of the servers; requires TLS [default: those of this machine]
    #[arg(long, env = "IMGCLS_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// NATS: how many servers of a cluster keep each queue and bucket that is created: 1, 3 or 5
    #[arg(long, env = "IMGCLS_NATS_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nats_replicas: u8,
    /// Local backend: the directory of the queue and the images; created if it does not exist
    #[arg(long, env = "IMGCLS_DATA_DIR", default_value = "imgcls-data")]
    pub data_dir: PathBuf,
    /// Name of the service; any name but the default prefixes every queue and bucket with `<STACK>-`, so that several
    /// services can run side by side
    #[arg(long, env = "IMGCLS_STACK", default_value = "imgcls", value_parser = config::stack_name)]
    pub stack: String,
    /// Queue from web tier to workers [default: web-app-image-transport, or $REQUEST_QUEUE_NAME]
    #[arg(long, env = "IMGCLS_REQUEST_QUEUE", value_parser = config::queue_name)]
    pub request_queue: Option<String>,
    /// Queue from workers to web tier, and prefix of the reply queues [default: app-web-result-queue, or
    /// $RESPONSE_QUEUE_NAME]
    #[arg(long, env = "IMGCLS_RESULT_QUEUE", value_parser = config::queue_name)]
    pub result_queue: Option<String>,
    /// Bucket of the images [default: $INPUT_BUCKET_NAME, else input, on AWS imgcls-<account>-<region>-input]
    #[arg(long, env = "IMGCLS_INPUT_BUCKET", value_parser = config::bucket_name)]
    pub input_bucket: Option<String>,
    /// Bucket of the results [default: $OUTPUT_BUCKET_NAME, else output, on AWS imgcls-<account>-<region>-output]
    #[arg(long, env = "IMGCLS_OUTPUT_BUCKET", value_parser = config::bucket_name)]
    pub output_bucket: Option<String>,
    /// Another bucket whose objects jobs and events of S3 may name as their images, which are read there and not copied; may
    /// be repeated. Workers on AWS need s3:GetObject there [default: none]
    #[arg(long = "read-bucket", env = "IMGCLS_READ_BUCKET", value_name = "BUCKET", value_delimiter = ',',
        value_parser = config::bucket_name)]
    pub read_buckets: Vec<String>,
    /// How long a received image belongs to one worker, unless the worker renews its lease
    #[arg(long, env = "IMGCLS_VISIBILITY_TIMEOUT", default_value = "30s", value_parser = visibility_timeout)]
    pub visibility_timeout: Duration,
    /// Attempts before an image fails as `attempts_exhausted` and its message goes to the dead letters
    #[arg(long, env = "IMGCLS_MAX_RECEIVE_COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=900))]
    pub max_receive_count: u32,
    /// Format of the log on standard error: text, or json
    #[arg(long, env = "IMGCLS_LOG_FORMAT", default_value = "text", value_parser = |text: &str| text.parse::<LogFormat>())]
    pub log_format: LogFormat,
}

/// How a command prints its result.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print the result as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl SharedArgs {
    /// The backend, and the flag, variable or line of a file that selected it.
    pub fn backend(&self, settings: &Document) -> (Backend, String) {
        let (kind, selected_by) = match (self.backend, &self.nats_url) {
            (None, Some(_)) => (BackendKind::Nats, "--nats-url".to_owned()),
            _ => config::choose_backend(self.backend, self.aws_flag(), &aws_variables()),
        };
        let selected_by = match selected_by.strip_prefix("--").and_then(|name| settings.get(name)) {
            Some(setting) => setting.source_text(),
            None => selected_by,
        };
        let backend = match kind {
            BackendKind::Local => Backend::Local { data_dir: self.data_dir.clone() },
            BackendKind::Aws => Backend::Aws { region: self.region.clone(), endpoint_url: self.endpoint_url.clone() },
            BackendKind::Nats => Backend::Nats(self.nats()),
        };
        (backend, selected_by)
    }

    fn nats(&self) -> NatsLocation {
        NatsLocation {
            url: self.nats_url.clone().unwrap_or_else(|| DEFAULT_NATS_URL.to_owned()),
            credentials: self.nats_credentials.clone(),
            ca: self.nats_ca.clone(),
            replicas: self.nats_replicas,
        }
    }

    /// The flag that selects AWS although `--backend` is absent.
    pub(super) fn aws_flag(&self) -> Option<&'static str> {
        let region = self.region.as_ref().map(|_| "--region");
        region.or_else(|| self.endpoint_url.as_ref().map(|_| "--endpoint-url"))
    }

    /// The names that were given; the others have defaults, which on AWS contain the account.
    pub fn names(&self) -> NameChoice {
        NameChoice {
            stack: self.stack.clone(),
            request_queue: self.request_queue.clone(),
            result_queue: self.result_queue.clone(),
            input_bucket: self.input_bucket.clone(),
            output_bucket: self.output_bucket.clone(),
        }
    }
}
