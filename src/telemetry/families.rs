//! Metric families that were read from text, with their sums, and the two text formats that they are written in.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::exemplars::Exemplar;

/// Metric families by name.
#[derive(Debug, Default)]
pub(super) struct Families(pub BTreeMap<String, Family>);

#[derive(Debug, Default)]
pub(super) struct Family {
    help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// In the order in which they were read.
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Sample {
    /// The text of the line before its value, after the name of the family.
    series: String,
    value: f64,
    /// The text that OpenMetrics has after the value.
    exemplar: Option<String>,
}

/// The mark between a sample and its exemplar.
const EXEMPLAR_MARK: &str = " # ";

impl Families {
    /// Reads the text format, in which a sample of a histogram may have an exemplar. `published` returns the name under which
    /// a family is kept, if it is.
    pub(super) fn parse(text: &str, published: impl Fn(&str) -> Option<String>) -> Families {
        let mut families = Families::default();
        // The encoder writes the help of a family, then its type, then its samples.
        let mut current: Option<(String, &str)> = None;
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                current = published(name).map(|kept| (kept, name));
                if let Some((kept, _)) = &current {
                    help.clone_into(&mut families.0.entry(kept.clone()).or_default().help);
                }
                continue;
            }
            let Some((kept, name)) = &current else { continue };
            let Some(family) = families.0.get_mut(kept) else { continue };
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                rest.rsplit(' ').next().unwrap_or_default().clone_into(&mut family.kind);
                continue;
            }
            // The values of labels may contain the mark, so the last one counts.
            let (sample, exemplar) = match line.rsplit_once(EXEMPLAR_MARK) {
                Some((sample, exemplar)) if exemplar.starts_with('{') => (sample, Some(exemplar.to_owned())),
                _ => (line, None),
            };
            if let Some((series, value)) = sample.strip_prefix(name).and_then(|rest| rest.rsplit_once(' '))
                && let Ok(value) = value.parse()
            {
                family.samples.push(Sample { series: series.to_owned(), value, exemplar });
            }
        }
        families
    }

    /// Gives each bucket of a series the newest of these observations that belongs to it.
    pub(super) fn add_exemplars(&mut self, name: &str, labels: &str, exemplars: &[Exemplar]) {
        let Some(family) = self.0.get_mut(name) else { return };
        let prefix = format!("_bucket{{{labels}{}le=\"", if labels.is_empty() { "" } else { "," });
        let mut below = f64::NEG_INFINITY;
        for sample in &mut family.samples {
            let bound = sample.series.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("\"}"));
            let Some(bound) = bound.and_then(|bound| bound.parse::<f64>().ok()) else { continue };
            let within = exemplars.iter().filter(|exemplar| exemplar.value > below && exemplar.value <= bound);
            sample.exemplar = within.max_by_key(|exemplar| exemplar.at).map(|exemplar| exemplar.to_text());
            below = bound;
        }
    }

    /// Adds every sample of `other`. The buckets of a histogram are counts, so that sums of them are right, too.
    pub(super) fn add(&mut self, other: &Families) {
        for (name, theirs) in &other.0 {
            let family = self.0.entry(name.clone()).or_default();
            if family.kind.is_empty() {
                (family.help, family.kind) = (theirs.help.clone(), theirs.kind.clone());
            }
            for Sample { series, value, exemplar } in &theirs.samples {
                match family.samples.iter_mut().find(|known| known.series == *series) {
                    Some(known) => {
                        known.value += value;
                        if exemplar.is_some() {
                            known.exemplar.clone_from(exemplar);
                        }
                    }
                    None => family.samples.push(Sample {
                        series: series.clone(),
                        value: *value,
                        exemplar: exemplar.clone(),
                    }),
                }
            }
        }
    }

    /// The text format, with exemplars only for [`Families::parse`].
    pub(super) fn to_text(&self, has_exemplars: bool) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, samples }) in self.written() {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for Sample { series, value, exemplar } in samples {
                let _ = write!(text, "{name}{series} {value}");
                if let Some(exemplar) = exemplar.as_ref().filter(|_| has_exemplars) {
                    let _ = write!(text, "{EXEMPLAR_MARK}{exemplar}");
                }
                text.push('\n');
            }
        }
        text
    }

    /// OpenMetrics 1.0. There a family of counters has its name without `_total`, and the bounds of buckets are floats.
    pub(super) fn to_open_metrics(&self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, samples }) in self.written() {
            let family = if kind == "counter" { name.strip_suffix("_total").unwrap_or(name) } else { name };
            let help = help.replace('"', "\\\"");
            let _ = writeln!(text, "# TYPE {family} {kind}\n# HELP {family} {help}");
            for Sample { series, value, exemplar } in samples {
                let _ = write!(text, "{name}{} {value}", with_float_bound(series));
                if let Some(exemplar) = exemplar {
                    let _ = write!(text, "{EXEMPLAR_MARK}{exemplar}");
                }
                text.push('\n');
            }
        }
        text.push_str("# EOF\n");
        text
    }

    fn written(&self) -> impl Iterator<Item = (&String, &Family)> {
        self.0.iter().filter(|(_, family)| !family.samples.is_empty())
    }
}

/// The series with `.0` after the bound of a bucket that is a whole number.
fn with_float_bound(series: &str) -> String {
    match series.strip_suffix("\"}").and_then(|rest| rest.rsplit_once("le=\"")) {
        Some((rest, bound)) if bound.bytes().all(|byte| byte.is_ascii_digit()) => format!("{rest}le=\"{bound}.0\"}}"),
        _ => series.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::exemplars::SpanIds;
    use super::*;

    const TEXT: &str = "# HELP a_total A \"thing\"\n# TYPE a_total counter\na_total 3\n# HELP s_seconds S\n\
        # TYPE s_seconds histogram\ns_seconds_bucket{stage=\"x\",le=\"0.5\"} 1\ns_seconds_bucket{stage=\"x\",le=\"1\"} 2\n\
        s_seconds_bucket{stage=\"x\",le=\"+Inf\"} 4\ns_seconds_sum{stage=\"x\"} 9.5\ns_seconds_count{stage=\"x\"} 4\n";

    fn exemplar(value: f64, seconds: u64) -> Exemplar {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Exemplar { value, ids: SpanIds { trace: [1; 16], span: [2; 8] }, at }
    }

    fn traced() -> Families {
        let mut families = Families::parse(TEXT, |name| Some(name.to_owned()));
        families.add_exemplars("s_seconds", "stage=\"x\"", &[exemplar(0.75, 5), exemplar(0.9, 4), exemplar(7.0, 1)]);
        families
    }

    #[test]
    fn open_metrics_has_exemplars_at_their_buckets() {
        let ids = format!("{{trace_id=\"{}\",span_id=\"{}\"}}", "01".repeat(16), "02".repeat(8));
        let expected = format!(
            "# TYPE a counter\n# HELP a A \\\"thing\\\"\na_total 3\n# TYPE s_seconds histogram\n# HELP s_seconds S\n\
             s_seconds_bucket{{stage=\"x\",le=\"0.5\"}} 1\n\
             s_seconds_bucket{{stage=\"x\",le=\"1.0\"}} 2 # {ids} 0.75 5.000\n\
             s_seconds_bucket{{stage=\"x\",le=\"+Inf\"}} 4 # {ids} 7 1.000\n\
             s_seconds_sum{{stage=\"x\"}} 9.5\ns_seconds_count{{stage=\"x\"}} 4\n# EOF\n"
        );
        assert_eq!(traced().to_open_metrics(), expected);
    }

    #[test]
    fn exemplars_pass_through_the_report_of_a_child_and_not_into_the_text_format() {
        let traced = traced();
        let mut sum = Families::parse(TEXT, |name| Some(name.to_owned()));
        sum.add(&Families::parse(&traced.to_text(true), |name| Some(name.to_owned())));
        assert_eq!(sum.to_open_metrics().matches("trace_id").count(), 2);
        assert_eq!(traced.to_text(false), TEXT);
    }
}
