//! Heads of experts beside a merged encoder: kept as they are, or refitted without labels to the merged model's features
//! ([`head_refit`](crate::method::head_refit)), written into a folder of each one's name, and put on the encoder again.

mod expert;
mod export;
mod kept;
mod refit;
mod report;

pub use expert::Expert;
pub use export::export;
pub use kept::{carry, write};
pub use refit::{Refitted, refit_all};
#[cfg(feature = "cli")]
pub use report::table;
pub use report::{HeadReport, Report, reports};
