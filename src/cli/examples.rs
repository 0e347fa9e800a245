//! Two examples for each command, which its help prints. A test parses all of them.

/// Examples by the words of the command.
const EXAMPLES: [(&str, [&str; 2]); 45] = [
    ("up", ["imgcls up", "imgcls up --port 9000 --data-dir /var/lib/imgcls --max-workers 4"]),
    (
        "serve-web",
        [
            "imgcls serve-web --data-dir /var/lib/imgcls",
            "imgcls serve-web --region us-east-1 --listen :8080 --tls-cert cert.pem --tls-key key.pem",
        ],
    ),
    (
        "worker",
        ["imgcls worker --data-dir /var/lib/imgcls", "imgcls worker --region us-east-1 --admin-listen 127.0.0.1:9090"],
    ),
    (
        "autoscale",
        [
            "imgcls autoscale --nats-url nats://10.0.0.5:4222 --min-workers 0 --max-workers 4",
            "imgcls autoscale --region us-east-1 --policy target --slo 5s --service-time 20ms",
        ],
    ),
    (
        "loadgen",
        [
            "imgcls loadgen --num-request 1000 --concurrency 16",
            "imgcls loadgen --rate 50 --duration 1m --threshold 'p99<500ms' --json",
        ],
    ),
    (
        "simulate",
        [
            "imgcls simulate --rate 20 --service-time 50ms --policy step --policy target:slo=2s",
            "imgcls simulate --arrivals day --rate 5 --service-time 50ms --plot day.svg",
        ],
    ),
    (
        "plan",
        [
            "imgcls plan --arrivals day --rate 20 --service-time 250ms --goal 'p99<10s' --out stack.toml",
            "imgcls plan --rate 100 --from-loadgen report.json --measured-sessions 2 --goal 'p99<2s' --plot plan.svg",
        ],
    ),
    ("provision", ["imgcls provision plan --region us-east-1", "imgcls provision --region us-east-1 --max 8"]),
    (
        "provision plan",
        [
            "imgcls provision plan --region us-east-1",
            "imgcls provision plan --region us-east-1 --out plan.json --detailed-exitcode",
        ],
    ),
    (
        "provision apply",
        ["imgcls provision apply --region us-east-1 --yes", "imgcls provision apply plan.json --region us-east-1"],
    ),
    (
        "provision status",
        [
            "imgcls provision status --region us-east-1",
            "imgcls provision status --region us-east-1 --stack test --json",
        ],
    ),
    (
        "provision rollback",
        ["imgcls provision rollback --region us-east-1", "imgcls provision rollback --region us-east-1 --yes"],
    ),
    (
        "provision logs",
        [
            "imgcls provision logs --region us-east-1 --follow",
            "imgcls provision logs --region us-east-1 --since 2h --json",
        ],
    ),
    (
        "provision destroy",
        [
            "imgcls provision destroy --region us-east-1",
            "imgcls provision destroy --region us-east-1 --stack test --yes --delete-data",
        ],
    ),
    (
        "provision export",
        [
            "imgcls provision export --region us-east-1",
            "imgcls provision export --region us-east-1 --format terraform > stack.tf.json",
        ],
    ),
    (
        "provision policy",
        [
            "imgcls provision policy --region us-east-1",
            "imgcls provision policy --region us-east-1 --stack test --notify ops@example.org --budget 50",
        ],
    ),
    (
        "provision doctor",
        ["imgcls provision doctor --region us-east-1", "imgcls provision doctor --region us-east-1 --group my-workers"],
    ),
    ("queue depth", ["imgcls queue depth", "imgcls queue depth --data-dir /var/lib/imgcls --json"]),
    ("queue dead", ["imgcls queue dead", "imgcls queue dead --limit 1000 --json"]),
    (
        "queue show",
        [
            "imgcls queue show 01936d5c-7e00-7abc-8def-0123456789ab",
            "imgcls queue show 01936d5c-7e00-7abc-8def-0123456789ab --save image.jpg",
        ],
    ),
    ("queue redrive", ["imgcls queue redrive 01936d5c-7e00-7abc-8def-0123456789ab", "imgcls queue redrive --all"]),
    (
        "queue purge",
        ["imgcls queue purge web-app-image-transport-dead", "imgcls queue purge web-app-image-transport --yes"],
    ),
    ("keys create", ["imgcls keys create --name phone", "imgcls keys create --name watch --scope read --expires 90d"]),
    ("keys list", ["imgcls keys list", "imgcls keys list --json"]),
    ("keys webhook-secret", ["imgcls keys webhook-secret phone", "imgcls keys webhook-secret --data-dir imgcls-data"]),
    ("keys revoke", ["imgcls keys revoke phone", "imgcls keys revoke phone --region us-east-1"]),
    ("classify", ["imgcls classify photo.jpg", "imgcls classify photos/ --exclude thumbs --out labels.csv"]),
    ("eval", ["imgcls eval photos/", "imgcls eval photos/ --model mine --model efficientnet-lite0 --json"]),
    ("tune", ["imgcls tune", "imgcls tune --seconds 60 --images photos/"]),
    ("model fit", ["imgcls model fit photos/ --name mine", "imgcls model fit photos/ --name mine --json"]),
    ("model add", ["imgcls model add exported/", "imgcls model add net.onnx --name net --labels labels.txt"]),
    ("model list", ["imgcls model list", "imgcls model list --json"]),
    ("model show", ["imgcls model show mine", "imgcls model show mine@3f2a9c01b7de --json"]),
    ("model remove", ["imgcls model remove mine@3f2a9c01b7de", "imgcls model remove mine"]),
    ("model check", ["imgcls model check", "imgcls model check mine"]),
    ("model use", ["imgcls model use mine@3f2a9c01b7de", "imgcls model use mine@3f2a9c01b7de --json"]),
    ("model rollback", ["imgcls model rollback mine", "imgcls model rollback mine --json"]),
    (
        "watch",
        [
            "imgcls watch incoming --out labels.csv",
            "imgcls watch incoming --out labels.jsonl --sort-into sorted --sidecar json",
        ],
    ),
    ("batch list", ["imgcls batch list", "imgcls batch list --limit 5 --json"]),
    (
        "batch status",
        [
            "imgcls batch status 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5",
            "imgcls batch status 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5 --json",
        ],
    ),
    (
        "batch results",
        [
            "imgcls batch results 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5 >labels.csv",
            "imgcls batch results 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5 --json",
        ],
    ),
    (
        "batch cancel",
        [
            "imgcls batch cancel 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5",
            "imgcls batch cancel 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5 --json",
        ],
    ),
    (
        "batch retry",
        [
            "imgcls batch retry 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5",
            "imgcls batch retry 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5 --json",
        ],
    ),
    (
        "completions",
        ["imgcls completions bash >~/.local/share/bash-completion/completions/imgcls", "imgcls completions fish"],
    ),
    ("version", ["imgcls version", "imgcls version --json"]),
];

/// The examples of a command, or of the commands below it. Returns `None` if there are none.
pub(super) fn of(words: &str) -> Option<[&'static str; 2]> {
    EXAMPLES.iter().find(|(command, _)| *command == words).map(|(_, examples)| *examples)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn examples_are_commands_that_exist() {
        for (command, examples) in EXAMPLES {
            for example in examples {
                let typed = example.split(" >").next().unwrap_or(example);
                let words: Vec<&str> = typed.split_whitespace().map(|word| word.trim_matches('\'')).collect();
                assert_eq!(words[1], command.split(' ').next().unwrap_or(command), "{example}");
                Cli::command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{example}: {error}"));
            }
        }
    }

    #[test]
    fn every_command_has_examples() {
        let has_own = |command: &clap::Command| {
            command.get_after_help().is_some_and(|text| text.to_string().contains("Examples:"))
        };
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let mut inner = command.get_subcommands().peekable();
            if inner.peek().is_none() {
                assert!(of(name).is_some() || has_own(command), "{name}");
            }
            for command in inner {
                let words = format!("{name} {}", command.get_name());
                assert!(of(&words).is_some() || has_own(command), "{words}");
            }
        }
    }
}
