//! The report: one set of figures, shown as JSON for programs, as text for people, or as a page with charts.

mod chart;
mod figures;
mod page;
mod search;
mod text;

pub(super) use self::figures::Report;
pub(super) use self::page::page;
pub(super) use self::search::{SearchReport, TrialReport};
pub(super) use self::text::render;
