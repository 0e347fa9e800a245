//! A check of JSON against the part of JSON Schema that the published schemas use.

use serde_json::Value;

/// Returns what does not fit, each with its place. `schema` is a schema inside of the document `root`.
pub fn faults(root: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(root, schema, value, "$", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    const KNOWN: [&str; 13] = [
        "$schema",
        "$ref",
        "$defs",
        "title",
        "description",
        "type",
        "enum",
        "minimum",
        "maximum",
        "properties",
        "required",
        "additionalProperties",
        "items",
    ];
    let rules = schema.as_object().unwrap_or_else(|| panic!("{place}: a schema is an object"));
    for rule in rules.keys() {
        assert!(KNOWN.contains(&rule.as_str()), "{place}: the check does not know the rule {rule:?}");
    }
    if let Some(target) = rules.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(&target[1..]).unwrap_or_else(|| panic!("{place}: {target} does not exist"));
        check(root, target, value, place, found);
    }
    let mut fault = |text: String| found.push(format!("{place}: {text}: {value}"));
    if let Some(kinds) = rules.get("type") {
        let kinds = kinds.as_array().map_or_else(|| vec![kinds.clone()], Clone::clone);
        if !kinds.iter().any(|kind| is_of(value, kind.as_str().unwrap())) {
            fault(format!("not of the type {kinds:?}"));
        }
    }
    if rules.get("enum").and_then(Value::as_array).is_some_and(|allowed| !allowed.contains(value)) {
        fault("not one of the allowed values".to_owned());
    }
    if let (Some(least), Some(number)) = (rules.get("minimum").and_then(Value::as_f64), value.as_f64())
        && number < least
    {
        fault(format!("below {least}"));
    }
    if let (Some(most), Some(number)) = (rules.get("maximum").and_then(Value::as_f64), value.as_f64())
        && number > most
    {
        fault(format!("above {most}"));
    }
    if let Some(members) = value.as_object() {
        for name in rules.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !members.contains_key(name.as_str().unwrap()) {
                found.push(format!("{place}: {name} is missing"));
            }
        }
        let known = rules.get("properties").and_then(Value::as_object);
        for (name, member) in members {
            let place = format!("{place}.{name}");
            match known.and_then(|known| known.get(name)) {
                Some(schema) => check(root, schema, member, &place, found),
                None if rules.get("additionalProperties") == Some(&Value::Bool(false)) => {
                    found.push(format!("{place}: unknown member"));
                }
                None => {}
            }
        }
    }
    if let (Some(schema), Some(items)) = (rules.get("items"), value.as_array()) {
        for (item, at) in items.iter().zip(0..) {
            check(root, schema, item, &format!("{place}[{at}]"), found);
        }
    }
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}

#[test]
fn faults_are_found_with_their_places() {
    let schema = serde_json::json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "array", "items": {"enum": [1, null]}}},
        "$defs": {"n": {"type": ["integer", "null"], "minimum": 0}},
    });
    let faults = |value: Value| faults(&schema, &schema, &value).len();
    assert_eq!(faults(serde_json::json!({"a": 1, "b": [1, null]})), 0);
    assert_eq!(faults(serde_json::json!({"a": null})), 0);
    assert_eq!(faults(serde_json::json!({"a": -1, "b": [2], "c": 0})), 3);
    assert_eq!(faults(serde_json::json!({"b": "x"})), 2);
}
