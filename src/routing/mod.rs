//! The dynamic model of ESM++: in every routed layer a sample goes through the expert whose prototype is nearest to the mean
//! of its own tokens.
//!
//! [`Experts`] is a merged model's folder, read; [`Router`] stands in its forward pass, chooses and adds; [`Decisions`] is
//! what it chose.

mod decisions;
mod experts;
mod groups;
mod report;
mod router;

pub use decisions::{Decisions, Vote};
pub use experts::{Cost, Experts};
pub use report::{Confusion, Report};
#[cfg(feature = "cli")]
pub use report::{short_layers, tables};
pub use router::{Choice, Router};
