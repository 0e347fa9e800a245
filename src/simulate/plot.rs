//! The timeline as a picture: arrivals, queue, workers and latency over time, a colour a policy. One drawing, as SVG or
//! as PNG; for PNG it is drawn at twice the size and made smaller, which smooths its lines.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Rgb};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::{
    AreaSeries, BitMapBackend, Cartesian2d, ChartBuilder, ChartContext, Color as _, DrawingArea, DrawingBackend,
    FontStyle, IntoDrawingArea as _, IntoFont as _, IntoLogRange as _, LineSeries, PathElement, RGBColor, Ranged,
    Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::register_font;

use super::Simulated;
use super::report::{columns, time};
use crate::scaling::simulate::Second;

/// A file whose name says what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlotFile {
    path: PathBuf,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
}

impl FromStr for PlotFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "svg" => Format::Svg,
            "png" => Format::Png,
            _ => return Err("a plot is a file.svg or a file.png".to_owned()),
        };
        Ok(PlotFile { path, format })
    }
}

const WIDTH: u32 = 1100;
const HEAD_HEIGHT: u32 = 44;
const PANEL_HEIGHT: u32 = 190;
const FOOT_HEIGHT: u32 = 26;
const HEIGHT: u32 = HEAD_HEIGHT + 4 * PANEL_HEIGHT + FOOT_HEIGHT;
const SMOOTHING: u32 = 2;
/// A screen shows no more; what lies between two points is told by the worst of it.
const MOST_POINTS: usize = 900;

const FONT: &[u8] = include_bytes!("font/DejaVuSans-latin.ttf");
const FONT_FAMILY: &str = "sans-serif";
const INK: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
const ARRIVALS: RGBColor = RGBColor(150, 150, 150);
/// Told apart by colour-blind people too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// # Errors
/// Where the file cannot be written.
pub fn write(file: &PlotFile, simulated: &[Simulated]) -> anyhow::Result<()> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // What is measured with it is drawn with it; only a font that cannot be read is refused.
        let _ = register_font(FONT_FAMILY, FontStyle::Normal, FONT);
    });
    match file.format {
        Format::Svg => write_svg(&file.path, simulated),
        Format::Png => write_png(&file.path, simulated),
    }
    .with_context(|| format!("cannot write the plot {}", file.path.display()))
}

fn write_svg(path: &Path, simulated: &[Simulated]) -> anyhow::Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        Drawing { scale: 1, simulated }.draw(&root)?;
    }
    Ok(std::fs::write(path, svg)?)
}

fn write_png(path: &Path, simulated: &[Simulated]) -> anyhow::Result<()> {
    let (width, height) = (WIDTH * SMOOTHING, HEIGHT * SMOOTHING);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        Drawing { scale: SMOOTHING, simulated }.draw(&root)?;
    }
    let large: ImageBuffer<Rgb<u8>, Vec<u8>> =
        ImageBuffer::from_raw(width, height, pixels).expect("three bytes a pixel; this is a bug");
    Ok(resize(&large, WIDTH, HEIGHT, FilterType::Triangle).save(path)?)
}

type Points = Vec<(f64, f64)>;

struct Drawing<'a> {
    scale: u32,
    simulated: &'a [Simulated],
}

impl Drawing<'_> {
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> anyhow::Result<()> {
        self.draw_all(root).map_err(|error| anyhow!("{error}"))
    }

    fn draw_all<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), Trouble<DB>> {
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(self.px(HEAD_HEIGHT));
        self.draw_head(&head)?;
        let (arrivals, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (queue, rest) = rest.split_vertically(self.px(PANEL_HEIGHT));
        let (workers, latency) = rest.split_vertically(self.px(PANEL_HEIGHT));

        let first = self.simulated.first().map_or_else(Points::new, |it| mean_of(&it.run.timeline, |s| s.arrivals));
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

    /// Latencies differ by orders of magnitude: the scale is logarithmic, in seconds.
    fn draw_latency<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), Trouble<DB>> {
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
        self.simulated.iter().map(|it| points(&it.run.timeline)).collect()
    }

    fn draw_head<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), Trouble<DB>> {
        let (mut x, y) = (self.px(60), self.px(16));
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

    /// One chart over the whole time, with its title, axes and grid.
    fn panel<DB, Y>(
        &self,
        area: &DrawingArea<DB, Shift>,
        title: &str,
        y: Y,
        is_last: bool,
        series: impl FnOnce(&mut ChartContext<'_, DB, Cartesian2d<Seconds, Y::CoordDescType>>) -> Result<(), Trouble<DB>>,
    ) -> Result<(), Trouble<DB>>
    where
        DB: DrawingBackend,
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let end = self.simulated.iter().map(|it| it.run.timeline.len()).max().unwrap_or(1) as f64;
        let font = |size| (FONT_FAMILY, self.px(size)).into_font().color(&INK);
        let mut chart = ChartBuilder::on(area)
            .margin_right(self.px(24))
            .margin_top(self.px(4))
            .caption(title, font(14))
            .x_label_area_size(self.px(if is_last { 24 + FOOT_HEIGHT } else { 24 }))
            .y_label_area_size(self.px(60))
            .build_cartesian_2d(0.0..end, y)?;
        let unit = TimeUnit::of(end);
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .axis_style(INK.stroke_width(self.scale))
            .x_labels(12)
            .y_labels(5)
            .x_label_formatter(&|seconds| unit.text(*seconds))
            .y_label_formatter(&|value| if is_last { time(Duration::from_secs_f64(*value)) } else { number(*value) })
            .label_style(font(12))
            .draw()?;
        series(&mut chart)
    }

    fn lines<DB: DrawingBackend, Y: Ranged<ValueType = f64>>(
        &self,
        chart: &mut ChartContext<'_, DB, Cartesian2d<Seconds, Y>>,
        lines: &[Points],
        opacity: f64,
    ) -> Result<(), Trouble<DB>> {
        for (points, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.mix(opacity).stroke_width(2 * self.scale);
            // A second without an answer has no latency: a gap, not a line across it.
            for piece in points.split(|(_, value)| value.is_nan()) {
                match piece {
                    [] => {}
                    // A line of one point would not be seen.
                    &[(x, y)] => {
                        chart.draw_series([PathElement::new([(x, y), (x + 1.0, y)], style)])?;
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
type Trouble<DB> = plotters::drawing::DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;

fn linear(lines: &[Points]) -> std::ops::Range<f64> {
    let most = lines.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max);
    0.0..(most * 1.1).max(1.0)
}

/// Seconds that share a point.
fn bucket(timeline: &[Second]) -> usize {
    timeline.len().div_ceil(MOST_POINTS).max(1)
}

/// The highest value of each bucket; NaN where there is none.
fn worst_of(timeline: &[Second], value: impl Fn(&Second) -> f64) -> Points {
    buckets(timeline, |bucket| bucket.iter().map(&value).fold(f64::NAN, f64::max))
}

fn mean_of(timeline: &[Second], value: impl Fn(&Second) -> u32) -> Points {
    buckets(timeline, |bucket| bucket.iter().map(|second| f64::from(value(second))).sum::<f64>() / bucket.len() as f64)
}

fn buckets(timeline: &[Second], value: impl Fn(&[Second]) -> f64) -> Points {
    let size = bucket(timeline);
    timeline.chunks(size).enumerate().map(|(place, bucket)| ((place * size) as f64, value(bucket))).collect()
}

/// Workers come and go at once, not along a slope.
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

    fn text(self, seconds: f64) -> String {
        match self {
            TimeUnit::Seconds => format!("{} s", number(seconds)),
            TimeUnit::Minutes => format!("{} min", number(seconds / 60.0)),
            TimeUnit::Hours => format!("{} h", number(seconds / 3600.0)),
        }
    }
}

/// Without zeros that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_named_for_what_it_is() {
        let format = |name: &str| name.parse::<PlotFile>().map(|file| file.format);
        assert_eq!((format("a.svg"), format("b/c.PNG")), (Ok(Format::Svg), Ok(Format::Png)));
        assert!(format("a").is_err() && format("a.gif").is_err() && format("svg").is_err());
    }

    #[test]
    fn points_tell_the_worst_of_their_bucket_and_workers_step() {
        let timeline: Vec<Second> = (0..1800).map(|visible| Second { visible, ..Second::default() }).collect();
        let points = worst_of(&timeline, |second| f64::from(second.visible));
        assert_eq!((points.len(), points[0], points[899]), (900, (0.0, 1.0), (1798.0, 1799.0)));
        let stairs = steps(&[(0.0, 1.0), (1.0, 1.0), (2.0, 3.0)]);
        assert_eq!(stairs, [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 3.0)]);
    }
}
