//! The schemas of bodies and answers, as `docs/wire.md` and `protocol/` describe them.

use serde_json::{Value, json};

use crate::protocol::{ErrorCode, MAX_BATCH_ITEMS};
use crate::web::query::{LISTED_STATUSES, MAX_TOP_K};

/// All schemas by name.
pub(super) fn schemas() -> Value {
    let of = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let list_of = |names: &[&str]| {
        let items: Vec<Value> = names.iter().map(|name| of(name)).collect();
        json!({"type": "array", "minItems": 1, "items": {"anyOf": items}})
    };
    let mut job = result();
    job["description"] = "A result, and when each stage of its job began".into();
    job["properties"]["timeline"] = json!({"type": "array", "items": of("TimelineEvent")});
    job["required"].as_array_mut().into_iter().for_each(|required| required.push("timeline".into()));
    json!({
        "Result": result(),
        "FinishedJob": job,
        "Job": {"anyOf": [of("State"), of("FinishedJob")]},
        "ResultOrList": {"anyOf": [of("Result"), list_of(&["Result", "Problem"])]},
        "StateOrList": {"anyOf": [of("State"), list_of(&["State", "Result", "Problem"])]},
        "State": {
            "type": "object",
            "description": "A job without a result. While it is queued, its address also answers how far it is",
            "required": ["id", "status"],
            "properties": {
                "id": id(),
                "status": {"enum": ["queued", "cancelled", "removed"]},
                "stage": {"enum": ["queued", "waiting_for_capacity"]},
                "position": {"type": "integer", "minimum": 1, "description": "An estimate; 1 is the next, or is being processed"},
                "eta_seconds": {"type": "number", "minimum": 0, "description": "Absent while nothing was measured"},
                "message": {"type": "string", "description": "Says that no worker is running"},
                "timeline": {"type": "array", "items": of("TimelineEvent")},
            },
        },
        "Jobs": jobs(),
        "JobSummary": job_summary(),
        "Fleet": fleet(),
        "Prediction": {
            "type": "object",
            "required": ["label"],
            "properties": {
                "class_index": {"type": "integer", "minimum": 0},
                "label": {"type": "string"},
                "score": {"type": "number", "minimum": 0, "maximum": 1},
            },
        },
        "TimelineEvent": {
            "type": "object",
            "required": ["event", "at"],
            "properties": {
                "event": {"enum": [
                    "submitted", "received", "fetched", "decoded", "inferred", "succeeded", "failed", "expired", "answered",
                ]},
                "at": {"type": "string", "format": "date-time"},
            },
        },
        "ImageInJson": {
            "type": "object",
            "description": "An image, or the URL of one if the server fetches them (--allow-image-urls)",
            "additionalProperties": false,
            "oneOf": [{"required": ["image"]}, {"required": ["image_url"]}],
            "properties": {
                "image": {"type": "string", "description": "The image in base64, or a data URI of it"},
                "image_url": {"type": "string", "format": "uri", "maxLength": 2048},
                "callback_url": callback_url(),
                "filename": {"type": ["string", "null"]},
                "model": {"type": ["string", "null"]},
                "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOP_K},
            },
        },
        "Batch": batch(),
        "CancelledBatch": {
            "type": "object",
            "required": ["id", "cancelled"],
            "properties": {"id": id(), "cancelled": {"type": "integer", "minimum": 0}},
        },
        "ListedImages": listed_images(),
        "Models": {
            "type": "object",
            "required": ["models"],
            "properties": {"models": {"type": "array", "items": of("Model")}},
        },
        "Model": model(),
        "Problem": {
            "type": "object",
            "description": "A problem (RFC 9457)",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string", "format": "uri"},
                "title": {"type": "string"},
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"type": "string"},
                "id": id(),
            },
        },
    })
}

fn jobs() -> Value {
    json!({
        "type": "object",
        "required": ["jobs", "next"],
        "properties": {
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/JobSummary"}},
            "next": {"type": ["string", "null"], "format": "uuid", "description": "The `after` of the next page; null at the end"},
        },
    })
}

fn job_summary() -> Value {
    json!({
        "type": "object",
        "description": "A job of a list; its own address has the rest",
        "required": ["id", "status"],
        "properties": {
            "id": id(),
            "status": {"enum": LISTED_STATUSES},
            "submitted_at": {"type": "string", "format": "date-time"},
            "filename": {"type": "string"},
            "model": {"type": "string"},
            "prediction": {"$ref": "#/components/schemas/Prediction"},
            "error": error(),
        },
    })
}

fn batch() -> Value {
    json!({
        "type": "object",
        "required": ["id", "status", "created_at", "source", "images"],
        "properties": {
            "id": id(),
            "status": {"enum": ["running", "finished", "unknown"]},
            "created_at": {"type": "string", "format": "date-time"},
            "source": {"enum": ["request", "sender"]},
            "model": {"type": "string"},
            "images": {"type": ["integer", "null"], "minimum": 0},
            "counts": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        },
    })
}

fn listed_images() -> Value {
    json!({
        "type": "object",
        "required": ["images"],
        "additionalProperties": false,
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH_ITEMS,
                "items": {
                    "type": "object",
                    "required": ["bucket", "key"],
                    "additionalProperties": false,
                    "properties": {
                        "bucket": {"type": "string"},
                        "key": {"type": "string"},
                        "name": {"type": ["string", "null"]},
                    },
                },
            },
            "callback_url": callback_url(),
            "model": {"type": ["string", "null"]},
            "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOP_K},
        },
    })
}

fn fleet() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let number = json!({"type": ["number", "null"], "minimum": 0});
    let object = |properties: Value| {
        let names: Vec<&String> = properties.as_object().into_iter().flat_map(|names| names.keys()).collect();
        json!({"type": "object", "required": names, "properties": properties})
    };
    object(json!({
        "queue": object(json!({"waiting": count, "in_flight": count})),
        "workers": object(json!({"ready": {"type": ["integer", "null"], "minimum": 0}})),
        "expected_wait_seconds": number,
        "recent": object(json!({"images_per_second": number, "p50_ms": number, "p99_ms": number})),
        "cost": {
            "type": ["object", "null"],
            "description": "What 1,000 images cost by the machines that answered in the last minute; null without a price",
            "required": ["per_thousand", "currency"],
            "properties": {"per_thousand": number, "currency": {"type": "string"}},
        },
    }))
}

fn callback_url() -> Value {
    json!({"type": ["string", "null"], "format": "uri", "maxLength": 2048})
}

fn id() -> Value {
    json!({"type": "string", "format": "uuid"})
}

fn result() -> Value {
    let predictions = json!({"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}});
    json!({
        "type": "object",
        "description": "The outcome of a job",
        "required": ["v", "id", "filename", "status", "predictions", "model", "timings_ms", "attempt", "worker"],
        "properties": {
            "v": {"const": 1},
            "id": id(),
            "filename": {"type": "string"},
            "status": {"enum": ["succeeded", "failed", "expired"]},
            "predictions": predictions,
            "labels": predictions,
            "model": {
                "type": ["object", "null"],
                "required": ["name", "version", "digest"],
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "digest": {"type": "string"},
                },
            },
            "timings_ms": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
            "attempt": {"type": "integer", "minimum": 0},
            "worker": {"type": "string"},
            "error": error(),
        },
    })
}

fn error() -> Value {
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"enum": codes}, "message": {"type": "string"}},
    })
}

fn model() -> Value {
    json!({
        "type": "object",
        "required": ["name", "default"],
        "properties": {
            "name": {"type": "string"},
            "default": {"type": "boolean"},
            "ready": {"type": "boolean", "description": "True if the service is ready; only of one model"},
            "version": {"type": "string"},
            "digest": {"type": ["string", "null"]},
            "classes": {"type": ["integer", "null"], "minimum": 0},
            "input": {
                "type": ["object", "null"],
                "required": ["height", "width"],
                "properties": {"height": {"type": "integer"}, "width": {"type": "integer"}},
            },
            "files": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["variant", "digest", "bytes"],
                    "properties": {
                        "variant": {"type": "string"},
                        "digest": {"type": "string"},
                        "bytes": {"type": "integer"},
                    },
                },
            },
            "labels": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["label"],
                    "properties": {"id": {"type": "string"}, "label": {"type": "string"}},
                },
            },
        },
    })
}
