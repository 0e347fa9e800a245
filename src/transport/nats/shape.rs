//! Streams that exist already. They may have been made or changed by hand, and one of another shape would lose accepted jobs.

use serde_json::Value;

/// Says why a stream cannot be used for what it is named after, and what to do, in one line. `wanted` is the configuration that
/// it would be created with. Ages, sizes, replicas and descriptions are up to its operator.
pub(super) fn misfit(found: &Value, wanted: &Value) -> Option<String> {
    let name = wanted["name"].as_str().unwrap_or_default();
    let made_again = format!(
        "remove it with `nats stream rm {name}`, which deletes its messages, so that it is made again, or choose another --stack"
    );
    for field in ["retention", "storage"] {
        if found[field] != wanted[field] {
            let (has, needed) = (text(&found[field]), text(&wanted[field]));
            return Some(format!("the stream {name} has {field} {has}, and {needed} is needed: {made_again}"));
        }
    }
    let subjects = |config: &Value| config["subjects"].as_array().cloned().unwrap_or_default();
    let found_subjects = subjects(found);
    if let Some(missing) = subjects(wanted).iter().find(|subject| !found_subjects.contains(subject)) {
        return Some(format!("the stream {name} does not take the subject {}: {made_again}", text(missing)));
    }
    let is_limited = |field: &str| found[field].as_i64().is_some_and(|limit| limit > 0);
    let drops_oldest = found["discard"] != "new" && (is_limited("max_bytes") || is_limited("max_msgs"));
    if drops_oldest {
        return Some(format!(
            "the stream {name} drops its oldest messages when it is full, so that accepted jobs would be lost: run `nats stream \
             edit {name} --discard new`"
        ));
    }
    // The messages of a queue have one subject.
    if wanted["max_msgs_per_subject"].is_null() && is_limited("max_msgs_per_subject") {
        return Some(format!(
            "the stream {name} has max_msgs_per_subject, so that accepted jobs would be lost: run `nats stream edit {name} \
             --max-msgs-per-subject -1`"
        ));
    }
    None
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams_that_would_lose_messages_are_refused() {
        let wanted = json!({
            "name": "S", "subjects": ["a.*"], "retention": "workqueue", "storage": "file", "discard": "new", "max_age": 5,
            "num_replicas": 1, "description": "",
        });
        let with = |changes: Value| {
            let mut found = wanted.clone();
            found["max_bytes"] = json!(-1);
            found["max_msgs"] = json!(-1);
            found["max_msgs_per_subject"] = json!(-1);
            for (field, value) in changes.as_object().into_iter().flatten() {
                found[field] = value.clone();
            }
            misfit(&found, &wanted)
        };
        for fits in [
            json!({}),
            json!({"max_age": 9, "num_replicas": 3, "description": "mine"}),
            json!({"max_bytes": 1_000_000}),
            json!({"discard": "old"}),
            json!({"subjects": ["b.*", "a.*"]}),
        ] {
            assert_eq!(with(fits.clone()), None, "{fits}");
        }
        for (changes, said) in [
            (
                json!({"retention": "limits"}),
                "has retention limits, and workqueue is needed: remove it with `nats stream rm S`",
            ),
            (json!({"storage": "memory"}), "has storage memory, and file is needed"),
            (json!({"subjects": ["b.*"]}), "does not take the subject a.*"),
            (json!({"subjects": null}), "does not take the subject a.*"),
            (json!({"discard": "old", "max_bytes": 5}), "`nats stream edit S --discard new`"),
            (json!({"discard": "old", "max_msgs": 5}), "`nats stream edit S --discard new`"),
            (json!({"max_msgs_per_subject": 5}), "`nats stream edit S --max-msgs-per-subject -1`"),
        ] {
            let line = with(changes.clone()).unwrap_or_default();
            assert!(line.contains(said) && !line.contains('\n'), "{changes}: {line:?}");
        }
        let bucket = json!({
            "name": "KV", "subjects": ["k.>"], "retention": "limits", "storage": "file", "max_msgs_per_subject": 1,
        });
        assert_eq!(misfit(&bucket, &bucket), None, "a bucket keeps the last message of a subject");
    }
}
