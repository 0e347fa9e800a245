//! The report: one set of figures, shown as JSON for programs or as text for people.

mod figures;
mod phrases;
mod text;

pub(super) use self::figures::{PricesUsed, Report};
pub(super) use self::phrases::{arrivals_text, time};
pub(super) use self::text::render;
