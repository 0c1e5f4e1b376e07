//! Products, cut where an operand is too large to bind or a dispatch would run too long.

use super::split::{Bindings, halves};
use super::{Gpu, Result};
use crate::kernels::{self, Choice, Gemm, ShapeClass, View, gemm_split, syrk, syrk_split};
use crate::matrix::{Dtype, Op, Shape};
use std::ops::Range;

/// Where a product is cut, but for a remainder: the rows and columns of the largest tile.
const TILE: usize = 128;

/// The deepest product that is cut for its length alone: less would leave more memory traffic than arithmetic.
const SLAB: usize = 512;

/// `c = alpha op(a) op(b) + beta c`
#[derive(Clone)]
pub(super) struct Product<'a> {
    pub alpha: f32,
    pub a: View<'a>,
    pub op_a: Op,
    pub b: View<'a>,
    pub op_b: Op,
    pub beta: f32,
    pub c: View<'a>,
}

/// One of the directions of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Batch,
    /// Rows of `op(a)` and `c`.
    M,
    /// Columns of `op(b)` and `c`.
    N,
    /// Columns of `op(a)`, rows of `op(b)`.
    K,
}

use Direction::{Batch, K, M, N};

impl<'a> Product<'a> {
    /// Rows, columns and depth.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let (m, k) = self.op_a.apply(self.a.shape);
        (m, self.c.shape.cols, k)
    }

    /// The class that decides how it is computed.
    pub fn class(&self, triangular: bool) -> ShapeClass {
        let batch = self.c.shape.batch;
        ShapeClass::new(batch, self.sizes().into(), [self.op_a, self.op_b], [Dtype::F32; 2], triangular)
    }

    fn as_kernel(&self) -> Gemm<'a> {
        let Product { alpha, a, op_a, b, op_b, beta, c } = *self;
        Gemm { alpha, beta, ..Gemm::new(a, op_a, b, op_b, c) }
    }

    fn flops(&self) -> u64 {
        let (m, n, k) = self.sizes();
        2 * self.c.shape.batch as u64 * m as u64 * n as u64 * k.max(1) as u64
    }

    /// The direction in which it must be cut, if any.
    fn cut(&self, bindings: Bindings, flops: u64) -> Option<Direction> {
        let (m, n, k) = self.sizes();
        let of_a = if self.op_a == Op::None { (M, K) } else { (K, M) };
        let of_b = if self.op_b == Op::None { (K, N) } else { (N, K) };
        for (view, (down, across)) in [(&self.a, of_a), (&self.b, of_b), (&self.c, (M, N))] {
            if !bindings.hold(view) {
                return Some(longest_stride(view, down, across)).filter(|&d| self.len(d) > 1);
            }
        }
        // By depth alone: how a row's sum is formed must not depend on how many rows and columns there are.
        if k > SLAB && (2 * TILE * TILE * k) as u64 > flops {
            return Some(K);
        }
        if self.flops() <= flops {
            return None;
        }
        if self.c.shape.batch > 1 {
            return Some(Batch);
        }
        // In the direction that leaves the most reuse.
        (m.max(n) > TILE).then_some(if m >= n { M } else { N })
    }

    fn len(&self, direction: Direction) -> usize {
        let (m, n, k) = self.sizes();
        match direction {
            Batch => self.c.shape.batch,
            M => m,
            N => n,
            K => k,
        }
    }

    /// Both halves; after a cut in depth the second adds to what the first left.
    fn halves(&self, direction: Direction) -> [Self; 2] {
        let unit = if direction == Batch { 1 } else { TILE };
        let (first, second) = halves(&(0..self.len(direction)), unit);
        let beta = if direction == K { 1.0 } else { self.beta };
        [self.part(direction, first), Product { beta, ..self.part(direction, second) }]
    }

    fn part(&self, direction: Direction, range: Range<usize>) -> Self {
        let (mut a, mut b, mut c) = (self.a, self.b, self.c);
        match direction {
            Batch => {
                a = a.batches(range.clone());
                b = b.batches(range.clone());
                c = c.batches(range);
            }
            M => {
                a = rows_of(a, self.op_a, range.clone());
                c = c.rows(range);
            }
            N => {
                b = cols_of(b, self.op_b, range.clone());
                c = c.cols(range);
            }
            K => {
                a = cols_of(a, self.op_a, range.clone());
                b = rows_of(b, self.op_b, range);
            }
        }
        Product { a, b, c, ..*self }
    }
}

/// The direction that makes a view span so much: `down` is that of its rows in memory, `across` of its columns.
fn longest_stride(view: &View<'_>, down: Direction, across: Direction) -> Direction {
    if view.shape.batch > 1 && view.batch_stride > 0 {
        Batch
    } else if view.shape.rows > 1 {
        down
    } else {
        across
    }
}

/// Rows of `op(x)`.
fn rows_of<'a>(x: View<'a>, op: Op, range: Range<usize>) -> View<'a> {
    if op == Op::None { x.rows(range) } else { x.cols(range) }
}

/// Columns of `op(x)`.
fn cols_of<'a>(x: View<'a>, op: Op, range: Range<usize>) -> View<'a> {
    if op == Op::None { x.cols(range) } else { x.rows(range) }
}

impl Gpu {
    /// Queues a product, in parts if need be.
    pub(super) fn product(&self, p: &Product<'_>) -> Result<()> {
        self.in_parts(p, usize::MAX)
    }

    /// The same with every sum formed in the order of its depth, however few tiles there are: the bits of a row do not depend
    /// on how many rows come along.
    pub(super) fn product_in_order(&self, p: &Product<'_>) -> Result<()> {
        self.in_parts(p, 1)
    }

    fn in_parts(&self, p: &Product<'_>, most_splits: usize) -> Result<()> {
        match p.cut(self.bindings(), self.live().pace.dispatch_flops) {
            Some(direction) => {
                p.halves(direction).iter().try_for_each(|half| self.in_parts(half, most_splits))
            }
            None => self.encode_chosen(p, false, most_splits),
        }
    }

    /// Queues a product that needs no cutting, in the way that its class is best computed.
    fn encode_chosen(&self, p: &Product<'_>, triangular: bool, most_splits: usize) -> Result<()> {
        self.tune(p, triangular)?;
        let sizes = p.sizes().into();
        let choice =
            self.live().context.kernels.choice(p.class(triangular), p.c.shape.batch, sizes, triangular);
        let splits = choice.splits.min(most_splits);
        self.encode_product(p, triangular, Choice { splits, ..choice })
    }

    /// Queues a product in this way; the tile is the kernels' affair.
    pub(super) fn encode_product(&self, p: &Product<'_>, triangular: bool, choice: Choice) -> Result<()> {
        let flops = if triangular { p.flops() / 2 } else { p.flops() };
        let (m, n, _) = p.sizes();
        let splits = if p.c.shape.batch == 1 { choice.splits } else { 1 };
        let parts = Shape::new(splits, m, n);
        if splits > 1 && parts.bytes() <= self.live().context.binding_limit() / 2 {
            let scratch = self.allocate("parts of a product", parts)?;
            return self.live().queue.record(flops, |recorder| {
                if triangular {
                    let scratch = scratch.view();
                    syrk_split(recorder, p.alpha, &p.a, p.op_a, p.beta, &p.c, splits, &scratch)
                } else {
                    gemm_split(recorder, &p.as_kernel(), splits, &scratch.view())
                }
            });
        }
        self.live().queue.record(flops, |recorder| {
            if triangular {
                syrk(recorder, p.alpha, &p.a, p.op_a, p.beta, &p.c)
            } else {
                kernels::gemm_fused(recorder, &p.as_kernel())
            }
        })
    }

    /// Queues `c = alpha op(x) op(x)^T + beta c`, in parts if need be.
    pub(super) fn symmetric_product(
        &self,
        alpha: f32,
        x: View<'_>,
        op: Op,
        beta: f32,
        c: View<'_>,
    ) -> Result<()> {
        let (n, k) = op.apply(x.shape);
        let batch = c.shape.batch;
        let flops = batch as u64 * (n * n) as u64 * k.max(1) as u64;
        let (x_fits, c_fits) = (self.bindings().hold(&x), self.bindings().hold(&c));
        let too_long = flops > self.live().pace.dispatch_flops;
        let other = if op == Op::None { Op::Transpose } else { Op::None };
        let whole = Product { alpha, a: x, op_a: op, b: x, op_b: other, beta, c };
        if x_fits && c_fits && !too_long {
            return self.encode_chosen(&whole, true, usize::MAX);
        }
        if batch > 1 {
            let (first, second) = halves(&(0..batch), 1);
            self.symmetric_product(alpha, x.batches(first.clone()), op, beta, c.batches(first))?;
            return self.symmetric_product(alpha, x.batches(second.clone()), op, beta, c.batches(second));
        }
        let slabs = if x_fits { too_long && k > SLAB } else { (n == 1 || op == Op::Transpose) && k > 1 };
        if c_fits && slabs {
            let (first, second) = halves(&(0..k), TILE);
            self.symmetric_product(alpha, cols_of(x, op, first), op, beta, c)?;
            return self.symmetric_product(alpha, cols_of(x, op, second), op, 1.0, c);
        }
        if n == 1 {
            return self.encode_chosen(&whole, true, usize::MAX);
        }
        self.symmetric_quarters(alpha, x, op, beta, c)
    }

    /// Both diagonal quarters of `c` are symmetric products again, the other two plain ones. Those two agree bit by bit,
    /// for the kernels form every element's sum in the same order.
    fn symmetric_quarters(&self, alpha: f32, x: View<'_>, op: Op, beta: f32, c: View<'_>) -> Result<()> {
        let (first, second) = halves(&(0..c.shape.rows), TILE);
        for half in [&first, &second] {
            let diagonal = c.rows(half.clone()).cols(half.clone());
            self.symmetric_product(alpha, rows_of(x, op, half.clone()), op, beta, diagonal)?;
        }
        let other = if op == Op::None { Op::Transpose } else { Op::None };
        for (i, j) in [(&second, &first), (&first, &second)] {
            let (a, b) = (rows_of(x, op, i.clone()), rows_of(x, op, j.clone()));
            let c = c.rows(i.clone()).cols(j.clone());
            self.product(&Product { alpha, a, op_a: op, b, op_b: other, beta, c })?;
        }
        Ok(())
    }
}
