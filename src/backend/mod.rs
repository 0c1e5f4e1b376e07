//! Where the arithmetic happens.
//!
//! The mathematics of this crate (`linalg`, `method`, `model`) is written once, over the trait [`Backend`], and runs
//! on two implementations: `cpu` and [`gpu`]. Both work on the same tensor: `batch x rows x cols`, f32, row-major.
//! The batch holds the tasks of a merge (and layers of one shape), so that a layer with T tasks is one dispatch, not T.

#[cfg(feature = "merge")]
pub mod cpu;
mod error;
pub mod gpu;
pub mod layers;
mod magnitudes;

pub use crate::kernels::CountBy;
pub use crate::matrix::{Across, Chance, Cut, Divide, Dtype, Op, Polarity, Shape};
pub use error::Error;
pub use magnitudes::MagnitudeSum;

use std::ops::{Deref, Range};

/// Result of a backend operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A batched matrix on the backend's device. Owned, never aliased: in-place operations take `&mut`.
pub trait Tensor {
    /// `batch x rows x cols`.
    fn shape(&self) -> Shape;

    /// The same elements in the same order under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    fn reshape(self, shape: Shape) -> Result<Self>
    where
        Self: Sized;
}

/// Dense f32 linear algebra over batches of matrices.
///
/// Operations are queued in order; only [`download`](Backend::download) waits for the device. An operation with
/// operands whose shapes do not fit returns [`Error::Shape`]; a batch of 1 in `b` of [`gemm`](Backend::gemm), or in a
/// scale, is broadcast over the batch. Sums are formed in a fixed order: the same inputs on the same device give the same bits.
#[allow(async_fn_in_trait)] // futures are driven on the calling thread; nothing here needs them to be `Send`
pub trait Backend {
    /// Device memory of one batched matrix.
    type Tensor: Tensor + 'static;

    /// The device's name and driver, for reports.
    fn name(&self) -> String;

    /// The device as far as its results depend on it, to the bit.
    fn class(&self) -> String {
        self.name()
    }

    /// Bytes above which one tensor should not grow; callers split their batches by it.
    fn max_tensor_bytes(&self) -> u64;

    /// Bytes up to which layers of one shape are put into one tensor. A larger batch keeps a wide device busy with fewer
    /// dispatches and waits, and takes more memory.
    fn batch_bytes(&self) -> u64 {
        self.max_tensor_bytes().min(64 << 20)
    }

    /// How much the device is given at once, where that is measured.
    fn pace(&self) -> Option<String> {
        None
    }

    /// How classes of products were found, by the clock, to be best computed; nothing where a built-in table decides.
    fn tuning(&self) -> Vec<String> {
        Vec::new()
    }

    /// After an error: makes ready for another try at the same work in slices of half the size, if there is hope. Memory is
    /// given back, or a lost device opened again; tensors made before a loss are of no use after it.
    async fn recover(&self, error: &Error) -> bool {
        let _ = error;
        false
    }

    // ---- moving data ----

    /// Raw little-endian values of any [`Dtype`], widened to f32 on the device (exact for all three).
    fn unpack(&self, shape: Shape, dtype: Dtype, bytes: &[u8]) -> Result<Self::Tensor>;

    /// [`unpack`](Backend::unpack) of one member of a batch, which holds as many values.
    fn unpack_into(&self, dtype: Dtype, bytes: &[u8], x: &mut Self::Tensor, member: usize) -> Result<()> {
        let Shape { rows, cols, .. } = x.shape();
        let values = self.unpack(Shape::matrix(rows, cols), dtype, bytes)?;
        self.copy_block(&values, [0, 0, 0], x, [member, 0, 0], [1, rows, cols])
    }

    /// What some members, each given by its bytes when it is asked for, differ from a matrix by: `x_t = unpack(bytes of t) - base`,
    /// `members x rows x cols`.
    fn differences<D: Deref<Target = [u8]>, E: From<Error>>(
        &self,
        base: &Self::Tensor,
        members: usize,
        mut bytes: impl FnMut(usize) -> std::result::Result<(Dtype, D), E>,
    ) -> std::result::Result<Self::Tensor, E> {
        let mut x = self.zeros(Shape { batch: members, ..base.shape() })?;
        for member in 0..members {
            let (dtype, bytes) = bytes(member)?;
            self.unpack_into(dtype, &bytes, &mut x, member)?;
        }
        self.axpby(-1.0, base, 1.0, &mut x)?;
        Ok(x)
    }

    /// f32 values, row-major.
    fn upload(&self, shape: Shape, values: &[f32]) -> Result<Self::Tensor> {
        self.unpack(shape, Dtype::F32, bytemuck::cast_slice(values))
    }

    /// All elements zero.
    fn zeros(&self, shape: Shape) -> Result<Self::Tensor>;

    /// Waits for everything queued and reads the tensor back.
    async fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// [`download`](Backend::download) of several tensors, for which the device is waited for once.
    async fn download_all<const N: usize>(&self, x: [&Self::Tensor; N]) -> Result<[Vec<f32>; N]> {
        let mut all = [const { Vec::new() }; N];
        for (values, x) in all.iter_mut().zip(x) {
            *values = self.download(x).await?;
        }
        Ok(all)
    }

    /// Rounds to `dtype` (to nearest, ties to even; overflow of f16 gives infinity) and reads back little-endian bytes.
    async fn pack(&self, x: &Self::Tensor, dtype: Dtype) -> Result<Vec<u8>>;

    /// [`pack`](Backend::pack) of `base + factor x`; `x` holds anything afterwards.
    async fn pack_sum(
        &self,
        base: &Self::Tensor,
        factor: f32,
        x: &mut Self::Tensor,
        dtype: Dtype,
    ) -> Result<Vec<u8>> {
        self.axpby(1.0, base, factor, x)?;
        self.pack(x, dtype).await
    }

    /// A copy of the block `batches x rows x cols` of `x`.
    fn slice(
        &self,
        x: &Self::Tensor,
        batches: Range<usize>,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Self::Tensor> {
        let mut out = self.zeros(Shape::new(batches.len(), rows.len(), cols.len()))?;
        self.copy_block(
            x,
            [batches.start, rows.start, cols.start],
            &mut out,
            [0, 0, 0],
            [batches.len(), rows.len(), cols.len()],
        )?;
        Ok(out)
    }

    /// `dst[to .. to + extent] = src[from .. from + extent]`; corners and extents are `[batch, row, col]`.
    fn copy_block(
        &self,
        src: &Self::Tensor,
        from: [usize; 3],
        dst: &mut Self::Tensor,
        to: [usize; 3],
        extent: [usize; 3],
    ) -> Result<()>;

    /// `x^T`, member by member: `batch x cols x rows`.
    fn transpose(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// A copy of the whole tensor.
    fn duplicate(&self, x: &Self::Tensor) -> Result<Self::Tensor> {
        let s = x.shape();
        self.slice(x, 0..s.batch, 0..s.rows, 0..s.cols)
    }

    /// Independent standard normals from a counter-based generator: element `i` (row-major over the whole tensor) of
    /// stream `stream` depends on `seed`, `stream` and `i` alone and has the same bits on every device.
    fn random_normal(&self, shape: Shape, seed: u64, stream: u32) -> Result<Self::Tensor>;

    // ---- products ----

    /// `c = alpha op(a) op(b) + beta c`, for each member of the batch. `beta = 0` ignores what `c` held, NaN included.
    fn gemm(
        &self,
        alpha: f32,
        a: &Self::Tensor,
        op_a: Op,
        b: &Self::Tensor,
        op_b: Op,
        beta: f32,
        c: &mut Self::Tensor,
    ) -> Result<()>;

    /// `op(a) op(b)` as a new tensor.
    fn matmul(&self, a: &Self::Tensor, op_a: Op, b: &Self::Tensor, op_b: Op) -> Result<Self::Tensor> {
        let mut c =
            self.zeros(Shape::new(a.shape().batch, op_a.apply(a.shape()).0, op_b.apply(b.shape()).1))?;
        self.gemm(1.0, a, op_a, b, op_b, 0.0, &mut c)?;
        Ok(c)
    }

    /// A linear layer: `x op(w)` as a new tensor, both single matrices. The bits of a row do not depend on how many rows
    /// there are, which [`gemm`](Backend::gemm) does not promise.
    fn linear(&self, x: &Self::Tensor, w: &Self::Tensor, op_w: Op) -> Result<Self::Tensor>;

    /// Symmetric rank-k update `c = alpha op(x) op(x)^T + beta c`, the whole of `c` stored, exactly symmetric.
    /// With `Op::Transpose`, `x` a slab of tokens and `beta = 1` it accumulates the covariance `X^T X`.
    fn syrk(&self, alpha: f32, x: &Self::Tensor, op: Op, beta: f32, c: &mut Self::Tensor) -> Result<()>;

    /// `op(x) op(x)^T` as a new tensor: `X^T X` for [`Op::Transpose`], `X X^T` for [`Op::None`].
    fn gram(&self, x: &Self::Tensor, op: Op) -> Result<Self::Tensor> {
        let n = op.apply(x.shape()).0;
        let mut c = self.zeros(Shape::new(x.shape().batch, n, n))?;
        self.syrk(1.0, x, op, 0.0, &mut c)?;
        Ok(c)
    }

    // ---- element by element ----

    /// `y = alpha x + beta y`; `beta = 0` ignores what `y` held. A batch of 1 in `x` is broadcast over the batch of `y`.
    fn axpby(&self, alpha: f32, x: &Self::Tensor, beta: f32, y: &mut Self::Tensor) -> Result<()>;

    /// `x[b, i, j] *= s[b, i]`, with `s` of shape `batch x rows x 1`.
    fn scale_rows(&self, x: &mut Self::Tensor, s: &Self::Tensor) -> Result<()>;

    /// `x[b, i, j] /= s[b, i]`, with `s` of shape `batch x rows x 1`; where `s` is 0 the row becomes 0.
    fn divide_rows(&self, x: &mut Self::Tensor, s: &Self::Tensor) -> Result<()>;

    /// `x[b, i, j] *= s[b, j]`, with `s` of shape `batch x 1 x cols`.
    fn scale_columns(&self, x: &mut Self::Tensor, s: &Self::Tensor) -> Result<()>;

    /// `x[b, i, j] *= s[b]`, with `s` of shape `batch x 1 x 1`.
    fn scale_batches(&self, x: &mut Self::Tensor, s: &Self::Tensor) -> Result<()>;

    /// The polarized scaling rule, on all elements of each member of the batch: `v = (v / mean v)^exponent`, turned
    /// by `polarity`; zeros where the mean is 0. Elements are norms, hence not negative.
    fn polarize(&self, v: &mut Self::Tensor, exponent: f32, polarity: Polarity) -> Result<()>;

    /// `x = x^exponent`, element by element; elements are not negative, and 0 stays 0 whatever the exponent.
    fn power(&self, x: &mut Self::Tensor, exponent: f32) -> Result<()>;

    /// `x = 2^k`, the power of two with `1 <= x 2^k < 2`, element by element; elements are not negative. `k` stays between -126
    /// and 126; 0 gets the largest scale.
    fn unit_scale(&self, x: &mut Self::Tensor) -> Result<()>;

    /// The null cut, on all elements of each member of the batch: `x = 0` where `x <= fraction * max x`, with a maximum of at
    /// least 0. NaN stays.
    fn clear_small(&self, x: &mut Self::Tensor, fraction: f32) -> Result<()>;

    // ---- reductions ----

    /// Euclidean norm of every row: `batch x rows x 1`.
    fn row_norms(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Euclidean norm of every column: `batch x 1 x cols`.
    fn column_norms(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Frobenius norm of every member of the batch: `batch x 1 x 1`.
    fn frobenius_norms(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Frobenius inner product `sum_ij x_ij y_ij` of every member of the batch: `batch x 1 x 1`.
    fn inner_products(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;

    /// Inner product of every row of `x` with that of `y`: `batch x rows x 1`.
    fn row_products(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;

    /// Inner product of every column of `x` with that of `y`: `batch x 1 x cols`.
    fn column_products(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;

    /// `KL(softmax(base + delta) || softmax(base))` of every row, 1e-8 added to both: `batch x rows x 1`.
    fn row_divergence(&self, base: &Self::Tensor, delta: &Self::Tensor) -> Result<Self::Tensor>;

    // ---- ranks, chance, and what tasks make of an element together ----

    /// How many numbers of each member of the batch have each value of a key, given for each member: one list of counts after
    /// the other, of [`CountBy::counts`] each. Waits for the device.
    async fn histogram(&self, x: &Self::Tensor, by: &[CountBy]) -> Result<Vec<Vec<u32>>>;

    /// Sum of the magnitudes of each member of the batch, exact to the last rounding: the same bits on every device. Waits for the
    /// device.
    async fn magnitude_sums(&self, x: &Self::Tensor) -> Result<Vec<MagnitudeSum>>;

    /// Keeps the numbers of member `b` that lie before the first cut of `cuts[b]` and not before the second, in the order of its
    /// magnitudes; the others become 0. With `by`, one matrix, the order is that of its magnitudes for all members.
    fn trim(&self, x: &mut Self::Tensor, by: Option<&Self::Tensor>, cuts: &[(Cut, Cut)]) -> Result<()>;

    /// Keeps each number of member `b` with the probability of `chances[b]`; the others become 0. With `ranks` the probability
    /// rises with the rank in the row. `first` is the place of the first number in its tensor. The same numbers stay on every
    /// device.
    fn drop_out(
        &self,
        x: &mut Self::Tensor,
        ranks: Option<&Self::Tensor>,
        chances: &[Chance],
        first: usize,
    ) -> Result<()>;

    /// The rank of every number in its row by magnitude, 0 for the smallest; of equal ones the first in the row has the highest.
    fn row_ranks(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// What the members of the batch make of each element together, by a rule: one matrix.
    fn across(&self, x: &Self::Tensor, rule: Across<'_>) -> Result<Self::Tensor>;

    /// [`across`](Backend::across) of what [`trim`](Backend::trim) leaves of each member's own numbers.
    fn across_trimmed(
        &self,
        mut x: Self::Tensor,
        cuts: &[(Cut, Cut)],
        rule: Across<'_>,
    ) -> Result<Self::Tensor> {
        self.trim(&mut x, None, cuts)?;
        self.across(&x, rule)
    }

    // ---- small factorizations ----

    /// For a Gram matrix `g = Y Y^T` (`batch x n x n`), a lower triangular `w` with `w g w^T = I`: with `S = diag(g)^(-1/2)`
    /// and `L L^T = S g S` the Cholesky factorization of the scaled matrix, `w = L^(-1) S`. Where a pivot falls below
    /// `8 n 2^-24` it is lifted to that value and the column of `L` below it is set to 0 (the adaptive shift: what is
    /// left there is rounding noise, which would grow from one lifted pivot to the next), so that `w` stays finite; a
    /// zero on the diagonal of `g` gives a zero row and column of `w`.
    fn inverse_cholesky(&self, g: &Self::Tensor) -> Result<Self::Tensor> {
        self.inverse_cholesky_above(g, crate::kernels::gram_pivot(g.shape().rows))
    }

    /// [`inverse_cholesky`](Backend::inverse_cholesky) with pivots lifted only below `smallest`, for matrices known to be
    /// better conditioned than a Gram matrix may be.
    fn inverse_cholesky_above(&self, g: &Self::Tensor, smallest: f32) -> Result<Self::Tensor>;

    /// `w x` with the [`inverse_cholesky`](Backend::inverse_cholesky) factor `w` of `g`: where `g = x x^T`, rows that span what
    /// those of `x` do, and are orthonormal but for rounding.
    fn apply_inverse_cholesky(&self, g: &Self::Tensor, x: &Self::Tensor) -> Result<Self::Tensor> {
        self.matmul(&self.inverse_cholesky(g)?, Op::None, x, Op::None)
    }

    /// `y = alpha m^(-1) x + beta y` for [`Op::None`], `y = alpha x m^(-1) + beta y` for [`Op::Transpose`], with `m` symmetric
    /// positive definite and `m^(-1) = w^T w` for its factor of [`inverse_cholesky_above`](Backend::inverse_cholesky_above).
    fn solve(
        &self,
        alpha: f32,
        (m, smallest): (&Self::Tensor, f32),
        side: Op,
        x: &Self::Tensor,
        beta: f32,
        y: &mut Self::Tensor,
    ) -> Result<()> {
        let inverse = self.gram(&self.inverse_cholesky_above(m, smallest)?, Op::Transpose)?;
        match side {
            Op::None => self.gemm(alpha, &inverse, Op::None, x, Op::None, beta, y),
            Op::Transpose => self.gemm(alpha, x, Op::None, &inverse, Op::None, beta, y),
        }
    }

    /// Eigenvalues, descending (`batch x 1 x n`), and eigenvectors as ROWS (`batch x n x n`) of symmetric matrices.
    /// Accurate to a few f32 roundings of the largest eigenvalue.
    fn symmetric_eigen(&self, a: &Self::Tensor) -> Result<(Self::Tensor, Self::Tensor)>;

    /// Whether it computes on the host's own processor, so that what the host does in f64 keeps no faster device waiting.
    fn is_the_host(&self) -> bool;

    /// The order up to which [`symmetric_eigen`](Backend::symmetric_eigen) is quicker than reading the matrices back, solving
    /// them in f64 on the host and uploading the vectors.
    fn largest_eigenproblem(&self) -> usize {
        128
    }
}
