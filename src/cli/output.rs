//! Text for the user. What comes out of files is made harmless on the way: it cannot steer a terminal, nor fill it.

use crate::text::{shortened, visible};
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::OnceLock;

/// Why standard output was lost, if it was.
static LOST: OnceLock<String> = OnceLock::new();

/// Results, on standard output. A closed pipe is not an error: whoever closed it has read enough. Any other failure is kept
/// for [`lost`].
pub(super) fn print(text: &str) {
    let mut out = stdout();
    let written = writeln!(out, "{}", visible(text)).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.get_or_init(|| error.to_string());
    }
}

/// Why results did not reach standard output.
pub(super) fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

/// Everything else, on standard error.
pub(super) fn say(text: &str) {
    let _ = writeln!(stderr(), "{}", visible(text));
}

pub(super) fn error(text: &str) {
    say(&format!("error: {}", shortened(text)));
}

pub(super) fn warning(text: &str) {
    say(&format!("warning: {}", shortened(text)));
}
