//! Charts as SVG inside a page. Colours come from the page, so that they follow its light or dark scheme.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;
const TICKS: f64 = 5.0;

/// A named line. A value of `None` is a gap.
pub(super) struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, Option<f64>)>,
}

/// An axis from 0, or from `from`.
pub(super) struct Axis<'a> {
    pub name: &'a str,
    pub from: f64,
    pub to: f64,
    /// Positions and texts of the marks; empty marks round values.
    pub marks: Vec<(f64, String)>,
}

impl Axis<'_> {
    fn marks(&self) -> Vec<(f64, String)> {
        if !self.marks.is_empty() {
            return self.marks.clone();
        }
        let step = round_step((self.to - self.from) / TICKS);
        let first = (self.from / step).ceil() as u64;
        let last = (self.to / step * (1.0 + 1e-9)).floor() as u64;
        (first..=last).map(|at| at as f64 * step).map(|at| (at, number(at))).collect()
    }

    /// The place of a value between 0 and 1.
    fn share(&self, value: f64) -> f64 {
        let span = self.to - self.from;
        if span > 0.0 { ((value - self.from) / span).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Draws lines, one class of the page (`s0`, `s1`, …) each.
pub(super) fn lines(title: &str, x: &Axis<'_>, y: &Axis<'_>, lines: &[Line<'_>]) -> String {
    let mut svg = begin(title, x, y);
    for (line, number) in lines.iter().zip(0..) {
        let mut path = String::new();
        let mut is_gap = true;
        for (at, value) in &line.points {
            let Some(value) = value else {
                is_gap = true;
                continue;
            };
            let _ =
                write!(path, "{}{:.1} {:.1} ", if is_gap { 'M' } else { 'L' }, horizontal(x, *at), vertical(y, *value));
            is_gap = false;
        }
        let _ = write!(svg, "<path class=\"line s{number}\" d=\"{}\"/>", path.trim_end());
        let at = LEFT + 8.0 + 150.0 * f64::from(number);
        let _ = write!(
            svg,
            "<rect class=\"s{number}\" x=\"{at}\" y=\"8\" width=\"14\" height=\"4\"/><text x=\"{}\" y=\"14\">{}</text>",
            at + 20.0,
            escaped(line.name)
        );
    }
    svg + "</svg>"
}

/// Draws one bar for each value, with a text that shows when the pointer is over it.
pub(super) fn bars(title: &str, x_name: &str, y: &Axis<'_>, bars: &[(String, f64)]) -> String {
    // Labels that would overlap are left out.
    let every = bars.len().div_ceil(10).max(1);
    let count = bars.len().max(1) as f64;
    let marks = bars.iter().enumerate().step_by(every).map(|(at, (name, _))| (at as f64 + 0.5, name.clone())).collect();
    let x = Axis { name: x_name, from: 0.0, to: count, marks };
    let mut svg = begin(title, &x, y);
    for (at, (name, value)) in bars.iter().enumerate() {
        let (left, top) = (horizontal(&x, at as f64), vertical(y, *value));
        let width = (horizontal(&x, at as f64 + 1.0) - left - 2.0).max(1.0);
        let _ = write!(
            svg,
            "<rect class=\"s0\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
            HEIGHT - BOTTOM - top,
            escaped(name),
            number(*value)
        );
    }
    svg + "</svg>"
}

fn begin(title: &str, x: &Axis<'_>, y: &Axis<'_>) -> String {
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escaped(title));
    for (at, text) in y.marks() {
        let height = vertical(y, at);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {height:.1} H{}\"/><text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            height + 4.0,
            escaped(&text)
        );
    }
    for (at, text) in x.marks() {
        let _ = write!(
            svg,
            "<text class=\"middle\" x=\"{:.1}\" y=\"{}\">{}</text>",
            horizontal(x, at),
            HEIGHT - BOTTOM + 16.0,
            escaped(&text)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"middle\" x=\"{}\" y=\"{}\">{}</text><text class=\"end\" x=\"{}\" y=\"14\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
        escaped(x.name),
        WIDTH - RIGHT,
        escaped(y.name)
    );
    svg
}

fn horizontal(axis: &Axis<'_>, value: f64) -> f64 {
    LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)
}

fn vertical(axis: &Axis<'_>, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)
}

/// The next of 1, 2, 5 × 10ⁿ that is at least this large.
fn round_step(least: f64) -> f64 {
    if !(least > 0.0 && least.is_finite()) {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(least)
}

/// A number with at most three digits after the point.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for HTML and SVG.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_cover_the_axis() {
        let axis = |to| Axis { name: "x", from: 0.0, to, marks: Vec::new() };
        let marks = |to| axis(to).marks().into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(" ");
        assert_eq!(marks(10.0), "0 2 4 6 8 10");
        assert_eq!(marks(0.37), "0 0.1 0.2 0.3");
        assert_eq!(marks(0.0), "0");
    }

    #[test]
    fn line_is_interrupted_where_there_is_no_value() {
        let axis = |to| Axis { name: "x", from: 0.0, to, marks: Vec::new() };
        let line =
            Line { name: "<b>", points: vec![(0.0, Some(0.0)), (1.0, None), (2.0, Some(1.0)), (3.0, Some(1.0))] };
        let svg = lines("t", &axis(3.0), &axis(1.0), &[line]);
        let path = svg.split("class=\"line s0\" d=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"));
    }
}
