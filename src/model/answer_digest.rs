//! The digest under which answers of a model are kept.

use sha2::{Digest as _, Sha256};

use super::graph;
use super::jpeg::DECODER;
use super::package::ModelPackage;

impl ModelPackage {
    /// A digest of everything that an answer of this model depends on, the image apart: the files and the description of the
    /// model, this program, the runtime and the CPU. Call it only after a session was opened, which loads the runtime.
    pub fn answer_digest(&self) -> &[u8; 32] {
        self.answer_digest.get_or_init(|| {
            let mut hash = Sha256::new();
            for part in [&self.answers_depend_on(), DECODER, &program(), ort::info(), &graph::cpu_features()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.finalize().into()
        })
    }
}

/// Names this build of the program by its file. A copy of the file may have another name, which only costs answers.
fn program() -> String {
    let facts = std::env::current_exe().and_then(std::fs::metadata).and_then(|file| Ok((file.len(), file.modified()?)));
    format!("{} {:?}", env!("CARGO_PKG_VERSION"), facts.ok())
}
