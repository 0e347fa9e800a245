//! The script that a machine runs at its first start: it brings the bundle and starts the tier.
//!
//! The template is `user_data.sh`; it is a whole script of its own, with names in `@…@`. What is put in their place has
//! been checked by form (names, region, digest) and holds no quote.

use super::bundle::BundleRef;
use super::names::ResourceNames;
use super::settings::{Settings, Site};
use super::tier::Tier;
use crate::config::Names;
use crate::scaling_policy::Policy;

const TEMPLATE: &str = include_str!("user_data.sh");

pub fn render(tier: Tier, settings: &Settings, site: &Site, bundle: &BundleRef) -> String {
    let Names { request_queue, result_queue, input_bucket, output_bucket } = &settings.names;
    let (command, capability) = match tier {
        Tier::Worker => ("worker --admin-listen 127.0.0.1:9090", ""),
        Tier::Web => ("serve-web --listen 0.0.0.0:80 --drain-delay 5s", "CAP_NET_BIND_SERVICE"),
    };
    let suffix = if site.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let service = |service: &str| match &site.endpoint_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("https://{service}.{}.{suffix}", site.region),
    };
    let endpoint = site.endpoint_url.as_ref().map(|url| format!("\nIMGCLS_ENDPOINT_URL={url}")).unwrap_or_default();
    let places = [
        ("@DIGEST@", bundle.digest.as_str()),
        ("@BUNDLE_URL@", &format!("{}/{input_bucket}/{}", service("s3"), bundle.key())),
        ("@LOGS_URL@", &service("logs")),
        ("@LOG_GROUP@", &ResourceNames::of(&settings.stack).log_group),
        ("@REGION@", &site.region),
        ("@STACK@", &settings.stack),
        ("@MODEL@", &bundle.model),
        ("@REQUEST_QUEUE@", request_queue),
        ("@RESULT_QUEUE@", result_queue),
        ("@INPUT_BUCKET@", input_bucket),
        ("@OUTPUT_BUCKET@", output_bucket),
        ("@VISIBILITY_TIMEOUT@", &settings.visibility_timeout.as_secs().to_string()),
        ("@MAX_RECEIVE_COUNT@", &settings.max_receive_count.to_string()),
        ("@ENDPOINT@", &endpoint),
        ("@COMMAND@", command),
        ("@CAPABILITY@", capability),
        ("@AUTOSCALE@", &autoscale(tier, settings.policy)),
    ];
    places.iter().fold(TEMPLATE.to_owned(), |script, (name, value)| script.replace(name, value))
}

/// What runs beside the web tier. The group's name follows from the stack's.
fn autoscale(tier: Tier, policy: Policy) -> String {
    match (tier, policy) {
        (Tier::Worker, _) => String::new(),
        (Tier::Web, Policy::Step(_)) => "autoscale --policy step".to_owned(),
        (Tier::Web, Policy::Target(target)) => format!(
            "autoscale --policy target --slo {}s --service-time {}s",
            target.acceptable_latency.as_secs_f64(),
            target.service_time.as_secs_f64()
        ),
    }
}
