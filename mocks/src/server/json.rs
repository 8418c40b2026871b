//! JSON as the Python servers behind the recordings write it, and where they see an error in it.

use serde_json::Value;

use super::Answer;

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// An error as their framework answers it by itself.
pub(crate) fn detail(status: u16, text: &str) -> Answer {
    Answer::json(status, format!(r#"{{"detail":{}}}"#, quoted(text)))
}

/// How many characters of a body of one line come before its error.
pub(crate) fn error_offset(error: &serde_json::Error) -> usize {
    // The column counts from one; at the end of the input it is that of the last character.
    error.column() - usize::from(!error.is_eof() && error.column() > 0)
}
