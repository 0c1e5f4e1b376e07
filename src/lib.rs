//! Essential Subspace Merging on any GPU.
#![warn(missing_docs)]

pub mod backend;
#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "merge")]
pub mod calibration;
#[cfg(feature = "merge")]
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "merge")]
pub mod data;
#[cfg(feature = "merge")]
pub mod eval;
#[cfg(feature = "merge")]
mod files;
pub mod kernels;
#[cfg(feature = "merge")]
pub mod linalg;
mod matrix;
#[cfg(feature = "merge")]
pub mod method;
#[cfg(feature = "merge")]
pub mod model;
#[cfg(feature = "merge")]
pub mod pipeline;
#[cfg(feature = "merge")]
pub mod plan;
#[cfg(feature = "merge")]
pub mod recipe;
#[cfg(feature = "merge")]
pub mod report;
#[cfg(feature = "merge")]
pub mod routing;
#[cfg(feature = "cli")]
mod text;
