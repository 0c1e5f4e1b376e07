//! Is a model any good: accuracy on tasks, with its uncertainty, and how much its features agree with another's.

mod accuracy;
mod alpha;
mod cka;
mod earlier;
mod report;
mod run;

pub use accuracy::{Accuracy, Difference, NotFinite, predict, wilson_interval};
pub(crate) use accuracy::{argmax, before_head};
pub use alpha::{PROBES, Probe, golden_section, peak};
pub use cka::linear_cka;
pub use earlier::Earlier;
#[cfg(feature = "cli")]
pub use report::table;
pub use report::{Report, TaskReport};
pub use run::{Evaluator, Features};
