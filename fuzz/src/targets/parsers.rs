//! Untrusted text: messages, identifiers, settings.

use std::path::PathBuf;
use std::sync::OnceLock;

use clap::Parser as _;
use imgcls::cli::Cli;
use imgcls::config;
use imgcls::model::{ModelChoice, ModelPackage};
use imgcls::protocol::{self, ClassifyResult, Incoming};
use imgcls::scaling_policy::cost::Prices;
use uuid::Uuid;

use super::{Verdict, http};

const BUCKET: &str = "input";
/// The lowest message size limit of an SQS queue.
const QUEUE_LIMIT_BYTES: usize = 1 << 10;

/// A message on the request queue or on a reply queue.
pub fn message(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Reject };
    match Incoming::parse(text) {
        Incoming::Job(request) => {
            let _ = request.payload(BUCKET, &["pictures".to_owned()]);
            let (id, reply_to) = (request.id, request.reply_to.clone());
            let sent = request.into_message(BUCKET, QUEUE_LIMIT_BYTES);
            let Incoming::Job(again) = Incoming::parse(&sent) else {
                panic!("a sent message does not parse as a request: {sent}")
            };
            assert_eq!((again.id, again.reply_to), (id, reply_to));
        }
        Incoming::Legacy(request) => {
            let _ = request.image_bytes();
            legacy_name(&request.filename);
        }
        Incoming::Notification(_) | Incoming::UnknownVersion { .. } | Incoming::Malformed { .. } => {}
    }
    let _ = protocol::read_legacy_reply(text);
    let _ = protocol::legacy_answer(protocol::read_legacy_output(text));
    if let Some(cut) = protocol::cut_reply(text) {
        assert!(protocol::cut_reply(&cut).is_some(), "a truncated reply does not parse: {cut}");
    }
    let _ = text.parse::<ClassifyResultText>();
    Verdict::Keep
}

/// A result as it is read from a store.
struct ClassifyResultText;

impl std::str::FromStr for ClassifyResultText {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let result: ClassifyResult = serde_json::from_str(text).map_err(drop)?;
        let written = result.to_json();
        let again: ClassifyResult = serde_json::from_str(&written).expect("a written result can be read");
        assert_eq!(again.to_json(), written);
        Ok(ClassifyResultText)
    }
}

/// Identifiers and names, parsed directly and as the path of a request.
pub fn ids(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Reject };
    if let Ok(id) = text.parse::<Uuid>() {
        let _ = protocol::submitted_at(id);
        assert_eq!(protocol::image_key(id), format!("images/{id}"));
    }
    legacy_name(text);
    let _ = protocol::legacy_job_id(text);
    let _ = protocol::is_reply_queue_of("results", text);
    assert!(protocol::cut_filename(text).len() <= 255);
    http::get_job(text);
    Verdict::Keep
}

/// A file name of the legacy protocol becomes part of an object key.
fn legacy_name(name: &str) {
    let safe = protocol::legacy_safe_name(name);
    assert!(!safe.is_empty() && safe.len() <= 255 && safe != "." && safe != "..", "{safe:?}");
    assert!(!safe.contains(['/', '\\', '\0']), "{safe:?}");
    assert!(!protocol::legacy_output_key(&safe).is_empty());
}

/// A command line with one argument per line, and the contents of configuration files.
pub fn config(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Reject };
    let _ = Cli::try_parse_from(std::iter::once("imgcls").chain(text.lines()));
    let _ = (config::duration(text), config::bytes(text), config::region(text), config::endpoint_url(text));
    for name in [config::queue_name(text), config::bucket_name(text), config::stack_name(text)].into_iter().flatten() {
        assert!(!name.is_empty() && !name.contains(['/', '\0', '\n']), "{name:?}");
    }
    let _ = Prices::parse(text);
    let folder = model_folder();
    std::fs::write(folder.join("model.toml"), text).expect("a file");
    let model = ModelChoice { model: folder.to_str().map(str::to_owned), ..ModelChoice::default() };
    let _ = ModelPackage::variants(&model);
    let _ = ModelPackage::load(&model);
    Verdict::Keep
}

fn model_folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = http::scratch_directory().keep();
        std::fs::write(folder.join("labels.txt"), "a\nb\n").expect("a file");
        std::fs::write(folder.join("model.onnx"), "not a model").expect("a file");
        folder
    })
}
