use crate::{backend, bench, calibration, checkpoint, data, hub, pipeline, plan, recipe};
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// An error on its way to the user.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    code: u8,
    /// Whether the text is laid out already, as clap's is; else an error is one paragraph.
    laid_out: bool,
}

/// Errors in the command line and in the recipe, as clap has it.
const USAGE: u8 = 2;
/// All others.
const OTHER: u8 = 1;
/// Panics, as Rust has it.
const DEFECT: u8 = 101;

impl Failure {
    fn new(error: impl Display, code: u8) -> Failure {
        Failure { message: error.to_string(), code, laid_out: false }
    }

    /// A command line that asks for what cannot be.
    pub fn usage(message: &str) -> Failure {
        Failure::new(message, USAGE)
    }

    /// Something that went wrong in the end.
    pub fn other(message: &str) -> Failure {
        Failure::new(message, OTHER)
    }

    /// An error of the command line, as clap lays it out.
    pub fn command_line(text: &str) -> Failure {
        Failure { laid_out: true, ..Failure::new(text, USAGE) }
    }

    /// An error of a merge; one that names a layer alone is told with the file that asked for it.
    pub fn of_merge(error: pipeline::Error, path: &Path) -> Failure {
        use pipeline::Error::{Device, NotFinite, Overflow};
        match error {
            Device { .. } | NotFinite { .. } | Overflow { .. } => {
                Failure::new(format!("{}: {error}", path.display()), OTHER)
            }
            other => other.into(),
        }
    }

    /// The same with a word on work that lies in a folder, if there is any.
    pub fn with_kept(mut self, folder: &Path) -> Failure {
        if checkpoint::journal::is_in(folder) {
            self.message +=
                &format!(" (what is done lies in {}; the same command goes on from there)", folder.display());
        }
        self
    }

    /// A panic.
    pub fn defect(message: String) -> Failure {
        Failure::new(message, DEFECT)
    }

    /// Prints the error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let text = self.message.trim_end();
        match self.laid_out {
            true => super::output::say(&crate::text::shortened(text)),
            false => super::output::error(&text.replace('\n', "\\n")), // a line break comes from a file
        }
        ExitCode::from(self.code)
    }
}

impl From<recipe::Error> for Failure {
    fn from(error: recipe::Error) -> Failure {
        Failure::new(error, USAGE)
    }
}

impl From<plan::Error> for Failure {
    fn from(error: plan::Error) -> Failure {
        let code = if matches!(error, plan::Error::Recipe(_)) { USAGE } else { OTHER };
        Failure::new(error, code)
    }
}

impl From<pipeline::Error> for Failure {
    fn from(error: pipeline::Error) -> Failure {
        match error {
            pipeline::Error::Plan(error) => error.into(),
            other => Failure::new(other, OTHER),
        }
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Failure {
        Failure::new(error, OTHER)
    }
}

impl From<hub::Missing> for Failure {
    fn from(missing: hub::Missing) -> Failure {
        Failure::new(missing, OTHER)
    }
}

impl From<data::Error> for Failure {
    fn from(error: data::Error) -> Failure {
        Failure::new(error, OTHER)
    }
}

impl From<calibration::Error> for Failure {
    fn from(error: calibration::Error) -> Failure {
        Failure::new(error, OTHER)
    }
}

impl From<backend::Error> for Failure {
    fn from(error: backend::Error) -> Failure {
        Failure::new(error, OTHER)
    }
}

impl From<bench::Error> for Failure {
    fn from(error: bench::Error) -> Failure {
        let code = if matches!(error, bench::Error::Usage(_)) { USAGE } else { OTHER };
        Failure::new(error, code)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::new(error, OTHER)
    }
}
