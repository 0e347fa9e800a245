//! A stack on a second emulator. The features that it lacks are listed here, and the list has to be exact.

use serde_json::Value;

use super::{Stack, environment, proxy};
use crate::emulators::ministack_of_stacks;

/// Properties that it accepts and does not store, so that a plan always finds them missing.
const FORGOTTEN: [(&str, &str); 6] = [
    ("second-apptierAutoscaling", "DefaultInstanceWarmup"),
    ("second-apptierAutoscaling", "MetricsCollection"),
    ("second-apptierAutoscaling", "MixedInstancesPolicy"),
    // Alarms on more than one metric.
    ("second-ScaleDownAlarm", "Metrics"),
    ("second-ScaleFromZeroAlarm", "Metrics"),
    ("second-ScaleUpAlarm", "Metrics"),
];

#[test]
fn ministack_agrees_except_for_properties_it_does_not_store() {
    let address = proxy::start(|call| {
        let answer = call.forward_to(ministack_of_stacks().address)?;
        let (refusal, done) = match call.operation().as_deref() {
            Some("EnableMetricsCollection") => {
                ("Unknown AutoScaling action", "<EnableMetricsCollectionResponse/>".to_owned())
            }
            Some("DescribeInstanceTypeOfferings") => ("InvalidAction", offerings()),
            _ => return Some(answer),
        };
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains(refusal), "ministack supports it now: {answer}");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", done.len());
        Some((head + &done).into_bytes())
    });
    let stack = Stack { environment: environment(&format!("http://{address}")), ..Stack::new("second") };
    let error = stack.fails(&["apply", "--web-instances", "0"]);
    assert!(
        error.contains("AWS shows that these still differ: Auto Scaling group \"second-apptierAutoscaling\""),
        "{error}"
    );
    let plan: Value = serde_json::from_str(&stack.succeeds(&["plan", "--web-instances", "0", "--json"])).unwrap();
    let changes = plan["plan"]["changes"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut differing: Vec<(String, String)> = Vec::new();
    for change in changes {
        assert_eq!(change["action"], "update", "{change}");
        let differences = change["differences"].as_array().unwrap().iter();
        differing.extend(differences.map(|difference| (text(&change["name"]), text(&difference["property"]))));
    }
    differing.sort_unstable();
    let mut forgotten = FORGOTTEN.map(|(name, property)| (name.to_owned(), property.to_owned()));
    forgotten.sort_unstable();
    assert_eq!(differing, forgotten);
    stack.destroy();
}

/// The default type of workers, in every zone.
fn offerings() -> String {
    let offer =
        |zone: char| format!("<item><instanceType>c7i.large</instanceType><location>us-east-1{zone}</location></item>");
    let offers: String = ('a'..='f').map(offer).collect();
    format!(
        "<DescribeInstanceTypeOfferingsResponse><instanceTypeOfferingSet>{offers}</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    )
}
