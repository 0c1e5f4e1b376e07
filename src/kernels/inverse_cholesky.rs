use super::gemm::gemm_trapezoid;
use super::recorder::{Window, WindowMut, require};
use super::shaders::inverse_cholesky::{self as shader, EQUILIBRATE, FACTOR, PANEL, Params};
use super::view::scratch;
use super::{Gemm, Recorder, Result, View};
use crate::matrix::{Op, Shape};

const NAME: &str = "inverse_cholesky";

/// Rows of a diagonal block.
const BLOCK: usize = shader::SIDE as usize;

/// Rows of a panel: what it takes out of the rows below is one product of that depth.
pub(crate) const CHOLESKY_PANEL: usize = 4 * BLOCK;

/// Buffers that [`inverse_cholesky`] works in, of at least [`CholeskyScratch::lens`] elements.
#[derive(Clone, Copy, Debug)]
pub struct CholeskyScratch<'a> {
    /// What is left to factor, and what will be the inverse.
    pub work: &'a wgpu::Buffer,
    /// A panel's own part of the factor.
    pub column: &'a wgpu::Buffer,
    /// A panel's rows of the inverse, and its columns of the factor.
    pub row: &'a wgpu::Buffer,
    /// The inverse of a diagonal block, thrice: as it is, as the rows below need it, and as the result has it.
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
        Self::shapes(batch, n).map(|shape| shape.len())
    }

    /// What is in them: matrices whose rows are whole fours.
    fn shapes(batch: usize, n: usize) -> [Shape; 4] {
        let (order, width) = (n.next_multiple_of(4), panel_width(n));
        [(order, order), (width, width), (width, order), (3 * BLOCK, BLOCK)]
            .map(|(rows, cols)| Shape::new(batch, rows, cols))
    }
}

fn panel_width(n: usize) -> usize {
    n.next_multiple_of(BLOCK).min(CHOLESKY_PANEL)
}

/// The lower triangular `w` with `w g w^T = I` for symmetric positive (semi-)definite `g`: with `S = diag(g)^(-1/2)` and
/// `L L^T = S g S`, `w = L^(-1) S`. Pivots below `smallest` are lifted to it, and the column of `L` below them is zero:
/// [`gram_pivot`] for Gram matrices, less where `g` is known to be well conditioned. A zero on the diagonal of `g` gives a
/// zero row and column of `w`.
///
/// Blocked: a diagonal block of 32 is factored and inverted in one workgroup, the rest are products: two dispatches a block, and
/// one for every four of them.
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
    (0..n).step_by(CHOLESKY_PANEL).try_for_each(|start| eliminate(recorder, g, scratch, w, start, smallest))
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
    Steps::new(recorder, g, scratch, w)?.equilibrate(recorder)
}

/// The step of [`inverse_cholesky`] that finishes the panel of rows at `start` and takes it out of the rows below.
pub(crate) fn eliminate(
    recorder: &mut Recorder<'_>,
    g: &View<'_>,
    scratch: &CholeskyScratch<'_>,
    w: &View<'_>,
    start: usize,
    smallest: f32,
) -> Result<()> {
    let Shape { batch, rows: n, .. } = g.shape;
    let mut steps = Steps::new(recorder, g, scratch, w)?;
    let end = n.min(start + CHOLESKY_PANEL);
    for first in (start..end).step_by(BLOCK) {
        steps.params = Params { start: start as u32, first: first as u32, smallest, ..steps.params };
        steps.factor(recorder)?;
        steps.panel(recorder)?;
    }
    if end == n {
        return Ok(());
    }
    let [work, _, row, _] = CholeskyScratch::shapes(batch, n);
    let (left, panel) = (View::packed(scratch.work, work), View::packed(scratch.row, row));
    let (below, left) = (panel.cols(end..row.cols), left.rows(end..work.rows));
    let product = Gemm::new(below, Op::Transpose, panel, Op::None, left);
    gemm_trapezoid(recorder, &Gemm { alpha: -1.0, beta: 1.0, ..product })
}

/// The shader's entry points, all over the same operands.
struct Steps<'a> {
    params: Params,
    g: Window<'a>,
    work: WindowMut<'a>,
    w: WindowMut<'a>,
    inverse: WindowMut<'a>,
    column: WindowMut<'a>,
    row: WindowMut<'a>,
}

impl<'a> Steps<'a> {
    fn new(
        recorder: &Recorder<'_>,
        g: &View<'a>,
        scratch: &CholeskyScratch<'a>,
        w: &View<'a>,
    ) -> Result<Self> {
        let Shape { batch, rows: n, .. } = g.shape;
        let [work, column, row, inverse] = CholeskyScratch::shapes(batch, n);
        let (from, to) = (recorder.window(NAME, g)?, recorder.window_mut(NAME, w)?);
        let params = Params {
            n: n as u32,
            batch: batch as u32,
            fours: n.div_ceil(4) as u32,
            g_offset: from.first,
            g_row_stride: g.row_stride as u32,
            g_batch_stride: g.batch_stride as u32,
            w_offset: to.first,
            w_row_stride: w.row_stride as u32,
            w_batch_stride: w.batch_stride as u32,
            width: panel_width(n) as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        Ok(Steps {
            params,
            g: from,
            work: recorder.window_mut(NAME, &View::packed(scratch.work, work))?,
            w: to,
            inverse: recorder.window_mut(NAME, &View::packed(scratch.inverse, inverse))?,
            column: recorder.window_mut(NAME, &View::packed(scratch.column, column))?,
            row: recorder.window_mut(NAME, &View::packed(scratch.row, row))?,
        })
    }

    fn equilibrate(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Params { batch, fours, .. } = self.params;
        let entry = EQUILIBRATE.on(shader::Equilibrate { g: self.g, work: self.work });
        recorder.dispatch_threads(
            NAME,
            entry,
            self.params,
            u64::from(batch) * 4 * u64::from(fours).pow(2),
            EQUILIBRATE.workgroup,
        )
    }

    fn factor(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Steps { g, work, inverse, column, .. } = *self;
        let entry = FACTOR.on(shader::Factor { g, work, inverse, column });
        recorder.dispatch_threads(NAME, entry, self.params, self.params.batch.into(), 1)
    }

    fn panel(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Steps { params: Params { n, batch, .. }, work, w, inverse, column, row, .. } = *self;
        let entry = PANEL.on(shader::Panel { work, w, inverse, column, row });
        recorder.dispatch_threads(
            NAME,
            entry,
            self.params,
            u64::from(batch) * u64::from(n.div_ceil(BLOCK as u32)),
            1,
        )
    }
}
