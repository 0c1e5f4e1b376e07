//! Calls of libraries that panic on a bad file.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether this thread's panics are told to nobody, because they become errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `call`, or what it panicked with. Other threads' panics are told as ever.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                told(info);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| panic!("at {}", 7)), Err::<(), _>("at 7".to_owned()));
        assert_eq!(guarded(|| guarded(|| panic!("inner"))), Ok(Err::<(), _>("inner".to_owned())));
        assert!(!GUARDED.get());
    }
}
