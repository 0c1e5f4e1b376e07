//! What the parser of the command line has to say itself: help, the version, usage errors.

use super::failure::Failure;
use super::output;
use clap::error::{ContextKind, ContextValue, Error};

/// The variable that stands for `--device`.
pub(super) const DEVICE: &str = "ESMERGE_DEVICE";

/// Prints help and version; errors become a failure.
pub(super) fn answer(error: &Error) -> Result<(), Failure> {
    let text = error.render().to_string();
    if !error.use_stderr() {
        output::print(text.trim_end());
        return Ok(());
    }
    let text = text.replacen("'--device <DEVICE>'", &format!("'--device <DEVICE>'{}", source(error)), 1);
    Err(Failure::command_line(&text))
}

/// Where the value of `--device` came from, if not from the command line.
fn source(error: &Error) -> String {
    let given = std::env::args_os().any(|arg| arg.to_string_lossy().starts_with("--device"));
    let value = std::env::var(DEVICE).ok().filter(|_| !given);
    match (error.get(ContextKind::InvalidValue), value) {
        (Some(ContextValue::String(wrong)), Some(value)) if *wrong == value => {
            format!(" (from the environment variable {DEVICE})")
        }
        _ => String::new(),
    }
}
