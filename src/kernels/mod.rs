//! The kernel library: dense f32 linear algebra in WGSL, for any program that has a [`wgpu::Device`].
//!
//! Each kernel is `shaders/<name>.wgsl`, its dispatch in `src/kernels/<name>.rs`, and its twin on the CPU backend.
//! A kernel encodes into the caller's [`wgpu::CommandEncoder`] and works on the caller's buffers, seen through a
//! [`View`]; encoding never submits, never waits and never allocates a storage buffer. Buffers need
//! [`wgpu::BufferUsages::STORAGE`]; a buffer that is written must not be read by the same kernel.
//!
//! ```no_run
//! # fn example(device: &wgpu::Device, queue: &wgpu::Queue, a: &wgpu::Buffer, b: &wgpu::Buffer, c: &wgpu::Buffer)
//! # -> Result<(), esmerge::kernels::Error> {
//! use esmerge::kernels::{Checks, Kernels, Op, Shape, View, gemm};
//!
//! let kernels = Kernels::new(device, Checks::default());
//! let mut encoder = device.create_command_encoder(&Default::default());
//! let mut recorder = kernels.record(&mut encoder);
//! let a = View::packed(a, Shape::matrix(100, 70));
//! let b = View::packed(b, Shape::matrix(100, 70));
//! let c = View::packed(c, Shape::matrix(100, 100));
//! gemm(&mut recorder, 1.0, &a, Op::None, &b, Op::Transpose, 0.0, &c)?;
//! drop(recorder);
//! queue.submit([encoder.finish()]);
//! # Ok(())
//! # }
//! ```

/// Its examples are compiled with those of the sources.
#[cfg(doctest)]
#[doc = include_str!("../../docs/kernels.md")]
struct Guide;

mod across;
mod activate;
mod add_exactly;
mod axpby;
mod checksum;
mod clear_small;
mod copy_block;
mod drop_out;
mod error;
mod gather_rows;
mod gemm;
mod histogram;
mod inverse_cholesky;
mod layer_norm;
mod library;
mod magnitude_sums;
mod mean_rows;
mod pack;
mod parameters;
mod patches;
mod peak_copy;
mod peak_fma;
mod polarize;
mod power;
mod random_normal;
mod recorder;
mod reduce_columns;
mod reduce_rows;
mod rotary;
mod row_divergence;
mod row_ranks;
mod scale;
mod shaders;
mod softmax;
mod stamps;
mod symmetric_eigen;
mod tile;
mod transpose;
mod trim;
mod unit_scale;
mod unpack;
mod view;

pub use crate::matrix::{Across, Chance, Cut, Divide, Dtype, Op, Polarity, Shape};
pub use across::across;
pub use activate::{Activation, activate};
pub use add_exactly::add_exactly;
pub use axpby::axpby;
pub use checksum::{checksum, checksum_of};
pub use clear_small::clear_small;
pub use copy_block::copy_block;
pub use drop_out::drop_out;
pub use error::Error;
pub use gather_rows::gather_rows;
pub use gemm::{Epilogue, Gemm, Operand, Scaling, gemm, gemm_fused, gemm_split, syrk, syrk_split};
pub use histogram::{CountBy, histogram};
pub(crate) use inverse_cholesky::{CHOLESKY_PANEL, eliminate, equilibrate};
pub use inverse_cholesky::{CholeskyScratch, gram_pivot, inverse_cholesky};
pub use layer_norm::layer_norm;
pub use library::{Checks, Kernels, Products};
pub use magnitude_sums::{MAGNITUDE_PIECES, MOST_MAGNITUDES, magnitude_sum, magnitude_sums};
pub use mean_rows::mean_rows;
pub use pack::pack;
pub(crate) use parameters::Parameters;
pub use patches::patches;
pub use peak_copy::peak_copy;
pub use peak_fma::{peak_fma, peak_fma_flops};
pub use polarize::polarize;
pub use power::power;
pub use random_normal::random_normal;
pub use recorder::Recorder;
pub use reduce_columns::{column_chunk, reduce_columns};
pub use reduce_rows::{Terms, reduce_rows, row_chunk};
pub use rotary::rotary;
pub use row_divergence::row_divergence;
pub use row_ranks::row_ranks;
pub use scale::{divide_rows, scale_batches, scale_columns, scale_rows};
pub use softmax::{Mask, softmax};
pub use stamps::Stamped;
pub(crate) use stamps::Stamps;
pub use symmetric_eigen::{EigenScratch, LARGEST_EIGENPROBLEM, symmetric_eigen};
pub(crate) use symmetric_eigen::{eigen_steps, symmetric_eigen_step};
pub use tile::{Choice, ShapeClass, Tile};
pub use transpose::transpose;
pub use trim::trim;
pub use unit_scale::unit_scale;
pub use unpack::unpack;
pub use view::{Raw, View};

/// Result of encoding a kernel.
pub type Result<T> = std::result::Result<T, Error>;
