//! The result of `tune`, as a table or as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::agreement::{Agreement, LEAST};
use super::trial::{Setting, Trial};
use crate::model::Tuning;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub cores: usize,
    pub seconds: f64,
    /// The share of the machine that other processes used meanwhile. `None` if the system does not tell.
    pub others_cpu_share: Option<f64>,
    pub agreement: Agreement,
    /// Variants that were not chosen because they disagree with the reference.
    pub left_out: Vec<String>,
    pub trials: Vec<Trial>,
    pub found: Tuning,
    /// The file with the result. `None` if it could not be written.
    pub kept: Option<&'a PathBuf>,
}

impl Report<'_> {
    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("strings and finite numbers serialise; this is a bug");
        text.push('\n');
        text
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::from("variant   sessions  threads  batch  images/s  ms/batch    gain  agrees\n");
        for trial in &self.trials {
            let Trial { setting, images_per_second, batch_ms, .. } = trial;
            let Setting { variant, intra_threads, sessions, batch_size } = setting;
            let gain = self.gain(setting).map_or("–".to_owned(), |gain| format!("{:.1} %", gain * 100.0));
            let mark = if self.is_found(setting) { "  ←" } else { "" };
            let _ = writeln!(
                text,
                "{variant:<8}  {sessions:>8}  {intra_threads:>7}  {batch_size:>5}  {images_per_second:>8.1}  \
                 {batch_ms:>8.2}  {gain:>6}  {:>6}{mark}",
                self.agrees(variant),
            );
        }
        self.explain(&mut text);
        text
    }

    fn explain(&self, text: &mut String) {
        let Agreement { reference, images, variants } = &self.agreement;
        if !variants.is_empty() {
            let _ = writeln!(text, "agrees: share of {images} images whose first class is that of {reference}");
        }
        for variant in &self.left_out {
            let _ = writeln!(
                text,
                "{variant} is left out: it agrees with {reference} on {} of {images} images, less than {:.0} %; \
                 --variant {variant} uses it nevertheless, and --images DIR compares them on your own images",
                self.agrees(variant),
                LEAST * 100.0
            );
        }
        if let Some(path) = self.kept {
            let _ = writeln!(text, "stored in {}; workers that start from now on use it", path.display());
        }
    }

    fn agrees(&self, variant: &str) -> String {
        self.agreement.share(variant).map_or("–".to_owned(), |share| format!("{:.0} %", share * 100.0))
    }

    /// Returns the gain of a batch with the setting that was found, and `None` for other settings.
    fn gain(&self, setting: &Setting) -> Option<f64> {
        let is_of_found = self.is_found(&Setting { batch_size: self.found_batch_size(), ..setting.clone() });
        let time = self.found.batches.iter().find(|time| time.size == setting.batch_size)?;
        (is_of_found && setting.batch_size > 1).then_some(time.gain)
    }

    fn is_found(&self, setting: &Setting) -> bool {
        let Tuning { variant, intra_threads, sessions, .. } = &self.found;
        (variant, intra_threads, sessions, self.found_batch_size())
            == (&setting.variant, &setting.intra_threads, &setting.sessions, setting.batch_size)
    }

    fn found_batch_size(&self) -> usize {
        self.found.max_batch_size.unwrap_or(1)
    }
}
