use super::recorder::{Dispatch, Window, WindowMut, require};
use super::shaders::symmetric_eigen::{self as shader, ORDER, Params, START, SWEEP};
use super::shaders::symmetric_eigen_blocks::{self as blocks, SOLVE, TURN};
use super::view::scratch;
use super::{Kernels, Products, Recorder, Result, Terms, View, axpby, gemm, reduce_rows, syrk};
use crate::matrix::{Op, Shape};

const NAME: &str = "symmetric_eigen";

/// The largest order that [`symmetric_eigen`] takes.
pub const LARGEST_EIGENPROBLEM: usize = 4096;

/// The largest order for which a workgroup has a matrix to itself. Larger ones are turned block by block by many workgroups.
/// A GPU's are faster together from the order on where the scratch holds the rotations of all pairs of blocks, `n^2 >= SIDE^2
/// ceil(n / SIDE)`; the threads of a software adapter have enough to do with a matrix each.
fn one_workgroup(products: Products) -> usize {
    match products {
        Products::Tiled => 48,
        Products::Direct | Products::Only(_) => 128,
    }
}

/// Sweeps encoded. Matrices that need fewer (most stop after 6 to 8) skip the rest.
const SWEEPS: usize = 12;

/// Sweeps over blocks encoded: their order of rotations takes one or two more where eigenvalues fall geometrically.
const BLOCK_SWEEPS: usize = 14;

/// Rows and columns of a pair of blocks.
const SIDE: usize = blocks::SIDE as usize;

/// Buffers that [`symmetric_eigen`] works in, of at least [`EigenScratch::lens`] elements.
#[derive(Clone, Copy, Debug)]
pub struct EigenScratch<'a> {
    /// The matrices as they become diagonal.
    pub work: &'a wgpu::Buffer,
    /// Eigenvectors.
    pub rotations: &'a wgpu::Buffer,
    /// The products of rotations, then eigenvectors, orthogonal to the last bit.
    pub polished: &'a wgpu::Buffer,
    /// Eigenvalues, unsorted.
    pub values: &'a wgpu::Buffer,
    /// Whether a matrix is still changing, and which parts of it.
    pub rotated: &'a wgpu::Buffer,
}

impl<'a> EigenScratch<'a> {
    /// Buffers of these lengths on a device.
    pub fn allocate(device: &wgpu::Device, batch: usize, n: usize) -> [wgpu::Buffer; 5] {
        Self::lens(batch, n).map(|elements| scratch(device, elements))
    }

    /// What [`allocate`](Self::allocate) gave.
    pub fn of([work, rotations, polished, values, rotated]: &'a [wgpu::Buffer; 5]) -> Self {
        EigenScratch { work, rotations, polished, values, rotated }
    }

    /// Elements of `work`, `rotations`, `polished`, `values` and `rotated` for a batch of matrices of order `n`.
    pub fn lens(batch: usize, n: usize) -> [usize; 5] {
        [batch * n * n, batch * n * n, batch * n * n, batch * n, batch * (3 + n.div_ceil(SIDE))]
    }
}

/// Eigenvalues, descending (`batch x 1 x n`), and eigenvectors as rows (`batch x n x n`) of symmetric matrices of order at
/// most [`LARGEST_EIGENPROBLEM`]: cyclic Jacobi, one Newton-Schulz step that makes the vectors orthogonal again, and
/// eigenvalues as Rayleigh quotients with the original matrix.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn symmetric_eigen(
    recorder: &mut Recorder<'_>,
    a: &View<'_>,
    scratch: &EigenScratch<'_>,
    values: &View<'_>,
    vectors: &View<'_>,
) -> Result<()> {
    for step in eigen_steps(recorder.kernels(), a.shape.rows) {
        symmetric_eigen_step(recorder, step, a, scratch, values, vectors)?;
    }
    Ok(())
}

/// A part of [`symmetric_eigen`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum EigenStep {
    Start,
    /// A sweep of a matrix by its workgroup.
    Sweep,
    /// A round of a sweep over blocks.
    Round {
        sweep: usize,
        round: usize,
    },
    /// Orthogonal vectors, eigenvalues, their order.
    Finish,
}

impl EigenStep {
    /// Of one matrix of order `n`, about.
    pub(crate) fn flops(self, n: usize) -> u64 {
        let n = n as u64;
        match self {
            EigenStep::Start => n * n,
            EigenStep::Sweep => 18 * n * n * n, // six operations for each of n rotations of n rows of three matrices
            EigenStep::Round { .. } => 6 * SIDE as u64 * n * n,
            EigenStep::Finish => 5 * n * n * n,
        }
    }
}

/// The steps of [`symmetric_eigen`], which can be submitted apart.
pub(crate) fn eigen_steps(kernels: &Kernels, n: usize) -> impl Iterator<Item = EigenStep> + use<> {
    let alone = n <= one_workgroup(kernels.products());
    let (sweeps, rounds) = if alone { (SWEEPS, 0) } else { (0, 2 * n.div_ceil(SIDE) - 1) };
    let by_block = (0..BLOCK_SWEEPS)
        .flat_map(move |sweep| (0..rounds).map(move |round| EigenStep::Round { sweep, round }));
    let by_matrix = std::iter::repeat_n(EigenStep::Sweep, sweeps);
    std::iter::once(EigenStep::Start).chain(by_matrix).chain(by_block).chain([EigenStep::Finish])
}

pub(crate) fn symmetric_eigen_step(
    recorder: &mut Recorder<'_>,
    step: EigenStep,
    a: &View<'_>,
    scratch: &EigenScratch<'_>,
    values: &View<'_>,
    vectors: &View<'_>,
) -> Result<()> {
    let Shape { batch, rows: n, cols } = a.shape;
    let fits = n == cols && values.shape == Shape::new(batch, 1, n) && vectors.shape == a.shape;
    require(fits, NAME, || {
        format!("a is {}, values are {}, vectors are {}", a.shape, values.shape, vectors.shape)
    })?;
    require(n <= LARGEST_EIGENPROBLEM, NAME, || format!("order {n} is above {LARGEST_EIGENPROBLEM}"))?;
    if a.shape.is_empty() {
        return Ok(());
    }
    match step {
        EigenStep::Start => Steps::new(recorder, a, scratch, values, vectors)?.start(recorder),
        EigenStep::Sweep => Steps::new(recorder, a, scratch, values, vectors)?.sweep(recorder),
        EigenStep::Round { sweep, round } => turn_blocks(recorder, a.shape, scratch, sweep, round),
        EigenStep::Finish => {
            rayleigh_quotients(recorder, a, scratch)?;
            Steps::new(recorder, a, scratch, values, vectors)?.order(recorder)
        }
    }
}

/// One round: every pair's own matrix, then all that they share.
fn turn_blocks(
    recorder: &mut Recorder<'_>,
    shape: Shape,
    scratch: &EigenScratch<'_>,
    sweep: usize,
    round: usize,
) -> Result<()> {
    let Shape { batch, rows: n, .. } = shape;
    let pairs = n.div_ceil(SIDE);
    let flags = Shape::matrix(1, batch * (3 + pairs));
    let turns = Shape::new(batch, pairs * SIDE, SIDE);
    let work = recorder.window_mut(NAME, &View::packed(scratch.work, shape))?;
    let v = recorder.window_mut(NAME, &View::packed(scratch.rotations, shape))?;
    let turns = recorder.window_mut(NAME, &View::packed(scratch.polished, turns))?;
    let rotated = recorder.window_mut(NAME, &View::packed(scratch.rotated, flags))?;
    let solve = SOLVE.on(blocks::Solve { work, turns, rotated });
    let turn = TURN.on(blocks::Turn { work, v, turns, rotated });
    let params =
        blocks::Params { n: n as u32, batch: batch as u32, sweep: sweep as u32, round: round as u32 };
    // tiles below the diagonal of pairs, in rows folded to one length, and strips of vectors
    let shared = pairs.div_ceil(2) * (pairs - 1) + pairs * pairs;
    for (entry, items) in [(solve, pairs), (turn, shared)] {
        let groups = recorder.grid(NAME, (batch * items) as u64, 1)?;
        recorder.dispatch(Dispatch { entry, constants: &[], params, groups });
    }
    Ok(())
}

/// Makes `polished` of `rotations`, and `values` of `polished`.
fn rayleigh_quotients(recorder: &mut Recorder<'_>, a: &View<'_>, scratch: &EigenScratch<'_>) -> Result<()> {
    let Shape { batch, rows: n, .. } = a.shape;
    let gram = View::packed(scratch.work, a.shape);
    let v = View::packed(scratch.rotations, a.shape);
    let polished = View::packed(scratch.polished, a.shape);
    let values = View::packed(scratch.values, Shape::new(batch, n, 1));

    // V <- (3 V - (V V^T) V) / 2
    syrk(recorder, 1.0, &v, Op::None, 0.0, &gram)?;
    gemm(recorder, -0.5, &gram, Op::None, &v, Op::None, 0.0, &polished)?;
    axpby(recorder, 1.5, &v, 1.0, &polished)?;

    // lambda_i = v_i^T A v_i
    gemm(recorder, 1.0, &polished, Op::None, a, Op::None, 0.0, &v)?;
    reduce_rows(recorder, &v, Terms::Products(polished), n, false, &values)
}

/// The shader's entry points, all over the same operands.
struct Steps<'a> {
    params: Params,
    a: Window<'a>,
    work: WindowMut<'a>,
    rotations: WindowMut<'a>,
    rotated: WindowMut<'a>,
    polished: Window<'a>,
    unsorted: Window<'a>,
    values: WindowMut<'a>,
    vectors: WindowMut<'a>,
}

impl<'a> Steps<'a> {
    fn new(
        recorder: &Recorder<'_>,
        a: &View<'a>,
        scratch: &EigenScratch<'a>,
        values: &View<'a>,
        vectors: &View<'a>,
    ) -> Result<Self> {
        let Shape { batch, rows: n, .. } = a.shape;
        let (packed, row) = (a.shape, Shape::new(batch, 1, n));
        let mut steps = Steps {
            params: bytemuck::Zeroable::zeroed(),
            a: recorder.window(NAME, a)?,
            work: recorder.window_mut(NAME, &View::packed(scratch.work, packed))?,
            rotations: recorder.window_mut(NAME, &View::packed(scratch.rotations, packed))?,
            rotated: recorder
                .window_mut(NAME, &View::packed(scratch.rotated, Shape::matrix(1, 2 * batch)))?,
            polished: recorder.window(NAME, &View::packed(scratch.polished, packed))?,
            unsorted: recorder.window(NAME, &View::packed(scratch.values, row))?,
            values: recorder.window_mut(NAME, values)?,
            vectors: recorder.window_mut(NAME, vectors)?,
        };
        steps.params = Params {
            n: n as u32,
            batch: batch as u32,
            a_offset: steps.a.first,
            a_row_stride: a.row_stride as u32,
            a_batch_stride: a.batch_stride as u32,
            values_offset: steps.values.first,
            values_batch_stride: values.batch_stride as u32,
            vectors_offset: steps.vectors.first,
            vectors_row_stride: vectors.row_stride as u32,
            vectors_batch_stride: vectors.batch_stride as u32,
        };
        Ok(steps)
    }

    fn start(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Steps { a, work, rotations: v, rotated, .. } = *self;
        let entry = START.on(shader::Start { a, work, v, rotated });
        recorder.dispatch_threads(NAME, entry, self.params, self.params.batch.into(), 1)
    }

    fn sweep(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Steps { work, rotations: v, rotated, .. } = *self;
        let entry = SWEEP.on(shader::Sweep { work, v, rotated });
        recorder.dispatch_threads(NAME, entry, self.params, self.params.batch.into(), 1)
    }

    fn order(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let Steps { params: Params { n, batch, .. }, polished: a, unsorted, values, vectors, .. } = *self;
        let entry = ORDER.on(shader::Order { a, unsorted, values, vectors });
        recorder.dispatch_threads(NAME, entry, self.params, u64::from(batch) * u64::from(n), ORDER.workgroup)
    }
}
