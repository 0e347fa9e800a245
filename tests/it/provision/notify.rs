//! People are told of problems of a stack and of its costs.

use serde_json::Value;

use super::refusals::{ErrorProxy, Wire, refusal};
use super::{Stack, call_emulator};

const PAGER: &str = "arn:aws:sns:us-east-1:123456789012:pager";

fn with<'a>(command: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&[command][..], flags].concat()
}

fn topic(stack: &str) -> String {
    format!("arn:aws:sns:us-east-1:123456789012:{stack}-imgcls-problems")
}

fn assert_nothing_to_do(stack: &Stack, flags: &[&str]) {
    let ran = stack.run(&[&["plan", "--detailed-exitcode"][..], flags].concat());
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn alarms_and_budget_tell_people_until_the_stack_is_destroyed() {
    let stack = Stack::new("told");
    let flags = ["--notify", "ops@example.org", "--notify", PAGER, "--budget", "50"];
    let plan = stack.succeeds(&with("plan", &flags));
    for expected in [
        "+ topic              told-imgcls-problems\n",
        "+ alarm              told-DeadLettersAlarm\n",
        "+ alarm              told-OldestImageAlarm\n",
        "+ alarm              told-MissingWorkersAlarm\n",
        "+ alarm              told-MissingWebMachinesAlarm\n",
        "+ budget             told-imgcls-us-east-1\n",
        "AWS sends each address a message with a link",
        "before imgcls:stack is a cost allocation tag",
    ] {
        assert!(plan.contains(expected), "{expected}\n{plan}");
    }
    stack.succeeds(&with("apply", &flags));
    assert_nothing_to_do(&stack, &flags);

    let alarms = "Action=DescribeAlarms&Version=2010-08-01&AlarmNames.member.1=told-";
    for name in ["DeadLettersAlarm", "OldestImageAlarm", "MissingWorkersAlarm", "MissingWebMachinesAlarm"] {
        let alarm = call_emulator("monitoring", &format!("{alarms}{name}")).text();
        for action in [topic("told").as_str(), PAGER] {
            assert!(alarm.contains(&format!("<member>{action}</member>")), "{alarm}");
        }
    }
    let subscribed = || {
        let form = format!("Action=ListSubscriptionsByTopic&Version=2010-03-31&TopicArn={}", topic("told"));
        call_emulator("sns", &form).text()
    };
    assert!(subscribed().contains("ops@example.org"));

    // Somebody subscribes by hand; the stack has other recipients and another limit from then on.
    let subscribe = format!("Action=Subscribe&Version=2010-03-31&TopicArn={}&Protocol=email", topic("told"));
    call_emulator("sns", &format!("{subscribe}&Endpoint=stranger@example.org"));
    let status = stack.succeeds(&with("status", &flags));
    assert!(status.contains("differs  topic              told-imgcls-problems"), "{status}");
    let others = ["--notify", "new@example.org", "--budget", "80.5", "--max-image-age", "1h"];
    let plan = stack.succeeds(&with("plan", &others));
    for expected in ["Budget.BudgetLimit.Amount: 50 → 80.5", "Threshold: 900 → 3600", "~ topic "] {
        assert!(plan.contains(expected), "{expected}\n{plan}");
    }
    stack.succeeds(&with("apply", &others));
    assert_nothing_to_do(&stack, &others);
    let list = subscribed();
    assert!(list.contains("new@example.org") && !list.contains("ops@") && !list.contains("stranger@"), "{list}");

    // Without the flags nobody is told.
    let applied = stack.succeeds(&["apply"]);
    for gone in ["− budget             told-imgcls-us-east-1 done", "− topic              told-imgcls-problems done"]
    {
        assert!(applied.contains(gone), "{gone}\n{applied}");
    }
    stack.assert_plan_is_empty();
    stack.succeeds(&with("apply", &flags));
    stack.destroy();
    assert!(!call_emulator("sns", "Action=ListTopics&Version=2010-03-31").text().contains("told-imgcls-problems"));
}

#[test]
fn recipients_that_cannot_be_told_are_refused() {
    let second = "arn:aws:sns:us-east-1:123456789012:second";
    for (flags, expected) in [
        (&["--budget", "50"][..], "--budget needs --notify"),
        (&["--notify", "somebody"], "give an e-mail address, or the ARN of a topic"),
        (&["--notify", PAGER, "--notify", second, "--budget", "50"], "at most 1 topics"),
        (&["--notify", "ops@example.org", "--budget=-1"], "an amount above 0"),
    ] {
        let ran = Stack::new("untold").run(&with("plan", flags));
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
    }
}

#[test]
fn address_that_is_not_confirmed_is_named() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("pending") };
    let flags = ["--notify", "ops@example.org", "--web-instances", "0"];
    stack.succeeds(&with("apply", &flags));
    let body = "<ListSubscriptionsByTopicResponse><ListSubscriptionsByTopicResult><Subscriptions>\
        <member><Protocol>email</Protocol><Endpoint>ops@example.org</Endpoint><SubscriptionArn>PendingConfirmation</SubscriptionArn></member>\
        <member><Protocol>email</Protocol><Endpoint>old@example.org</Endpoint><SubscriptionArn>PendingConfirmation</SubscriptionArn></member>\
        </Subscriptions></ListSubscriptionsByTopicResult></ListSubscriptionsByTopicResponse>";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    proxy.intercept("ListSubscriptionsByTopic", [head.as_bytes(), body.as_bytes()].concat());
    let status = stack.succeeds(&with("status", &flags));
    // SNS forgets the other one by itself.
    assert!(status.contains("nothing to do"), "{status}");
    assert!(status.contains("\"pending-imgcls-problems\" tells nobody at ops@example.org before the link"), "{status}");
    proxy.forward_all();
    stack.destroy();
}

#[test]
fn stack_without_notifications_needs_no_permission_for_them() {
    let (proxy, environment) = ErrorProxy::start();
    let stack = Stack { environment, ..Stack::new("silent") };
    let denied = |operation: &str| {
        proxy.intercept(operation, refusal(Wire::Json, 400, "AccessDeniedException", "not authorized"));
    };
    denied("DescribeBudget");
    stack.succeeds(&["plan"]);
    let error = stack.fails(&with("plan", &["--notify", "ops@example.org", "--budget", "9"]));
    assert!(error.contains("no permission for budgets:ViewBudget on budget \"silent-imgcls-us-east-1\""), "{error}");
}

#[test]
fn exported_template_tells_people_too() {
    let stack = Stack::new("exported-told");
    let flags = ["--notify", "ops@example.org", "--notify", PAGER, "--budget", "50"];
    let template: Value = serde_json::from_str(&stack.succeeds(&with("export", &flags))).unwrap();
    let resources = &template["Resources"];
    assert_eq!(resources["ProblemsTopic"]["Type"], "AWS::SNS::Topic");
    assert_eq!(resources["ProblemsTopic"]["Properties"]["Subscription"][0]["Endpoint"], "ops@example.org");
    let actions = &resources["DeadLettersAlarm"]["Properties"]["AlarmActions"];
    assert_eq!(*actions, serde_json::json!([{"Ref": "ProblemsTopic"}, PAGER]));
    let budget = &resources["Budget"];
    assert_eq!(budget["Type"], "AWS::Budgets::Budget");
    assert_eq!(budget["Properties"]["Budget"]["BudgetLimit"], serde_json::json!({"Amount": 50, "Unit": "USD"}));
    assert_eq!(budget["Properties"]["NotificationsWithSubscribers"].as_array().map(Vec::len), Some(3));
}
