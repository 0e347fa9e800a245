//! The report: one set of figures, shown as JSON for programs or as text for people.

mod figures;
mod text;

pub(super) use self::figures::Report;
pub(super) use self::text::render;
