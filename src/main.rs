//! `esmerge`, the command.

fn main() -> std::process::ExitCode {
    // Mesa's device-select layer prints errors where there is no desktop session. It only reorders adapters, which are
    // chosen here by type and name.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    // An empty value means none, as everywhere.
    if std::env::var_os("ESMERGE_DEVICE").is_some_and(|value| value.is_empty()) {
        // SAFETY: as above.
        unsafe { std::env::remove_var("ESMERGE_DEVICE") };
    }
    esmerge::cli::main()
}
