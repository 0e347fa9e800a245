//! The timeline as a chart: arrivals, queue, workers and latency over time, with one colour for each policy.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::{
    AreaSeries, Cartesian2d, ChartBuilder, ChartContext, Color as _, DrawingArea, DrawingBackend, IntoFont as _,
    IntoLogRange as _, LineSeries, PathElement, RGBColor, Ranged, Rectangle, Text, WHITE,
};

use super::columns::columns;
use super::simulated::Simulated;
use crate::plot::{self, Chart, DrawError, FONT_FAMILY, INK, PlotFile};
use crate::scaling_policy::discrete_events::Second;

const WIDTH: u32 = 1100;
const HEAD_HEIGHT: u32 = 44;
const PANEL_HEIGHT: u32 = 190;
/// Height of the labels of the time axis, which only the last panel has.
const FOOT_HEIGHT: u32 = 22;
const TITLE_HEIGHT: u32 = 26;
const AXIS_WIDTH: u32 = 60;
const HEIGHT: u32 = HEAD_HEIGHT + 4 * PANEL_HEIGHT + FOOT_HEIGHT;
/// Maximum number of points of a line. A screen shows no more; each point shows the worst value of its bucket.
const MAX_POINTS: usize = 900;

const GRID: RGBColor = RGBColor(228, 228, 228);
const ARRIVALS: RGBColor = RGBColor(150, 150, 150);
/// A palette for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// # Errors
/// If the file cannot be written.
pub(super) fn write(file: &PlotFile, simulated: &[Simulated]) -> anyhow::Result<()> {
    plot::write(file, &Timelines(simulated))
}

struct Timelines<'a>(&'a [Simulated]);

impl Chart for Timelines<'_> {
    fn size(&self) -> (u32, u32) {
        (WIDTH, HEIGHT)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<(), DrawError<DB>> {
        Drawing { scale, simulated: self.0 }.draw_all(area)
    }
}

type Points = Vec<(f64, f64)>;

struct Drawing<'a> {
    scale: u32,
    simulated: &'a [Simulated],
}

impl Drawing<'_> {
    fn draw_all<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(self.px(HEAD_HEIGHT));
        self.draw_head(&head)?;
        let (arrivals, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (queue, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (workers, latency) = rest.split_vertically(self.px(PANEL_HEIGHT));

        let arriving = self.simulated.first().map(|it| mean_of(&it.run.timeline, |second| second.arrivals));
        let first = self.in_unit(arriving.unwrap_or_default());
        self.panel(&arrivals, "arrivals a second", linear(std::slice::from_ref(&first)), false, |chart| {
            chart.draw_series(AreaSeries::new(first.iter().copied(), 0.0, ARRIVALS.mix(0.5)))?;
            Ok(())
        })?;
        let waiting = self.each(|timeline| worst_of(timeline, |second| f64::from(second.visible)));
        self.panel(&queue, "images waiting", linear(&waiting), false, |chart| self.lines(chart, &waiting, 1.0))?;
        let ready = self.each(|timeline| steps(&worst_of(timeline, |second| f64::from(second.ready))));
        let paid = self.each(|timeline| {
            steps(&worst_of(timeline, |second| f64::from(second.ready + second.booting + second.draining)))
        });
        self.panel(&workers, "workers: ready, and paid (pale)", linear(&paid), false, |chart| {
            self.lines(chart, &paid, 0.35)?;
            self.lines(chart, &ready, 1.0)
        })?;
        self.draw_latency(&latency)
    }

    /// Latencies differ by orders of magnitude, so the axis is logarithmic.
    fn draw_latency<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        let latencies = self.each(|timeline| {
            worst_of(timeline, |second| second.latency.map_or(f64::NAN, |it| it.p90.as_secs_f64().max(1e-4)))
        });
        let all = || latencies.iter().flatten().map(|(_, value)| *value).filter(|value| value.is_finite());
        let (lowest, highest) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let (lowest, highest) = if highest > 0.0 { (lowest * 0.8, highest * 1.5) } else { (0.1, 10.0) };
        self.panel(area, "latency p90 of what was done", (lowest..highest).log_scale(), true, |chart| {
            self.lines(chart, &latencies, 1.0)
        })
    }

    fn each(&self, points: impl Fn(&[Second]) -> Points) -> Vec<Points> {
        self.simulated.iter().map(|it| self.in_unit(points(&it.run.timeline))).collect()
    }

    fn in_unit(&self, points: Points) -> Points {
        let unit = TimeUnit::of(self.end_seconds()).seconds();
        points.into_iter().map(|(seconds, value)| (seconds / unit, value)).collect()
    }

    fn end_seconds(&self) -> f64 {
        self.simulated.iter().map(|it| it.run.timeline.len()).max().unwrap_or(1) as f64
    }

    fn draw_head<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        let (mut x, y) = (self.px(AXIS_WIDTH), self.px(14));
        for (name, colour) in columns(self.simulated).into_iter().zip(COLOURS.iter().cycle()) {
            let corners = [(x, y + self.px(3)), (x + self.px(22), y + self.px(9))];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            let text = (FONT_FAMILY, self.px(15)).into_font().color(&INK);
            let (width, _) = area.estimate_text_size(&name, &text)?;
            area.draw(&Text::new(name, (x + self.px(30), y - self.px(1)), text))?;
            x += self.px(30) + i32::try_from(width).unwrap_or(0) + self.px(28);
        }
        Ok(())
    }

    /// Draws one chart over the whole time, with title, axes and grid. The unit of the time axis is chosen to give
    /// round labels.
    fn panel<DB, Y>(
        &self,
        area: &DrawingArea<DB, Shift>,
        title: &str,
        y: Y,
        is_last: bool,
        series: impl FnOnce(&mut ChartContext<'_, DB, Cartesian2d<Seconds, Y::CoordDescType>>) -> Result<(), DrawError<DB>>,
    ) -> Result<(), DrawError<DB>>
    where
        DB: DrawingBackend,
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let end = self.end_seconds();
        let font = |size| (FONT_FAMILY, self.px(size)).into_font().color(&INK);
        area.draw(&Text::new(title.to_owned(), (self.px(AXIS_WIDTH), self.px(8)), font(14)))?;
        let unit = TimeUnit::of(end);
        let mut chart = ChartBuilder::on(area)
            .margin_right(self.px(24))
            .margin_top(self.px(TITLE_HEIGHT))
            .x_label_area_size(self.px(if is_last { FOOT_HEIGHT } else { 6 }))
            .y_label_area_size(self.px(AXIS_WIDTH))
            .build_cartesian_2d(0.0..end / unit.seconds(), y)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .axis_style(INK.stroke_width(self.scale))
            .x_labels(12)
            .y_labels(5)
            .x_label_formatter(&|at| if is_last { format!("{} {}", number(*at), unit.name()) } else { String::new() })
            .y_label_formatter(&|value| if is_last { format!("{} s", number(*value)) } else { number(*value) })
            .label_style(font(12))
            .draw()?;
        series(&mut chart)
    }

    fn lines<DB: DrawingBackend, Y: Ranged<ValueType = f64>>(
        &self,
        chart: &mut ChartContext<'_, DB, Cartesian2d<Seconds, Y>>,
        lines: &[Points],
        opacity: f64,
    ) -> Result<(), DrawError<DB>> {
        let dot = 1.0 / TimeUnit::of(self.end_seconds()).seconds();
        for (points, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.mix(opacity).stroke_width(2 * self.scale);
            // A second without an answer has no latency: leave a gap instead of drawing a line across it.
            for piece in points.split(|(_, value)| value.is_nan()) {
                match piece {
                    [] => {}
                    // A line with a single point would be invisible.
                    &[(x, y)] => {
                        chart.draw_series([PathElement::new([(x, y), (x + dot, y)], style)])?;
                    }
                    more => {
                        chart.draw_series(LineSeries::new(more.iter().copied(), style))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn px(&self, points: u32) -> i32 {
        (points * self.scale).cast_signed()
    }
}

type Seconds = plotters::coord::types::RangedCoordf64;

fn linear(lines: &[Points]) -> std::ops::Range<f64> {
    let most = lines.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max);
    0.0..(most * 1.1).max(1.0)
}

/// The number of seconds that share a point.
fn bucket(timeline: &[Second]) -> usize {
    timeline.len().div_ceil(MAX_POINTS).max(1)
}

/// The highest value of each bucket; NaN if it has none.
fn worst_of(timeline: &[Second], value: impl Fn(&Second) -> f64) -> Points {
    buckets(timeline, |bucket| bucket.iter().map(&value).fold(f64::NAN, f64::max))
}

fn mean_of(timeline: &[Second], value: impl Fn(&Second) -> u32) -> Points {
    buckets(timeline, |bucket| bucket.iter().map(|second| f64::from(value(second))).sum::<f64>() / bucket.len() as f64)
}

fn buckets(timeline: &[Second], value: impl Fn(&[Second]) -> f64) -> Points {
    let size = bucket(timeline);
    timeline.chunks(size).enumerate().map(|(index, bucket)| ((index * size) as f64, value(bucket))).collect()
}

/// Draws changes of the number of workers as steps, not as slopes.
fn steps(points: &[(f64, f64)]) -> Points {
    let mut steps = Points::new();
    for &(x, y) in points {
        if let Some(&(_, before)) = steps.last()
            && (before - y).abs() > f64::EPSILON
        {
            steps.push((x, before));
        }
        steps.push((x, y));
    }
    steps
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeUnit {
    Seconds,
    Minutes,
    Hours,
}

impl TimeUnit {
    fn of(longest_seconds: f64) -> TimeUnit {
        match longest_seconds {
            ..300.0 => TimeUnit::Seconds,
            ..18_000.0 => TimeUnit::Minutes,
            _ => TimeUnit::Hours,
        }
    }

    fn seconds(self) -> f64 {
        match self {
            TimeUnit::Seconds => 1.0,
            TimeUnit::Minutes => 60.0,
            TimeUnit::Hours => 3600.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            TimeUnit::Seconds => "s",
            TimeUnit::Minutes => "min",
            TimeUnit::Hours => "h",
        }
    }
}

/// Formats a number without trailing zeros.
fn number(value: f64) -> String {
    let digits = if value.abs() < 0.1 { 3 } else { 1 };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_show_the_worst_of_their_bucket_and_workers_change_in_steps() {
        let timeline: Vec<Second> = (0..1800).map(|visible| Second { visible, ..Second::default() }).collect();
        let points = worst_of(&timeline, |second| f64::from(second.visible));
        assert_eq!((points.len(), points[0], points[899]), (900, (0.0, 1.0), (1798.0, 1799.0)));
        let stairs = steps(&[(0.0, 1.0), (1.0, 1.0), (2.0, 3.0)]);
        assert_eq!(stairs, [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 3.0)]);
    }
}
