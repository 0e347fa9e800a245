//! The reports as text for people.

use std::fmt::Write as _;

use super::dead_letters::{DeadLetters, Summary};
use super::depth::{Depths, role_name};
use super::purge::Purged;
use super::redrive::{Outcome, Redriven};
use super::show::Shown;
use crate::telemetry::text::{age, printable};

pub(crate) fn depths(report: &Depths) -> String {
    let mut rows = vec![["QUEUE", "ROLE", "VISIBLE", "IN FLIGHT", "DELAYED", "OLDEST"].map(str::to_owned).to_vec()];
    for queue in &report.queues {
        let mut row = vec![queue.name.clone(), role_name(queue.role).to_owned()];
        match &queue.depth {
            Some(depth) => {
                row.extend([depth.visible, depth.in_flight, depth.delayed].map(|count| count.to_string()));
                row.push(depth.oldest_age_seconds.map_or_else(|| "-".to_owned(), age));
            }
            None => row.push("does not exist".to_owned()),
        }
        rows.push(row);
    }
    table(&rows)
}

pub(crate) fn dead_letters(report: &DeadLetters) -> String {
    if report.dead_letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut rows = vec![["ID", "ATTEMPTS", "AGE", "FILE", "REASON"].map(str::to_owned).to_vec()];
    rows.extend(report.dead_letters.iter().map(|summary| {
        vec![summary.name(), attempts(summary), age(summary.age_seconds), filename(summary), reason(summary)]
    }));
    let mut text = table(&rows);
    if report.is_cut {
        text.push_str("there may be more: see --limit\n");
    }
    text
}

pub(crate) fn dead_letter(report: &Shown) -> String {
    let Shown { summary, message, result, image } = report;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line("id", summary.id.map_or_else(|| "-".to_owned(), |id| id.to_string()));
    line("message id", summary.message_id.clone());
    match &summary.callback {
        Some(receiver) => line("callback", printable(receiver)),
        None => line("file", filename(summary)),
    }
    line("reason", reason(summary));
    line("attempts", attempts(summary));
    line("age", age(summary.age_seconds));
    line(
        "result",
        match result {
            None => "none".to_owned(),
            Some(result) => {
                let member = |value: &serde_json::Value| printable(value.as_str().unwrap_or("-"));
                let (code, message) = (&result["error"]["code"], &result["error"]["message"]);
                match result.get("error") {
                    Some(_) => format!("{}: {}: {}", member(&result["status"]), member(code), member(message)),
                    None => member(&result["status"]),
                }
            }
        },
    );
    line(
        "image",
        image.as_ref().map_or_else(
            || "none".to_owned(),
            |image| {
                let saved = image.saved_to.as_ref().map(|path| format!(", saved to {}", path.display()));
                let kind = image.content_type.unwrap_or("no image type that is known");
                format!("{} bytes, {kind}{}", image.size_bytes, saved.unwrap_or_default())
            },
        ),
    );
    let mut message = message.clone();
    if let Some(data) = message.get_mut("image_data") {
        let length = data.as_str().map_or(0, str::len);
        *data = format!("… {length} characters; --save writes the image, --json has them").into();
    }
    let message = serde_json::to_string_pretty(&message).unwrap_or_default();
    let _ = writeln!(text, "message\n{}", message.lines().map(printable).collect::<Vec<_>>().join("\n"));
    text
}

pub(crate) fn redriven(report: &Redriven) -> String {
    let mut text = String::new();
    for redriven in &report.dead_letters {
        let outcome = match &redriven.outcome {
            Outcome::SentAgain => "sent again".to_owned(),
            Outcome::AlreadySucceeded => "has succeeded meanwhile; the dead letter is deleted".to_owned(),
            Outcome::Kept(why) => format!("stays: {}", printable(why)),
        };
        let _ = writeln!(text, "{}  {}  {outcome}", redriven.summary.name(), filename(&redriven.summary));
    }
    for id in &report.not_found {
        let _ = writeln!(text, "{}  no such dead letter", printable(id));
    }
    if report.is_interrupted {
        text.push_str("interrupted; the dead letters that were not reached are unchanged\n");
    }
    let sent = report.dead_letters.iter().filter(|redriven| redriven.outcome == Outcome::SentAgain).count();
    let _ = writeln!(text, "{sent} sent again");
    text
}

pub(crate) fn purged(report: &Purged) -> String {
    format!("{} messages deleted from {}\n", report.messages, report.queue)
}

/// The file of a request, or the receiver of a callback.
fn filename(summary: &Summary) -> String {
    if let Some(receiver) = &summary.callback {
        return format!("callback to {}", printable(receiver));
    }
    summary.filename.as_deref().filter(|name| !name.is_empty()).map_or_else(|| "-".to_owned(), printable)
}

fn attempts(summary: &Summary) -> String {
    summary.attempts.map_or_else(|| "-".to_owned(), |attempts| attempts.to_string())
}

fn reason(summary: &Summary) -> String {
    summary.reason.as_deref().map_or_else(|| "none was recorded".to_owned(), printable)
}

/// Formats rows as a table whose columns are as wide as their widest cell. Lines have no trailing spaces.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_people_say_them() {
        let ages: Vec<String> = [0.4, 61.0, 7_260.0, 180_000.0].into_iter().map(age).collect();
        assert_eq!(ages, ["0s", "1m 1s", "2h 1m", "2d 2h"]);
    }

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(printable("\u{1b}[2Jcat\n.jpg"), "\\u{1b}[2Jcat\\n.jpg");
    }
}
