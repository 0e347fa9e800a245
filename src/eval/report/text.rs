//! The report for people.

use std::fmt::{self, Write as _};

use super::figures::{ClassFigures, Comparison, Figures, ModelFigures};

/// More classes are not listed; `--json` has all of them.
const CLASSES_SHOWN: usize = 40;
const MISTAKES_SHOWN: usize = 10;
const BROKEN_SHOWN: usize = 10;
const NAME_WIDTH: usize = 28;

pub(super) fn render(figures: &Figures) -> String {
    let mut out = String::new();
    write(&mut out, figures).expect("writing to a String cannot fail; this is a bug");
    out
}

fn write(out: &mut String, figures: &Figures) -> fmt::Result {
    let Figures { data, files, classes, .. } = figures;
    writeln!(out, "{files} files of {classes} {} in {data}", plural(*classes, "class", "classes"))?;
    if figures.loose_files > 0 {
        writeln!(out, "{} files directly in it belong to no class and are left out", figures.loose_files)?;
    }
    write_measures(out, &figures.models)?;
    if let Some(comparison) = &figures.comparison {
        writeln!(out, "\n{}", verdict(comparison, &figures.models))?;
    }
    write_classes(out, &figures.models)?;
    for model in &figures.models {
        write_mistakes(out, model, figures.models.len() > 1)?;
    }
    if let Some(model) = figures.models.first() {
        write_broken(out, model)?;
    }
    if !figures.thresholds.is_empty() {
        writeln!(out, "\nthresholds")?;
    }
    for checked in &figures.thresholds {
        let verdict = if checked.passed { "pass" } else { "MISS" };
        let model = if figures.models.len() > 1 { format!("  {}", checked.model) } else { String::new() };
        writeln!(out, "  {verdict}  {:<20} measured {}{model}", checked.threshold, four_digits(checked.measured))?;
    }
    Ok(())
}

fn write_measures(out: &mut String, models: &[ModelFigures]) -> fmt::Result {
    type Row = (&'static str, fn(&ModelFigures) -> String);
    const ROWS: [Row; 9] = [
        ("model", |model| model.model.name.clone()),
        ("version", |model| model.model.version.clone()),
        ("images", |model| model.images.to_string()),
        ("top-1", |model| percent(model.top1)),
        ("  95 % interval", |model| match model.top1_interval {
            Some([low, high]) => format!("{} to {}", percent(Some(low)), percent(Some(high))),
            None => "-".to_owned(),
        }),
        // Five guesses among five classes are always right.
        ("top-5", |model| if model.model_classes > 5 { percent(model.top5) } else { "-".to_owned() }),
        ("macro F1", |model| percent(model.macro_f1)),
        ("calibration error", |model| percent(model.ece)),
        ("images/s", |model| format!("{:.1}", model.images_per_second)),
    ];
    writeln!(out)?;
    for (name, value) in ROWS {
        let cells: String = models.iter().map(|model| format!("  {:>24}", cut(&value(model), 24))).collect();
        writeln!(out, "{name:<18}{cells}")?;
    }
    Ok(())
}

/// States in words whether the difference of two models may be chance.
fn verdict(comparison: &Comparison, models: &[ModelFigures]) -> String {
    let [first, second] = models else { return String::new() };
    let (a, b) = if first.model.name == second.model.name {
        ("the first model", "the second model")
    } else {
        (first.model.name.as_str(), second.model.name.as_str())
    };
    let Comparison { images, only_first_right, only_second_right, p_value, .. } = comparison;
    let p = if *p_value < 0.0001 { "p < 0.0001".to_owned() } else { format!("p = {p_value:.4}") };
    let counts = format!(
        "Of {images} images, {only_first_right} are right only by {a} and {only_second_right} only by {b} \
         (McNemar's exact test: {p})."
    );
    let conclusion = match only_first_right.cmp(only_second_right) {
        std::cmp::Ordering::Equal => "The models are equally often right.".to_owned(),
        _ if comparison.may_be_chance => {
            "The difference could be chance: more images are needed to tell the models apart.".to_owned()
        }
        std::cmp::Ordering::Greater => {
            format!("The difference is unlikely to be chance: {a} is better on such images.")
        }
        std::cmp::Ordering::Less => format!("The difference is unlikely to be chance: {b} is better on such images."),
    };
    format!("{counts}\n{conclusion}")
}

/// Precision, recall and F1 of each class; with two models side by side.
fn write_classes(out: &mut String, models: &[ModelFigures]) -> fmt::Result {
    let Some(first) = models.first() else { return Ok(()) };
    let head: String = models.iter().map(|_| "  precision  recall      F1").collect();
    writeln!(out, "\n{:<NAME_WIDTH$}  images{head}", "class")?;
    let mut shown: Vec<&ClassFigures> = first.classes.iter().collect();
    if shown.len() > CLASSES_SHOWN {
        shown.sort_by(|a, b| a.measures.f1.total_cmp(&b.measures.f1));
        shown.truncate(CLASSES_SHOWN);
    }
    for class in &shown {
        let cells: String = models
            .iter()
            .map(|model| {
                // Two models may order their classes differently.
                let class = model.classes.iter().find(|other| other.label.eq_ignore_ascii_case(&class.label));
                let of = |pick: fn(&ClassFigures) -> f64| percent(class.map(pick));
                format!(
                    "  {:>9}  {:>6}  {:>6}",
                    of(|class| class.measures.precision),
                    of(|class| class.measures.recall),
                    of(|class| class.measures.f1)
                )
            })
            .collect();
        writeln!(out, "{:<NAME_WIDTH$}  {:>6}{cells}", cut(&class.label, NAME_WIDTH), class.measures.images)?;
    }
    if first.classes.len() > shown.len() {
        let more = first.classes.len() - shown.len();
        writeln!(out, "these have the lowest F1; --json lists the other {more} too")?;
    }
    Ok(())
}

fn write_mistakes(out: &mut String, model: &ModelFigures, name_model: bool) -> fmt::Result {
    if model.mistakes.is_empty() {
        return Ok(());
    }
    let of = if name_model { format!(" of {}", model.model.name) } else { String::new() };
    writeln!(out, "\nmost frequent mistakes{of}")?;
    for mistake in model.mistakes.iter().take(MISTAKES_SHOWN) {
        writeln!(out, "  {:>5}  {} taken for {}", mistake.images, mistake.actual, mistake.predicted)?;
    }
    Ok(())
}

fn write_broken(out: &mut String, model: &ModelFigures) -> fmt::Result {
    if model.not_images > 0 {
        let are = plural(model.not_images, "file is", "files are");
        writeln!(out, "\n{} {are} no image and left out", model.not_images)?;
    }
    if model.broken.is_empty() {
        return Ok(());
    }
    let count = model.broken.len();
    writeln!(out, "\n{count} broken {} left out", plural(count, "image is", "images are"))?;
    for broken in model.broken.iter().take(BROKEN_SHOWN) {
        writeln!(out, "  {}: {}", broken.file, broken.reason)?;
    }
    if count > BROKEN_SHOWN {
        writeln!(out, "  and {} more, which --json lists", count - BROKEN_SHOWN)?;
    }
    Ok(())
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn four_digits(measured: Option<f64>) -> String {
    measured.map_or_else(|| "nothing".to_owned(), |measured| format!("{measured:.4}"))
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width - 1).chain(['…']).collect() }
}

fn plural<'a>(count: usize, one: &'a str, more: &'a str) -> &'a str {
    if count == 1 { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::ClassMeasures;
    use crate::model::ModelRef;

    fn model(name: &str) -> ModelFigures {
        let measures = ClassMeasures { class_index: 0, images: 2, precision: 1.0, recall: 0.5, f1: 2.0 / 3.0 };
        ModelFigures {
            model: ModelRef { name: name.to_owned(), version: "1".to_owned(), digest: "sha256:0".to_owned() },
            images: 4,
            top1: Some(0.75),
            top1_interval: Some([0.3, 0.95]),
            top5: Some(1.0),
            macro_f1: Some(0.7),
            ece: None,
            images_per_second: 12.34,
            model_classes: 2,
            classes: vec![ClassFigures { label: "cat".to_owned(), measures }],
            mistakes: Vec::new(),
            not_images: 1,
            broken: vec![super::super::figures::BrokenImage { file: "a.png".to_owned(), reason: "damaged".to_owned() }],
        }
    }

    fn compared(only_first_right: u64, only_second_right: u64) -> String {
        let p_value = crate::eval::mcnemar::p_value(only_first_right, only_second_right);
        let comparison = Comparison {
            images: 100,
            both_right: 50,
            only_first_right,
            only_second_right,
            both_wrong: 10,
            p_value,
            may_be_chance: p_value >= 0.05,
        };
        verdict(&comparison, &[model("a"), model("b")])
    }

    #[test]
    fn verdict_says_in_words_whether_the_difference_may_be_chance() {
        assert!(compared(5, 7).ends_with("could be chance: more images are needed to tell the models apart."));
        assert!(compared(5, 25).ends_with("unlikely to be chance: b is better on such images."));
        assert!(compared(25, 5).ends_with("unlikely to be chance: a is better on such images."));
        assert!(compared(3, 3).ends_with("equally often right."));
        let expected = "Of 100 images, 5 are right only by a and 25 only by b (McNemar's exact test: p = 0.0003).";
        assert!(compared(5, 25).starts_with(expected), "{}", compared(5, 25));
    }

    #[test]
    fn text_shows_measures_classes_and_broken_images() {
        let figures = Figures {
            data: "set".to_owned(),
            files: 6,
            classes: 1,
            loose_files: 0,
            models: vec![model("mine")],
            comparison: None,
            thresholds: Vec::new(),
        };
        let text = render(&figures);
        let cells = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(cells).collect();
        for expected in
            ["top-1 75.0 %", "top-5 -", "calibration error -", "cat 2 100.0 % 50.0 % 66.7 %", "a.png: damaged"]
        {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {text}");
        }
    }
}
