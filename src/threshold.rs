//! Conditions on a measured value: `p99<500ms`, `top1>=0.8`. The metrics and their units belong to the command that
//! measures them; operators and comparison are the same everywhere.

use std::cmp::Ordering;

/// The comparison of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `==`
    Equal,
}

impl Operator {
    /// Returns true if the measured value meets the limit. A missing value or NaN does not.
    pub fn holds(self, measured: Option<f64>, limit: f64) -> bool {
        let Some(order) = measured.and_then(|measured| measured.partial_cmp(&limit)) else { return false };
        match self {
            Operator::Less => order == Ordering::Less,
            Operator::LessOrEqual => order != Ordering::Greater,
            Operator::Greater => order == Ordering::Greater,
            Operator::GreaterOrEqual => order != Ordering::Less,
            Operator::Equal => order == Ordering::Equal,
        }
    }
}

/// Cuts a condition into its metric, operator and limit. `example` is a condition that the error shows.
///
/// # Errors
/// A sentence for the user if the text has no operator.
pub fn split<'a>(text: &'a str, example: &str) -> Result<(&'a str, Operator, &'a str), String> {
    const OPERATORS: [(&str, Operator); 5] = [
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("==", Operator::Equal),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    OPERATORS
        .into_iter()
        .find_map(|(sign, operator)| {
            let (metric, limit) = text.split_once(sign)?;
            Some((metric.trim(), operator, limit.trim()))
        })
        .ok_or_else(|| format!("give a metric, one of < <= > >= ==, and a value, such as '{example}'"))
}

/// Parses a share: `0.8` or `80%`.
///
/// # Errors
/// A sentence for the user if it is not a number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|percent| percent / 100.0),
        None => number(text),
    }
    .filter(|share| *share <= 1.0)
    .ok_or_else(|| format!("{text:?} is not a share such as 0.8 or 80%"))
}

/// Parses a finite number of at least 0.
pub fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_is_cut_at_its_operator() {
        assert_eq!(split("top1 >= 80%", "x<1"), Ok(("top1", Operator::GreaterOrEqual, "80%")));
        assert_eq!(split("p99<1s", "x<1"), Ok(("p99", Operator::Less, "1s")));
        assert!(split("p99=1s", "p99<500ms").unwrap_err().ends_with("such as 'p99<500ms'"));
    }

    #[test]
    fn missing_value_meets_no_condition() {
        for operator in [Operator::Less, Operator::GreaterOrEqual, Operator::Equal] {
            assert!(!operator.holds(None, 1.0) && !operator.holds(Some(f64::NAN), 1.0));
        }
        assert!(Operator::LessOrEqual.holds(Some(1.0), 1.0) && !Operator::Greater.holds(Some(1.0), 1.0));
    }

    #[test]
    fn share_is_a_fraction_or_a_percentage() {
        assert_eq!((share("0.5"), share("50%")), (Ok(0.5), Ok(0.5)));
        for wrong in ["1.5", "101%", "-0.1", "NaN", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
