//! Evaluates IAM policy documents, for the doctor and for tests.

use serde_json::Value;

/// Returns whether a policy document allows an action on a resource. Conditions count as met. An explicit deny beats
/// every allow.
pub(super) fn allows(document: &Value, action: &str, resource: &str) -> bool {
    has_statement(document, "Allow", action, resource) && !denies(document, action, resource)
}

/// Returns whether a policy document denies an action on a resource explicitly, whatever other documents allow.
pub(super) fn denies(document: &Value, action: &str, resource: &str) -> bool {
    has_statement(document, "Deny", action, resource)
}

fn has_statement(document: &Value, effect: &str, action: &str, resource: &str) -> bool {
    listed(&document["Statement"]).iter().any(|statement| {
        statement["Effect"] == effect
            && applies(statement, "Action", action)
            && applies(statement, "Resource", resource)
            && (effect == "Allow" || statement.get("Condition").is_none())
    })
}

fn applies(statement: &Value, member: &str, subject: &str) -> bool {
    let ignores_case = member == "Action";
    let is_matched = |value: &Value| {
        listed(value).iter().filter_map(|pattern| pattern.as_str()).any(|pattern| {
            if ignores_case {
                matches(pattern.to_ascii_lowercase().as_bytes(), subject.to_ascii_lowercase().as_bytes())
            } else {
                matches(pattern.as_bytes(), subject.as_bytes())
            }
        })
    };
    match (statement.get(member), statement.get(format!("Not{member}"))) {
        (Some(value), _) => is_matched(value),
        (None, Some(value)) => !is_matched(value),
        (None, None) => false,
    }
}

/// The entries of a member. Policies write a single entry without a list.
pub(super) fn listed(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        Value::Null => Vec::new(),
        value => vec![value],
    }
}

/// Glob matching: `*` matches any bytes, `?` matches one.
fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    // After a mismatch, matching resumes behind the last star, which then takes one more byte.
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < subject.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, seen));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == subject[seen] => (at, seen) = (at + 1, seen + 1),
            _ => match star {
                Some((after, swallowed)) => {
                    (at, seen) = (after, swallowed + 1);
                    star = Some((after, swallowed + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deny_beats_allow_and_actions_ignore_case() {
        let document = json!({"Statement": [
            {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"},
            {"Effect": "Deny", "Action": "S3:delete?bject", "Resource": ["arn:*:kept/*"]},
        ]});
        assert!(allows(&document, "s3:DeleteObject", "arn:aws:s3:::other/1"));
        assert!(!allows(&document, "s3:DeleteObject", "arn:aws:s3:::kept/1"));
        assert!(!allows(&document, "iam:CreateUser", "*") && denies(&document, "s3:DeleteObject", "arn:x:kept/"));
        assert!(matches(b"a*b*c", b"a--b--b-c") && !matches(b"a*b*c", b"a--c") && matches(b"*", b""));
    }
}
