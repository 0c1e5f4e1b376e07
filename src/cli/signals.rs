//! What happens when a run is interrupted: its temporary files go, but for work that a later run can go on with, and the exit
//! code says which signal it was.

use super::output;
use crate::checkpoint;
use std::io::Read;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that stopped this run, once one has.
static STOPPED_BY: AtomicI32 = AtomicI32::new(0);
/// What the handler wakes the thread with.
static WAKE: OnceLock<std::io::PipeWriter> = OnceLock::new();

/// Makes signals that end a process end it tidily. The second one ends it at once.
pub(super) fn watch() {
    let Ok((mut woken, wake)) = std::io::pipe() else { return };
    let clean = move || {
        let _ = woken.read(&mut [0]);
        let kept = checkpoint::remove_all();
        let signal = STOPPED_BY.load(Ordering::SeqCst);
        output::say(&format!("stopped by {}", name(signal)));
        if let Some(folder) = kept.first() {
            output::say(&format!(
                "what is done lies in {}; go on with: {}",
                folder.display(),
                command_line()
            ));
        }
        exit(signal);
    };
    let watching = std::thread::Builder::new().name("signals".to_owned()).spawn(clean);
    if watching.is_ok() && WAKE.set(wake).is_ok() {
        system::install();
    }
}

/// This run's command line, for a shell.
fn command_line() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = |word: String| match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let words = std::env::args_os().skip(1).map(|word| quoted(word.to_string_lossy().into_owned()));
    std::iter::once("esmerge".to_owned())
        .chain(words.filter(|word| word != "--fresh"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Waits for the end if a signal has come: errors that its cleaning causes elsewhere are not the user's.
pub(super) fn wait_if_stopped() {
    while STOPPED_BY.load(Ordering::SeqCst) != 0 {
        std::thread::park();
    }
}

/// In a handler: notes the first signal and wakes the thread; ends the process on the second.
fn stop(signal: i32) {
    if STOPPED_BY.swap(signal, Ordering::SeqCst) != 0 {
        exit(signal);
    }
    system::wake();
}

#[cfg(unix)]
mod system {
    use super::{WAKE, stop};
    use std::os::fd::AsRawFd;

    const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

    pub fn install() {
        for signal in SIGNALS {
            // SAFETY: the handler only uses atomics, `write` and `_exit`, all of which are allowed there.
            unsafe {
                let before = libc::signal(signal, handler as *const () as libc::sighandler_t);
                if before == libc::SIG_IGN {
                    libc::signal(signal, libc::SIG_IGN); // `nohup` and shells ask for that
                }
            }
        }
    }

    extern "C" fn handler(signal: i32) {
        stop(signal);
    }

    pub fn wake() {
        if let Some(wake) = WAKE.get() {
            // SAFETY: one byte of a live buffer, to a descriptor that is never closed.
            unsafe { libc::write(wake.as_raw_fd(), [0u8].as_ptr().cast(), 1) };
        }
    }

    /// Without the destructors of other libraries, whose threads still run.
    pub fn exit(code: i32) -> ! {
        // SAFETY: it takes any code.
        unsafe { libc::_exit(code) }
    }

    pub fn name(signal: i32) -> &'static str {
        match signal {
            libc::SIGINT => "SIGINT",
            libc::SIGTERM => "SIGTERM",
            _ => "SIGHUP",
        }
    }
}

#[cfg(windows)]
mod system {
    use super::{WAKE, stop};
    use std::io::Write;

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn SetConsoleCtrlHandler(handler: unsafe extern "system" fn(u32) -> i32, add: i32) -> i32;
    }

    pub fn install() {
        // SAFETY: the handler has the signature that the system asks for, and runs in a thread of its own.
        unsafe { SetConsoleCtrlHandler(handler, 1) };
    }

    /// Ctrl-C counts as SIGINT, all else (a closed window, the end of a session) as SIGTERM.
    unsafe extern "system" fn handler(event: u32) -> i32 {
        stop(if event == 0 { 2 } else { 15 });
        loop {
            std::thread::park(); // the system ends the process when this returns from a closed window
        }
    }

    pub fn wake() {
        if let Some(mut wake) = WAKE.get() {
            let _ = wake.write(&[0]);
        }
    }

    pub fn exit(code: i32) -> ! {
        std::process::exit(code)
    }

    pub fn name(signal: i32) -> &'static str {
        if signal == 2 { "Ctrl-C" } else { "the system" }
    }
}

use system::name;

/// 128 and the signal, as shells give it.
fn exit(signal: i32) -> ! {
    system::exit(128 + signal)
}
