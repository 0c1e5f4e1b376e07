//! `--download`: what is named and not there is fetched, and looked up again.

use super::failure::Failure;
use super::output;
use crate::data::{self, ModelSource};
use crate::hub::{self, FetchProgress, Missing};
use crate::recipe::{self, Recipe};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between two lines where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Whether models are fetched, and how it is told.
#[derive(Clone, Copy)]
pub(super) struct Download {
    /// `--download`
    pub wanted: bool,
    /// `--quiet`
    pub quiet: bool,
}

impl Download {
    /// A recipe whose models are all there, as far as they can be fetched.
    pub fn recipe(self, parse: impl Fn() -> Result<Recipe, recipe::Error>) -> Result<Recipe, Failure> {
        self.until_there(parse, |parsed| match parsed {
            Ok(recipe) => recipe.missing.clone(),
            Err(error) => error.missing().to_vec(),
        })
    }

    /// A model to run, by its path or its name in the hub.
    pub fn model(self, name: &str) -> Result<ModelSource, Failure> {
        self.until_there(
            || ModelSource::open(name),
            |opened| match opened {
                Err(data::Error::Missing(missing)) => vec![missing.clone()],
                _ => Vec::new(),
            },
        )
    }

    /// The path of a model, by its path or its name in the hub.
    pub fn path(self, name: &str) -> Result<PathBuf, Failure> {
        self.until_there(|| hub::existing(name), |found| found.as_ref().err().cloned().into_iter().collect())
    }

    /// Tries again as long as something could be fetched that was missing.
    fn until_there<T, E: Into<Failure>>(
        self,
        attempt: impl Fn() -> Result<T, E>,
        missing: impl Fn(&Result<T, E>) -> Vec<Missing>,
    ) -> Result<T, Failure> {
        let mut fetched: Vec<Missing> = Vec::new();
        loop {
            let result = attempt();
            let missing = missing(&result);
            let new = |missing: &&Missing| !fetched.iter().any(|known| known.name == missing.name);
            let new: Vec<Missing> = missing.iter().filter(new).filter(|_| self.wanted).cloned().collect();
            if new.is_empty() {
                return result.map_err(Into::into);
            }
            for missing in new {
                self.fetch(&missing)?;
                fetched.push(missing);
            }
        }
    }

    fn fetch(self, missing: &Missing) -> Result<(), Failure> {
        let mut shown = match self.quiet {
            true => Shown::Quiet,
            false if std::io::stderr().is_terminal() => Shown::Bar(ProgressBar::hidden()),
            false => Shown::Lines { name: String::new(), total: 0, done: 0, last: Instant::now() },
        };
        if !self.quiet {
            output::say(&format!("fetching {} into {}", missing.name, missing.cache.display()));
        }
        let fetched = hub::fetch(missing, &mut shown);
        if let Shown::Bar(bar) = &shown {
            bar.finish_and_clear();
        }
        fetched.map_err(|error| Failure::other(&error.to_string()))
    }
}

/// How it is shown that a file comes.
enum Shown {
    Quiet,
    Bar(ProgressBar),
    Lines { name: String, total: u64, done: u64, last: Instant },
}

impl FetchProgress for Shown {
    fn file(&mut self, file: &str, bytes: u64) {
        match self {
            Shown::Quiet => {}
            Shown::Bar(bar) => {
                let style = ProgressStyle::with_template(
                    "{bar:40} {bytes:>10} of {total_bytes}, {eta} left  {wide_msg}",
                );
                *bar = ProgressBar::new(bytes)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_message(file.to_owned());
            }
            Shown::Lines { name, total, done, last } => {
                if name != file {
                    output::say(&format!("{file}: {:.1} MB", bytes as f64 / 1e6));
                }
                (*name, *total, *done, *last) = (file.to_owned(), bytes, 0, Instant::now());
            }
        }
    }

    fn advance(&mut self, bytes: u64) {
        match self {
            Shown::Quiet => {}
            Shown::Bar(bar) => bar.inc(bytes),
            Shown::Lines { name, total, done, last } => {
                *done += bytes;
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    output::say(&format!(
                        "{name}: {:.1} of {:.1} MB",
                        *done as f64 / 1e6,
                        *total as f64 / 1e6
                    ));
                }
            }
        }
    }
}
