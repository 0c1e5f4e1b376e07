//! The CPU backend: the reference for every kernel, and the default where there is no hardware GPU.
//!
//! One file a group of kernels, under the names the kernels have in `shaders/`. Products and factorizations are
//! faer's; sums that end in one number are accumulated in f64.

mod across;
mod convert;
pub mod dense;
mod divergence;
mod elementwise;
mod factor;
mod layers;
mod memory;
mod parallel;
mod product;
mod random;
mod reduce;
mod selection;
mod triangle;

use super::{
    Across, Backend, Chance, CountBy, Cut, Divide, Dtype, Error, MagnitudeSum, Op, Polarity, Result, Shape,
    Tensor,
};
use std::ops::Deref;

/// The CPU as a [`Backend`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// A batched matrix in the process's memory.
#[derive(Debug, Clone)]
pub struct CpuTensor {
    shape: Shape,
    values: Vec<f32>,
}

impl CpuTensor {
    fn new(shape: Shape, values: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), values.len());
        CpuTensor { shape, values }
    }

    /// The elements, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn matrix(&self, batch: usize) -> &[f32] {
        let n = self.shape.matrix_len();
        &self.values[batch * n..(batch + 1) * n]
    }
}

impl Drop for CpuTensor {
    fn drop(&mut self) {
        memory::give_back(std::mem::take(&mut self.values));
    }
}

impl Tensor for CpuTensor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn reshape(mut self, shape: Shape) -> Result<Self> {
        require(self.shape.len() == shape.len(), "reshape", &[self.shape, shape])?;
        self.shape = shape;
        Ok(self)
    }
}

/// `Ok` if `fits`, else the shape error of `operation`.
fn require(fits: bool, operation: &'static str, shapes: &[Shape]) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::Shape { operation, shapes: shapes.to_vec() }) }
}

/// Whether factors have the expected shape, or one member of the batch that serves all.
fn factors_fit(factors: Shape, expected: Shape) -> bool {
    factors == expected || factors == Shape { batch: 1, ..expected }
}

impl Backend for Cpu {
    type Tensor = CpuTensor;

    fn name(&self) -> String {
        format!("CPU ({} threads)", rayon::current_num_threads())
    }

    /// Not the number of threads, on which no result depends, but the instructions: with some, sums are rounded otherwise.
    fn class(&self) -> String {
        #[cfg(target_arch = "x86_64")]
        let instructions = match () {
            () if std::arch::is_x86_feature_detected!("avx512f") => "AVX-512",
            () if std::arch::is_x86_feature_detected!("avx2") => "AVX2",
            () => "SSE2",
        };
        #[cfg(not(target_arch = "x86_64"))]
        let instructions = std::env::consts::ARCH;
        format!("CPU ({instructions})")
    }

    fn max_tensor_bytes(&self) -> u64 {
        1 << 28
    }

    fn batch_bytes(&self) -> u64 {
        1 << 24
    }

    fn unpack(&self, shape: Shape, dtype: Dtype, bytes: &[u8]) -> Result<CpuTensor> {
        require(
            bytes.len() == shape.len() * dtype.size(),
            "unpack",
            &[shape, Shape::matrix(1, bytes.len() / dtype.size())],
        )?;
        Ok(CpuTensor::new(shape, convert::unpack(dtype, bytes)))
    }

    fn unpack_into(&self, dtype: Dtype, bytes: &[u8], x: &mut CpuTensor, member: usize) -> Result<()> {
        let n = x.shape.matrix_len();
        require(member < x.shape.batch && bytes.len() == n * dtype.size(), "unpack", &[x.shape])?;
        convert::unpack_into(dtype, bytes, &mut x.values[member * n..(member + 1) * n]);
        Ok(())
    }

    fn differences<D: Deref<Target = [u8]>, E: From<Error>>(
        &self,
        base: &CpuTensor,
        members: usize,
        mut bytes: impl FnMut(usize) -> std::result::Result<(Dtype, D), E>,
    ) -> std::result::Result<CpuTensor, E> {
        let (shape, n) = (Shape { batch: members, ..base.shape }, base.shape.matrix_len());
        require(base.shape.batch == 1, "differences", &[base.shape])?;
        let mut values = memory::take(shape.len());
        for (member, x) in values.chunks_mut(n.max(1)).enumerate() {
            let (dtype, bytes) = bytes(member)?;
            require(bytes.len() == n * dtype.size(), "differences", &[base.shape])?;
            convert::unpack_less(dtype, &bytes, &base.values, x);
        }
        Ok(CpuTensor::new(shape, values))
    }

    fn zeros(&self, shape: Shape) -> Result<CpuTensor> {
        Ok(CpuTensor::new(shape, memory::zeros(shape.len())))
    }

    async fn download(&self, x: &CpuTensor) -> Result<Vec<f32>> {
        Ok(x.values.clone())
    }

    async fn pack(&self, x: &CpuTensor, dtype: Dtype) -> Result<Vec<u8>> {
        Ok(convert::pack(dtype, &x.values))
    }

    async fn pack_sum(
        &self,
        base: &CpuTensor,
        factor: f32,
        x: &mut CpuTensor,
        dtype: Dtype,
    ) -> Result<Vec<u8>> {
        require(base.shape == x.shape, "pack_sum", &[base.shape, x.shape])?;
        Ok(convert::pack_sum(dtype, &base.values, factor, &x.values))
    }

    fn copy_block(
        &self,
        src: &CpuTensor,
        from: [usize; 3],
        dst: &mut CpuTensor,
        to: [usize; 3],
        extent: [usize; 3],
    ) -> Result<()> {
        let inside = |shape: Shape, at: [usize; 3]| {
            at[0] + extent[0] <= shape.batch
                && at[1] + extent[1] <= shape.rows
                && at[2] + extent[2] <= shape.cols
        };
        require(inside(src.shape, from) && inside(dst.shape, to), "copy_block", &[src.shape, dst.shape])?;
        elementwise::copy_block(src, from, dst, to, extent);
        Ok(())
    }

    fn transpose(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(elementwise::transpose(x))
    }

    fn random_normal(&self, shape: Shape, seed: u64, stream: u32) -> Result<CpuTensor> {
        Ok(CpuTensor::new(shape, random::normal(shape.len(), seed, stream)))
    }

    fn gemm(
        &self,
        alpha: f32,
        a: &CpuTensor,
        op_a: Op,
        b: &CpuTensor,
        op_b: Op,
        beta: f32,
        c: &mut CpuTensor,
    ) -> Result<()> {
        let ((m, k), (k_b, n)) = (op_a.apply(a.shape), op_b.apply(b.shape));
        let batches =
            a.shape.batch == c.shape.batch && (b.shape.batch == c.shape.batch || b.shape.batch == 1);
        require(
            k == k_b && (c.shape.rows, c.shape.cols) == (m, n) && batches,
            "gemm",
            &[a.shape, b.shape, c.shape],
        )?;
        product::gemm(alpha, a, op_a, b, op_b, beta, c);
        Ok(())
    }

    fn matmul(&self, a: &CpuTensor, op_a: Op, b: &CpuTensor, op_b: Op) -> Result<CpuTensor> {
        let shape = Shape::new(a.shape.batch, op_a.apply(a.shape).0, op_b.apply(b.shape).1);
        let mut c = CpuTensor::new(shape, memory::take(shape.len()));
        self.gemm(1.0, a, op_a, b, op_b, 0.0, &mut c)?;
        Ok(c)
    }

    fn gram(&self, x: &CpuTensor, op: Op) -> Result<CpuTensor> {
        let n = op.apply(x.shape).0;
        let shape = Shape::new(x.shape.batch, n, n);
        let mut c = CpuTensor::new(shape, memory::take(shape.len()));
        self.syrk(1.0, x, op, 0.0, &mut c)?;
        Ok(c)
    }

    fn duplicate(&self, x: &CpuTensor) -> Result<CpuTensor> {
        let mut values = memory::take(x.values.len());
        values.copy_from_slice(&x.values);
        Ok(CpuTensor::new(x.shape, values))
    }

    fn linear(&self, x: &CpuTensor, w: &CpuTensor, op_w: Op) -> Result<CpuTensor> {
        let (k, n) = op_w.apply(w.shape);
        let single = x.shape.batch == 1 && w.shape.batch == 1;
        require(single && x.shape.cols == k, "linear", &[x.shape, w.shape])?;
        if x.shape.rows != 1 {
            return self.matmul(x, Op::None, w, op_w);
        }
        // a single row would be taken for a vector, whose products are summed in another order
        let twice = CpuTensor::new(Shape::matrix(2, k), x.values.repeat(2));
        self.slice(&self.matmul(&twice, Op::None, w, op_w)?, 0..1, 0..1, 0..n)
    }

    fn syrk(&self, alpha: f32, x: &CpuTensor, op: Op, beta: f32, c: &mut CpuTensor) -> Result<()> {
        let n = op.apply(x.shape).0;
        require(c.shape == Shape::new(x.shape.batch, n, n), "syrk", &[x.shape, c.shape])?;
        product::syrk(alpha, x, op, beta, c);
        Ok(())
    }

    fn axpby(&self, alpha: f32, x: &CpuTensor, beta: f32, y: &mut CpuTensor) -> Result<()> {
        let same = (x.shape.rows, x.shape.cols) == (y.shape.rows, y.shape.cols);
        require(
            same && (x.shape.batch == y.shape.batch || x.shape.batch == 1),
            "axpby",
            &[x.shape, y.shape],
        )?;
        elementwise::axpby(alpha, x, beta, y);
        Ok(())
    }

    fn scale_rows(&self, x: &mut CpuTensor, s: &CpuTensor) -> Result<()> {
        require(factors_fit(s.shape, Shape { cols: 1, ..x.shape }), "scale_rows", &[x.shape, s.shape])?;
        elementwise::scale_rows(x, s);
        Ok(())
    }

    fn divide_rows(&self, x: &mut CpuTensor, s: &CpuTensor) -> Result<()> {
        require(factors_fit(s.shape, Shape { cols: 1, ..x.shape }), "divide_rows", &[x.shape, s.shape])?;
        elementwise::divide_rows(x, s);
        Ok(())
    }

    fn scale_columns(&self, x: &mut CpuTensor, s: &CpuTensor) -> Result<()> {
        require(factors_fit(s.shape, Shape { rows: 1, ..x.shape }), "scale_columns", &[x.shape, s.shape])?;
        elementwise::scale_columns(x, s);
        Ok(())
    }

    fn scale_batches(&self, x: &mut CpuTensor, s: &CpuTensor) -> Result<()> {
        require(factors_fit(s.shape, Shape::new(x.shape.batch, 1, 1)), "scale_batches", &[x.shape, s.shape])?;
        elementwise::scale_batches(x, s);
        Ok(())
    }

    fn polarize(&self, v: &mut CpuTensor, exponent: f32, polarity: Polarity) -> Result<()> {
        elementwise::polarize(v, exponent, polarity);
        Ok(())
    }

    fn power(&self, x: &mut CpuTensor, exponent: f32) -> Result<()> {
        elementwise::power(x, exponent);
        Ok(())
    }

    fn unit_scale(&self, x: &mut CpuTensor) -> Result<()> {
        elementwise::unit_scale(x);
        Ok(())
    }

    fn clear_small(&self, x: &mut CpuTensor, fraction: f32) -> Result<()> {
        elementwise::clear_small(x, fraction);
        Ok(())
    }

    fn row_norms(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(reduce::row_norms(x))
    }

    fn column_norms(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(reduce::column_norms(x))
    }

    fn frobenius_norms(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(reduce::frobenius_norms(x))
    }

    fn inner_products(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        require(x.shape == y.shape, "inner_products", &[x.shape, y.shape])?;
        Ok(reduce::inner_products(x, y))
    }

    fn row_products(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        require(x.shape == y.shape, "row_products", &[x.shape, y.shape])?;
        Ok(reduce::row_products(x, y))
    }

    fn column_products(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        require(x.shape == y.shape, "column_products", &[x.shape, y.shape])?;
        Ok(reduce::column_products(x, y))
    }

    fn row_divergence(&self, base: &CpuTensor, delta: &CpuTensor) -> Result<CpuTensor> {
        require(base.shape == delta.shape, "row_divergence", &[base.shape, delta.shape])?;
        Ok(divergence::row_divergence(base, delta))
    }

    async fn histogram(&self, x: &CpuTensor, by: &[CountBy]) -> Result<Vec<Vec<u32>>> {
        require(by.len() == x.shape.batch, "histogram", &[x.shape])?;
        Ok(selection::histogram(x, by))
    }

    async fn magnitude_sums(&self, x: &CpuTensor) -> Result<Vec<MagnitudeSum>> {
        Ok(selection::magnitude_sums(x))
    }

    fn trim(&self, x: &mut CpuTensor, by: Option<&CpuTensor>, cuts: &[(Cut, Cut)]) -> Result<()> {
        let fits =
            cuts.len() == x.shape.batch && by.is_none_or(|by| by.shape == Shape { batch: 1, ..x.shape });
        require(fits, "trim", &[x.shape])?;
        selection::trim(x, by, cuts);
        Ok(())
    }

    fn drop_out(
        &self,
        x: &mut CpuTensor,
        ranks: Option<&CpuTensor>,
        chances: &[Chance],
        first: usize,
    ) -> Result<()> {
        let fits = chances.len() == x.shape.batch && ranks.is_none_or(|ranks| ranks.shape == x.shape);
        require(fits, "drop_out", &[x.shape])?;
        selection::drop_out(x, ranks, chances, first);
        Ok(())
    }

    fn row_ranks(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(selection::row_ranks(x))
    }

    fn across(&self, x: &CpuTensor, rule: Across<'_>) -> Result<CpuTensor> {
        let fits = x.shape.batch > 0 && rule.factors().len() == rule.needs(x.shape.batch);
        require(fits, "across", &[x.shape])?;
        Ok(across::across(x, None, rule))
    }

    fn across_trimmed(&self, x: CpuTensor, cuts: &[(Cut, Cut)], rule: Across<'_>) -> Result<CpuTensor> {
        let fits = x.shape.batch > 0 && rule.factors().len() == rule.needs(x.shape.batch);
        require(fits && cuts.len() == x.shape.batch, "across", &[x.shape])?;
        Ok(across::across(&x, Some(cuts), rule))
    }

    fn inverse_cholesky_above(&self, g: &CpuTensor, smallest: f32) -> Result<CpuTensor> {
        require(g.shape.rows == g.shape.cols, "inverse_cholesky", &[g.shape])?;
        factor::inverse_cholesky(g, smallest)
    }

    fn apply_inverse_cholesky(&self, g: &CpuTensor, x: &CpuTensor) -> Result<CpuTensor> {
        let Shape { batch, rows, .. } = x.shape;
        require(g.shape == Shape::new(batch, rows, rows), "apply_inverse_cholesky", &[g.shape, x.shape])?;
        factor::apply_inverse_cholesky(g, crate::kernels::gram_pivot(g.shape.rows), x)
    }

    fn solve(
        &self,
        alpha: f32,
        (m, smallest): (&CpuTensor, f32),
        side: Op,
        x: &CpuTensor,
        beta: f32,
        y: &mut CpuTensor,
    ) -> Result<()> {
        let n = if side == Op::None { x.shape.rows } else { x.shape.cols };
        let fits = m.shape == Shape::new(x.shape.batch, n, n) && x.shape == y.shape;
        require(fits, "solve", &[m.shape, x.shape, y.shape])?;
        factor::solve(alpha, (m, smallest), side, x, beta, y)
    }

    fn is_the_host(&self) -> bool {
        true
    }

    fn largest_eigenproblem(&self) -> usize {
        0 // reading back costs nothing
    }

    fn symmetric_eigen(&self, a: &CpuTensor) -> Result<(CpuTensor, CpuTensor)> {
        require(a.shape.rows == a.shape.cols, "symmetric_eigen", &[a.shape])?;
        factor::symmetric_eigen(a)
    }
}
