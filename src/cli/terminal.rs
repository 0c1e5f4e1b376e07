//! How wide tables may be.

use crate::report::WIDTH;
use std::io::{IsTerminal, stdout};
use terminal_size::terminal_size;

/// Columns of text on standard output: those of the terminal, or of `COLUMNS`; for files and pipes 80 at most.
pub(super) fn width() -> usize {
    let wanted = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    let wanted = wanted.filter(|&columns| columns >= 20);
    if !stdout().is_terminal() {
        return wanted.unwrap_or(WIDTH).min(WIDTH);
    }
    wanted.or_else(|| terminal_size().map(|(width, _)| width.0.into())).unwrap_or(WIDTH)
}
