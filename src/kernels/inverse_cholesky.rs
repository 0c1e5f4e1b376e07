use super::gemm::gemm_trapezoid;
use super::library::shaders::INVERSE_CHOLESKY;
use super::library::shaders::params::InverseCholesky as Params;
use super::recorder::{Dispatch, ELEMENTS, Window, require};
use super::view::scratch;
use super::{Gemm, Recorder, Result, View};
use crate::matrix::{Op, Shape};

const NAME: &str = "inverse_cholesky";

/// Rows of a diagonal block, as in the shader.
const BLOCK: usize = 32;

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
    Steps::new(recorder, g, scratch, w)?.encode(recorder, "equilibrate")
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
        steps.encode(recorder, "factor")?;
        steps.encode(recorder, "panel")?;
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
    work: Window<'a>,
    w: Window<'a>,
    inverse: Window<'a>,
    column: Window<'a>,
    row: Window<'a>,
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
        let (from, to) = (recorder.window(NAME, g)?, recorder.window(NAME, w)?);
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
            work: recorder.window(NAME, &View::packed(scratch.work, work))?,
            w: to,
            inverse: recorder.window(NAME, &View::packed(scratch.inverse, inverse))?,
            column: recorder.window(NAME, &View::packed(scratch.column, column))?,
            row: recorder.window(NAME, &View::packed(scratch.row, row))?,
        })
    }

    fn encode(&self, recorder: &mut Recorder<'_>, entry: &'static str) -> Result<()> {
        let equilibrate = [(1, &self.g), (2, &self.work)];
        let factor = [(1, &self.g), (2, &self.work), (4, &self.inverse), (5, &self.column)];
        let panel = [(2, &self.work), (3, &self.w), (4, &self.inverse), (5, &self.column), (6, &self.row)];
        let Params { n, batch, fours, .. } = self.params;
        let batch = u64::from(batch);
        let (windows, groups): (&[_], _) = match entry {
            "equilibrate" => {
                (&equilibrate, recorder.grid(NAME, batch * 4 * u64::from(fours).pow(2), ELEMENTS)?)
            }
            "factor" => (&factor, recorder.grid(NAME, batch, 1)?),
            _ => (&panel, recorder.grid(NAME, batch * u64::from(n.div_ceil(BLOCK as u32)), 1)?),
        };
        let constants: &[_] =
            if entry == "equilibrate" { &[("WORKGROUP", f64::from(ELEMENTS))] } else { &[] };
        let params = self.params;
        recorder.dispatch(Dispatch { shader: &INVERSE_CHOLESKY, entry, constants, params, windows, groups });
        Ok(())
    }
}
