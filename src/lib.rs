//! Merges fine-tuned models of one pre-trained checkpoint into one, by Essential Subspace Merging and by simpler methods, on any
//! GPU (WGSL kernels on [wgpu]) or on the CPU.
//!
//! | feature | what it brings | needs |
//! |---|---|---|
//! | none (`default-features = false`) | [`kernels`], the WGSL kernels for a [`wgpu::Device`] of yours; [`backend`], batched matrices and their operations on a GPU | [wgpu], bytemuck |
//! | `linalg` | [`linalg`]: orthonormalisation, leading eigenpairs, polar factors, on the GPU | nothing more |
//! | `merge` | [`method`], the merging methods over tensors; [`pipeline`] and what it needs, files and recipes; [`backend::cpu`]; faer for the host's share of [`linalg`] | faer, rayon, safetensors, serde, tokenizers, image and smaller ones |
//! | `bench` | [`bench`](mod@bench), measuring the kernels | nothing more |
//! | `cli` (default) | the command line, [`cli`](mod@cli), and fetching models ([`hub`]) | clap, hf-hub, two for terminals |
//!
//! The version of wgpu that the kernels are made for is re-exported as [`wgpu`].
//!
//! # A merge
//!
//! As `esmerge merge recipe.yaml merged` does it; futures are driven by any executor, here by pollster.
//!
#![cfg_attr(feature = "merge", doc = "```no_run")]
#![cfg_attr(not(feature = "merge"), doc = "```ignore")]
//! use esmerge::backend::gpu::Gpu;
//! use esmerge::checkpoint::OutputDir;
//! use esmerge::pipeline::{Options, Silent, merge};
//! use esmerge::plan::{Family, plan};
//! use esmerge::recipe::{Overrides, Recipe};
//! use std::path::Path;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let recipe = Recipe::open(Path::new("recipe.yaml"), &Overrides::default())?;
//!     let family = Family::open(&recipe)?; // headers and settings are read; weights are streamed later
//!     let plan = plan(&recipe, &family)?; // what happens to every tensor
//!     let options = Options { max_memory: 4 << 30, ..Options::default() };
//!     let output = OutputDir::create(Path::new("merged"), false)?; // gets its name when it is complete
//!     pollster::block_on(async {
//!         let gpu = Gpu::open(None).await?; // or `backend::cpu::Cpu`
//!         merge(&gpu, &recipe, &family, &plan, output, &options, &mut Silent).await?;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Linear algebra
//!
//! [`linalg`] on tensors of [`backend`]; it is the same on both of its implementations.
//!
#![cfg_attr(feature = "linalg", doc = "```no_run")]
#![cfg_attr(not(feature = "linalg"), doc = "```ignore")]
//! use esmerge::backend::gpu::Gpu;
//! use esmerge::backend::{Backend, Op, Shape};
//! use esmerge::linalg::{Accuracy, SymmetricProduct, leading_eigenpairs};
//!
//! /// The 8 principal directions of 1000 points in 64 dimensions, and their share of the variance.
//! async fn principal_directions(points: &[f32]) -> esmerge::backend::Result<(Vec<f32>, f64)> {
//!     let gpu = Gpu::open(None).await?;
//!     let x = gpu.upload(Shape::matrix(1000, 64), points)?;
//!     let c = SymmetricProduct::Factor { x: &x, op: Op::Transpose }; // X^T X, which is not formed
//!     let pairs = leading_eigenpairs(&gpu, c, 8, &[64], Accuracy::Balanced, 0).await?;
//!     let share = pairs.values[0].iter().sum::<f64>() / pairs.traces[0];
//!     Ok((gpu.download(&pairs.basis).await?, share))
//! }
//! ```
//!
//! [`kernels`] has an example without [`backend`]: dispatches in a command encoder of yours.
#![warn(missing_docs)]
#![cfg_attr(not(feature = "cli"), allow(rustdoc::broken_intra_doc_links))] // the table names what is switched off

#[cfg(feature = "merge")]
pub mod adapter;
pub mod backend;
#[cfg(feature = "bench")]
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
#[cfg(feature = "merge")]
pub mod heads;
#[cfg(not(target_family = "wasm"))]
mod host;
#[cfg(target_family = "wasm")]
pub mod host;
#[cfg(feature = "merge")]
pub mod hub;
pub mod kernels;
#[cfg(feature = "linalg")]
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
#[cfg(feature = "merge")]
mod stage;
#[cfg(feature = "cli")]
mod text;

pub use wgpu;
