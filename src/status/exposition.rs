//! Reads metrics in Prometheus' text format.

/// The samples of one reading.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Samples {
    /// Lines that are not samples are left out.
    pub(super) fn parse(text: &str) -> Samples {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some(Sample { name: name.to_owned(), labels: labels.to_owned(), value: value.parse().ok()? })
        };
        Samples(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum of all samples with this name whose labels contain `label`, such as `ending="succeeded"`; an empty text is
    /// contained in all. `None` if there is no sample with the name.
    pub(super) fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let named = || self.0.iter().filter(|sample| sample.name == name);
        named().next()?;
        Some(named().filter(|sample| sample.labels.contains(label)).map(|sample| sample.value).sum())
    }

    /// The value of a label of the first sample with this name. Values with quotes are cut at the first.
    pub(super) fn label(&self, name: &str, label: &str) -> Option<&str> {
        let sample = self.0.iter().find(|sample| sample.name == name)?;
        let (_, rest) = sample.labels.split_once(&format!("{label}=\""))?;
        rest.split('"').next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_asked_for() {
        let text = "# HELP a A\n# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"2\",y=\"2\"} 5\nab 6\nbroken\n";
        let samples = Samples::parse(text);
        assert_eq!(samples.sum("a", "x=\"1\""), Some(7.0));
        assert_eq!((samples.sum("a", ""), samples.sum("ab", "")), (Some(12.0), Some(6.0)));
        assert_eq!((samples.sum("a", "x=\"9\""), samples.sum("c", "")), (Some(0.0), None));
        assert_eq!((samples.label("a", "y"), samples.label("ab", "y")), (Some("2"), None));
    }
}
