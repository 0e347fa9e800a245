//! What is wrong outside, in one line each with the way out.

use super::{Stack, by_hand, environment, small_bundle};
use crate::emulators;
use crate::harness::{free_port, imgcls};

#[test]
fn a_name_that_stands_is_refused_unless_it_is_given() {
    let stack = Stack::new("taken");
    by_hand("sqs", "Action=CreateQueue&QueueName=taken-web-app-image-transport");
    let refused = stack.fails(&["apply"]);
    assert!(refused.contains("queue \"taken-web-app-image-transport\" stands already"), "{refused}");
    assert!(refused.contains("--adopt"), "{refused}");
    let nothing = stack.succeeds(&["destroy", "--yes"]);
    assert!(nothing.contains("0 to remove"), "{nothing}");
    stack.succeeds(&["apply", "--adopt", "--web-instances", "0"]);
    let plan = stack.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    stack.destroy();
}

#[test]
fn machines_of_another_processor_are_refused() {
    let said = Stack::new("cpu").fails(&["plan", "--instance-type", "c7g.large"]);
    assert!(said.contains("instance type c7g.large is arm64, the bundle x86_64"), "{said}");
    assert!(said.contains("--bundle FILE"), "{said}");
}

#[test]
fn a_plan_that_costs_too_much_is_refused() {
    let said = Stack::new("money").fails(&["plan", "--max", "100", "--max-hourly", "2"]);
    assert!(said.contains("more than --max-hourly 2"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    std::fs::write(&prices, "date = 1").unwrap();
    let said = Stack::new("money").fails(&["plan", "--prices", prices.to_str().unwrap()]);
    assert!(said.contains("prices.toml: line 1"), "{said}");
}

#[test]
fn wrong_usage_is_told_as_such() {
    for (flags, expected) in [
        (&["plan", "--min", "5", "--max", "2"][..], "see --min and --max"),
        (&["plan", "--policy", "target"], "--service-time"),
        (&["plan", "--backend", "local"], "`up`"),
        (&["plan", "--region", "mars/north"], "a region is named like"),
        (&["plan", "--allow", "everybody"], "203.0.113.0/24"),
    ] {
        let ran = Stack::new("usage").run(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
    }
}

#[test]
fn without_credentials_or_an_answer_it_says_what_to_do() {
    let fails = |environment: Vec<(String, String)>, flags: &[&str]| {
        let mut command = imgcls();
        command.args(["provision", "plan"]).args(flags).envs(environment);
        if !flags.contains(&"--bundle") {
            command.arg("--bundle").arg(small_bundle());
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut no_keys = environment(&nobody);
    no_keys.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    assert!(fails(no_keys, &[]).contains("no AWS credentials"));
    let said = fails(environment(&nobody), &[]);
    assert!(said.contains("sts:GetCallerIdentity: no answer from"), "{said}");
    let said = fails(emulators::credentials(), &["--region", "mars-north-1"]);
    assert!(said.contains("AWS region mars-north-1"), "{said}");
    let said = fails(emulators::credentials(), &["--bundle", "/dev/null", "--region", "us-east-1"]);
    assert!(said.contains("sts:GetCallerIdentity") || said.contains("is no bundle"), "{said}");
}
