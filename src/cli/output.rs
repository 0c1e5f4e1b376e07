//! Text for the user. A closed pipe is not an error: whoever closed it has read enough.

use std::io::{Write, stderr, stdout};

/// Results, on standard output.
pub(super) fn print(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// Everything else, on standard error.
pub(super) fn say(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

pub(super) fn error(text: &str) {
    say(&format!("error: {text}"));
}

pub(super) fn warning(text: &str) {
    say(&format!("warning: {text}"));
}
