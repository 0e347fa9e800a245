//! The headings of the runs, shared by report and plot.

use super::simulated::Simulated;

/// The heading of each run: the name of its policy, with a number if several runs use the same policy.
pub(super) fn columns(simulated: &[Simulated]) -> Vec<String> {
    let name = |it: &Simulated| it.variant.policy.as_str();
    let columns = simulated.iter().enumerate().map(|(index, it)| {
        if let Some(heading) = &it.heading {
            return heading.clone();
        }
        let same = |other: &&Simulated| name(other) == name(it);
        match simulated.iter().filter(same).count() {
            1 => name(it).to_owned(),
            _ => format!("{} {}", name(it), simulated[..=index].iter().filter(same).count()),
        }
    });
    columns.collect()
}
