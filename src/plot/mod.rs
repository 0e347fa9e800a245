//! Charts in SVG and PNG files. Both are the same drawing; a PNG is drawn at twice the size and scaled down, which smooths
//! its lines. Text is measured with a built-in font, so that no font of the machine is needed.

mod file;

use std::path::Path;
use std::sync::Once;

use anyhow::{Context as _, anyhow};
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Rgb};
use plotters::coord::Shift;
use plotters::prelude::{
    BitMapBackend, DrawingArea, DrawingBackend, FontStyle, IntoDrawingArea as _, RGBColor, SVGBackend,
};
use plotters::style::register_font;

use self::file::Format;
pub use self::file::PlotFile;

const SMOOTHING: u32 = 2;
const FONT: &[u8] = include_bytes!("font/DejaVuSans-latin.ttf");

/// The name under which the built-in font is registered.
pub(crate) const FONT_FAMILY: &str = "sans-serif";
/// The colour of text and axes.
pub(crate) const INK: RGBColor = RGBColor(60, 60, 60);

/// The error of a drawing backend.
pub(crate) type DrawError<DB> = plotters::drawing::DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;

/// A chart of a fixed size.
pub(crate) trait Chart {
    /// Width and height in pixels at scale 1.
    fn size(&self) -> (u32, u32);

    /// Draws the chart on an area that is `scale` times its size.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<(), DrawError<DB>>;
}

/// # Errors
/// If the file cannot be written.
pub(crate) fn write(file: &PlotFile, chart: &impl Chart) -> anyhow::Result<()> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // Registering fails only for a font that cannot be parsed, and this one is built in.
        let _ = register_font(FONT_FAMILY, FontStyle::Normal, FONT);
    });
    match file.format {
        Format::Svg => write_svg(&file.path, chart),
        Format::Png => write_png(&file.path, chart),
    }
    .with_context(|| format!("cannot write the plot {}", file.path.display()))
}

fn write_svg(path: &Path, chart: &impl Chart) -> anyhow::Result<()> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, chart.size()).into_drawing_area();
        chart.draw(&area, 1).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(std::fs::write(path, svg)?)
}

fn write_png(path: &Path, chart: &impl Chart) -> anyhow::Result<()> {
    let (width, height) = chart.size();
    let large = (width * SMOOTHING, height * SMOOTHING);
    let mut pixels = vec![0; (large.0 * large.1 * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
        chart.draw(&area, SMOOTHING).map_err(|error| anyhow!("{error}"))?;
    }
    let large: ImageBuffer<Rgb<u8>, Vec<u8>> =
        ImageBuffer::from_raw(large.0, large.1, pixels).expect("three bytes a pixel; this is a bug");
    Ok(resize(&large, width, height, FilterType::Triangle).save(path)?)
}
