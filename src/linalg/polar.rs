//! The orthogonal polar factor by an iteration of matrix products and Cholesky factorizations, and its nuclear norm.

use super::host::{Matrix, Threads, gram, product, symmetric_eigen};
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
    /// Which members have null directions beside rows or columns of zeros.
    pub rank_deficient: Vec<bool>,
}

/// A [`Polar`] whose numbers are on the device, and whose unfinished members, if any, are not yet mended.
pub struct PendingPolar<T> {
    /// Same shape as the input.
    pub factor: T,
    /// `sum(S)`, `batch x 1 x 1`.
    pub nuclear_norms: T,
    /// What [`unfinished`] needs to know, `batch x 1 x 5`.
    pub checks: T,
}

/// Polar factor of every member of `a` (`batch x rows x cols`), by iteration on the short side: quintic steps at
/// [`Accuracy::Exact`], rational ones else, whose singular values are within 5.2e-5 of 1. Up to `HOST_ORDER` `Exact` is f64 on the
/// host.
///
/// The nuclear norm is `trace(P^T A)`. A member whose result is not a projector on its range, or that misses directions, is computed
/// again: in f64 from the smaller Gram matrix, with the null cut [`NULL_SINGULAR_VALUE`]. Past `HOST_ORDER`, where that takes
/// long, by rational steps after two that raise what is small, and only then in f64.
pub async fn polar<B: Backend>(backend: &B, a: &B::Tensor, accuracy: Accuracy) -> Result<Polar<B::Tensor>> {
    let PendingPolar { mut factor, nuclear_norms, checks } = pending_polar(backend, a, accuracy)?;
    let [nuclear_norms, checks] = backend.download_all([&nuclear_norms, &checks]).await?;
    let mut nuclear_norms: Vec<f64> = nuclear_norms.iter().map(|&v| f64::from(v)).collect();
    let shape = a.shape();
    let mut rank_deficient = vec![false; shape.batch];
    let unfinished: Vec<bool> = unfinished(accuracy, &checks).collect();
    for b in (0..shape.batch).filter(|&b| unfinished[b]) {
        let member = backend.slice(a, b..b + 1, 0..shape.rows, 0..shape.cols)?;
        let mended = mended(backend, &member, accuracy).await?;
        backend.copy_block(&mended.factor, [0, 0, 0], &mut factor, [b, 0, 0], [1, shape.rows, shape.cols])?;
        (nuclear_norms[b], rank_deficient[b]) = (mended.nuclear_norm, mended.rank_deficient);
    }
    Ok(Polar { factor, nuclear_norms, rank_deficient })
}

/// The polar factor of one matrix that the iteration of its accuracy did not finish.
struct Mended<T> {
    factor: T,
    nuclear_norm: f64,
    rank_deficient: bool,
}

async fn mended<B: Backend>(backend: &B, a: &B::Tensor, accuracy: Accuracy) -> Result<Mended<B::Tensor>> {
    if accuracy != Accuracy::Exact && short_order(a) > HOST_ORDER {
        let factor = by_rational_steps(backend, a, short_side(a), FIRST_RAISED)?;
        let PendingPolar { factor, nuclear_norms, checks } = checked(backend, a, factor, accuracy)?;
        let [nuclear_norms, checks] = backend.download_all([&nuclear_norms, &checks]).await?;
        if !falls_short(checks[0], checks[1]) {
            let rank_deficient = misses_directions(&checks);
            return Ok(Mended { factor, nuclear_norm: f64::from(nuclear_norms[0]), rank_deficient });
        }
    }
    by_host(backend, a).await
}

/// The order of short sides up to which a decomposition in f64 costs about as much as the quintic steps, and where a direction that is
/// wrongly kept or dropped is 3% of the factor and more: which have singular values above [`NULL_SINGULAR_VALUE`] of the largest
/// only f64 can tell.
const HOST_ORDER: usize = 1024;

fn short_order<T: Tensor>(a: &T) -> usize {
    a.shape().rows.min(a.shape().cols)
}

/// Nothing yet, and checks that say so.
fn left_to_the_host<B: Backend>(backend: &B, a: &B::Tensor) -> Result<PendingPolar<B::Tensor>> {
    let batch = a.shape().batch;
    Ok(PendingPolar {
        factor: backend.zeros(a.shape())?,
        nuclear_norms: backend.zeros(Shape::new(batch, 1, 1))?,
        checks: backend.upload(Shape::new(batch, 1, CHECKS), &vec![f32::NAN; batch * CHECKS])?,
    })
}

/// The iteration of [`polar`] alone, for which the host waits for nothing.
pub fn pending_polar<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    accuracy: Accuracy,
) -> Result<PendingPolar<B::Tensor>> {
    let factor = match accuracy {
        Accuracy::Exact if short_order(a) <= HOST_ORDER => return left_to_the_host(backend, a),
        Accuracy::Exact => by_quintic_steps(backend, a, short_side(a))?,
        Accuracy::Balanced | Accuracy::Fast => by_rational_steps(backend, a, short_side(a), 0)?,
    };
    checked(backend, a, factor, accuracy)
}

/// The operation that makes the rows of `a` its short side.
fn short_side<T: Tensor>(a: &T) -> Op {
    if a.shape().rows <= a.shape().cols { Op::None } else { Op::Transpose }
}

/// A factor of `a` with its nuclear norm and its checks.
fn checked<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    factor: B::Tensor,
    accuracy: Accuracy,
) -> Result<PendingPolar<B::Tensor>> {
    let unit = unit_scaled(backend, a)?;
    let checks = match accuracy {
        Accuracy::Exact => {
            let gram = backend.gram(&factor, short_side(a))?;
            side_by_side(backend, &[projector_defect(backend, &gram)?])?
        }
        Accuracy::Balanced | Accuracy::Fast => {
            let [once, twice] = probes::norms_of_powers(backend, &factor, short_side(a))?;
            let norm = backend.frobenius_norms(&factor)?;
            let count = |mut lengths: B::Tensor| {
                backend.power(&mut lengths, 0.0)?;
                backend.frobenius_norms(&lengths)
            };
            let rows = count(backend.row_norms(&unit.values)?)?;
            let columns = count(backend.column_norms(&unit.values)?)?;
            side_by_side(backend, &[once, twice, norm, rows, columns])?
        }
    };
    let mut nuclear_norms = backend.inner_products(&factor, &unit.values)?;
    unit.undo(backend, &mut nuclear_norms)?;
    Ok(PendingPolar { factor, nuclear_norms, checks })
}

/// Numbers that [`unfinished`] looks at: two norms of random rows, the norm, and the roots of the numbers of rows and columns that
/// are not zero.
pub const CHECKS: usize = 5;

/// `batch x 1 x CHECKS` of tensors `batch x 1 x 1`.
fn side_by_side<B: Backend>(backend: &B, numbers: &[B::Tensor]) -> Result<B::Tensor> {
    let batch = numbers[0].shape().batch;
    let mut all = backend.zeros(Shape::new(batch, 1, CHECKS))?;
    for (j, numbers) in numbers.iter().enumerate() {
        backend.copy_block(numbers, [0, 0, 0], &mut all, [0, 0, j], [batch, 1, 1])?;
    }
    Ok(all)
}

/// Whether the iteration failed on a member of the batch, or has not reached all directions, one by one, by its
/// [`PendingPolar::checks`].
pub fn unfinished(accuracy: Accuracy, checks: &[f32]) -> impl Iterator<Item = bool> {
    checks.chunks(CHECKS).map(move |check| match accuracy {
        Accuracy::Exact => is_no_projector(check[0]),
        Accuracy::Balanced | Accuracy::Fast => falls_short(check[0], check[1]) || misses_directions(check),
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
///
/// With `raised` quintic steps before them, 34-fold for two, they reach down to 1e-6.
fn by_rational_steps<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    short_side: Op,
    raised: usize,
) -> Result<B::Tensor> {
    let (mut x, gram) = bounded(backend, a, short_side)?;
    let identity = rational::identity(backend, short_side.apply(a.shape()).0)?;
    let mut known = Some(gram);
    for &step in &STEPS[..raised] {
        let gram = known.take().map_or_else(|| backend.gram(&x, short_side), Ok)?;
        x = quintic_step(backend, x, &gram, short_side, step)?;
    }
    if raised > 0 {
        // quintic steps leave large singular values anywhere up to 2, and rational ones bear no more than 1
        let batch = a.shape().batch;
        backend.scale_batches(&mut x, &backend.upload(Shape::new(batch, 1, 1), &vec![0.5; batch])?)?;
    }
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

/// Quintic steps before the rational ones where directions were missing.
const FIRST_RAISED: usize = 2;

/// Whether a direction has not arrived, where there are as many as rows or columns that are not zero: `||P||_F^2` counts those that
/// have, each to within what the last [`Step`] leaves. One of n that is missing is `n^(-1/2)` of the factor.
fn misses_directions(check: &[f32]) -> bool {
    let [norm, rows, columns] = [check[2], check[3], check[4]].map(|root| f64::from(root).powi(2));
    let directions = rows.min(columns).round();
    norm < directions - 0.25 - 2.0 * rational::LAST_ERROR * directions
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
async fn by_host<B: Backend>(backend: &B, a: &B::Tensor) -> Result<Mended<B::Tensor>> {
    let shape = a.shape();
    let values = backend.download(a).await?;
    let wide = if shape.rows <= shape.cols { Op::None } else { Op::Transpose };
    let (rows, columns) = (
        Matrix::widened(&values, shape.rows, shape.cols, Op::None),
        Matrix::widened(&values, shape.rows, shape.cols, Op::Transpose),
    );
    let directions = rows.rows_that_are_not_zero().min(columns.rows_that_are_not_zero());
    let PseudoPolar { factor, nuclear_norm, rank } =
        pseudo_polar(if wide == Op::None { &rows } else { &columns })?;
    let factor = backend.upload(shape, &factor.narrowed(wide))?;
    Ok(Mended { factor, nuclear_norm, rank_deficient: rank < directions })
}

/// A polar factor in f64.
struct PseudoPolar {
    factor: Matrix,
    nuclear_norm: f64,
    /// Singular values above the cut.
    rank: usize,
}

/// Of a wide matrix: `U diag(1/s) U^T A` with `A A^T = U diag(s^2) U^T`.
fn pseudo_polar(a: &Matrix) -> Result<PseudoPolar> {
    let eigen = symmetric_eigen(&gram(a, Op::None, Threads::All), Threads::All)?;
    let sigma: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let largest = sigma.first().copied().unwrap_or(0.0);
    let rank = sigma.iter().take_while(|&&s| s > NULL_SINGULAR_VALUE * largest).count();
    let mut u = eigen.vectors.first_rows(rank); // U^T
    let projected = product(&u, Op::None, a, Op::None, Threads::All);
    u.scale_rows(|j| sigma[j].recip());
    let factor = product(&u, Op::Transpose, &projected, Op::None, Threads::All);
    Ok(PseudoPolar { factor, nuclear_norm: sigma.iter().sum(), rank })
}
