//! Arrival processes: the intended starts of requests, seeded, so that runs are reproducible. The load generator and
//! the simulator share them, so that measured and simulated runs can be compared.

use std::f64::consts::TAU;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Maximum number of arrivals of a run; more would not fit in memory.
pub const MAX_ARRIVALS: u64 = 20_000_000;
/// Arrivals with a changing rate end after this time.
pub const MAX_RUN_TIME: Duration = Duration::from_hours(40 * 24);

/// How the starts of an open loop are distributed. Rates are per second.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// A start every 1/rate seconds.
    Constant {
        /// Starts per second.
        rate: f64,
    },
    /// A Poisson process, like independent users: gaps are exponential with mean 1/rate.
    Poisson {
        /// Mean starts per second.
        rate: f64,
    },
    /// A Poisson process that alternates between a high and a low rate. It starts with a burst.
    Burst(Bursts),
    /// A Poisson process whose rate follows a day, from midnight on.
    Day(Day),
    /// Recorded arrivals.
    Trace(Trace),
    /// A Poisson process whose rate follows stages, one after the other.
    Stages(Stages),
}

/// A burst rate for a while, then another rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// The rate between bursts; may be 0.
    pub rate: f64,
    /// The rate during a burst.
    pub burst_rate: f64,
    /// The length of a burst.
    pub length: Duration,
    /// From the start of one burst to the start of the next, longer than `length`; `None` is a single burst.
    pub every: Option<Duration>,
}

/// The rate over a day: a cosine from a fifth of the mean at midnight to nine fifths at noon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Day {
    /// The mean rate of the day.
    pub rate: f64,
    /// The length of the day: 24 hours, or less to compress it.
    pub length: Duration,
}

/// A time in which the rate goes from one value to another in a straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stage {
    /// How long it lasts.
    pub length: Duration,
    /// The rate at its beginning.
    pub from: f64,
    /// The rate at its end; equal to `from` if the rate does not change.
    pub to: f64,
}

/// Stages, one after the other. The arrivals end with the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Stages {
    pieces: Arc<[Piece]>,
}

/// Recorded arrivals, sorted.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    offsets: Arc<[Duration]>,
}

impl Arrivals {
    /// The name of the process, as flags and reports spell it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Arrivals::Constant { .. } => "constant",
            Arrivals::Poisson { .. } => "poisson",
            Arrivals::Burst(_) => "burst",
            Arrivals::Day(_) => "day",
            Arrivals::Trace(_) => "trace",
            Arrivals::Stages(_) => "stages",
        }
    }

    /// The mean rate per second, if it does not depend on the observed interval.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Arrivals::Constant { rate } | Arrivals::Poisson { rate } | Arrivals::Day(Day { rate, .. }) => Some(*rate),
            Arrivals::Burst(_) | Arrivals::Trace(_) | Arrivals::Stages(_) => None,
        }
    }

    /// Returns true if the arrivals end by themselves, as for a trace or a single burst with nothing after it.
    pub fn is_finite(&self) -> bool {
        match self {
            Arrivals::Constant { .. } | Arrivals::Poisson { .. } | Arrivals::Day(_) => false,
            Arrivals::Burst(bursts) => bursts.every.is_none() && bursts.rate <= 0.0,
            Arrivals::Trace(_) | Arrivals::Stages(_) => true,
        }
    }

    /// The intended starts, as offsets from the start of the run; they never decrease. They are unlimited for a
    /// constant rate and end within [`MAX_RUN_TIME`] otherwise.
    ///
    /// # Panics
    /// If a rate other than the one between bursts is not above 0. The command line has checked it.
    pub fn offsets(&self, seed: u64) -> Offsets {
        let (Arrivals::Constant { rate }
        | Arrivals::Poisson { rate }
        | Arrivals::Day(Day { rate, .. })
        | Arrivals::Burst(Bursts { burst_rate: rate, .. })) = self
        else {
            return Offsets::new(self.clone(), seed);
        };
        assert!(*rate > 0.0, "a rate must be above 0; this is a bug");
        Offsets::new(self.clone(), seed)
    }

    /// The number of starts before `duration`, counted up to `limit` and [`MAX_ARRIVALS`].
    pub fn count_within(&self, limit: u64, duration: Duration, seed: u64) -> u64 {
        let limit = usize::try_from(limit.min(MAX_ARRIVALS)).unwrap_or(usize::MAX);
        self.offsets(seed).take(limit).take_while(|&at| at < duration).count() as u64
    }
}

/// An interval of constant rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece {
    rate: f64,
    ends_at_seconds: f64,
}

impl Bursts {
    /// Bursts have even numbers, and the intervals after them odd ones.
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
    /// Five minutes of a day of 24 hours; the curve is nearly flat within one.
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

impl Stages {
    /// Pieces of a stage whose rate changes.
    const PIECES: u32 = 100;

    /// The rates are finite and not negative.
    pub fn new(stages: &[Stage]) -> Stages {
        let mut pieces = Vec::new();
        let mut begins = 0.0;
        for Stage { length, from, to } in stages {
            let count = if from.to_bits() == to.to_bits() { 1 } else { Self::PIECES };
            let seconds = length.as_secs_f64();
            pieces.extend((0..count).map(|number| Piece {
                rate: from + (to - from) * (f64::from(number) + 0.5) / f64::from(count),
                ends_at_seconds: begins + seconds * f64::from(number + 1) / f64::from(count),
            }));
            begins += seconds;
        }
        Stages { pieces: pieces.into() }
    }

    /// The length of all stages.
    pub fn length(&self) -> Duration {
        Duration::try_from_secs_f64(self.pieces.last().map_or(0.0, |piece| piece.ends_at_seconds))
            .unwrap_or(Duration::MAX)
    }

    /// No request starts after the last stage.
    fn piece(&self, number: u64) -> Piece {
        let piece = usize::try_from(number).ok().and_then(|number| self.pieces.get(number)).copied();
        piece.unwrap_or(Piece { rate: 0.0, ends_at_seconds: f64::MAX })
    }
}

impl Trace {
    /// Reads lines of `seconds`, one arrival each, or of `second,count`: that many arrivals, evenly distributed over
    /// the second. Empty lines, lines that start with `#` and a header are skipped. The order of lines does not matter.
    ///
    /// # Errors
    /// One line that names the first bad line by its number, or says that there are no arrivals or too many.
    pub fn parse(text: &str) -> Result<Trace, String> {
        let mut offsets = Vec::new();
        let mut is_first = true;
        for (line, number) in text.lines().zip(1u64..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let is_header = is_first && line.starts_with(|c: char| c.is_alphabetic());
            is_first = false;
            if is_header {
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
            return Err("the trace has no arrivals".to_owned());
        }
        offsets.sort_unstable();
        Ok(Trace { offsets: offsets.into() })
    }

    /// The number of arrivals.
    pub fn count(&self) -> u64 {
        self.offsets.len() as u64
    }
}

fn trace_line(line: &str) -> Option<(Duration, Option<u64>)> {
    let (seconds, count) = match line.split_once(',') {
        Some((seconds, count)) => (seconds, Some(count.trim().parse().ok()?)),
        None => (line, None),
    };
    // A year: longer than any run, and far below the maximum of a `Duration`.
    let seconds = seconds.trim().parse::<f64>().ok().filter(|seconds| (0.0..=366.0 * 86_400.0).contains(seconds))?;
    Some((Duration::from_secs_f64(seconds), count))
}

/// Intended starts as offsets from the start of the run; see [`Arrivals::offsets`].
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

    /// A random gap of a Poisson process with rate 1.
    fn gap(&mut self) -> f64 {
        -(1.0 - self.random.random::<f64>()).ln()
    }

    /// The next arrival of a process whose rate changes with time: a gap at rate 1 is consumed at the rate of each
    /// piece. Returns `None` when no more arrivals follow.
    fn next_in_pieces(&mut self, piece: impl Fn(u64) -> Piece) -> Option<f64> {
        let mut gap = self.gap();
        loop {
            let Piece { rate, ends_at_seconds } = piece(self.piece);
            let expected = rate * (ends_at_seconds - self.seconds);
            if expected > gap {
                return Some(self.seconds + gap / rate);
            }
            if ends_at_seconds > MAX_RUN_TIME.as_secs_f64() {
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
            // Computed from the count, because added gaps would accumulate rounding errors over a long run.
            Arrivals::Constant { rate } => self.count as f64 / rate,
            Arrivals::Poisson { rate } => self.seconds + self.gap() / rate,
            Arrivals::Burst(bursts) => self.next_in_pieces(|number| bursts.piece(number))?,
            Arrivals::Day(day) => self.next_in_pieces(|number| day.piece(number))?,
            Arrivals::Stages(ref stages) => {
                let stages = stages.clone();
                self.next_in_pieces(|number| stages.piece(number))?
            }
            Arrivals::Trace(ref trace) => {
                let offset = *trace.offsets.get(usize::try_from(self.count).ok()?)?;
                self.count += 1;
                return Some(offset);
            }
        };
        self.count += 1;
        // An offset that does not fit is never reached.
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
    fn arrivals_depend_only_on_the_seed() {
        let burst = Bursts { rate: 1.0, burst_rate: 50.0, length: Duration::from_secs(5), every: None };
        let day = Day { rate: 50.0, length: Duration::from_secs(100) };
        for arrivals in [Arrivals::Poisson { rate: 50.0 }, Arrivals::Burst(burst), Arrivals::Day(day)] {
            assert_eq!(seconds(&arrivals, 7, 1000), seconds(&arrivals, 7, 1000));
            assert_ne!(seconds(&arrivals, 7, 1000), seconds(&arrivals, 8, 1000));
        }
    }

    #[test]
    fn constant_arrivals_start_at_zero_and_do_not_drift() {
        let mut offsets = Arrivals::Constant { rate: 1000.0 }.offsets(1);
        assert_eq!(offsets.next(), Some(Duration::ZERO));
        assert_eq!(offsets.next(), Some(Duration::from_millis(1)));
        assert_eq!(offsets.nth(999_997), Some(Duration::from_millis(999_999)));
    }

    #[test]
    fn poisson_arrivals_have_the_right_rate_and_deviation() {
        let offsets = seconds(&Arrivals::Poisson { rate: 200.0 }, 1, 100_000);
        assert!(offsets.is_sorted());
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 200.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        // The standard deviation of exponential gaps equals their mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "deviation {}", variance.sqrt());
    }

    #[test]
    fn bursts_have_the_right_times_and_rates() {
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
        assert!(count(&seconds(&bursts_alone, 3, 20_000), 10.0, 60.0) < 0.5);
    }

    #[test]
    fn day_has_the_right_mean_night_and_noon() {
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
    fn stages_follow_each_other_and_ramps_rise_in_a_line() {
        let stage = |seconds, from, to| Stage { length: Duration::from_secs(seconds), from, to };
        let stages = Stages::new(&[stage(100, 10.0, 10.0), stage(100, 0.0, 0.0), stage(100, 0.0, 200.0)]);
        assert_eq!(stages.length(), Duration::from_secs(300));
        let arrivals = Arrivals::Stages(stages);
        let offsets = seconds(&arrivals, 7, 1_000_000);
        assert!(arrivals.is_finite() && offsets.is_sorted() && offsets.iter().all(|at| *at < 300.0));
        assert!((count(&offsets, 0.0, 100.0) / 1_000.0 - 1.0).abs() < 0.2);
        assert!(count(&offsets, 100.0, 200.0) < 0.5);
        assert!((count(&offsets, 200.0, 250.0) / 2_500.0 - 1.0).abs() < 0.1);
        assert!((count(&offsets, 250.0, 300.0) / 7_500.0 - 1.0).abs() < 0.1);
    }

    #[test]
    fn trace_is_replayed_exactly_and_a_bad_line_is_named() {
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
    fn tiny_rate_gives_the_maximum_offset() {
        assert_eq!(Arrivals::Constant { rate: 1e-300 }.offsets(1).nth(1), Some(Duration::MAX));
    }
}
