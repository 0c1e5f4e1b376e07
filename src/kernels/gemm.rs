use super::library::Shader;
use super::library::shaders::{GEMM, GEMM_DIRECT};
use super::recorder::{Dispatch, require};
use super::{Products, Recorder, Result, View};
use crate::matrix::{Op, Shape};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles: u32,
    a_offset: u32,
    a_row_stride: u32,
    a_batch_stride: u32,
    b_offset: u32,
    b_row_stride: u32,
    b_batch_stride: u32,
    c_offset: u32,
    c_row_stride: u32,
    c_batch_stride: u32,
    alpha: f32,
    beta: f32,
}

/// Tiles of 64 x 64 that keep a GPU busy. Where there are fewer, tiles of 32 x 32 spread the work over more of it.
const ENOUGH_TILES: usize = 128;

/// The shader of a product, and the shape of its work.
struct Plan {
    shader: &'static Shader,
    entry: &'static str,
    /// Rows and columns of a tile.
    tile: usize,
    /// Tiles of one matrix of the batch.
    tiles: usize,
}

impl Plan {
    /// The one place where this is chosen.
    fn new(products: Products, p: &Product<'_>) -> Self {
        let tiles = |tile: usize| {
            let (down, across) = (p.c.shape.rows.div_ceil(tile), p.c.shape.cols.div_ceil(tile));
            if p.triangular { down * (down + 1) / 2 } else { down * across }
        };
        match products {
            Products::Direct => {
                Plan { shader: &GEMM_DIRECT, entry: "gemm_direct", tile: 64, tiles: tiles(64) }
            }
            Products::Tiled => {
                let tile = if p.c.shape.batch * tiles(64) < ENOUGH_TILES { 32 } else { 64 };
                Plan { shader: &GEMM, entry: "gemm", tile, tiles: tiles(tile) }
            }
        }
    }

    fn constants(&self, p: &Product<'_>) -> Vec<(&'static str, f64)> {
        let flag = |set: bool| f64::from(u8::from(set));
        let mut constants = vec![
            ("TRANSPOSE_A", flag(p.op_a == Op::Transpose)),
            ("TRANSPOSE_B", flag(p.op_b == Op::Transpose)),
            ("TRIANGULAR", flag(p.triangular)),
        ];
        if self.entry == "gemm" {
            constants.push(("SIDE", self.tile as f64 / 4.0));
        }
        constants
    }
}

/// A product about to be encoded.
struct Product<'a> {
    name: &'static str,
    alpha: f32,
    a: View<'a>,
    op_a: Op,
    b: View<'a>,
    op_b: Op,
    beta: f32,
    c: View<'a>,
    triangular: bool,
}

/// `c = alpha op(a) op(b) + beta c` for each member of the batch. With `beta = 0` what `c` held is not read, NaN
/// included. One `a` or `b` may stand for all members of the batch ([`View::repeated`]).
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
#[allow(clippy::too_many_arguments)] // BLAS's own
pub fn gemm(
    recorder: &mut Recorder<'_>,
    alpha: f32,
    a: &View<'_>,
    op_a: Op,
    b: &View<'_>,
    op_b: Op,
    beta: f32,
    c: &View<'_>,
) -> Result<()> {
    let ((m, k), (k_b, n)) = (op_a.apply(a.shape), op_b.apply(b.shape));
    let batch = c.shape.batch;
    let fits =
        k == k_b && c.shape == Shape::new(batch, m, n) && a.shape.batch == batch && b.shape.batch == batch;
    require(fits, "gemm", || {
        format!("a is {} ({op_a:?}), b is {} ({op_b:?}), c is {}", a.shape, b.shape, c.shape)
    })?;
    let (a, b, c) = (*a, *b, *c);
    encode(recorder, &Product { name: "gemm", alpha, a, op_a, b, op_b, beta, c, triangular: false })
}

/// The symmetric rank-k update `c = alpha op(x) op(x)^T + beta c`: half the work of [`gemm`], the whole of `c` written,
/// exactly symmetric. Only the lower triangle of `c` is read.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn syrk(
    recorder: &mut Recorder<'_>,
    alpha: f32,
    x: &View<'_>,
    op: Op,
    beta: f32,
    c: &View<'_>,
) -> Result<()> {
    let (n, _) = op.apply(x.shape);
    let fits = c.shape == Shape::new(x.shape.batch, n, n);
    require(fits, "syrk", || format!("x is {} ({op:?}), c is {}", x.shape, c.shape))?;
    let other = if op == Op::None { Op::Transpose } else { Op::None };
    let (a, b, c) = (*x, *x, *c);
    encode(recorder, &Product { name: "syrk", alpha, a, op_a: op, b, op_b: other, beta, c, triangular: true })
}

/// One dispatch, or several where the batch is longer than a dispatch may be deep.
fn encode(recorder: &mut Recorder<'_>, p: &Product<'_>) -> Result<()> {
    if p.c.shape.is_empty() {
        return Ok(());
    }
    let deepest = recorder.kernels().limits().max_compute_workgroups_per_dimension as usize;
    let batch = p.c.shape.batch;
    for first in (0..batch).step_by(deepest) {
        let part = first..batch.min(first + deepest);
        let (a, b, c) = (p.a.batches(part.clone()), p.b.batches(part.clone()), p.c.batches(part));
        encode_part(recorder, &Product { a, b, c, ..*p })?;
    }
    Ok(())
}

fn encode_part(recorder: &mut Recorder<'_>, p: &Product<'_>) -> Result<()> {
    let plan = Plan::new(recorder.kernels().products(), p);
    let (_, k) = p.op_a.apply(p.a.shape);
    let [x, y, _] = recorder.grid(p.name, plan.tiles as u64, 1)?;
    let (a, b) = (recorder.window(p.name, &p.a)?, recorder.window(p.name, &p.b)?);
    let c = recorder.window(p.name, &p.c)?;
    recorder.dispatch(Dispatch {
        shader: plan.shader,
        entry: plan.entry,
        constants: &plan.constants(p),
        params: Params {
            m: p.c.shape.rows as u32,
            n: p.c.shape.cols as u32,
            k: k as u32,
            tiles: plan.tiles as u32,
            a_offset: a.first,
            a_row_stride: p.a.row_stride as u32,
            a_batch_stride: p.a.batch_stride as u32,
            b_offset: b.first,
            b_row_stride: p.b.row_stride as u32,
            b_batch_stride: p.b.batch_stride as u32,
            c_offset: c.first,
            c_row_stride: p.c.row_stride as u32,
            c_batch_stride: p.c.batch_stride as u32,
            alpha: p.alpha,
            beta: p.beta,
        },
        windows: &[(1, &a), (2, &b), (3, &c)],
        groups: [x, y, p.c.shape.batch as u32],
    });
    Ok(())
}
