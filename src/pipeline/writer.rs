//! The output's files are written while the next weights are made.

use super::flow::Flow;
use super::reader::Stored;
use super::{Error, Progress};
use crate::backend::Dtype;
use crate::checkpoint::journal::Ledger;
use crate::checkpoint::{self, TensorWriter, first_not_finite};
use crate::stage::Behind;
use serde_json::Value;

/// What is to be written.
enum Job {
    /// The next file.
    File(TensorWriter),
    /// Bytes as they are.
    Raw(Stored),
    /// New values of a tensor, from `first` on, which must be numbers.
    Values { tensor: String, first: usize, dtype: Dtype, bytes: Vec<u8> },
    /// The file is complete; its name in the ledger, and what is said of it there.
    End { name: String, said: Value },
}

/// Why writing stopped.
enum Failed {
    File(checkpoint::Error),
    Value { tensor: String, index: usize, value: &'static str, dtype: Dtype },
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        match failed {
            Failed::File(error) => error.into(),
            Failed::Value { tensor, index, value, dtype } => Error::Overflow { tensor, index, value, dtype },
        }
    }
}

/// Writes files one after the other, beside the caller's work.
pub(super) struct Writer(Behind<Job, Failed>);

impl Writer {
    /// A writer for which as many bytes may wait as the run's limits say; with none, it writes at once.
    pub fn new(flow: &Flow, ledger: Ledger) -> Writer {
        let mut file = None;
        Writer(Behind::new("writing", flow.limits.behind, move |job| run(&mut file, job, &ledger)))
    }

    /// Begins a file.
    pub fn begin(&mut self, file: TensorWriter, progress: &mut dyn Progress) -> Result<(), Error> {
        self.push(Job::File(file), 0, progress)
    }

    /// Appends bytes.
    pub fn raw(&mut self, bytes: Stored, progress: &mut dyn Progress) -> Result<(), Error> {
        let len = bytes.len() as u64;
        self.push(Job::Raw(bytes), len, progress)
    }

    /// Appends values of a tensor, from `first` on.
    pub fn values(
        &mut self,
        tensor: &str,
        first: usize,
        (dtype, bytes): (Dtype, Vec<u8>),
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let (tensor, len) = (tensor.to_owned(), bytes.len() as u64);
        self.push(Job::Values { tensor, first, dtype, bytes }, len, progress)
    }

    /// Completes the file, which is then done in the ledger.
    pub fn end(&mut self, name: String, said: Value, progress: &mut dyn Progress) -> Result<(), Error> {
        self.push(Job::End { name, said }, 0, progress)
    }

    /// Waits until everything is written.
    pub fn flush(&mut self, progress: &mut dyn Progress) -> Result<(), Error> {
        progress.advance(self.0.flush()?);
        Ok(())
    }

    /// Adds what it took to the run's.
    pub fn finish(self, flow: &mut Flow) {
        flow.writing += self.0.times();
    }

    fn push(&mut self, job: Job, bytes: u64, progress: &mut dyn Progress) -> Result<(), Error> {
        progress.advance(self.0.push(job, bytes)?);
        Ok(())
    }
}

fn run(file: &mut Option<TensorWriter>, job: Job, ledger: &Ledger) -> Result<(), Failed> {
    let bytes = match &job {
        Job::File(_) | Job::End { .. } => &[][..],
        Job::Raw(bytes) => bytes,
        Job::Values { tensor, first, dtype, bytes } => match first_not_finite(*dtype, bytes) {
            Some((index, value)) => {
                let (tensor, index) = (tensor.clone(), first + index);
                return Err(Failed::Value { tensor, index, value, dtype: *dtype });
            }
            None => bytes,
        },
    };
    if let Some(file) = file {
        file.write(bytes).map_err(Failed::File)?;
    }
    match job {
        Job::File(next) => *file = Some(next),
        Job::End { name, said } => {
            if let Some(file) = file.take() {
                let written = file.finish().map_err(Failed::File)?;
                ledger.note_file(&name, written, &said).map_err(Failed::File)?;
            }
        }
        Job::Raw(_) | Job::Values { .. } => {}
    }
    Ok(())
}
