//! Rules of security groups as text for people.

use serde_json::Value;

use super::resource::target_of;

/// Protocol, ports and source or destination of a rule: `tcp 22 from 0.0.0.0/0`.
pub(super) fn words(rule: &Value) -> String {
    // A group that does not exist yet is named by its id in the stack.
    let text = |name: &str| rule[name].as_str().or_else(|| Some(target_of(&rule[name])?.0));
    let protocol = match text("IpProtocol") {
        Some("-1") | None => "all traffic".to_owned(),
        Some(protocol) => protocol.to_owned(),
    };
    let ports = match (rule["FromPort"].as_i64(), rule["ToPort"].as_i64()) {
        (Some(-1) | None, _) | (_, None) => String::new(),
        (Some(from), Some(to)) if from == to => format!(" {from}"),
        (Some(0), Some(65_535)) => " all ports".to_owned(),
        (Some(from), Some(to)) => format!(" {from}-{to}"),
    };
    let from = ["CidrIp", "CidrIpv6", "SourceSecurityGroupId", "SourcePrefixListId"].into_iter().find_map(text);
    let to = ["DestinationSecurityGroupId", "DestinationPrefixListId"].into_iter().find_map(text);
    let peer = match (from, to) {
        (Some(from), _) => format!(" from {from}"),
        (None, Some(to)) => format!(" to {to}"),
        (None, None) => String::new(),
    };
    protocol + &ports + &peer
}

/// The same for a rule of outgoing traffic, whose addresses are destinations.
pub(super) fn egress_words(rule: &Value) -> String {
    words(rule).replace(" from ", " to ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_named_by_protocol_ports_and_peer() {
        for (rule, expected) in [
            (
                json!({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"}),
                "tcp 22 from 0.0.0.0/0",
            ),
            (
                json!({"IpProtocol": "udp", "FromPort": 0, "ToPort": 65_535, "CidrIpv6": "::/0"}),
                "udp all ports from ::/0",
            ),
            (json!({"IpProtocol": "-1", "SourceSecurityGroupId": "sg-1"}), "all traffic from sg-1"),
            (
                json!({"IpProtocol": "tcp", "FromPort": 1, "ToPort": 9, "SourcePrefixListId": "pl-1"}),
                "tcp 1-9 from pl-1",
            ),
        ] {
            assert_eq!(words(&rule), expected);
        }
        assert_eq!(egress_words(&json!({"IpProtocol": "-1", "CidrIp": "0.0.0.0/0"})), "all traffic to 0.0.0.0/0");
    }
}
