//! The systems of other authors that were written to the same exercise as the legacy one. Their load generators send the
//! image in the field `inputFile` and read the label after the first colon of the answer.

use crate::web::upload::Upload;

const FIELD: &str = "inputFile";

/// Returns what precedes the label in the answer to a form: `name:` for those clients, where the name of the file ends
/// before its first dot, and nothing for all others.
pub(in crate::web) fn prefix(upload: &Upload) -> String {
    if upload.field != FIELD {
        return String::new();
    }
    let name = upload.filename.split('.').next().unwrap_or_default();
    format!("{name}:")
}
