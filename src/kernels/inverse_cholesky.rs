use super::library::shaders::INVERSE_CHOLESKY;
use super::library::shaders::params::InverseCholesky as Params;
use super::recorder::{Dispatch, ELEMENTS, require};
use super::view::scratch;
use super::{Recorder, Result, View, copy_block, gemm, syrk};
use crate::matrix::{Op, Shape};

const NAME: &str = "inverse_cholesky";

/// Rows of a diagonal block, as in the shader.
pub(crate) const CHOLESKY_BLOCK: usize = 32;

/// Buffers that [`inverse_cholesky`] works in, of at least [`CholeskyScratch::lens`] elements.
#[derive(Clone, Copy, Debug)]
pub struct CholeskyScratch<'a> {
    /// What is left to factor.
    pub work: &'a wgpu::Buffer,
    /// A block column of the factor.
    pub column: &'a wgpu::Buffer,
    /// A block row of the inverse.
    pub row: &'a wgpu::Buffer,
    /// The inverse of a diagonal block, twice: as it is, and as the rows below need it.
    pub inverse: &'a wgpu::Buffer,
}

impl<'a> CholeskyScratch<'a> {
    /// Buffers of these lengths on a device.
    pub fn allocate(device: &wgpu::Device, batch: usize, n: usize) -> [wgpu::Buffer; 4] {
        Self::lens(batch, n).map(|elements| scratch(device, elements))
    }

    /// What [`allocate`](Self::allocate) gave.
    pub fn of([work, column, row, inverse]: &'a [wgpu::Buffer; 4]) -> Self {
        CholeskyScratch { work, column, row, inverse }
    }

    /// Elements of `work`, `column`, `row` and `inverse` for a batch of matrices of order `n`.
    pub fn lens(batch: usize, n: usize) -> [usize; 4] {
        [
            batch * n * n,
            batch * n * CHOLESKY_BLOCK,
            batch * CHOLESKY_BLOCK * n,
            batch * 2 * CHOLESKY_BLOCK * CHOLESKY_BLOCK,
        ]
    }
}

/// The lower triangular `w` with `w g w^T = I` for symmetric positive (semi-)definite `g`: with `S = diag(g)^(-1/2)` and
/// `L L^T = S g S`, `w = L^(-1) S`. Pivots below `smallest` are lifted to it, and the column of `L` below them is zero:
/// [`gram_pivot`] for Gram matrices, less where `g` is known to be well conditioned. A zero on the diagonal of `g` gives a
/// zero row and column of `w`.
///
/// Blocked: a diagonal block of 32 is factored and inverted in one workgroup, the rest are products.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn inverse_cholesky(
    recorder: &mut Recorder<'_>,
    g: &View<'_>,
    scratch: &CholeskyScratch<'_>,
    w: &View<'_>,
    smallest: f32,
) -> Result<()> {
    let Shape { rows: n, cols, .. } = g.shape;
    require(n == cols && w.shape == g.shape, NAME, || format!("g is {}, w is {}", g.shape, w.shape))?;
    if g.shape.is_empty() {
        return Ok(());
    }
    equilibrate(recorder, g, scratch, w)?;
    (0..n).step_by(CHOLESKY_BLOCK).try_for_each(|first| eliminate(recorder, g, scratch, w, first, smallest))
}

/// The pivot below which a Gram matrix of `n` unit vectors in f32 shows its rounding and nothing else: `8 n 2^-24`.
pub fn gram_pivot(n: usize) -> f32 {
    8.0 * n as f32 * f32::EPSILON / 2.0
}

/// The first step of [`inverse_cholesky`].
pub(crate) fn equilibrate(
    recorder: &mut Recorder<'_>,
    g: &View<'_>,
    scratch: &CholeskyScratch<'_>,
    w: &View<'_>,
) -> Result<()> {
    step(recorder, "equilibrate", g, scratch, w, 0..0, 0.0)
}

/// The step of [`inverse_cholesky`] that finishes the block of rows at `first` and takes it out of the rows below.
pub(crate) fn eliminate(
    recorder: &mut Recorder<'_>,
    g: &View<'_>,
    scratch: &CholeskyScratch<'_>,
    w: &View<'_>,
    first: usize,
    smallest: f32,
) -> Result<()> {
    let Shape { batch, rows: n, .. } = g.shape;
    let end = n.min(first + CHOLESKY_BLOCK);
    let (block, below) = (first..end, end..n);
    step(recorder, "factor", g, scratch, w, block.clone(), smallest)?;
    let both = View::packed(scratch.inverse, Shape::new(batch, 2 * CHOLESKY_BLOCK, CHOLESKY_BLOCK))
        .cols(0..block.len());
    let inverse = both.rows(0..block.len());
    let inverse_for_below = both.rows(CHOLESKY_BLOCK..CHOLESKY_BLOCK + block.len());

    // The block's rows of w: L_jj^(-1) times what the rows above left of S.
    let done = w.block(0..batch, block.clone(), 0..end);
    let row = View::packed(scratch.row, done.shape);
    gemm(recorder, 1.0, &inverse, Op::None, &done, Op::None, 0.0, &row)?;
    copy_block(recorder, &row, &done)?;

    // L_ij for the rows below, and what it takes from them.
    let work = View::packed(scratch.work, g.shape);
    let left = work.block(0..batch, below.clone(), block);
    let column = View::packed(scratch.column, left.shape);
    gemm(recorder, 1.0, &left, Op::None, &inverse_for_below, Op::Transpose, 0.0, &column)?;
    syrk(recorder, -1.0, &column, Op::None, 1.0, &work.block(0..batch, below.clone(), below.clone()))?;
    gemm(recorder, -1.0, &column, Op::None, &row, Op::None, 1.0, &w.block(0..batch, below, 0..end))
}

/// Encodes one of the shader's entry points for the diagonal block `block`.
fn step(
    recorder: &mut Recorder<'_>,
    entry: &'static str,
    g: &View<'_>,
    scratch: &CholeskyScratch<'_>,
    w: &View<'_>,
    block: std::ops::Range<usize>,
    smallest: f32,
) -> Result<()> {
    let Shape { batch, rows: n, .. } = g.shape;
    let factor = entry == "factor";
    let from = recorder.window(NAME, g)?;
    let work = recorder.window(NAME, &View::packed(scratch.work, g.shape))?;
    let to = recorder.window(NAME, w)?;
    let inverse = View::packed(scratch.inverse, Shape::new(batch, 2 * CHOLESKY_BLOCK, CHOLESKY_BLOCK));
    let inverse = recorder.window(NAME, &inverse)?;
    let all = [(1, &from), (2, &work), (3, &to)];
    let diagonal = [(2, &work), (4, &inverse)];
    let threads = if factor { (batch, 1) } else { (g.shape.len(), ELEMENTS) };
    let groups = recorder.grid(NAME, threads.0 as u64, threads.1)?;
    recorder.dispatch(Dispatch {
        shader: &INVERSE_CHOLESKY,
        entry,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params {
            n: n as u32,
            batch: batch as u32,
            g_offset: from.first,
            g_row_stride: g.row_stride as u32,
            g_batch_stride: g.batch_stride as u32,
            w_offset: to.first,
            w_row_stride: w.row_stride as u32,
            w_batch_stride: w.batch_stride as u32,
            first: block.start as u32,
            size: block.len() as u32,
            smallest,
        },
        windows: if factor { &diagonal } else { &all },
        groups,
    });
    Ok(())
}
