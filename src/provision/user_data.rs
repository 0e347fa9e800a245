//! The script that a machine runs at its first start: it downloads the bundle and starts the tier.
//!
//! The template is `user_data.sh`, a complete script with names in `@…@`. Their values have a checked form (names, region,
//! digest) and contain no quote, except for the file of settings, which is written through a quoted here-document.

use std::time::Duration;

use base64::Engine as _;

use super::bundle::{BundleRef, Cpu};
use super::names::ResourceNames;
use super::package::PackageRef;
use super::partition::Partition;
use super::settings::{Settings, Site};
use super::tier::Tier;
use crate::config::{Document, Names, toml_text};
use crate::protocol::START_HOOK;
use crate::scaling_policy::Policy;

const TEMPLATE: &str = include_str!("user_data.sh");
/// The end of the script where people get a shell through Session Manager.
const SESSION_MANAGER: &str = include_str!("session_manager.sh");
/// The file of settings on a machine, as the units name it.
const SETTINGS_FILE: &str = "--config /etc/imgcls/config.toml";
/// How long a machine may take to start its service, in minutes.
const START_MINUTES: u32 = 15;
/// Looks at the service in a minute.
const LOOKS_A_MINUTE: u32 = 30;
/// The line of the script that names the bundle.
const DIGEST_LINE: &str = "digest=";
/// How long a web tier that drains keeps its port open, so that a load balancer notices.
const DEFAULT_DRAIN_DELAY: &str = "5s";
const DEFAULT_LOG_FORMAT: &str = "json";
/// How much longer than its load balancer a machine keeps an idle connection.
const LONGER_THAN_BALANCER: Duration = Duration::from_secs(60);
/// The cache directory that systemd makes for the unit; see `user_data.sh`.
const MODELS_DIRECTORY: &str = "/var/cache/imgcls/models";

pub(crate) fn render(
    tier: Tier,
    settings: &Settings,
    site: &Site,
    bundle: &BundleRef,
    packages: &[PackageRef],
) -> String {
    let (command, capability, started) = match tier {
        Tier::Worker => {
            let command = format!("worker {SETTINGS_FILE} --admin-listen 127.0.0.1:9090");
            (command, "", "curl -sf -o /dev/null --max-time 5 http://127.0.0.1:9090/readyz")
        }
        Tier::Web => {
            let auth = if settings.requires_keys { "required" } else { "none" };
            let command = format!("serve-web {SETTINGS_FILE} --listen 0.0.0.0:80 --auth {auth}");
            // It may speak TLS, and refuse this host name.
            (command, "CAP_NET_BIND_SERVICE", "timeout 5 bash -c '</dev/tcp/127.0.0.1/80' 2>/dev/null")
        }
    };
    let suffix = Partition::of(&site.region).suffix;
    let service = |service: &str| match &site.endpoint_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("https://{service}.{}.{suffix}", site.region),
    };
    let names = ResourceNames::of(&settings.stack);
    let group = match tier {
        Tier::Worker => &names.worker_group,
        Tier::Web => &names.web_group,
    };
    let bucket = &settings.names.input_bucket;
    let settings_file = settings_file(tier, settings, site, bundle, packages);
    let session_manager = if settings.session_manager {
        without_comments(SESSION_MANAGER).replace("@AGENT_URL@", &agent_url(bundle.cpu, &site.region))
    } else {
        String::new()
    };
    // The file of settings comes last: it may contain any text, names in `@…@` too.
    let values = [
        ("@DIGEST@", bundle.digest.as_str()),
        ("@BUNDLE_URL@", &format!("{}/{bucket}/{}", service("s3"), bundle.key())),
        ("@LOGS_URL@", &service("logs")),
        ("@LOG_GROUP@", &names.log_group),
        ("@SCALING_URL@", &service("autoscaling")),
        ("@GROUP@", group),
        ("@START_HOOK@", START_HOOK),
        ("@REGION@", &site.region),
        ("@COMMAND@", &command),
        ("@STARTED@", started),
        ("@START_LIMIT@", &format!("{START_MINUTES} minutes")),
        ("@LOOKS@", &(START_MINUTES * LOOKS_A_MINUTE).to_string()),
        ("@CAPABILITY@", capability),
        ("@SESSION_MANAGER@", session_manager.trim_end()),
        ("@AUTOSCALE@", &autoscale(tier, settings.policy)),
        ("@SETTINGS@", settings_file.trim_end()),
    ];
    values.iter().fold(without_comments(TEMPLATE), |script, (name, value)| script.replace(name, value))
}

/// The script without its comments: a template of CloudFormation with two such scripts has to be short.
fn without_comments(script: &str) -> String {
    let is_kept = |line: &&str| line.starts_with("#!") || !line.trim_start().starts_with('#');
    script.lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
}

/// The package of Session Manager's agent for Debian, which AWS keeps in a bucket in every region.
fn agent_url(cpu: Cpu, region: &str) -> String {
    let architecture = match cpu {
        Cpu::X86_64 => "amd64",
        Cpu::Arm64 => "arm64",
    };
    let suffix = Partition::of(region).suffix;
    format!("https://s3.{region}.{suffix}/amazon-ssm-{region}/latest/debian_{architecture}/amazon-ssm-agent.deb")
}

/// The digest of the bundle that a script downloads. `user_data` is encoded as in a launch template.
pub(super) fn bundle_digest(user_data: &str) -> Option<String> {
    let script = base64::engine::general_purpose::STANDARD.decode(user_data).ok()?;
    let script = String::from_utf8(script).ok()?;
    script.lines().find_map(|line| line.strip_prefix(DIGEST_LINE)).map(str::to_owned)
}

/// Returns the settings file of a machine: the names and limits of the stack, and the user's own settings for the tier.
fn settings_file(tier: Tier, settings: &Settings, site: &Site, bundle: &BundleRef, packages: &[PackageRef]) -> String {
    let Names { request_queue, result_queue, input_bucket, output_bucket } = &settings.names;
    let visibility_timeout = format!("{}s", settings.visibility_timeout.as_secs());
    let max_receive_count = settings.max_receive_count.to_string();
    let mut shared = vec![
        ("backend", "aws"),
        ("region", &site.region),
        ("stack", &settings.stack),
        ("request-queue", request_queue),
        ("result-queue", result_queue),
        ("input-bucket", input_bucket),
        ("output-bucket", output_bucket),
        ("visibility-timeout", &visibility_timeout),
        ("max-receive-count", &max_receive_count),
        ("log-format", DEFAULT_LOG_FORMAT),
    ];
    shared.extend(site.endpoint_url.as_deref().map(|url| ("endpoint-url", url)));
    let machines = &settings.machines;
    let tables = match tier {
        Tier::Worker => table("worker", &[], &machines.worker),
        Tier::Web => {
            let web = table("web", &defaults_of_web(settings, site, bundle), &machines.web);
            web + &table("autoscale", &[], &machines.autoscale)
        }
    };
    let buckets: Vec<String> = settings.read_buckets.iter().map(|name| toml_text(name)).collect();
    let buckets = if buckets.is_empty() { String::new() } else { format!("read-bucket = [{}]\n", buckets.join(", ")) };
    shared.into_iter().map(line).collect::<String>() + &buckets + &models(bundle, packages) + &tables
}

/// The models of the machines. Versions are no part of it, so that a swap changes no launch template.
fn models(bundle: &BundleRef, packages: &[PackageRef]) -> String {
    let list = |names: Vec<String>| match &names[..] {
        [only] => format!("model = {only}\n"),
        several => format!("model = [{}]\n", several.join(", ")),
    };
    if packages.is_empty() {
        return list(bundle.models.iter().map(|name| toml_text(name)).collect());
    }
    let names = packages.iter().map(|package| toml_text(&package.name)).collect();
    format!("{}models-dir = {}\nsync-models = true\n", list(names), toml_text(MODELS_DIRECTORY))
}

/// Settings of the web tier, in TOML. Behind a load balancer, the machine keeps idle connections for longer than the load
/// balancer does, since a request on a connection that is being closed would fail, and believes the address of the client
/// that it names. Only the load balancer reaches the machine.
fn defaults_of_web(settings: &Settings, site: &Site, bundle: &BundleRef) -> Vec<(&'static str, String)> {
    let mut defaults = vec![("drain-delay", toml_text(DEFAULT_DRAIN_DELAY))];
    // One of several web processes does not see all answers, so that it cannot say what an image costs.
    if settings.web_instances == 1 {
        defaults.push(("worker-instance-type", toml_text(&settings.worker_types(bundle.cpu).remove(0))));
    }
    if settings.certificate.is_some() {
        let idle = settings.balancer_idle_timeout() + LONGER_THAN_BALANCER;
        let proxies: Vec<String> = site.network.cidrs.iter().map(|network| toml_text(network)).collect();
        defaults.push(("idle-timeout", toml_text(&format!("{}s", idle.as_secs()))));
        defaults.push(("trusted-proxy", format!("[{}]", proxies.join(", "))));
    }
    defaults
}

/// A table of the file. A setting of `document` takes precedence over one of `defaults`, which are in TOML.
fn table(name: &str, defaults: &[(&str, String)], document: &Document) -> String {
    let defaults = defaults.iter().filter(|(key, _)| document.get(key).is_none());
    let defaults = defaults.map(|(key, value)| format!("{key} = {value}\n"));
    let given = document.settings.iter().map(|setting| setting.to_toml() + "\n");
    let lines: String = defaults.chain(given).collect();
    if lines.is_empty() { lines } else { format!("\n[{name}]\n{lines}") }
}

fn line((key, value): (&str, &str)) -> String {
    format!("{key} = {}\n", toml_text(value))
}

/// The command beside the web tier; empty for a worker. The group's name follows from that of the stack.
fn autoscale(tier: Tier, policy: Policy) -> String {
    match (tier, policy) {
        (Tier::Worker, _) => String::new(),
        (Tier::Web, Policy::Step(_)) => format!("autoscale {SETTINGS_FILE} --policy step"),
        (Tier::Web, Policy::Target(target)) => format!(
            "autoscale {SETTINGS_FILE} --policy target --slo {}s --service-time {}s",
            target.acceptable_latency.as_secs_f64(),
            target.service_time.as_secs_f64()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Machines, Setting, Source};

    fn given(name: &str, values: &[&str]) -> Document {
        let setting = Setting {
            name: name.to_owned(),
            values: values.iter().map(OsString::from).collect(),
            source: Source::File { path: PathBuf::from("stack.toml"), line: 1 },
            default_text: None,
            is_secret: false,
        };
        Document { command: String::new(), settings: vec![setting] }
    }

    fn rendered(tier: Tier, machines: Machines) -> String {
        let settings = Settings { machines, ..Settings::for_tests("imgcls") };
        render(tier, &settings, &Site::for_tests(), &BundleRef::unknown(), &[])
    }

    #[test]
    fn settings_of_a_tier_reach_its_machines_alone() {
        let machines = Machines {
            web: given("allowed-host", &["a.example", "b.example"]),
            worker: given("max-pixels", &["1000"]),
            autoscale: given("interval", &["5s"]),
        };
        let (web, worker) = (rendered(Tier::Web, machines.clone()), rendered(Tier::Worker, machines));
        let table = "\n[web]\ndrain-delay = \"5s\"\nworker-instance-type = \"c7i.large\"\n\
                     allowed-host = [\"a.example\", \"b.example\"]\n";
        assert!(web.contains(table), "{web}");
        assert!(web.contains("\n[autoscale]\ninterval = \"5s\"\n") && !web.contains("max-pixels"), "{web}");
        assert!(worker.contains("\n[worker]\nmax-pixels = \"1000\"\n") && !worker.contains("[web]"), "{worker}");
        let delayed = rendered(Tier::Web, Machines { web: given("drain-delay", &["9s"]), ..Machines::default() });
        assert!(delayed.contains("drain-delay = \"9s\"") && !delayed.contains("drain-delay = \"5s\""), "{delayed}");
    }

    #[test]
    fn agent_of_session_manager_is_installed_on_request_alone() {
        let rendered = |session_manager: bool| {
            let settings = Settings { session_manager, ..Settings::for_tests("imgcls") };
            render(Tier::Worker, &settings, &Site::for_tests(), &BundleRef::unknown(), &[])
        };
        assert!(!rendered(false).contains("ssm"), "{}", rendered(false));
        let url =
            "agent=https://s3.us-east-1.amazonaws.com/amazon-ssm-us-east-1/latest/debian_amd64/amazon-ssm-agent.deb\n";
        assert!(rendered(true).contains(url), "{}", rendered(true));
    }

    #[test]
    fn digest_of_the_bundle_is_read_from_a_script() {
        let script = rendered(Tier::Worker, Machines::default());
        let encoded = base64::engine::general_purpose::STANDARD.encode(script);
        assert_eq!(bundle_digest(&encoded), Some(BundleRef::unknown().digest));
        assert_eq!(bundle_digest("IyEvYmluL3NoCg=="), None);
    }

    #[test]
    fn a_swap_of_a_model_changes_no_user_data() {
        let rendered = |version: &str| {
            let name = |name: &str| PackageRef {
                name: name.to_owned(),
                version: version.to_owned(),
                digest: version.repeat(64),
                bytes: 1,
            };
            let (settings, site) = (Settings::for_tests("imgcls"), Site::for_tests());
            render(Tier::Worker, &settings, &site, &BundleRef::unknown(), &[name("birds"), name("cats")])
        };
        let lines = "model = [\"birds\", \"cats\"]\nmodels-dir = \"/var/cache/imgcls/models\"\nsync-models = true\n";
        assert!(rendered("1").contains(lines), "{}", rendered("1"));
        assert_eq!(rendered("1"), rendered("2"));
    }

    #[test]
    fn machines_behind_a_load_balancer_keep_connections_longer_and_believe_its_header() {
        let settings = Settings { certificate: Some("arn".to_owned()), ..Settings::for_tests("imgcls") };
        let script = render(Tier::Web, &settings, &Site::for_tests(), &BundleRef::unknown(), &[]);
        let lines = "idle-timeout = \"720s\"\ntrusted-proxy = [\"10.0.0.0/16\"]\n";
        assert!(script.contains(lines), "{script}");
        assert!(!rendered(Tier::Web, Machines::default()).contains("trusted-proxy"));
    }

    #[test]
    fn a_value_of_a_setting_is_never_part_of_the_script() {
        let hostile = given("cache-dir", &["x\nSETTINGS\nrm -rf /\n@REGION@"]);
        let script = rendered(Tier::Worker, Machines { worker: hostile, ..Machines::default() });
        assert!(script.contains(r"x\nSETTINGS\nrm -rf /\n@REGION@"), "{script}");
        assert_eq!(script.lines().filter(|line| *line == "SETTINGS").count(), 1, "{script}");
    }
}
