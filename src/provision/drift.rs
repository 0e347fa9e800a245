//! Differences of lists that matter for security, in words: rules, policies and suspended processes. Each entry that only
//! one side has is named by itself, so that none of them hides in a long value.

use serde_json::Value;

use super::change::Difference;
use super::policy_evaluation::listed;
use super::rules;

/// An entry that only one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// True if it exists and is not wanted.
    pub is_foreign: bool,
    /// Such as `rule tcp 22 from 0.0.0.0/0`.
    pub words: String,
}

/// The entries in which the two sides differ. Returns `None` for properties that are no such list.
pub(super) fn entries(difference: &Difference) -> Option<Vec<Entry>> {
    let words: fn(&Value) -> String = match difference.property.as_str() {
        "SecurityGroupIngress" => |rule| format!("rule {}", rules::words(rule)),
        "SecurityGroupEgress" => |rule| format!("egress rule {}", rules::egress_words(rule)),
        "ManagedPolicyArns" => |arn| format!("attached policy {}", plain(arn)),
        "SuspendedProcesses" => |process| format!("suspended process {}", plain(process)),
        "Policies" => |policy| format!("inline policy {}", plain(&policy["PolicyName"])),
        "AssumeRolePolicyDocument" => |statement| format!("trust policy: {}", statement_words(statement)),
        "PolicyDocument" => |statement| format!("policy: {}", statement_words(statement)),
        _ => return None,
    };
    let (found, wanted) = (difference.found.as_ref().unwrap_or(&Value::Null), &difference.wanted);
    Some(match difference.property.as_str() {
        "AssumeRolePolicyDocument" | "PolicyDocument" => one_sided(&found["Statement"], &wanted["Statement"], words),
        "Policies" => policies(found, wanted, words),
        _ => one_sided(found, wanted, words),
    })
}

fn one_sided(found: &Value, wanted: &Value, words: impl Fn(&Value) -> String) -> Vec<Entry> {
    let (found, wanted) = (listed(found), listed(wanted));
    let foreign = found.iter().filter(|entry| !wanted.contains(entry)).map(|entry| (true, entry));
    let missing = wanted.iter().filter(|entry| !found.contains(entry)).map(|entry| (false, entry));
    foreign.chain(missing).map(|(is_foreign, entry)| Entry { is_foreign, words: words(entry) }).collect()
}

/// Policies that only one side has, and the statements of those that differ.
fn policies(found: &Value, wanted: &Value, words: impl Fn(&Value) -> String) -> Vec<Entry> {
    let same_name = |policies: &Value, name: &Value| {
        listed(policies).into_iter().find(|policy| policy["PolicyName"] == *name).cloned()
    };
    let mut entries = Vec::new();
    for policy in listed(found) {
        match same_name(wanted, &policy["PolicyName"]) {
            None => entries.push(Entry { is_foreign: true, words: words(policy) }),
            Some(other) => {
                let statements = |policy: &Value| policy["PolicyDocument"]["Statement"].clone();
                let name = words(policy);
                let named = |statement: &Value| format!("{name}: {}", statement_words(statement));
                entries.extend(one_sided(&statements(policy), &statements(&other), named));
            }
        }
    }
    let missing = listed(wanted).into_iter().filter(|policy| same_name(found, &policy["PolicyName"]).is_none());
    entries.extend(missing.map(|policy| Entry { is_foreign: false, words: words(policy) }));
    entries
}

/// Effect, actions and resources of a statement: `Allow s3:* on *`.
fn statement_words(statement: &Value) -> String {
    let list = |name: &str| listed(&statement[name]).into_iter().map(plain).collect::<Vec<_>>().join(", ");
    let mut text = format!("{} {}", plain(&statement["Effect"]), list("Action"));
    if statement.get("Resource").is_some() {
        text = format!("{text} on {}", list("Resource"));
    }
    match &statement["Principal"] {
        Value::Null => text,
        Value::String(principal) => format!("{text} to {principal}"),
        principal => {
            let members = principal.as_object().into_iter().flatten();
            let names: Vec<String> = members.flat_map(|(_, names)| listed(names)).map(plain).collect();
            format!("{text} to {}", names.join(", "))
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(property: &str, found: Value, wanted: Value) -> Vec<String> {
        let difference = Difference { property: property.to_owned(), found: Some(found), wanted };
        let sign = |entry: &Entry| if entry.is_foreign { "-" } else { "+" };
        entries(&difference).unwrap().iter().map(|entry| format!("{} {}", sign(entry), entry.words)).collect()
    }

    #[test]
    fn every_entry_that_only_one_side_has_is_named() {
        let ssh = json!({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv6": "::/0"});
        let http = json!({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "CidrIp": "10.0.0.0/8"});
        assert_eq!(words("SecurityGroupIngress", json!([ssh, http]), json!([http])), ["- rule tcp 22 from ::/0"]);
        assert_eq!(words("SuspendedProcesses", json!(["Launch"]), json!([])), ["- suspended process Launch"]);
        assert_eq!(words("ManagedPolicyArns", json!(["arn:x"]), json!([])), ["- attached policy arn:x"]);
        let statement = |action: &str| json!([{"Effect": "Allow", "Action": action, "Resource": "*"}]);
        let policy =
            |name: &str, action: &str| json!({"PolicyName": name, "PolicyDocument": {"Statement": statement(action)}});
        assert_eq!(
            words(
                "Policies",
                json!([policy("imgcls", "s3:*"), policy("other", "a:b")]),
                json!([policy("imgcls", "s3:GetObject")])
            ),
            [
                "- inline policy imgcls: Allow s3:* on *",
                "+ inline policy imgcls: Allow s3:GetObject on *",
                "- inline policy other",
            ]
        );
        let trust =
            |who: Value| json!({"Statement": [{"Effect": "Allow", "Principal": who, "Action": "sts:AssumeRole"}]});
        assert_eq!(
            words(
                "AssumeRolePolicyDocument",
                trust(json!({"AWS": "*"})),
                trust(json!({"Service": "ec2.amazonaws.com"}))
            ),
            ["- trust policy: Allow sts:AssumeRole to *", "+ trust policy: Allow sts:AssumeRole to ec2.amazonaws.com",]
        );
    }
}
