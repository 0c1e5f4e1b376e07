use std::fmt;

/// Why a kernel was not encoded. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Operands that do not fit together, or a view that reaches past its buffer; the text says which.
    Operands {
        /// The kernel.
        kernel: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A view spans more than one binding may; split the work into smaller views.
    Binding {
        /// The kernel.
        kernel: &'static str,
        /// Bytes that the view spans.
        bytes: u64,
        /// The device's limit.
        limit: u64,
    },
    /// More workgroups than one dispatch may have; split the work.
    Workgroups {
        /// The kernel.
        kernel: &'static str,
        /// Workgroups asked for.
        count: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Operands { kernel, reason } => write!(f, "{kernel}: {reason}"),
            Error::Binding { kernel, bytes, limit } => {
                write!(f, "{kernel}: an operand spans {bytes} bytes, but this device binds at most {limit}")
            }
            Error::Workgroups { kernel, count } => {
                write!(f, "{kernel}: {count} workgroups are more than this device dispatches at once")
            }
        }
    }
}

impl std::error::Error for Error {}
