//! McNemar's exact test: whether two models that classify the same images differ by more than chance.

/// The two-sided p-value, from the number of images that only the first model has right and the number that only the
/// second has right. If the models were equally good, each of these images would be a toss of a coin.
pub(super) fn p_value(only_first: u64, only_second: u64) -> f64 {
    let (fewer, tosses) = (only_first.min(only_second), only_first + only_second);
    if tosses == 0 {
        return 1.0;
    }
    // The probabilities of 0, 1, ... heads. Logarithms, because 2^-tosses may be less than the smallest number.
    let mut logarithm = -(tosses as f64) * std::f64::consts::LN_2;
    let mut tail = logarithm.exp();
    for heads in 1..=fewer {
        logarithm += ((tosses - heads + 1) as f64 / heads as f64).ln();
        tail += logarithm.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_the_binomial_distribution() {
        // Sums of binomial coefficients in whole numbers, such as 2 · (C(37, 0) + … + C(37, 12)) / 2^37.
        for (first, second, expected) in [
            (0, 0, 1.0),
            (5, 5, 1.0),
            (0, 1, 1.0),
            (0, 6, 0.03125),
            (1, 9, 0.021_484_375),
            (12, 25, 0.047_031_027_439_516_04),
        ] {
            let p = p_value(first, second);
            assert!((p - expected).abs() < 1e-9, "{first} {second}: {p}");
            assert!((p - p_value(second, first)).abs() < 1e-15);
        }
        assert!(p_value(10_000, 12_000) < 1e-30);
        assert!((0.9..=1.0).contains(&p_value(10_000, 10_001)));
    }
}
