//! Answers that are kept (`--cache`): an image whose answer is known gets it before it waits for a session.
//!
//! Only the first delivery of a message takes part. If an image ends its worker, those that waited for its answer come
//! again, and each is then processed without the others.

use std::sync::Arc;

use bytes::Bytes;

use super::job::{Answer, Work};
use super::metrics::METRICS;
use super::models;
use crate::model::ModelPackage;
use crate::protocol::{ImageFacts, ServiceClass};
use crate::result_cache::{AnswerKey, Begun, CachedAnswer, Claim, ResultCache};

/// A longer image is digested on a thread that may block.
const MAX_BYTES_ON_RUNTIME: usize = 256 << 10;

/// The duty to answer for an image, and the model whose answer it is.
pub(crate) struct ModelClaim {
    claim: Claim,
    model: [u8; 32],
}

/// The knowledge about an image before it is classified.
pub(crate) enum Known {
    /// The answer.
    Answer(Answer, ImageFacts),
    /// The image has to be classified, perhaps for others too.
    Nothing(Option<ModelClaim>),
}

impl ModelClaim {
    /// Keeps the answer of the model that classified the image, if it is the one that was looked up. Another version may have
    /// replaced it meanwhile: those that wait then begin again.
    pub(crate) fn answer(self, package: &ModelPackage, answer: &Answer, facts: ImageFacts) {
        if self.model == *package.answer_digest() {
            let (predictions, labels) = (answer.predictions.clone(), answer.labels.clone());
            self.claim.answer(CachedAnswer { predictions, labels, facts });
        }
    }
}

/// Looks the answer of a model up, or waits until an image with the same content is classified.
pub(crate) async fn look_up(
    cache: &Arc<ResultCache>,
    class: ServiceClass,
    work: &Work,
    package: &ModelPackage,
    max_pixels: u64,
    image: &Bytes,
) -> Known {
    let model = package.model_ref();
    let is_wanted = work.wanted_model().is_none_or(|wanted| models::accepts(wanted, &model));
    if work.attempt > 1 || !is_wanted {
        return Known::Nothing(None);
    }
    let digest = *package.answer_digest();
    let key = key(image, digest, work.top_k, max_pixels).await;
    loop {
        let (outcome, answer) = match cache.begin(key, class) {
            Begun::Answered(answer) => ("hit", answer),
            Begun::Claimed(claim) => {
                METRICS.cache_lookups.with_label_values(&["miss"]).inc();
                return Known::Nothing(Some(ModelClaim { claim, model: digest }));
            }
            Begun::Waits(waiter) => match waiter.wait().await {
                Some(answer) => ("joined", answer),
                None => continue,
            },
        };
        METRICS.cache_lookups.with_label_values(&[outcome]).inc();
        let CachedAnswer { predictions, labels, facts } = (*answer).clone();
        return Known::Answer(Answer { predictions, labels, model }, facts);
    }
}

async fn key(image: &Bytes, model: [u8; 32], top_k: u32, max_pixels: u64) -> AnswerKey {
    if image.len() <= MAX_BYTES_ON_RUNTIME {
        return AnswerKey::new(image, &model, top_k, max_pixels);
    }
    let image = image.clone();
    let digesting = tokio::task::spawn_blocking(move || AnswerKey::new(&image, &model, top_k, max_pixels));
    digesting.await.expect("a digest does not panic; this is a bug")
}
