//! Arrival processes: when requests are meant to start, seeded, so that two runs see the same. The load generator sends
//! by them and the simulator counts by them, so that what was measured and what was simulated can be laid over each
//! other.

use std::f64::consts::TAU;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// More arrivals than this are more than a run can hold in memory.
pub const MAX_ARRIVALS: u64 = 20_000_000;
/// No run lasts longer; where the rate changes with time, what would come after it does not come.
pub const LONGEST: Duration = Duration::from_hours(40 * 24);

/// How the starts of an open loop are spread. Rates are a second.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Every 1/rate seconds.
    Constant { rate: f64 },
    /// Independent of each other, as people are: gaps are exponential with mean 1/rate.
    Poisson { rate: f64 },
    /// Independent of each other, many for a while and few in between; it begins with a burst.
    Burst(Bursts),
    /// Independent of each other, few at night and many by day; it begins at midnight.
    Day(Day),
    /// As they were written down.
    Trace(Trace),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Between bursts; may be 0.
    pub rate: f64,
    pub burst_rate: f64,
    /// How long a burst lasts.
    pub length: Duration,
    /// From the beginning of one burst to that of the next, longer than `length`; None for a single one.
    pub every: Option<Duration>,
}

/// A day's curve: a cosine from a fifth of the mean at midnight to nine fifths at noon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Day {
    /// The mean of the day.
    pub rate: f64,
    /// 24 hours, or less to see a day pass in less.
    pub length: Duration,
}

/// Arrivals as somebody wrote them down, sorted.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    offsets: Arc<[Duration]>,
}

impl Arrivals {
    pub fn as_str(&self) -> &'static str {
        match self {
            Arrivals::Constant { .. } => "constant",
            Arrivals::Poisson { .. } => "poisson",
            Arrivals::Burst(_) => "burst",
            Arrivals::Day(_) => "day",
            Arrivals::Trace(_) => "trace",
        }
    }

    /// The mean rate a second, where there is one that does not depend on how long one looks.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Arrivals::Constant { rate } | Arrivals::Poisson { rate } | Arrivals::Day(Day { rate, .. }) => Some(*rate),
            Arrivals::Burst(_) | Arrivals::Trace(_) => None,
        }
    }

    /// The intended starts, as offsets from the beginning; never decreasing. Without end where the rate is constant,
    /// else within [`LONGEST`].
    ///
    /// # Panics
    /// Where a rate is not above 0, but for the one between bursts: the command line has checked it.
    pub fn offsets(&self, seed: u64) -> Offsets {
        let (Arrivals::Constant { rate }
        | Arrivals::Poisson { rate }
        | Arrivals::Day(Day { rate, .. })
        | Arrivals::Burst(Bursts { burst_rate: rate, .. })) = self
        else {
            return Offsets::new(self.clone(), seed);
        };
        assert!(*rate > 0.0, "a rate is above 0; this is a bug");
        Offsets::new(self.clone(), seed)
    }

    /// How many starts lie before `duration`; at most `limit` and at most [`MAX_ARRIVALS`] are counted.
    pub fn count_within(&self, limit: u64, duration: Duration, seed: u64) -> u64 {
        let limit = usize::try_from(limit.min(MAX_ARRIVALS)).unwrap_or(usize::MAX);
        self.offsets(seed).take(limit).take_while(|&at| at < duration).count() as u64
    }
}

/// A stretch of time with one rate.
struct Piece {
    rate: f64,
    ends_at_seconds: f64,
}

impl Bursts {
    /// Bursts have even numbers, what follows each an odd one.
    fn piece(&self, number: u64) -> Piece {
        let every = self.every.map_or(f64::INFINITY, |every| every.as_secs_f64());
        let begins = if number < 2 { 0.0 } else { (number / 2) as f64 * every };
        match number % 2 {
            0 => Piece { rate: self.burst_rate, ends_at_seconds: begins + self.length.as_secs_f64() },
            _ => Piece { rate: self.rate, ends_at_seconds: begins + every },
        }
    }
}

impl Day {
    /// Five minutes of a day of 24 hours: the curve is flat within one.
    const PIECES: u64 = 288;
    const AMPLITUDE: f64 = 0.8;

    fn piece(&self, number: u64) -> Piece {
        let time_of_day = ((number % Self::PIECES) as f64 + 0.5) / Self::PIECES as f64;
        Piece {
            rate: self.rate * (1.0 - Self::AMPLITUDE * (TAU * time_of_day).cos()),
            ends_at_seconds: (number + 1) as f64 * self.length.as_secs_f64() / Self::PIECES as f64,
        }
    }
}

impl Trace {
    /// Reads lines of `seconds`, one arrival each, or of `second,count`: so many, spread evenly over that second.
    /// Empty lines, lines that begin with `#` and a heading are passed over; the order of lines does not matter.
    ///
    /// # Errors
    /// One line that names the first bad line by its number, or says that there are no or too many arrivals.
    pub fn parse(text: &str) -> Result<Trace, String> {
        let mut offsets = Vec::new();
        let mut is_first = true;
        for (line, number) in text.lines().zip(1u64..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let is_heading = is_first && line.starts_with(|c: char| c.is_alphabetic());
            is_first = false;
            if is_heading {
                continue;
            }
            let (seconds, count) = trace_line(line)
                .ok_or_else(|| format!("line {number}: {line:?} is not `seconds` or `second,count`"))?;
            if offsets.len() as u64 + count.unwrap_or(1) > MAX_ARRIVALS {
                return Err(format!("line {number}: more than {MAX_ARRIVALS} arrivals"));
            }
            let spread = count.unwrap_or(1);
            offsets.extend(
                (0..spread).map(|index| seconds + Duration::from_secs(1).mul_f64(index as f64 / spread as f64)),
            );
        }
        if offsets.is_empty() {
            return Err("it holds no arrivals".to_owned());
        }
        offsets.sort_unstable();
        Ok(Trace { offsets: offsets.into() })
    }

    pub fn count(&self) -> u64 {
        self.offsets.len() as u64
    }
}

fn trace_line(line: &str) -> Option<(Duration, Option<u64>)> {
    let (seconds, count) = match line.split_once(',') {
        Some((seconds, count)) => (seconds, Some(count.trim().parse().ok()?)),
        None => (line, None),
    };
    // A year: far beyond what anybody waits for, far below what a Duration holds.
    let seconds = seconds.trim().parse::<f64>().ok().filter(|seconds| (0.0..=366.0 * 86_400.0).contains(seconds))?;
    Some((Duration::from_secs_f64(seconds), count))
}

/// Intended starts as offsets from the beginning; see [`Arrivals::offsets`].
#[derive(Debug, Clone)]
pub struct Offsets {
    arrivals: Arrivals,
    random: StdRng,
    count: u64,
    seconds: f64,
    piece: u64,
}

impl Offsets {
    fn new(arrivals: Arrivals, seed: u64) -> Self {
        Offsets { arrivals, random: StdRng::seed_from_u64(seed), count: 0, seconds: 0.0, piece: 0 }
    }

    /// A gap of the process with rate 1.
    fn gap(&mut self) -> f64 {
        -(1.0 - self.random.random::<f64>()).ln()
    }

    /// The next arrival where the rate changes with time: a gap of rate 1 is used up at the rate of each piece. None
    /// where nothing comes any more.
    fn next_in_pieces(&mut self, piece: impl Fn(u64) -> Piece) -> Option<f64> {
        let mut gap = self.gap();
        loop {
            let Piece { rate, ends_at_seconds } = piece(self.piece);
            let expected = rate * (ends_at_seconds - self.seconds);
            if expected > gap {
                return Some(self.seconds + gap / rate);
            }
            if ends_at_seconds > LONGEST.as_secs_f64() {
                return None;
            }
            gap -= expected.max(0.0);
            self.seconds = ends_at_seconds;
            self.piece += 1;
        }
    }
}

impl Iterator for Offsets {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.seconds = match self.arrivals {
            // From the count, not by adding gaps up: rounding errors do not pile up over a long run.
            Arrivals::Constant { rate } => self.count as f64 / rate,
            Arrivals::Poisson { rate } => self.seconds + self.gap() / rate,
            Arrivals::Burst(bursts) => self.next_in_pieces(|number| bursts.piece(number))?,
            Arrivals::Day(day) => self.next_in_pieces(|number| day.piece(number))?,
            Arrivals::Trace(ref trace) => {
                let offset = *trace.offsets.get(usize::try_from(self.count).ok()?)?;
                self.count += 1;
                return Some(offset);
            }
        };
        self.count += 1;
        // Centuries away is for ever.
        Some(Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(arrivals: &Arrivals, seed: u64, count: usize) -> Vec<f64> {
        arrivals.offsets(seed).take(count).map(|at| at.as_secs_f64()).collect()
    }

    fn count(offsets: &[f64], from: f64, to: f64) -> f64 {
        offsets.iter().filter(|at| (from..to).contains(*at)).count() as f64
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals_and_another_seed_others() {
        let burst = Bursts { rate: 1.0, burst_rate: 50.0, length: Duration::from_secs(5), every: None };
        let day = Day { rate: 50.0, length: Duration::from_secs(100) };
        for arrivals in [Arrivals::Poisson { rate: 50.0 }, Arrivals::Burst(burst), Arrivals::Day(day)] {
            assert_eq!(seconds(&arrivals, 7, 1000), seconds(&arrivals, 7, 1000));
            assert_ne!(seconds(&arrivals, 7, 1000), seconds(&arrivals, 8, 1000));
        }
    }

    #[test]
    fn constant_arrivals_are_even_from_zero_on_and_do_not_drift() {
        let mut offsets = Arrivals::Constant { rate: 1000.0 }.offsets(1);
        assert_eq!(offsets.next(), Some(Duration::ZERO));
        assert_eq!(offsets.next(), Some(Duration::from_millis(1)));
        assert_eq!(offsets.nth(999_997), Some(Duration::from_millis(999_999)));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_process() {
        let offsets = seconds(&Arrivals::Poisson { rate: 200.0 }, 1, 100_000);
        assert!(offsets.is_sorted());
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 200.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        // Exponential gaps: the standard deviation equals the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "deviation {}", variance.sqrt());
    }

    #[test]
    fn bursts_come_when_they_should_and_as_many_as_they_should() {
        let bursts = Bursts {
            rate: 10.0,
            burst_rate: 1000.0,
            length: Duration::from_secs(10),
            every: Some(Duration::from_mins(1)),
        };
        let offsets = seconds(&Arrivals::Burst(bursts), 3, 40_000);
        assert!(offsets.is_sorted());
        for burst in [0.0, 60.0, 120.0] {
            assert!((count(&offsets, burst, burst + 10.0) / 10_000.0 - 1.0).abs() < 0.05, "{burst}");
            assert!((count(&offsets, burst + 10.0, burst + 60.0) / 500.0 - 1.0).abs() < 0.2, "{burst}");
        }
        let single = Arrivals::Burst(Bursts { rate: 0.0, every: None, ..bursts });
        let offsets = seconds(&single, 3, 40_000);
        assert!(offsets.len() > 9_500 && offsets.iter().all(|at| *at < 10.0), "{}", offsets.len());
        let bursts_alone = Arrivals::Burst(Bursts { rate: 0.0, ..bursts });
        assert_eq!(count(&seconds(&bursts_alone, 3, 20_000), 10.0, 60.0), 0.0);
    }

    #[test]
    fn a_day_has_its_mean_its_night_and_its_noon() {
        let day = Day { rate: 100.0, length: Duration::from_secs(1000) };
        let offsets = seconds(&Arrivals::Day(day), 5, 210_000);
        assert!((count(&offsets, 0.0, 2000.0) / 200_000.0 - 1.0).abs() < 0.02);
        assert!((count(&offsets, 0.0, 50.0) / (50.0 * 20.0) - 1.0).abs() < 0.2, "{}", count(&offsets, 0.0, 50.0));
        assert!((count(&offsets, 475.0, 525.0) / (50.0 * 180.0) - 1.0).abs() < 0.05);
        assert_eq!(
            Arrivals::Day(day).count_within(u64::MAX, Duration::from_secs(475), 5),
            count(&offsets, 0.0, 475.0) as u64
        );
    }

    #[test]
    fn a_trace_is_replayed_as_it_stands_and_a_bad_line_is_named() {
        let trace = Trace::parse("second,count\n2.5\n# a comment\n\n0,4\n1, 1\n3,0\n").expect("a trace");
        assert_eq!(seconds(&Arrivals::Trace(trace.clone()), 1, 99), [0.0, 0.25, 0.5, 0.75, 1.0, 2.5]);
        assert_eq!(trace.count(), 6);
        for (text, expected) in [
            ("0\n1\nsoon\n", "line 3: \"soon\" is not"),
            ("0,1\n1,many\n", "line 2: \"1,many\" is not"),
            ("-1\n", "line 1: \"-1\" is not"),
            ("NaN,1", "no arrivals"),
            ("0\nnan,1", "line 2"),
            ("0\n1e300", "line 2"),
            ("0,99999999999", "line 1: more than 20000000 arrivals"),
            ("# nothing\n", "no arrivals"),
        ] {
            let error = Trace::parse(text).expect_err(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_vanishing_rate_ends_in_for_ever_not_in_a_panic() {
        assert_eq!(Arrivals::Constant { rate: 1e-300 }.offsets(1).nth(1), Some(Duration::MAX));
    }
}
