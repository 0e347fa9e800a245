//! The timeline as a chart: arrivals, queue, workers and latency over time, with one colour for each policy. The dots of a
//! measured run can be drawn over it.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::{
    AreaSeries, Cartesian2d, ChartBuilder, ChartContext, Circle, Color as _, DrawingArea, DrawingBackend,
    IntoFont as _, IntoLogRange as _, LineSeries, PathElement, Polygon, RGBColor, Ranged, Rectangle, Text, WHITE,
};

use super::columns::columns;
use super::measured::{MeasuredPoint, Overlay};
use super::simulated::Simulated;
use crate::plot::{self, Chart, DrawError, FONT_FAMILY, INK, PlotFile};
use crate::scaling_policy::discrete_events::Second;

const WIDTH: u32 = 1100;
const HEAD_HEIGHT: u32 = 44;
/// The rows of headings.
const FIRST_ROW: u32 = 6;
const ROW_HEIGHT: u32 = 19;
const PANEL_HEIGHT: u32 = 190;
/// Height of the labels of the time axis, which only the last panel has.
const FOOT_HEIGHT: u32 = 22;
const TITLE_HEIGHT: u32 = 26;
const AXIS_WIDTH: u32 = 60;
const HEIGHT: u32 = HEAD_HEIGHT + 4 * PANEL_HEIGHT + FOOT_HEIGHT;
/// Maximum number of points of a line, one for each second of a short run.
const MAX_POINTS: usize = 900;
/// Points of a longer run. Each stands for some minutes, in which a value may change many times: the line is the mean, and
/// a band shows from where to where the value went. A line from extreme to extreme would fill the panel.
const BAND_POINTS: usize = 288;
const BAND_OPACITY: f64 = 0.18;
/// Radius of the dot of a measured value.
const DOT: u32 = 2;

/// The shortest latency that the logarithmic axis shows.
const SHORTEST_SECONDS: f64 = 1e-4;

const GRID: RGBColor = RGBColor(228, 228, 228);
const ARRIVALS: RGBColor = RGBColor(150, 150, 150);
const MEASURED: RGBColor = RGBColor(30, 30, 30);
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
pub(super) fn write(file: &PlotFile, simulated: &[Simulated], overlay: Option<&Overlay>) -> anyhow::Result<()> {
    plot::write(file, &Timelines { simulated, overlay })
}

/// The simulated runs as lines, and a measured run as dots.
struct Timelines<'a> {
    simulated: &'a [Simulated],
    overlay: Option<&'a Overlay>,
}

impl Chart for Timelines<'_> {
    fn size(&self) -> (u32, u32) {
        (WIDTH, HEIGHT)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<(), DrawError<DB>> {
        Drawing { scale, simulated: self.simulated, overlay: self.overlay }.draw_all(area)
    }
}

type Points = Vec<(f64, f64)>;

/// A value over time: its means, and if points stand for more than a second, its lowest and highest values.
#[derive(Debug, Default)]
struct Curve {
    line: Points,
    band: Option<(Points, Points)>,
}

struct Drawing<'a> {
    scale: u32,
    simulated: &'a [Simulated],
    overlay: Option<&'a Overlay>,
}

impl Drawing<'_> {
    fn draw_all<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(self.px(HEAD_HEIGHT));
        self.draw_head(&head)?;
        let (arrivals, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (queue, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (workers, latency) = rest.split_vertically(self.px(PANEL_HEIGHT));

        self.draw_arrivals(&arrivals)?;
        let waiting = self.each(|second| f64::from(second.visible), |second| f64::from(second.visible), false);
        self.panel(&queue, "images waiting", linear(&waiting, &[]), false, |chart| self.curves(chart, &waiting))?;
        let paid = |second: &Second| f64::from(second.ready + second.booting + second.draining);
        let ready = self.each(|second| f64::from(second.ready), paid, true);
        let title = "workers that are ready; pale: up to all that are paid for";
        self.panel(&workers, title, linear(&ready, &[]), false, |chart| self.curves(chart, &ready))?;
        self.draw_latency(&latency)
    }

    fn draw_arrivals<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        let arriving = self.simulated.first().map(|it| mean_of(&it.run.timeline, |second| f64::from(second.arrivals)));
        let arriving = Curve { line: self.in_unit(arriving.unwrap_or_default()), band: None };
        let answered = self.measured(|point| Some(point.answers_per_second));
        let title =
            if self.overlay.is_some() { "arrivals a second; dots: measured answers" } else { "arrivals a second" };
        self.panel(area, title, linear(std::slice::from_ref(&arriving), &answered), false, |chart| {
            chart.draw_series(AreaSeries::new(arriving.line.iter().copied(), 0.0, ARRIVALS.mix(0.5)))?;
            self.dots(chart, &answered)
        })
    }

    /// Latencies differ by orders of magnitude, so the axis is logarithmic.
    fn draw_latency<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        let p90 = |second: &Second| second.latency.map_or(f64::NAN, |it| it.p90.as_secs_f64().max(SHORTEST_SECONDS));
        let latencies = self.each(p90, p90, false);
        let measured = self.measured(|point| point.p90_seconds.map(|seconds| seconds.max(SHORTEST_SECONDS)));
        let all = || values(&latencies, &measured).filter(|value| value.is_finite());
        let (lowest, highest) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let (lowest, highest) = if highest > 0.0 { (lowest * 0.8, highest * 1.5) } else { (0.1, 10.0) };
        let title = if self.overlay.is_some() {
            "latency p90 of what was done; dots: measured"
        } else {
            "latency p90 of what was done"
        };
        self.panel(area, title, (lowest..highest).log_scale(), true, |chart| {
            self.curves(chart, &latencies)?;
            self.dots(chart, &measured)
        })
    }

    /// The curve of each run: `value`, and in the band everything from it up to `most`. A short run has a point for each
    /// second and no band; a number of workers then changes in steps.
    fn each(&self, value: impl Fn(&Second) -> f64, most: impl Fn(&Second) -> f64, in_steps: bool) -> Vec<Curve> {
        let curve = |timeline: &[Second]| {
            if timeline.len() <= MAX_POINTS {
                let line = mean_of(timeline, &value);
                let (line, band) = if in_steps {
                    (steps(&line), Some((steps(&line), steps(&mean_of(timeline, &most)))))
                } else {
                    (line, None)
                };
                let band = band.map(|(low, high)| (self.in_unit(low), self.in_unit(high)));
                return Curve { line: self.in_unit(line), band };
            }
            let low = extreme_of(timeline, &value, f64::min);
            let high = extreme_of(timeline, &most, f64::max);
            let line = self.in_unit(mean_of(timeline, &value));
            Curve { line, band: Some((self.in_unit(low), self.in_unit(high))) }
        };
        self.simulated.iter().map(|it| curve(&it.run.timeline)).collect()
    }

    /// A value of the measured run over time.
    fn measured(&self, value: impl Fn(&MeasuredPoint) -> Option<f64>) -> Points {
        let points = self.overlay.into_iter().flat_map(|overlay| &overlay.points);
        let points = points.filter_map(|point| Some((point.at_seconds, value(point)?)));
        let end = self.end_seconds();
        self.in_unit(points.filter(|(at, _)| *at <= end).collect())
    }

    fn in_unit(&self, points: Points) -> Points {
        let unit = TimeUnit::of(self.end_seconds()).seconds();
        points.into_iter().map(|(seconds, value)| (seconds / unit, value)).collect()
    }

    fn end_seconds(&self) -> f64 {
        self.simulated.iter().map(|it| it.run.timeline.len()).max().unwrap_or(1) as f64
    }

    fn draw_head<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), DrawError<DB>> {
        let (mut x, mut y) = (self.px(AXIS_WIDTH), self.px(FIRST_ROW));
        for (name, colour) in columns(self.simulated).into_iter().zip(COLOURS.iter().cycle()) {
            let text = (FONT_FAMILY, self.px(15)).into_font().color(&INK);
            let (width, _) = area.estimate_text_size(&name, &text)?;
            let width = self.px(30) + i32::try_from(width).unwrap_or(0) + self.px(28);
            if x + width > self.px(WIDTH) && x > self.px(AXIS_WIDTH) {
                (x, y) = (self.px(AXIS_WIDTH), y + self.px(ROW_HEIGHT));
            }
            let corners = [(x, y + self.px(3)), (x + self.px(22), y + self.px(9))];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            area.draw(&Text::new(name, (x + self.px(30), y - self.px(1)), text))?;
            x += width;
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

    fn curves<DB: DrawingBackend, Y: Ranged<ValueType = f64>>(
        &self,
        chart: &mut ChartContext<'_, DB, Cartesian2d<Seconds, Y>>,
        curves: &[Curve],
    ) -> Result<(), DrawError<DB>> {
        let dot = 1.0 / TimeUnit::of(self.end_seconds()).seconds();
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            if let Some((low, high)) = &curve.band {
                draw_band(chart, low, high, *colour)?;
            }
        }
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2 * self.scale);
            // A second without an answer has no latency: leave a gap instead of drawing a line across it.
            for piece in curve.line.split(|(_, value)| value.is_nan()) {
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

    fn dots<DB: DrawingBackend, Y: Ranged<ValueType = f64>>(
        &self,
        chart: &mut ChartContext<'_, DB, Cartesian2d<Seconds, Y>>,
        points: &[(f64, f64)],
    ) -> Result<(), DrawError<DB>> {
        let dots = points.iter().map(|point| Circle::new(*point, self.px(DOT), MEASURED.filled()));
        chart.draw_series(dots).map(|_series| ())
    }

    fn px(&self, points: u32) -> i32 {
        (points * self.scale).cast_signed()
    }
}

type Seconds = plotters::coord::types::RangedCoordf64;

fn draw_band<DB: DrawingBackend, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'_, DB, Cartesian2d<Seconds, Y>>,
    low: &[(f64, f64)],
    high: &[(f64, f64)],
    colour: RGBColor,
) -> Result<(), DrawError<DB>> {
    let known =
        |points: &[(f64, f64)]| -> Points { points.iter().filter(|(_, value)| value.is_finite()).copied().collect() };
    let mut outline = known(high);
    outline.extend(known(low).into_iter().rev());
    if outline.len() > 2 {
        chart.draw_series([Polygon::new(outline, colour.mix(BAND_OPACITY))])?;
    }
    Ok(())
}

fn linear(curves: &[Curve], dots: &[(f64, f64)]) -> std::ops::Range<f64> {
    let most = values(curves, dots).fold(0.0, f64::max);
    0.0..(most * 1.1).max(1.0)
}

/// All values that a panel shows.
fn values<'a>(curves: &'a [Curve], dots: &'a [(f64, f64)]) -> impl Iterator<Item = f64> + 'a {
    let bands = curves.iter().filter_map(|curve| curve.band.as_ref()).flat_map(|(low, high)| low.iter().chain(high));
    curves.iter().flat_map(|curve| &curve.line).chain(bands).chain(dots).map(|(_, value)| *value)
}

/// The number of seconds that share a point.
fn bucket(timeline: &[Second]) -> usize {
    if timeline.len() <= MAX_POINTS { 1 } else { timeline.len().div_ceil(BAND_POINTS) }
}

/// The extreme of each bucket, which `pick` chooses; NaN if it has no value.
fn extreme_of(timeline: &[Second], value: impl Fn(&Second) -> f64, pick: fn(f64, f64) -> f64) -> Points {
    buckets(timeline, |bucket| bucket.iter().map(&value).fold(f64::NAN, pick))
}

/// The mean of each bucket; NaN if it has no value.
fn mean_of(timeline: &[Second], value: impl Fn(&Second) -> f64) -> Points {
    buckets(timeline, |bucket| {
        let known = bucket.iter().map(&value).filter(|value| value.is_finite());
        let (sum, count) = known.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
        if count > 0 { sum / f64::from(count) } else { f64::NAN }
    })
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
    fn long_runs_show_means_with_bands_and_workers_change_in_steps() {
        let timeline: Vec<Second> = (0..2880).map(|visible| Second { visible, ..Second::default() }).collect();
        let visible = |second: &Second| f64::from(second.visible);
        let mean = mean_of(&timeline, visible);
        assert_eq!((mean.len(), mean[0], mean[287]), (288, (0.0, 4.5), (2870.0, 2874.5)));
        assert_eq!(extreme_of(&timeline, visible, f64::max)[287], (2870.0, 2879.0));
        assert_eq!(extreme_of(&timeline, visible, f64::min)[0], (0.0, 0.0));
        assert!(mean_of(&timeline, |_| f64::NAN)[0].1.is_nan());
        assert_eq!(mean_of(&timeline[..900], visible)[899], (899.0, 899.0));
        let stairs = steps(&[(0.0, 1.0), (1.0, 1.0), (2.0, 3.0)]);
        assert_eq!(stairs, [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 3.0)]);
    }
}
