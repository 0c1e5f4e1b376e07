//! Panics: they are told in one line like any error, and unwinding removes temporary files.

use super::failure::Failure;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Mutex;

/// What the last panic said, and where.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Keeps what a panic says for [`caught`]. With RUST_BACKTRACE set, it is also printed where it happens.
pub(super) fn watch() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            default(info);
        }
        if let Ok(mut last) = LAST.lock() {
            *last = describe(info);
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let text = info.payload().downcast_ref::<&str>().copied();
    let said = text.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no reason given");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    format!("{said} (a defect of esmerge; please report it with this line: {place})")
}

/// Runs a command; a panic in it becomes its failure.
pub(super) fn caught(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    panic::catch_unwind(AssertUnwindSafe(command))
        .unwrap_or_else(|_| Err(Failure::defect(LAST.lock().map(|last| last.clone()).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_failure_that_says_where() {
        watch();
        let failure = caught(|| panic!("the moon")).unwrap_err();
        let _ = panic::take_hook();
        let text = format!("{failure:?}");
        assert!(text.contains("the moon (a defect of esmerge") && text.contains("defect.rs:"), "{text}");
    }
}
