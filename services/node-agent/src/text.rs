//! Errors as one line for people.

use std::error::Error;
use std::fmt::Write;

/// `error` and its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string never fails.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
