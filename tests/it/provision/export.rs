//! The exported CloudFormation template.

use std::process::Command;

use serde_json::Value;

use super::Stack;
use super::balancer::CERTIFICATE;
use crate::emulators;

/// The longest `TemplateBody` that CloudFormation takes.
const LONGEST_TEMPLATE: usize = 51_200;
const LONGEST_NAME: &str = "twenty-bytes-in-name";

#[test]
fn template_of_the_longest_stack_name_is_short_enough_for_cloudformation() {
    let stack = Stack::new(LONGEST_NAME);
    let target = ["--policy", "target", "--service-time", "20ms", "--instance-type", "c7i.large,c6i.large"];
    let secure = ["--certificate", CERTIFICATE, "--notify", "ops@example.org", "--budget", "50", "--ssm"];
    for flags in [&[][..], &target, &secure] {
        let text = stack.succeeds(&[&["export"][..], flags].concat());
        assert!(text.len() <= LONGEST_TEMPLATE, "{} bytes", text.len());
    }
}

#[test]
fn exported_template_has_all_resources_and_passes_cfn_lint() {
    let stack = Stack::new("exported");
    let folder = tempfile::tempdir().unwrap();
    let target = ["--policy", "target", "--service-time", "20ms", "--spot-share", "50", "--min", "1"];
    let told = ["--notify", "ops@example.org,arn:aws:sns:us-east-1:123456789012:pager", "--budget", "50", "--ssm"];
    let secure = ["--certificate", CERTIFICATE];
    for (name, flags) in [("step", &[][..]), ("target", &target[..]), ("told", &told), ("secure", &secure)] {
        let text = stack.succeeds(&[&["export"][..], flags].concat());
        let template: Value = serde_json::from_str(&text).unwrap();
        let resources = template["Resources"].as_object().unwrap();
        // Step scaling has two alarms and their policies. Target tracking has one policy, whose alarms AWS creates.
        // Notifications add a topic, four alarms and a budget; a certificate adds a load balancer, its listener, a target group
        // and a security group.
        assert_eq!(
            resources.len(),
            [("step", 30), ("target", 27), ("told", 36), ("secure", 34)]
                .into_iter()
                .find(|(flags, _)| *flags == name)
                .unwrap()
                .1,
            "{text}"
        );
        assert!(!resources.contains_key("Bundle"), "{text}");
        let parameters = template["Parameters"].as_object().unwrap();
        assert_eq!(parameters["MaxWorkers"]["Default"], "4");
        assert_eq!(resources["WorkerGroup"]["Properties"]["MaxSize"], serde_json::json!({"Ref": "MaxWorkers"}));
        for parameter in parameters.keys() {
            assert!(text.contains(&format!("{{\"Ref\":\"{parameter}\"}}")), "{parameter} is not used");
        }
        assert_eq!(resources["RequestQueue"]["Properties"]["QueueName"], "exported-web-app-image-transport");
        let path = folder.path().join(format!("{name}.json"));
        std::fs::write(&path, text).unwrap();
        let lint = emulators::python().with_file_name("cfn-lint");
        let output = Command::new(lint).arg(&path).output().expect("cfn-lint comes with the emulators");
        let findings = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && findings.trim().is_empty(), "{name}: {findings}");
    }
}
