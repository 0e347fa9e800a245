//! Values of the flags of `provision`: what AWS calls its resources.

use crate::provision::Allow;

pub(super) fn instance_type(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text.split_once('.') {
        Some((family, size))
            if !family.is_empty() && !size.is_empty() && (family.to_owned() + size).chars().all(allowed) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("an instance type has a name like c7i.large".to_owned()),
    }
}

pub(super) fn plain_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()./_-".contains(c);
    if (3..=125).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a launch template's name has 3 to 125 letters, digits or ()./_-".to_owned())
    }
}

pub(super) fn target_group(text: &str) -> Result<String, String> {
    if text.starts_with("arn:") && text.contains(":targetgroup/") && !text.contains(char::is_whitespace) {
        Ok(text.to_owned())
    } else {
        Err("give the ARN of a target group: arn:aws:elasticloadbalancing:…:targetgroup/…".to_owned())
    }
}

pub(super) fn certificate(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_certificate = match parts[..] {
        ["arn", _, "acm", region, _, id] => !region.is_empty() && id.starts_with("certificate/"),
        ["arn", _, "iam", "", _, name] => name.starts_with("server-certificate/"),
        _ => false,
    };
    if is_certificate && text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\".contains(c)) {
        Ok(text.to_owned())
    } else {
        Err("give the ARN of a certificate: arn:aws:acm:REGION:ACCOUNT:certificate/…".to_owned())
    }
}

pub(super) fn allow(text: &str) -> Result<Allow, String> {
    if text == "me" { Ok(Allow::Me) } else { cidr(text).map(Allow::Network) }
}

fn cidr(text: &str) -> Result<String, String> {
    let wrong = || "give an IPv4 network such as 203.0.113.0/24".to_owned();
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address: std::net::Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(wrong)?;
    let host_bits = u32::MAX.checked_shr(bits).unwrap_or(0);
    if u32::from(address) & host_bits == 0 {
        Ok(format!("{address}/{bits}"))
    } else {
        Err(format!("{text} names a host, not a network of {bits} bits"))
    }
}

pub(super) fn vpc(text: &str) -> Result<String, String> {
    id(text, "vpc-")
}

pub(super) fn subnet(text: &str) -> Result<String, String> {
    id(text, "subnet-")
}

pub(super) fn tag(text: &str) -> Result<(String, String), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " +-=._:/@".contains(c);
    let (key, value) = text.split_once('=').ok_or("give a tag as KEY=VALUE")?;
    if !(1..=128).contains(&key.len()) || value.len() > 256 || !text.chars().all(allowed) {
        return Err(
            "a tag has a key of 1 to 128 and a value of at most 256 letters, digits, spaces or +-=._:/@".to_owned()
        );
    }
    if ["aws:", "imgcls:"].iter().any(|prefix| key.to_ascii_lowercase().starts_with(prefix)) {
        return Err(format!("tags whose key begins like {key} belong to AWS or to imgcls: give another key"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn boundary(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_policy = matches!(parts[..], ["arn", _, "iam", "", _, name] if name.starts_with("policy/"));
    if is_policy && text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\".contains(c)) {
        Ok(text.to_owned())
    } else {
        Err("give the ARN of a policy: arn:aws:iam::ACCOUNT:policy/NAME".to_owned())
    }
}

fn id(text: &str, prefix: &str) -> Result<String, String> {
    let is_id = text.strip_prefix(prefix).is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()));
    if is_id { Ok(text.to_owned()) } else { Err(format!("give an id such as {prefix}0123456789abcdef0")) }
}

pub(super) fn ami(text: &str) -> Result<String, String> {
    let is_id = text.strip_prefix("ami-").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()));
    let is_parameter = text.strip_prefix("resolve:ssm:").is_some_and(|rest| !rest.contains(char::is_whitespace));
    if is_id || is_parameter { Ok(text.to_owned()) } else { Err("give ami-… or resolve:ssm:PARAMETER".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_become_part_of_a_stack_are_checked() {
        assert_eq!(cidr("10.1.0.0/16").as_deref(), Ok("10.1.0.0/16"));
        assert!(cidr("10.1.2.3/16").is_err() && cidr("10.0.0.0/33").is_err() && cidr("everyone").is_err());
        assert!(cidr("0.0.0.0/0").is_ok() && cidr("203.0.113.7/32").is_ok());
        assert!(
            instance_type("c7i.large").is_ok() && instance_type("c7i").is_err() && instance_type("c7'i.l").is_err()
        );
        assert!(ami("ami-0abc").is_ok() && ami("resolve:ssm:/a").is_ok() && ami("x").is_err());
        for good in [
            "arn:aws:acm:eu-west-1:123456789012:certificate/ab-1",
            "arn:aws-cn:iam::123456789012:server-certificate/a/b",
        ] {
            assert_eq!(certificate(good).as_deref(), Ok(good));
        }
        for bad in ["images.example.com", "arn:aws:acm::1:certificate/a", "arn:aws:acm:eu-west-1:1:certificate/a b"] {
            assert!(certificate(bad).is_err(), "{bad}");
        }
    }
}
