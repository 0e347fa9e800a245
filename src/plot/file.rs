//! The file that a chart is written to.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file whose extension gives the format of the chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlotFile {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Svg,
    Png,
}

impl PlotFile {
    /// A file of the same format, at the path that `rename` makes from the path of this one.
    pub(crate) fn renamed(&self, rename: impl Fn(&Path) -> PathBuf) -> PlotFile {
        PlotFile { path: rename(&self.path), format: self.format }
    }
}

impl FromStr for PlotFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "svg" => Format::Svg,
            "png" => Format::Png,
            _ => return Err("the plot must be a file.svg or a file.png".to_owned()),
        };
        Ok(PlotFile { path, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_gives_the_format() {
        let format = |name: &str| name.parse::<PlotFile>().map(|file| file.format);
        assert_eq!((format("a.svg"), format("b/c.PNG")), (Ok(Format::Svg), Ok(Format::Png)));
        assert!(format("a").is_err() && format("a.gif").is_err() && format("svg").is_err());
    }
}
