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
    /// A bar on a terminal; during a search for alpha one of its own.
    Bar { bytes: ProgressBar, probes: Option<ProgressBar> },
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
            return Display::Bar { bytes: ProgressBar::hidden(), probes: None };
        }
        let every = if verbose { Duration::ZERO } else { LINE_EVERY };
        let now = Instant::now();
        Display::Lines { every, last: now, done: 0, total: 0, started: now }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Display::Bar { bytes, probes } = self {
            probes.iter().for_each(ProgressBar::finish_and_clear);
            bytes.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn start(&mut self, total_bytes: u64) {
        match self {
            Display::Quiet => {}
            Display::Bar { bytes, .. } => {
                let template = "{bar:40} {bytes:>10} of {total_bytes}, {eta} left\n{wide_msg}";
                *bytes = bar(total_bytes, template);
            }
            Display::Lines { total, .. } => *total = total_bytes,
        }
    }

    fn layer(&mut self, name: &str) {
        match self {
            Display::Quiet => {}
            Display::Bar { bytes, probes } => {
                if let Some(probes) = probes.take() {
                    probes.finish_and_clear();
                    bytes.reset_eta(); // the search is not among what it counts
                }
                bytes.set_message(name.to_owned());
            }
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
            Display::Bar { bytes: bar, .. } => bar.inc(bytes),
            Display::Lines { done, .. } => *done += bytes,
        }
    }

    fn probe(&mut self, alpha: f64, done: usize, expected: usize) {
        match self {
            Display::Quiet => {}
            Display::Bar { bytes, probes } => {
                let template = "{bar:40} {pos} of about {len} alphas tried, {eta} left\n{wide_msg}";
                let probes = probes.get_or_insert_with(|| {
                    bytes.set_message("");
                    bar(expected as u64, template)
                });
                probes.set_length(expected as u64);
                probes.set_position(done as u64);
                probes.set_message(format!("searching alpha: {alpha}"));
            }
            Display::Lines { every, last, .. } => {
                if last.elapsed() >= *every {
                    *last = Instant::now();
                    output::say(&format!(
                        "searching alpha: {alpha}, after {done} of about {expected} that will be tried"
                    ));
                }
            }
        }
    }

    fn note(&mut self, message: &str) {
        match self {
            Display::Quiet => {}
            Display::Bar { bytes, .. } => bytes.suspend(|| output::say(message)),
            Display::Lines { .. } => output::say(message),
        }
    }

    fn warn(&mut self, message: &str) {
        match self {
            Display::Quiet => {}
            Display::Bar { bytes, .. } => bytes.suspend(|| output::warning(message)),
            Display::Lines { .. } => output::warning(message),
        }
    }
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
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
