//! A rubric: conditions with points, as a course grades a system by.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::failure::printable;
use super::threshold::Threshold;

/// One line of a rubric.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub points: f64,
    pub condition: Threshold,
    /// The meaning of the condition for a reader; may be empty.
    pub what: String,
}

/// Reads a CSV file with a header that has `points` and `condition`, and may have `what`.
///
/// # Errors
/// If the file cannot be read, or a line is wrong, which is named.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Item>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the rubric {}", path.display()))?;
    parse(&text).with_context(|| format!("in the rubric {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Item>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let header = reader.headers()?.clone();
    let column = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    let (Some(points), Some(condition)) = (column("points"), column("condition")) else {
        bail!("the header must have the columns `points` and `condition`, and may have `what`");
    };
    let what = column("what");
    let mut items = Vec::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default();
        let points = field(points).parse::<f64>().ok().filter(|points| (0.0..=1e6).contains(points));
        let points = points.with_context(|| format!("line {line}: the points are not a number from 0 to 1000000"))?;
        let condition = field(condition).parse().map_err(|error| anyhow::anyhow!("line {line}: {error}"))?;
        items.push(Item { points, condition, what: printable(what.map_or("", field)) });
    }
    ensure!(!items.is_empty(), "there is no line after the header");
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubric_has_a_condition_a_line_and_names_a_wrong_one() {
        let items = parse("what,points,condition\n\"all answered\",40,failed==0\n,2.5,p99<30s\n").unwrap();
        assert_eq!(items.iter().map(|item| item.points).sum::<f64>().to_string(), "42.5");
        assert_eq!((items[0].what.as_str(), items[1].condition.to_string().as_str()), ("all answered", "p99<30s"));
        for (text, expected) in [
            ("points,what\n", "`condition`"),
            ("points,condition\n", "no line"),
            ("points,condition\nmany,failed==0\n", "line 2: the points"),
            ("points,condition\n1,failed==0\n1,p99<5\n", "line 3: \"5\" lacks its unit"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
