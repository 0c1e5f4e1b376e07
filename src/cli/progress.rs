use super::output;
use crate::pipeline::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Pause between two lines where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How a run shows that it goes on.
pub(super) enum Display {
    /// Not at all.
    Quiet,
    /// A bar on a terminal.
    Bar(ProgressBar),
    /// Lines, now and then, or for every layer.
    Lines { every: Duration, last: Instant, done: u64, total: u64, started: Instant },
}

impl Display {
    /// What fits the flags and the terminal.
    pub fn new(quiet: bool, verbose: bool) -> Display {
        if quiet {
            return Display::Quiet;
        }
        if std::io::stderr().is_terminal() && !verbose {
            return Display::Bar(ProgressBar::hidden());
        }
        let every = if verbose { Duration::ZERO } else { LINE_EVERY };
        let now = Instant::now();
        Display::Lines { every, last: now, done: 0, total: 0, started: now }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Display::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn start(&mut self, bytes: u64) {
        match self {
            Display::Quiet => {}
            Display::Bar(bar) => {
                let template = "{bar:40} {bytes:>10} of {total_bytes}, {eta} left\n{wide_msg}";
                let style = ProgressStyle::with_template(template);
                *bar = ProgressBar::new(bytes)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            }
            Display::Lines { total, .. } => *total = bytes,
        }
    }

    fn layer(&mut self, name: &str) {
        match self {
            Display::Quiet => {}
            Display::Bar(bar) => bar.set_message(name.to_owned()),
            Display::Lines { every, last, done, total, started } => {
                if last.elapsed() >= *every {
                    *last = Instant::now();
                    output::say(&line(name, *done, *total, started.elapsed()));
                }
            }
        }
    }

    fn advance(&mut self, bytes: u64) {
        match self {
            Display::Quiet => {}
            Display::Bar(bar) => bar.inc(bytes),
            Display::Lines { done, .. } => *done += bytes,
        }
    }

    fn warn(&mut self, message: &str) {
        match self {
            Display::Quiet => {}
            Display::Bar(bar) => bar.suspend(|| output::warning(message)),
            Display::Lines { .. } => output::warning(message),
        }
    }
}

/// `[ 43%] 12.3 of 28.4 MB, 7 s left  encoder.layer.3.output.dense.weight`
fn line(name: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let share = if total > 0 { done as f64 / total as f64 } else { 0.0 };
    let left = if share > 0.0 {
        format!(", {:.0} s left", elapsed.as_secs_f64() * (1.0 - share).max(0.0) / share)
    } else {
        String::new()
    };
    let mega = |bytes: u64| bytes as f64 / 1e6;
    format!("[{:3.0}%] {:.1} of {:.1} MB{left}  {name}", 100.0 * share, mega(done), mega(total))
}
