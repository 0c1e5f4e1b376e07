//! Essential Subspace Merging on any GPU.
#![warn(missing_docs)]

pub mod backend;
pub mod kernels;
