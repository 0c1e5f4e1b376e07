//! The orthogonal polar factor by an iteration of matrix products and Cholesky factorizations, and its nuclear norm.

use super::host::{Matrix, Threads, product, symmetric_eigen};
use super::rational::{self, Step};
use super::{Accuracy, probes, unit::UnitScaled};
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// Singular values at or below this fraction of the largest count as zero, and their directions are dropped (the
/// pseudo-inverse rule). Applied where a rank deficiency was found; f32 factors carry noise of about 1e-7.
pub const NULL_SINGULAR_VALUE: f64 = 1e-6;

/// `||G^2 - G||_F` with `G = P P^T` stays under 3e-3 where the iteration converged, and over 3e-2 where rounding noise
/// grew in a null space.
const NOT_A_PROJECTOR: f32 = 1e-2;

/// Coefficients `(a, b, c)` of the steps `X <- (a I + b G + c G^2) X`: minimax quintics for singular values in
/// `[1e-6, 1]`, each composed with a safety factor 1/1.01 but the last four (the Polar Express schedule, arXiv
/// 2505.16932, continued by Newton-Schulz steps).
#[rustfmt::skip]
const STEPS: [[f64; 3]; 14] = [
    [8.239266450, -22.997130473, 16.529146496],
    [4.119596187, -2.874639386, 0.516539781],
    [4.119424945, -2.874595504, 0.516545482],
    [4.118712634, -2.874413003, 0.516569219],
    [4.115752299, -2.873655090, 0.516668197],
    [4.103494804, -2.870526486, 0.517083771],
    [4.053515262, -2.857935517, 0.518877355],
    [3.862118790, -2.812569960, 0.527439582],
    [3.131528550, -2.301771286, 0.472706665],
    [2.159877347, -1.513884072, 0.387333478],
    [1.881792615, -1.257526817, 0.375753475],
    [1.875000109, -1.250000121, 0.375000012],
    [1.875, -1.25, 0.375],
    [1.875, -1.25, 0.375],
];

/// Polar factors `P = U V^T` of the thin SVDs `A = U S V^T`.
pub struct Polar<T> {
    /// Same shape as the input; null directions map to zero.
    pub factor: T,
    /// `sum(S)` of each member of the batch.
    pub nuclear_norms: Vec<f64>,
    /// Which members were rank-deficient, and so were decomposed in f64 on the host.
    pub rank_deficient: Vec<bool>,
}

/// A [`Polar`] whose numbers are on the device, and whose rank-deficient members, if any, are not yet mended.
pub struct PendingPolar<T> {
    /// Same shape as the input.
    pub factor: T,
    /// `sum(S)`, `batch x 1 x 1`.
    pub nuclear_norms: T,
    /// What [`rank_deficient`] needs to know, `batch x 1 x 2`.
    pub checks: T,
}

/// Polar factor of every member of `a` (`batch x rows x cols`), by iteration on the short side: quintic steps at
/// [`Accuracy::Exact`], rational ones else, whose singular values are within 5.2e-5 of 1.
///
/// The nuclear norm is `trace(P^T A)`. A member whose result is not a projector on its range is rank-deficient: rounding
/// noise grew in its null space. It is computed again in f64 from the smaller Gram matrix, with the null cut
/// [`NULL_SINGULAR_VALUE`].
pub async fn polar<B: Backend>(backend: &B, a: &B::Tensor, accuracy: Accuracy) -> Result<Polar<B::Tensor>> {
    let PendingPolar { mut factor, nuclear_norms, checks } = pending_polar(backend, a, accuracy)?;
    let [nuclear_norms, checks] = backend.download_all([&nuclear_norms, &checks]).await?;
    let rank_deficient: Vec<bool> = rank_deficient(accuracy, &checks).collect();
    let mut nuclear_norms: Vec<f64> = nuclear_norms.iter().map(|&v| f64::from(v)).collect();
    let shape = a.shape();
    for b in (0..shape.batch).filter(|&b| rank_deficient[b]) {
        let member = backend.slice(a, b..b + 1, 0..shape.rows, 0..shape.cols)?;
        let (exact, nuclear_norm) = rank_deficient_polar(backend, &member).await?;
        backend.copy_block(&exact, [0, 0, 0], &mut factor, [b, 0, 0], [1, shape.rows, shape.cols])?;
        nuclear_norms[b] = nuclear_norm;
    }
    Ok(Polar { factor, nuclear_norms, rank_deficient })
}

/// The iteration of [`polar`] alone, for which the host waits for nothing.
pub fn pending_polar<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    accuracy: Accuracy,
) -> Result<PendingPolar<B::Tensor>> {
    let shape = a.shape();
    let short_side = if shape.rows <= shape.cols { Op::None } else { Op::Transpose };
    let factor = match accuracy {
        Accuracy::Exact => by_quintic_steps(backend, a, short_side)?,
        Accuracy::Balanced | Accuracy::Fast => by_rational_steps(backend, a, short_side)?,
    };
    let checks = match accuracy {
        Accuracy::Exact => {
            let gram = backend.gram(&factor, short_side)?;
            side_by_side(backend, [&projector_defect(backend, &gram)?])?
        }
        Accuracy::Balanced | Accuracy::Fast => {
            let [once, twice] = probes::norms_of_powers(backend, &factor, short_side)?;
            side_by_side(backend, [&once, &twice])?
        }
    };
    let unit = unit_scaled(backend, a)?;
    let mut nuclear_norms = backend.inner_products(&factor, &unit.values)?;
    unit.undo(backend, &mut nuclear_norms)?;
    Ok(PendingPolar { factor, nuclear_norms, checks })
}

/// `batch x 1 x 2` of one or two tensors `batch x 1 x 1`.
fn side_by_side<B: Backend, const N: usize>(backend: &B, numbers: [&B::Tensor; N]) -> Result<B::Tensor> {
    let batch = numbers[0].shape().batch;
    let mut all = backend.zeros(Shape::new(batch, 1, 2))?;
    for (j, numbers) in numbers.into_iter().enumerate() {
        backend.copy_block(numbers, [0, 0, 0], &mut all, [0, 0, j], [batch, 1, 1])?;
    }
    Ok(all)
}

/// Whether the iteration failed on a member of the batch, one by one, by its [`PendingPolar::checks`].
pub fn rank_deficient(accuracy: Accuracy, checks: &[f32]) -> impl Iterator<Item = bool> {
    checks.chunks(2).map(move |check| match accuracy {
        Accuracy::Exact => is_no_projector(check[0]),
        Accuracy::Balanced | Accuracy::Fast => falls_short(check[0], check[1]),
    })
}

/// Singular values down to 1e-6 of the bound of [`bounded`], to f32's precision.
fn by_quintic_steps<B: Backend>(backend: &B, a: &B::Tensor, short_side: Op) -> Result<B::Tensor> {
    let (mut x, gram) = bounded(backend, a, short_side)?;
    let mut known = Some(gram);
    for step in STEPS {
        let gram = known.take().map_or_else(|| backend.gram(&x, short_side), Ok)?;
        x = quintic_step(backend, x, &gram, short_side, step)?;
    }
    Ok(x)
}

/// Singular values down to 1e-5 of the bound of [`bounded`], by the [`Step`]s that invert. The first costs the smallest singular
/// directions about `c 2^-24`, 5e-3, of their accuracy, and the others none; the last leaves singular values within 5.2e-5 of 1.
fn by_rational_steps<B: Backend>(backend: &B, a: &B::Tensor, short_side: Op) -> Result<B::Tensor> {
    let (mut x, gram) = bounded(backend, a, short_side)?;
    let identity = rational::identity(backend, short_side.apply(a.shape()).0)?;
    let mut known = Some(gram);
    for step in Step::all() {
        let gram = known.take().map_or_else(|| backend.gram(&x, short_side), Ok)?;
        x = step.apply(backend, &x, &gram, short_side, &identity)?;
    }
    Ok(x)
}

/// `X = A / s` and the Gram matrix of its short side, with `1 / s` of [`probes::inverse_norm_bounds`]: `s` bounds the singular values,
/// and is little too large, where `||A||_F` may be `sqrt(n)` times too large, which costs two steps. Zero stays zero.
fn bounded<B: Backend>(backend: &B, a: &B::Tensor, short_side: Op) -> Result<(B::Tensor, B::Tensor)> {
    let mut x = unit_scaled(backend, a)?.values;
    let mut gram = backend.gram(&x, short_side)?;
    let scale = probes::inverse_norm_bounds(backend, &gram)?;
    backend.scale_batches(&mut x, &scale)?;
    for _ in 0..2 {
        backend.scale_batches(&mut gram, &scale)?;
    }
    Ok((x, gram))
}

fn unit_scaled<B: Backend>(backend: &B, a: &B::Tensor) -> Result<UnitScaled<B::Tensor>> {
    UnitScaled::of(backend, a, &backend.frobenius_norms(a)?)
}

/// `(a I + b G + c G^2) X` with `G = X X^T`, or `X (a I + b G + c G^2)` with `G = X^T X`.
fn quintic_step<B: Backend>(
    backend: &B,
    x: B::Tensor,
    gram: &B::Tensor,
    short_side: Op,
    coefficients: [f64; 3],
) -> Result<B::Tensor> {
    let [a, b, c] = coefficients.map(|v| v as f32);
    let mut polynomial = backend.duplicate(gram)?;
    backend.syrk(c, gram, Op::None, b, &mut polynomial)?; // G is symmetric: c G G^T + b G
    let mut next = backend.duplicate(&x)?;
    match short_side {
        Op::None => backend.gemm(1.0, &polynomial, Op::None, &x, Op::None, a, &mut next)?,
        Op::Transpose => backend.gemm(1.0, &x, Op::None, &polynomial, Op::None, a, &mut next)?,
    }
    Ok(next)
}

/// The share of a factor's squared norm up to which singular values may be neither 0 nor 1: 1% of the norm, and what the last
/// [`Step`] leaves of each.
const SHORTFALL: f32 = 1e-4 + 2.0 * rational::LAST_ERROR as f32;

/// Whether more than [`SHORTFALL`] of `||P||_F^2` is missing in `||P P^T||_F^2`: `sum (s^2 - s^4)` over its singular values, as
/// [`probes::norms_of_powers`] sees it.
fn falls_short(once: f32, twice: f32) -> bool {
    let (all, whole) = (once * once, twice * twice);
    all.is_nan() || (all - whole).abs() > SHORTFALL * all
}

/// Whether [`NOT_A_PROJECTOR`] says so.
fn is_no_projector(defect: f32) -> bool {
    defect.is_nan() || defect > NOT_A_PROJECTOR
}

/// `||G^2 - G||_F` with `G` the Gram matrix of the short side: zero exactly when all singular values are 0 or 1.
fn projector_defect<B: Backend>(backend: &B, gram: &B::Tensor) -> Result<B::Tensor> {
    let mut defect = backend.duplicate(gram)?;
    backend.syrk(1.0, gram, Op::None, -1.0, &mut defect)?;
    backend.frobenius_norms(&defect)
}

/// `A V diag(1/s) V^T` over the singular values above the cut, in f64, and the nuclear norm. `a` is one matrix.
async fn rank_deficient_polar<B: Backend>(backend: &B, a: &B::Tensor) -> Result<(B::Tensor, f64)> {
    let shape = a.shape();
    let values = backend.download(a).await?;
    let wide = if shape.rows <= shape.cols { Op::None } else { Op::Transpose };
    let (factor, nuclear_norm) = pseudo_polar(&Matrix::widened(&values, shape.rows, shape.cols, wide))?;
    Ok((backend.upload(shape, &factor.narrowed(wide))?, nuclear_norm))
}

/// Of a wide matrix: `U diag(1/s) U^T A` with `A A^T = U diag(s^2) U^T`.
fn pseudo_polar(a: &Matrix) -> Result<(Matrix, f64)> {
    let eigen = symmetric_eigen(&product(a, Op::None, a, Op::Transpose, Threads::All), Threads::All)?;
    let sigma: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let kept = sigma.iter().take_while(|&&s| s > NULL_SINGULAR_VALUE * sigma[0]).count();
    let mut u = eigen.vectors.first_rows(kept); // U^T
    let projected = product(&u, Op::None, a, Op::None, Threads::All);
    u.scale_rows(|j| sigma[j].recip());
    Ok((product(&u, Op::Transpose, &projected, Op::None, Threads::All), sigma.iter().sum()))
}
