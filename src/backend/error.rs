use super::Shape;
use std::fmt;

/// What can go wrong on a device. Written by hand because embedders get this type without any dependency but wgpu.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No adapter answers to the request; the text says what was asked for and lists what there is.
    NoAdapter(String),
    /// The adapter was found but refused a device.
    NoDevice(String),
    /// An allocation failed.
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// A single matrix is larger than the adapter can hold in one buffer.
    TooLarge {
        /// What the memory was for.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The adapter's limit.
        limit: u64,
    },
    /// The device went away: reset by a watchdog, unplugged, or its driver crashed.
    DeviceLost(String),
    /// A submission did not end within so many seconds.
    Silent(u64),
    /// Numbers are not on the host what they were on the device.
    Damaged,
    /// Operands that do not fit together.
    Shape {
        /// The operation.
        operation: &'static str,
        /// Its operands' shapes, in order.
        shapes: Vec<Shape>,
    },
    /// An operation met numbers past what f32 holds, or made of such.
    NotFinite(&'static str),
    /// The result is not defined for these numbers; why, and what to do.
    Undefined(&'static str),
    /// The driver or wgpu reported something else.
    Internal(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoAdapter(text) | Error::NoDevice(text) | Error::Internal(text) => f.write_str(text),
            Error::Undefined(why) => f.write_str(why),
            Error::NotFinite(what) => write!(f, "{what} holds a value that is not finite"),
            Error::OutOfMemory { what, bytes } => {
                write!(
                    f,
                    "the device is out of memory: {} for {what} could not be allocated",
                    mebibytes(*bytes)
                )
            }
            Error::TooLarge { what, bytes, limit } => write!(
                f,
                "{what} needs {} in one buffer, but this adapter allows {}; use --device cpu or another adapter",
                mebibytes(*bytes),
                mebibytes(*limit)
            ),
            Error::DeviceLost(reason) => write!(
                f,
                "the device was lost ({reason}); the driver may have reset it because a dispatch ran too long"
            ),
            Error::Silent(seconds) => write!(
                f,
                "the device has not finished its work after {seconds} s and is taken for hung; if it is only slow, give it less at once with \
                 --submit-flops"
            ),
            Error::Damaged => f.write_str(
                "numbers came from the device otherwise than it had computed them (their checksum differs): its memory, its \
                 connection or its driver is at fault",
            ),
            Error::Shape { operation, shapes } => {
                write!(f, "{operation}: operands do not fit:")?;
                shapes.iter().try_for_each(|s| write!(f, " {s}"))
            }
        }
    }
}

impl Error {
    /// Whether it is the device's fault, so that another device may well do the same work.
    pub fn is_fault_of_device(&self) -> bool {
        match self {
            Error::OutOfMemory { .. }
            | Error::TooLarge { .. }
            | Error::DeviceLost(_)
            | Error::Silent(_)
            | Error::Damaged
            | Error::NoAdapter(_)
            | Error::NoDevice(_)
            | Error::Internal(_) => true,
            Error::Shape { .. } | Error::NotFinite(_) | Error::Undefined(_) => false,
        }
    }
}

impl std::error::Error for Error {}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64)
}
