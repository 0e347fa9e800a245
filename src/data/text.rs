//! The reports as text.

use std::fmt::Write as _;

use super::report::{Counted, Pruned, Report, Stored};
use crate::telemetry::text::size;

pub(super) fn report(report: &Report) -> String {
    let Report { data_dir, images, results, segments, database, log_bytes, used_bytes, disk_free_bytes, limits } =
        report;
    let mut text = format!("{}\n", data_dir.display());
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<9} {value}");
    };
    line("images", stored(images));
    line("results", stored(results));
    line("segments", format!("{} files, {} on disk", segments.files, size(segments.disk_bytes)));
    line("database", format!("{} in use, {} free for more", size(database.used_bytes), size(database.free_bytes)));
    line("log", size(*log_bytes));
    let percent = used_bytes.saturating_mul(100) / limits.max_data_bytes.max(1);
    line("used", format!("{} of {}, {percent} %", size(*used_bytes), size(limits.max_data_bytes)));
    line("disk free", size(*disk_free_bytes));
    let origin = if limits.are_of_the_service { "" } else { " (defaults; no service has run here)" };
    let (images_kept, results_kept) = (age(limits.keep_images_seconds), age(limits.keep_results_seconds));
    line("kept", format!("images {images_kept}, results {results_kept}{origin}"));
    line("prunable", format!("{} older than that", both(images.prunable, results.prunable)));
    line("finished", format!("{} may be deleted when space is needed", both(images.finished, results.finished)));
    text
}

pub(super) fn pruned(pruned: &Pruned) -> String {
    let Pruned { images, results, removed_segments, freed_bytes, is_dry_run, is_interrupted } = pruned;
    if *is_dry_run {
        return format!("would delete {}\n", both(*images, *results));
    }
    let mut text = format!("deleted {}\n", both(*images, *results));
    let _ = writeln!(text, "freed {} on disk, {removed_segments} empty segments removed", size(*freed_bytes));
    if *is_interrupted {
        text.push_str("interrupted; run it again for the rest\n");
    }
    text
}

fn stored(stored: &Stored) -> String {
    let oldest = stored.oldest_age_seconds.map(|seconds| format!(", the oldest {} ago", age(seconds as u64)));
    format!("{}, {}{}", stored.count, size(stored.bytes), oldest.unwrap_or_default())
}

fn both(images: Counted, results: Counted) -> String {
    format!("{} images ({}), {} results ({})", images.count, size(images.bytes), results.count, size(results.bytes))
}

/// Formats an age as `3d 4h`, `12m 5s`, `7s`.
fn age(seconds: u64) -> String {
    let part = |number: u64, unit: &str| if number == 0 { String::new() } else { format!(" {number}{unit}") };
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{}", part(seconds, "s")),
        (0, hours, minutes, _) => format!("{hours}h{}", part(minutes, "m")),
        (days, hours, _, _) => format!("{days}d{}", part(hours, "h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_have_at_most_two_units() {
        assert_eq!([0, 1_023, 1_536, 5 << 30].map(size), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([0, 61, 7_200, 604_800, 633_600].map(age), ["0s", "1m 1s", "2h", "7d", "7d 8h"]);
    }
}
