//! The template of CloudFormation.

use std::process::Command;

use serde_json::Value;

use super::Stack;
use crate::emulators;

#[test]
fn the_template_is_the_stack_and_cfn_lint_has_nothing_to_say() {
    let stack = Stack::new("exported");
    let folder = tempfile::tempdir().unwrap();
    let target = ["--policy", "target", "--service-time", "20ms", "--spot-share", "50", "--min", "1"];
    for (name, flags) in [("step", &[][..]), ("target", &target[..])] {
        let text = stack.succeeds(&[&["export"][..], flags].concat());
        let template: Value = serde_json::from_str(&text).unwrap();
        let resources = template["Resources"].as_object().unwrap();
        // A step policy has two alarms and their policies, target tracking has one policy and no alarm of ours.
        assert_eq!(resources.len(), if name == "step" { 26 } else { 23 }, "{text}");
        assert!(!resources.contains_key("Bundle"), "{text}");
        assert_eq!(resources["RequestQueue"]["Properties"]["QueueName"], "exported-web-app-image-transport");
        let path = folder.path().join(format!("{name}.json"));
        std::fs::write(&path, text).unwrap();
        let lint = emulators::python().with_file_name("cfn-lint");
        let output = Command::new(lint).arg(&path).output().expect("cfn-lint comes with the emulators");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.trim().is_empty(), "{name}: {said}");
    }
}
