//! Golden tests of the wire format, on which other processes, other versions and the scripts of legacy users rely.

use imgcls::model::{ModelRef, Prediction};
use imgcls::protocol::{
    ClassifyRequest, ClassifyResult, ErrorCode, ErrorInfo, ImageFacts, ImageRef, Incoming, LegacyRequest, Payload,
    ReplyHead, ServiceClass, Status, TimingsMs, cut_reply, inline_or_reference, legacy_name, legacy_output,
    legacy_reply,
};
use uuid::Uuid;

const ID: &str = "01936d5c-7e00-7abc-8def-0123456789ab";

const REQUEST: &str = r#"{"v":1,"id":"01936d5c-7e00-7abc-8def-0123456789ab","filename":"cat.jpg","content_type":"image/jpeg","image":{"bucket":"input","key":"images/01936d5c-7e00-7abc-8def-0123456789ab"},"top_k":5,"submitted_at":"2026-01-01T00:00:00Z","expires_at":"2026-01-01T01:00:00Z","reply_to":"app-web-result-queue-0123456789abcdef","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;

const RESULT: &str = r#"{"v":1,"id":"01936d5c-7e00-7abc-8def-0123456789ab","filename":"cat.jpg","status":"succeeded","predictions":[{"class_index":281,"label":"tabby cat","score":0.5}],"model":{"name":"efficientnet-lite0","version":"1","digest":"sha256:00"},"timings_ms":{"queued":1.0,"fetched":2.0,"decoded":3.0,"inferred":4.0,"total":10.0},"attempt":1,"worker":"host-1"}"#;

const FAILED: &str = r#"{"v":1,"id":"01936d5c-7e00-7abc-8def-0123456789ab","filename":"cat.jpg","status":"failed","predictions":[],"model":null,"timings_ms":{"queued":0.0,"fetched":0.0,"decoded":0.0,"inferred":0.0,"total":0.0},"attempt":0,"worker":"","error":{"code":"undecodable","message":"broken"}}"#;

fn id() -> Uuid {
    ID.parse().unwrap()
}

fn request() -> ClassifyRequest {
    ClassifyRequest {
        v: 1,
        id: id(),
        filename: "cat.jpg".to_owned(),
        content_type: Some("image/jpeg".to_owned()),
        image: Some(ImageRef { bucket: "input".to_owned(), key: format!("images/{ID}") }),
        image_data: None,
        top_k: 5,
        model: None,
        batch: None,
        submitted_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        expires_at: "2026-01-01T01:00:00Z".parse().unwrap(),
        reply_to: Some("app-web-result-queue-0123456789abcdef".to_owned()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

fn result() -> ClassifyResult {
    ClassifyResult {
        v: 1,
        id: id(),
        filename: "cat.jpg".to_owned(),
        status: Status::Succeeded,
        predictions: vec![Prediction { class_index: Some(281), label: "tabby cat".to_owned(), score: Some(0.5) }],
        labels: Vec::new(),
        image: None,
        model: Some(ModelRef {
            name: "efficientnet-lite0".to_owned(),
            version: "1".to_owned(),
            digest: "sha256:00".to_owned(),
        }),
        timings_ms: TimingsMs { queued: 1.0, fetched: 2.0, decoded: 3.0, inferred: 4.0, total: 10.0 },
        attempt: 1,
        worker: "host-1".to_owned(),
        error: None,
    }
}

#[test]
fn request_format_is_pinned() {
    assert_eq!(serde_json::to_string(&request()).unwrap(), REQUEST);
    assert_eq!(Incoming::parse(REQUEST), Incoming::Job(Box::new(request())));
}

/// The fields of the first release are those of [`REQUEST`] and [`RESULT`]: without a choice of the model and without
/// labels, a message has exactly these.
#[test]
fn model_and_labels_are_optional_additions_to_the_first_wire_version() {
    let named = ClassifyRequest { model: Some("birds".to_owned()), ..request() };
    let text = serde_json::to_string(&named).unwrap();
    assert_eq!(text, REQUEST.replace(r#""top_k":5"#, r#""top_k":5,"model":"birds""#));
    assert_eq!(Incoming::parse(&text), Incoming::Job(Box::new(named)));

    let of_batch = ClassifyRequest { batch: Some(id()), ..request() };
    let text = serde_json::to_string(&of_batch).unwrap();
    assert_eq!(text, REQUEST.replace(r#""top_k":5"#, &format!(r#""top_k":5,"batch":"{ID}""#)));
    assert_eq!(of_batch.class(), ServiceClass::Bulk);
    assert_eq!(Incoming::parse(&text), Incoming::Job(Box::new(of_batch)));

    let sized =
        ClassifyResult { image: Some(ImageFacts { width: 640, height: 480, datetime_original: None }), ..result() };
    let facts = r#""image":{"width":640,"height":480},"model":{"#;
    assert_eq!(sized.to_json(), RESULT.replace(r#""model":{"#, facts));
    assert_eq!(serde_json::from_str::<ClassifyResult>(&sized.to_json()).unwrap(), sized);

    let label = Prediction { class_index: Some(2), label: "wading".to_owned(), score: Some(0.75) };
    let labelled = ClassifyResult { labels: vec![label], ..result() };
    let labels = r#""labels":[{"class_index":2,"label":"wading","score":0.75}],"model":{"#;
    assert_eq!(labelled.to_json(), RESULT.replace(r#""model":{"#, labels));
    assert_eq!(serde_json::from_str::<ClassifyResult>(&labelled.to_json()).unwrap(), labelled);
}

#[test]
fn unknown_fields_are_ignored_and_optional_ones_may_be_missing() {
    let extended = REQUEST.replacen('{', r#"{"priority":9,"#, 1);
    assert_eq!(Incoming::parse(&extended), Incoming::Job(Box::new(request())));
    let least = format!(
        r#"{{"v":1,"id":"{ID}","image_data":"aGk=","submitted_at":"2026-01-01T00:00:00Z","expires_at":"2026-01-01T01:00:00Z"}}"#
    );
    let Incoming::Job(read) = Incoming::parse(&least) else { panic!("not a request") };
    assert_eq!((read.top_k, read.filename.as_str(), read.reply_to.as_deref()), (5, "", None));
    assert_eq!(read.payload("input", &[]), Ok(Payload::Inline(b"hi".to_vec())));
}

#[test]
fn result_format_is_pinned() {
    assert_eq!(result().to_json(), RESULT);
    assert_eq!(serde_json::from_str::<ClassifyResult>(RESULT).unwrap(), result());
    let failed = ClassifyResult::ended(id(), "cat.jpg", Status::Failed, ErrorCode::Undecodable, "broken");
    assert_eq!(failed.to_json(), FAILED);
    let error = serde_json::from_str::<ClassifyResult>(FAILED).unwrap().error;
    assert_eq!(error, Some(ErrorInfo { code: ErrorCode::Undecodable, message: "broken".to_owned() }));
}

#[test]
fn reply_is_the_result_or_its_head() {
    let cut = cut_reply(&result().to_json()).unwrap();
    assert_eq!(cut, format!(r#"{{"v":1,"id":"{ID}","status":"succeeded"}}"#));
    assert!(serde_json::from_str::<ReplyHead>(&cut).unwrap().is_cut());
    assert!(!serde_json::from_str::<ReplyHead>(RESULT).unwrap().is_cut());
}

#[test]
fn legacy_messages_have_the_format_of_the_legacy_scripts() {
    let body = r#"{"image_data": "aGVsbG8=", "filename": "test_0.JPEG"}"#;
    let Incoming::Legacy(legacy) = Incoming::parse(body) else { panic!("not a legacy request") };
    assert_eq!(
        (legacy.filename.as_str(), legacy.image_bytes().unwrap().as_slice()),
        ("test_0.JPEG", b"hello".as_slice())
    );
    assert_eq!(legacy_reply("test_0.JPEG", "bathtub"), r#"{"test_0.JPEG":"bathtub"}"#);
    assert_eq!(legacy_output("test_0.JPEG", "bathtub"), "((test_0.JPEG, bathtub))");
}

#[test]
fn legacy_request_of_a_web_tier_has_no_user_file_name() {
    let request = LegacyRequest::new(b"hello", legacy_name(id(), "image/jpeg"));
    let text = format!(r#"{{"image_data":"aGVsbG8=","filename":"{ID}.jpg"}}"#);
    assert_eq!(request.to_json(), text);
}

#[test]
fn prediction_may_have_only_a_label() {
    let label_only =
        RESULT.replace(r#"{"class_index":281,"label":"tabby cat","score":0.5}"#, r#"{"label":"tabby cat"}"#);
    let read: ClassifyResult = serde_json::from_str(&label_only).unwrap();
    let expected = Prediction { class_index: None, label: "tabby cat".to_owned(), score: None };
    assert_eq!(read.predictions, [expected]);
    assert_eq!(read.to_json(), label_only);
}

#[test]
fn request_is_shrunk_to_fit_the_queue() {
    let inline = ClassifyRequest { image: None, image_data: Some("aGk=".repeat(1_000)), ..request() };
    assert!(inline.clone().into_message("input", 1 << 20).contains("aGk=aGk="));
    assert_eq!(inline.into_message("input", 1_024), REQUEST);

    let long = ClassifyRequest { filename: "\"".repeat(255), ..request() };
    let whole = long.clone().into_message("input", 1_024);
    assert!(whole.contains(&"\\\"".repeat(255)), "it fits unchanged");
    let hostile = ClassifyRequest { filename: "\u{1}".repeat(255), ..request() };
    let text = hostile.into_message("input", 1_024);
    let Incoming::Job(read) = Incoming::parse(&text) else { panic!("not a request") };
    assert!(text.len() <= 1_024 && text.len() > 1_024 - 6, "{}", text.len());
    assert!("\u{1}".repeat(255).starts_with(&read.filename) && !read.filename.is_empty());
    assert_eq!(ClassifyRequest { filename: "cat.jpg".to_owned(), ..*read }, request());
}

#[test]
fn image_is_inline_only_if_enabled_and_small_enough() {
    let image = vec![7; 3_000];
    let is_inline = |inline_bytes, limit| inline_or_reference(&image, id(), "input", inline_bytes, limit).1.is_some();
    assert!(is_inline(3_000, 1 << 20));
    assert!(!is_inline(0, 1 << 20), "not enabled");
    assert!(!is_inline(2_999, 1 << 20), "larger than enabled");
    assert!(!is_inline(3_000, 6_144), "4,000 characters and their envelope do not fit");
    let (reference, _) = inline_or_reference(&image, id(), "input", 0, 1 << 20);
    assert_eq!(reference.unwrap().key, format!("images/{ID}"));
}

#[test]
fn error_codes_are_spelled_as_documented() {
    let codes = [
        (ErrorCode::Undecodable, "undecodable"),
        (ErrorCode::UnsupportedType, "unsupported_type"),
        (ErrorCode::TooManyPixels, "too_many_pixels"),
        (ErrorCode::DecodeTimeout, "decode_timeout"),
        (ErrorCode::TooLargeDecoded, "too_large_decoded"),
        (ErrorCode::InputMissing, "input_missing"),
        (ErrorCode::InputTooLarge, "input_too_large"),
        (ErrorCode::Malformed, "malformed"),
        (ErrorCode::UnknownModel, "unknown_model"),
        (ErrorCode::AttemptsExhausted, "attempts_exhausted"),
        (ErrorCode::Expired, "expired"),
        (ErrorCode::Cancelled, "cancelled"),
        (ErrorCode::Internal, "internal"),
    ];
    for (code, spelled) in codes {
        assert_eq!(serde_json::to_string(&code).unwrap(), format!("{spelled:?}"));
        assert_eq!(code.as_str(), spelled);
    }
}
