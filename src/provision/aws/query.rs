//! The Query protocol of EC2 and IAM: parameters are a form (`Tag.1.Key=…`), answers are XML.

use roxmltree::{Document, Node};
use serde_json::{Map, Value, json};

/// How a service numbers the entries of a list parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    /// Under the singular of the list's name: `Tag.1`.
    Ec2,
    /// As members: `Tags.member.1`.
    Members,
}

/// Lists of EC2 that keep their name.
const UNCHANGED: [&str; 5] = ["IpPermissions", "IpRanges", "Ipv6Ranges", "Groups", "PrefixListIds"];

/// Encodes the body of a call.
pub(super) fn form(operation: &str, version: &str, lists: Lists, parameters: &Value) -> String {
    let mut form = vec![format!("Action={operation}"), format!("Version={version}")];
    flatten("", parameters, lists, &mut form);
    form.join("&")
}

fn flatten(path: &str, value: &Value, lists: Lists, form: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, member, lists, form);
            }
        }
        Value::Array(entries) => {
            let list = match lists {
                Lists::Members => format!("{path}.member"),
                Lists::Ec2 if UNCHANGED.iter().any(|name| path.ends_with(name)) => path.to_owned(),
                Lists::Ec2 => path.strip_suffix('s').unwrap_or(path).to_owned(),
            };
            for (index, entry) in entries.iter().enumerate() {
                flatten(&format!("{list}.{}", index + 1), entry, lists, form);
            }
        }
        Value::Null => {}
        value => {
            let text = super::client::text(value);
            let encoded = percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC);
            form.push(format!("{path}={encoded}"));
        }
    }
}

/// Parses an answer to JSON. An element whose children are called `item` or `member` becomes a list, one without children
/// a string.
pub(super) fn parse(xml: &str) -> anyhow::Result<Value> {
    let document = Document::parse(xml).map_err(|error| anyhow::anyhow!("the answer of AWS is not XML: {error}"))?;
    Ok(to_json(document.root_element()))
}

fn to_json(node: Node<'_, '_>) -> Value {
    let mut children = node.children().filter(Node::is_element).peekable();
    match children.peek() {
        // An empty set of EC2 has no `item` to tell it from an empty string. `list` reads an empty list of IAM, which
        // becomes an empty string here, as no entries.
        None if node.tag_name().name().ends_with("Set") => json!([]),
        None => node.text().unwrap_or_default().into(),
        Some(first) if ["item", "member"].contains(&first.tag_name().name()) => children.map(to_json).collect(),
        Some(_) => {
            let members: Map<String, Value> =
                children.map(|child| (child.tag_name().name().to_owned(), to_json(child))).collect();
            members.into()
        }
    }
}

/// The entries of a list in an answer. A missing list is empty.
pub(super) fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[name].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_numbered_as_the_service_does_it() {
        let parameters = json!({
            "GroupId": "sg-1",
            "IpPermissions": [{"FromPort": 80, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
            "TagSpecifications": [{"Tags": [{"Key": "imgcls:stack", "Value": null}]}],
        });
        let expected = "Action=A&Version=V&GroupId=sg%2D1&IpPermissions.1.FromPort=80\
            &IpPermissions.1.IpRanges.1.CidrIp=0%2E0%2E0%2E0%2F0&TagSpecification.1.Tag.1.Key=imgcls%3Astack";
        assert_eq!(form("A", "V", Lists::Ec2, &parameters), expected);
        let parameters = json!({"RoleName": "r", "Tags": [{"Key": "k", "Value": "v"}]});
        let expected = "Action=A&Version=V&RoleName=r&Tags.member.1.Key=k&Tags.member.1.Value=v";
        assert_eq!(form("A", "V", Lists::Members, &parameters), expected);
    }

    #[test]
    fn lists_of_an_answer_are_read_in_both_spellings() {
        let xml = "<R xmlns='x'><groupSet><item><groupId>sg-1</groupId><tagSet/></item></groupSet><nextToken/></R>";
        assert_eq!(parse(xml).unwrap(), json!({"groupSet": [{"groupId": "sg-1", "tagSet": []}], "nextToken": ""}));
        let answer = parse("<R><Tags><member><Key>k</Key></member></Tags><Roles/></R>").unwrap();
        assert_eq!(list(&answer, "Tags").count(), 1);
        assert_eq!(list(&answer, "Roles").count(), 0);
    }
}
