//! The page for people, which needs no script and no other server.

use std::fmt::Write as _;

use super::operation::{Body, Content, Operation};
use super::{COMMON_PROBLEMS, OPERATIONS, Tag};

/// Writes the page.
pub(super) fn html() -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>imgcls: HTTP interface</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\">\n\
         <link rel=\"stylesheet\" href=\"/assets/docs.css\">\n</head>\n<body>\n<main>\n<h1>HTTP interface</h1>\n\
         <p>This page describes what this server answers. Programs read the same as \
         <a href=\"/openapi.json\">OpenAPI 3.1</a>. <a href=\"/\">The page for images</a> is its first user.</p>\n\
         <p>Errors are <code>application/problem+json</code> (RFC 9457), with a stable <code>type</code> and a sentence that \
         says what to do.</p>\n<nav><ul>\n",
    );
    for tag in Tag::ALL {
        let _ = writeln!(page, "<li><a href=\"#{}\">{}</a></li>", anchor(tag), tag.title());
    }
    page.push_str("<li><a href=\"#errors\">Errors of every operation</a></li>\n</ul></nav>\n");
    for tag in Tag::ALL {
        let _ = writeln!(page, "<h2 id=\"{}\">{}</h2>", anchor(tag), tag.title());
        for operation in OPERATIONS.iter().filter(|operation| operation.tag == tag) {
            write_operation(&mut page, operation);
        }
    }
    page.push_str("<h2 id=\"errors\">Errors of every operation</h2>\n<table>\n");
    for (status, description) in COMMON_PROBLEMS {
        write_row(&mut page, &status.to_string(), description);
    }
    page.push_str("</table>\n</main>\n</body>\n</html>\n");
    page
}

fn write_operation(page: &mut String, operation: &Operation) {
    let method = operation.method.to_uppercase();
    let _ = writeln!(
        page,
        "<section id=\"{}\">\n<h3><span class=\"method\">{method}</span> <code>{}</code></h3>\n<p>{}.</p>",
        operation.id,
        operation.path,
        text(operation.summary)
    );
    if !operation.parameters.is_empty() {
        page.push_str("<h4>Parameters</h4>\n<table>\n");
        for parameter in operation.parameters {
            let (name, place) = parameter.name();
            write_row(page, name, &format!("{} ({place})", parameter.description()));
        }
        page.push_str("</table>\n");
    }
    match operation.body {
        Body::Nothing => {}
        Body::Form => page.push_str("<h4>Body</h4>\n<p>A form with an image in any field, or the image itself.</p>\n"),
        Body::Batch => page.push_str(
            "<h4>Body</h4>\n<p>A form with images in any field, or JSON: \
             <code>{\"images\": [{\"bucket\": \"…\", \"key\": \"…\"}]}</code> with the members <code>model</code> and \
             <code>top_k</code> as you like.</p>\n",
        ),
        Body::Image => page.push_str(
            "<h4>Body</h4>\n<p>The image itself, a form with one or several images in any field, or JSON: \
             <code>{\"image\": \"&lt;base64 or data URI&gt;\"}</code> with the members <code>filename</code>, \
             <code>model</code> and <code>top_k</code> as you like.</p>\n",
        ),
    }
    page.push_str("<h4>Answers</h4>\n<table>\n");
    for answer in operation.answers {
        let media_type = match answer.content {
            Content::Nothing => String::new(),
            Content::Json(_) => " (application/json)".to_owned(),
            Content::TextOrJson(_) => " (text/plain, application/json)".to_owned(),
            Content::Media(types) => format!(" ({})", types.join(", ")),
            Content::Image => " (an image)".to_owned(),
            Content::Problem => " (application/problem+json)".to_owned(),
        };
        write_row(page, &answer.status.to_string(), &format!("{}{media_type}", answer.description));
    }
    page.push_str("</table>\n</section>\n");
}

fn write_row(page: &mut String, name: &str, description: &str) {
    let _ = writeln!(page, "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td></tr>", text(name), text(description));
}

fn anchor(tag: Tag) -> String {
    format!("group-{}", tag.title().to_lowercase().replace(' ', "-"))
}

/// Escapes a text, and marks what is between backquotes as code.
fn text(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let mut marked = String::new();
    for (at, part) in escaped.split('`').enumerate() {
        let _ = if at % 2 == 0 { write!(marked, "{part}") } else { write!(marked, "<code>{part}</code>") };
    }
    marked
}
