//! What was measured, and its file.

use super::{Case, Error, Result, Times};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The form of the file.
const FORMAT: &str = "esmerge-bench-1";

/// What the device can do at most, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// 1e9 floating-point operations a second, of multiply-adds.
    pub gflops: f64,
    /// 1e9 bytes a second, read and written, of a copy.
    pub gbytes: f64,
}

/// One case, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Its kernel.
    pub kernel: String,
    /// Its size.
    pub size: String,
    /// The type of what is stored.
    pub dtype: String,
    /// Floating-point operations of a run, by the usual count; 0 where there is none.
    pub flops: f64,
    /// Bytes a run has to move; 0 for algorithms.
    pub bytes: f64,
    /// Seconds of a run.
    pub seconds: Times,
    /// Distance from what float64 gives, relative to it; none in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Measurement {
    pub(super) fn new(case: &Case, seconds: Times, error: Option<f64>) -> Measurement {
        Measurement {
            kernel: case.kernel.name().to_owned(),
            size: case.size.to_string(),
            dtype: case.dtype.to_string(),
            flops: case.flops(),
            bytes: case.bytes(),
            seconds,
            error,
        }
    }

    /// 1e9 floating-point operations a second, by the median.
    pub fn gflops(&self) -> f64 {
        self.flops / self.seconds.median / 1e9
    }

    /// 1e9 bytes a second, by the median.
    pub fn gbytes(&self) -> f64 {
        self.bytes / self.seconds.median / 1e9
    }

    /// Whether it is the same case as another.
    pub fn is_of(&self, other: &Measurement) -> bool {
        (&self.kernel, &self.size, &self.dtype) == (&other.kernel, &other.size, &other.dtype)
    }
}

/// Everything measured in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `esmerge-bench-1`
    pub format: String,
    /// Of this program.
    pub version: String,
    /// Adapter and driver.
    pub device: String,
    /// Who kept the time of kernels; that of algorithms is the host's.
    pub clock: String,
    /// What the device can do.
    pub peak: Peak,
    /// Every case.
    pub results: Vec<Measurement>,
}

impl Report {
    pub(super) fn new(device: String, clock: &str, peak: Peak, results: Vec<Measurement>) -> Report {
        let (format, version) = (FORMAT.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Report { format, version, device, clock: clock.to_owned(), peak, results }
    }

    /// Reads what [`write`](Report::write) wrote.
    ///
    /// # Errors
    /// If there is no such file, or it is another.
    pub fn read(path: &Path) -> Result<Report> {
        let path = path.to_owned();
        let text = match crate::host::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(Error::File { action: "read", path, source }),
        };
        match serde_json::from_str::<Report>(&text) {
            Ok(report) if report.format == FORMAT => Ok(report),
            Ok(report) => Err(Error::Format { path, reason: format!("its format is '{}'", report.format) }),
            Err(error) => Err(Error::Format { path, reason: error.to_string() }),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let error = |source| Error::File { action: "write", path: path.to_owned(), source };
        let mut text = serde_json::to_string_pretty(self).map_err(|e| error(e.into()))?;
        text.push('\n');
        crate::host::fs::write(path, text).map_err(error)
    }
}
