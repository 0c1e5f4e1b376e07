//! Leading eigenvectors of the symmetric positive semidefinite matrices whose factors are at hand.

use super::host::{self, Matrix, Threads, gram, product, symmetric_eigen};
use super::{Accuracy, subspace};
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// Eigenvalues at or below this fraction of the largest are null: their directions are rounding noise. Factors are
/// f32, whose noise lies near `(2^-24)^2 = 4e-15` of the largest eigenvalue times the dimension.
pub const NULL_EIGENVALUE: f64 = 1e-10;

/// A batch of symmetric positive semidefinite matrices, as products that need not be formed.
pub enum SymmetricProduct<'a, T> {
    /// `C = op(x) op(x)^T`; `x` is `batch x n x d` under [`Op::Transpose`], `batch x d x n` under [`Op::None`].
    Factor {
        /// The factor.
        x: &'a T,
        /// Which side is contracted.
        op: Op,
    },
    /// `C = d g d^T`, with `d` of `batch x d_out x d_in` and `g` symmetric, `batch x d_in x d_in`.
    Congruence {
        /// The outer factor.
        d: &'a T,
        /// The inner matrix.
        g: &'a T,
    },
}

impl<T: Tensor> SymmetricProduct<'_, T> {
    /// Batch and order of `C`.
    fn dimensions(&self) -> (usize, usize) {
        match self {
            SymmetricProduct::Factor { x, op } => (x.shape().batch, op.apply(x.shape()).0),
            SymmetricProduct::Congruence { d, .. } => (d.shape().batch, d.shape().rows),
        }
    }
}

/// The leading eigenpairs of a batch of matrices `C`, `d x d`.
pub struct Eigenpairs<T> {
    /// `batch x r x d`: orthonormal rows, the eigenvectors of the largest eigenvalues; null directions are zero rows.
    pub basis: T,
    /// For each member of the batch `r` eigenvalues, descending; null ones are 0.
    pub values: Vec<Vec<f64>>,
    /// The trace of each `C`: the sum of all its eigenvalues.
    pub traces: Vec<f64>,
}

/// [`Eigenpairs`] whose numbers are on the device, where the next step needs them.
pub struct PendingEigenpairs<T> {
    /// `batch x r x d`, as in [`Eigenpairs`].
    pub basis: T,
    /// Square roots of the eigenvalues, `batch x 1 x r`: the singular values of the factor of `C`.
    pub sigma: T,
    /// Square roots of the traces, `batch x 1 x 1`.
    pub norms: T,
}

impl<T: Tensor> PendingEigenpairs<T> {
    /// Waits for the numbers.
    pub async fn read<B: Backend<Tensor = T>>(self, backend: &B) -> Result<Eigenpairs<T>> {
        let r = self.sigma.shape().cols.max(1);
        let [sigma, norms] = backend.download_all([&self.sigma, &self.norms]).await?;
        let square = |&v: &f32| f64::from(v).powi(2);
        Ok(Eigenpairs {
            basis: self.basis,
            values: sigma.chunks(r).map(|sigma| sigma.iter().map(square).collect()).collect(),
            traces: norms.iter().map(square).collect(),
        })
    }
}

/// For each member of a batch the share of `norm^2`, the trace, that its `r` singular values make up; 0 for a zero matrix.
pub fn energy_retention(sigma: &[f32], norms: &[f32], r: usize) -> Vec<f64> {
    let square = |&v: &f32| f64::from(v).powi(2);
    let share = |(sigma, norm): (&[f32], &f32)| {
        let trace = square(norm);
        // rounding may carry a share past 1
        if trace > 0.0 { (sigma.iter().map(square).sum::<f64>() / trace).min(1.0) } else { 0.0 }
    };
    sigma.chunks(r.max(1)).zip(norms).map(share).collect()
}

/// The `r` leading eigenpairs of every `C`, of which member `b` has at most `ranks[b]` nonzero eigenvalues. `seed` chooses
/// the random start of the iteration.
pub async fn leading_eigenpairs<B: Backend>(
    backend: &B,
    c: SymmetricProduct<'_, B::Tensor>,
    r: usize,
    ranks: &[usize],
    accuracy: Accuracy,
    seed: u64,
) -> Result<Eigenpairs<B::Tensor>> {
    pending_eigenpairs(backend, c, r, ranks, accuracy, seed).await?.read(backend).await
}

/// [`leading_eigenpairs`] with its numbers left on the device. Where that solves the projected problems too, the host waits for
/// nothing but whether the iteration has converged.
pub async fn pending_eigenpairs<B: Backend>(
    backend: &B,
    c: SymmetricProduct<'_, B::Tensor>,
    r: usize,
    ranks: &[usize],
    accuracy: Accuracy,
    seed: u64,
) -> Result<PendingEigenpairs<B::Tensor>> {
    if accuracy == Accuracy::Exact || !subspace::pays_off(&c, r, ranks, accuracy) {
        return exact(backend, c, r, ranks).await;
    }
    subspace::iterate(backend, c, r, ranks, accuracy, seed).await
}

/// Downloads the factors and decomposes in f64. Forms no f32 Gram matrix.
async fn exact<B: Backend>(
    backend: &B,
    c: SymmetricProduct<'_, B::Tensor>,
    r: usize,
    ranks: &[usize],
) -> Result<PendingEigenpairs<B::Tensor>> {
    let (batch, d) = c.dimensions();
    let members: Vec<HostProduct> = match c {
        SymmetricProduct::Factor { x, op } => {
            host_matrices(backend, x, op).await?.into_iter().map(HostProduct::Factor).collect()
        }
        SymmetricProduct::Congruence { d, g } => {
            let (d, g) =
                (host_matrices(backend, d, Op::None).await?, host_matrices(backend, g, Op::None).await?);
            d.into_iter().zip(g).map(|(d, g)| HostProduct::Congruence(d, g)).collect()
        }
    };
    let each = host::for_each_member(batch, |b, threads| members[b].leading(r, ranks[b], threads))?;
    let rows: Vec<f32> = each.iter().flat_map(|e| e.rows.iter().copied()).collect();
    let sigma: Vec<f32> = each.iter().flat_map(|e| e.values.iter().map(|v| v.sqrt() as f32)).collect();
    let norms: Vec<f32> = each.iter().map(|e| e.trace.sqrt() as f32).collect();
    Ok(PendingEigenpairs {
        basis: backend.upload(Shape::new(batch, r, d), &rows)?,
        sigma: backend.upload(Shape::new(batch, 1, r), &sigma)?,
        norms: backend.upload(Shape::new(batch, 1, 1), &norms)?,
    })
}

/// One member of a [`SymmetricProduct`] on the host.
enum HostProduct {
    /// `C = Y Y^T`
    Factor(Matrix),
    /// `C = D G D^T`
    Congruence(Matrix, Matrix),
}

impl HostProduct {
    fn leading(&self, r: usize, rank: usize, threads: Threads) -> Result<HostEigenpairs> {
        match self {
            HostProduct::Factor(y) => leading_of_factor(y, r, rank, threads),
            HostProduct::Congruence(d, g) => leading_of_congruence(d, g, r, rank, threads),
        }
    }
}

/// A batch that is decomposed on the host.
pub(super) enum SymmetricMatrix<'a, T> {
    /// `C`
    Whole(&'a T),
    /// `C = op(X) op(X)^T`
    Factor(&'a T, Op),
}

/// The roots of the `r` leading eigenvalues (`batch x 1 x r`) and their eigenvectors (`batch x r x d`), in f64.
pub(super) async fn by_host<B: Backend>(
    backend: &B,
    c: SymmetricMatrix<'_, B::Tensor>,
    r: usize,
) -> Result<(B::Tensor, B::Tensor)> {
    let (members, is_factor) = match c {
        SymmetricMatrix::Whole(c) => (host_matrices(backend, c, Op::None).await?, false),
        SymmetricMatrix::Factor(x, op) => (host_matrices(backend, x, op).await?, true),
    };
    let d = members.first().map_or(0, |member| member.rows);
    let each = host::for_each_member(members.len(), |b, threads| {
        if is_factor {
            return leading_of_factor(&members[b], r, r, threads);
        }
        let eigen = symmetric_eigen(&members[b], threads)?;
        Ok(truncate(eigen.values, &eigen.vectors, r, r, 0.0))
    })?;
    let rows: Vec<f32> = each.iter().flat_map(|e| e.rows.iter().copied()).collect();
    let sigma: Vec<f32> = each.iter().flat_map(|e| e.values.iter().map(|v| v.sqrt() as f32)).collect();
    Ok((
        backend.upload(Shape::new(members.len(), 1, r), &sigma)?,
        backend.upload(Shape::new(members.len(), r, d), &rows)?,
    ))
}

/// Leading eigenpairs of one matrix on the host.
struct HostEigenpairs {
    /// `r x d`, row-major.
    rows: Vec<f32>,
    values: Vec<f64>,
    trace: f64,
}

/// `op(x)` of every member, in f64.
async fn host_matrices<B: Backend>(backend: &B, x: &B::Tensor, op: Op) -> Result<Vec<Matrix>> {
    let Shape { rows, cols, .. } = x.shape();
    let values = backend.download(x).await?;
    let member = |b: usize| &values[b * rows * cols..(b + 1) * rows * cols];
    Ok((0..x.shape().batch).map(|b| Matrix::widened(member(b), rows, cols, op)).collect())
}

/// Of `C = Y Y^T`, through the smaller of `Y Y^T` and `Y^T Y`: if `Y^T Y v = lambda v`, then `Y v / sqrt(lambda)` is the
/// eigenvector of `C`.
fn leading_of_factor(y: &Matrix, r: usize, rank: usize, threads: Threads) -> Result<HostEigenpairs> {
    let (d, n) = (y.rows, y.cols);
    let trace = y.values.iter().map(|v| v * v).sum();
    if d <= n {
        let eigen = symmetric_eigen(&gram(y, Op::None, threads), threads)?;
        return Ok(truncate(eigen.values, &eigen.vectors, r, rank, trace));
    }
    let eigen = symmetric_eigen(&gram(y, Op::Transpose, threads), threads)?;
    let kept = eigen.vectors.first_rows(r.min(n));
    let mut vectors = product(&kept, Op::None, y, Op::Transpose, threads);
    vectors.scale_rows(|j| if eigen.values[j] > 0.0 { eigen.values[j].sqrt().recip() } else { 0.0 });
    Ok(truncate(eigen.values, &vectors, r, rank, trace))
}

/// Of `C = D G D^T`.
fn leading_of_congruence(
    d: &Matrix,
    g: &Matrix,
    r: usize,
    rank: usize,
    threads: Threads,
) -> Result<HostEigenpairs> {
    let dg = product(d, Op::None, g, Op::None, threads);
    let c = product(&dg, Op::None, d, Op::Transpose, threads);
    let trace = (0..c.rows).map(|i| c.row(i)[i]).sum();
    let eigen = symmetric_eigen(&c, threads)?;
    Ok(truncate(eigen.values, &eigen.vectors, r, rank, trace))
}

/// The first `r` eigenpairs as rows, null directions as zeros.
fn truncate(values: Vec<f64>, vectors: &Matrix, r: usize, rank: usize, trace: f64) -> HostEigenpairs {
    let d = vectors.cols;
    let cut = NULL_EIGENVALUE * values.first().copied().unwrap_or(0.0);
    let mut kept = vec![0f64; r];
    let mut rows = vec![0f32; r * d];
    for j in 0..r.min(rank).min(vectors.rows) {
        if values[j] > cut {
            kept[j] = values[j];
            rows[j * d..(j + 1) * d].iter_mut().zip(vectors.row(j)).for_each(|(to, &v)| *to = v as f32);
        }
    }
    HostEigenpairs { rows, values: kept, trace: f64::max(trace, 0.0) }
}
