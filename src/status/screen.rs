//! Shows reports in the terminal, each in the place of the one before, with a line that shows the rates of the last minutes.
//! Output that is not a terminal gets the reports one after the other.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use anyhow::Context as _;

use super::report::{Report, render};
use crate::telemetry::output;

/// How many rates are shown.
const HISTORY: usize = 60;
/// Another screen, so that the terminal shows what it did before once this ends, without a cursor.
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

pub(super) struct Screen {
    is_terminal: bool,
    images_per_second: VecDeque<f64>,
}

impl Screen {
    pub(super) fn open() -> anyhow::Result<Screen> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let screen = Screen { is_terminal: io::stdout().is_terminal() && !is_dumb, images_per_second: VecDeque::new() };
        if screen.is_terminal {
            print(OPEN)?;
        }
        Ok(screen)
    }

    pub(super) fn show(&mut self, report: &Report) -> anyhow::Result<()> {
        if self.images_per_second.len() == HISTORY {
            self.images_per_second.pop_front();
        }
        self.images_per_second.extend(report.throughput.as_ref().map(|rates| rates.images_per_second));
        let mut text = render(report);
        if !self.images_per_second.is_empty() {
            let most = self.images_per_second.iter().copied().fold(0.0, f64::max);
            let chart = bars(&self.images_per_second, most);
            let _ = writeln!(text, "{:<12} {chart}  up to {most:.1}/s", "images/s");
        }
        if self.is_terminal {
            text.push_str("\nCtrl-C ends.\n");
            // Overwriting line by line does not flicker, as clearing first would.
            text = format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
        } else {
            text.push('\n');
        }
        print(&text)
    }
}

impl Drop for Screen {
    /// Shows what the terminal showed before, also after an error.
    fn drop(&mut self) {
        if self.is_terminal {
            // Output that is gone needs no screen.
            let _ = output::print(CLOSE);
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    output::print(text).context("cannot print the state")
}

/// One character for each value, as high as its share of `most`.
fn bars(values: &VecDeque<f64>, most: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |value: &f64| {
        let share = if most > 0.0 { value / most } else { 0.0 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_the_values() {
        assert_eq!(bars(&VecDeque::from([0.0, 5.0, 10.0]), 10.0), "▁▅█");
        assert_eq!(bars(&VecDeque::from([0.0, 0.0]), 0.0), "▁▁");
    }
}
