//! The confusion matrix as a heat map: the darker a cell, the larger the share of the images of its row.

use plotters::coord::Shift;
use plotters::prelude::{
    Color as _, DrawingArea, DrawingBackend, FontTransform, IntoFont as _, RGBColor, Rectangle, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::dataset::Confusion;
use crate::plot::{Chart, DrawError, FONT_FAMILY, INK};

/// More classes cannot be read in one image. Those with the most mistakes are shown.
const MAX_CLASSES: usize = 60;
const MAX_NAME_CHARS: usize = 28;
/// Widths of the characters of a name at the size of the labels, on average, for the layout.
const CHAR_WIDTH: u32 = 7;
const TITLE_HEIGHT: u32 = 40;
const MARGIN: u32 = 16;
const FONT_SIZE: u32 = 12;
/// The least size of a cell that holds a number.
const CELL_WITH_NUMBER: u32 = 22;
const DARK: RGBColor = RGBColor(0, 90, 150);
const WRONG: RGBColor = RGBColor(200, 70, 0);
const GRID: RGBColor = RGBColor(222, 222, 222);

/// A confusion matrix with the names of its rows and columns.
pub(super) struct HeatMap {
    title: String,
    rows: Vec<String>,
    columns: Vec<String>,
    counts: Vec<Vec<u64>>,
}

impl HeatMap {
    /// Columns of classes that have no images are added up in one column, "others".
    pub(super) fn new(title: String, confusion: &Confusion, name: impl Fn(u32) -> String) -> HeatMap {
        let matrix = confusion.matrix();
        let shown = most_mistaken(confusion, &matrix.rows);
        let title = match matrix.rows.len() - shown.len() {
            0 => title,
            left_out => format!("{title}; {left_out} classes with fewer mistakes are left out"),
        };
        let row =
            |class: &u32| &matrix.counts[matrix.rows.binary_search(class).expect("a class of a row; this is a bug")];
        let is_shown = |class: &u32| shown.binary_search(class);
        let mut counts: Vec<Vec<u64>> = Vec::new();
        for class in &shown {
            let mut cells = vec![0; shown.len() + 1];
            for (column, count) in matrix.columns.iter().zip(row(class)) {
                cells[is_shown(column).unwrap_or(shown.len())] += count;
            }
            counts.push(cells);
        }
        let rows: Vec<String> = shown.iter().map(|class| shortened(&name(*class))).collect();
        let mut columns = rows.clone();
        if counts.iter().any(|cells| cells[shown.len()] > 0) {
            columns.push("others".to_owned());
        }
        HeatMap { title, rows, columns, counts }
    }

    fn cell(&self) -> u32 {
        (720 / self.columns.len().max(1) as u32).clamp(11, 44)
    }

    /// The space that names take, beside the rows and above the columns.
    fn name_width(&self) -> u32 {
        let longest = self.columns.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        longest as u32 * CHAR_WIDTH + MARGIN
    }
}

impl Chart for HeatMap {
    fn size(&self) -> (u32, u32) {
        let (left, cell) = (self.name_width(), self.cell());
        let width = left + cell * self.columns.len() as u32 + MARGIN;
        let title_width = self.title.chars().count() as u32 * CHAR_WIDTH + 2 * MARGIN;
        (width.max(title_width), TITLE_HEIGHT + left + cell * self.rows.len() as u32 + MARGIN)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<(), DrawError<DB>> {
        area.fill(&WHITE)?;
        let px = |points: u32| (points * scale).cast_signed();
        let font = || (FONT_FAMILY, px(FONT_SIZE)).into_font().color(&INK);
        let (left, cell) = (self.name_width(), self.cell());
        let top = TITLE_HEIGHT + left;
        let title = self.title.clone();
        area.draw(&Text::new(title, (px(MARGIN), px(MARGIN)), (FONT_FAMILY, px(14)).into_font().color(&INK)))?;
        let name_gap = 6;
        for (column, name) in (0u32..).zip(&self.columns) {
            let style = (FONT_FAMILY, px(FONT_SIZE)).into_font().transform(FontTransform::Rotate270).color(&INK);
            // The anchor of rotated text is that of the text before it is turned.
            let at = (px(left + column * cell + cell / 2), px(top - name_gap));
            area.draw(&Text::new(name.clone(), at, style.pos(Pos::new(HPos::Left, VPos::Center))))?;
        }
        for ((row, name), counts) in (0u32..).zip(&self.rows).zip(&self.counts) {
            let y = top + row * cell;
            let at = (px(left - name_gap), px(y + cell / 2));
            area.draw(&Text::new(name.clone(), at, font().pos(Pos::new(HPos::Right, VPos::Center))))?;
            let images: u64 = counts.iter().sum();
            for (column, &count) in (0u32..).zip(&counts[..self.columns.len()]) {
                let share = count as f64 / images.max(1) as f64;
                let x = left + column * cell;
                let corners = [(px(x), px(y)), (px(x + cell), px(y + cell))];
                let colour = if row == column { DARK } else { WRONG };
                area.draw(&Rectangle::new(corners, WHITE.filled()))?;
                area.draw(&Rectangle::new(corners, colour.mix(share).filled()))?;
                area.draw(&Rectangle::new(corners, GRID.stroke_width(scale)))?;
                if count > 0 && cell >= CELL_WITH_NUMBER {
                    let ink = if share > 0.5 { WHITE } else { INK };
                    let style = (FONT_FAMILY, px(FONT_SIZE)).into_font().color(&ink);
                    let at = (px(x + cell / 2), px(y + cell / 2));
                    area.draw(&Text::new(count.to_string(), at, style.pos(Pos::new(HPos::Center, VPos::Center))))?;
                }
            }
        }
        Ok(())
    }
}

/// The classes to show, by index: all, or those that most mistakes have to do with.
fn most_mistaken(confusion: &Confusion, rows: &[u32]) -> Vec<u32> {
    let mut mistakes: Vec<(u64, u32)> = rows.iter().map(|class| (0, *class)).collect();
    for (actual, predicted, count) in confusion.mistakes() {
        for class in [actual, predicted] {
            if let Ok(at) = rows.binary_search(&class) {
                mistakes[at].0 += count;
            }
        }
    }
    mistakes.sort_by_key(|&(count, class)| (std::cmp::Reverse(count), class));
    mistakes.truncate(MAX_CLASSES);
    let mut shown: Vec<u32> = mistakes.into_iter().map(|(_, class)| class).collect();
    shown.sort_unstable();
    shown
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= MAX_NAME_CHARS {
        return name.to_owned();
    }
    name.chars().take(MAX_NAME_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_with_the_most_mistakes_are_shown_and_others_are_added_up() {
        let mut confusion = Confusion::default();
        for class in 0..70 {
            confusion.record(class, class);
        }
        for _ in 0..3 {
            confusion.record(69, 500);
            confusion.record(68, 501);
            confusion.record(68, 7);
        }
        let map = HeatMap::new("m".to_owned(), &confusion, |class| format!("class {class}"));
        assert_eq!((map.rows.len(), map.columns.len()), (MAX_CLASSES, MAX_CLASSES + 1));
        assert!(map.title.ends_with("; 10 classes with fewer mistakes are left out"), "{}", map.title);
        let row = map.rows.iter().position(|name| name == "class 68").unwrap();
        assert_eq!((map.counts[row][7], map.counts[row][row], map.counts[row][MAX_CLASSES]), (3, 1, 3));
        assert_eq!(shortened(&"x".repeat(40)).chars().count(), MAX_NAME_CHARS);
    }
}
