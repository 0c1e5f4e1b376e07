//! Two concatenations, `E_cat` and `A_cat`, fused into merged deltas: orthogonalised (paper 1, section 3), multiplied, and
//! multiplied by their mean singular values.

use super::Fusion;
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{Accuracy, CHECKS, PendingPolar, Polar, pending_polar, polar, qr_rows, unfinished};

/// Merged layers of one shape.
pub struct MergedLayers<T> {
    /// `dW`, `L x d_out x d_in`, before inter-layer scaling and alpha.
    pub deltas: T,
    /// What each layer was like.
    pub layers: Vec<MergedLayer>,
}

/// Merged layers of one shape as products, `dW = B A`.
pub struct MergedFactors<T> {
    /// `B^T`, `L x s x d_out`.
    pub b: T,
    /// `A`, `L x s x d_in`.
    pub a: T,
    /// What each layer was like.
    pub layers: Vec<MergedLayer>,
}

/// What the merge of one layer was like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergedLayer {
    /// `n_t`, for each task; none where tasks are not scaled.
    pub task_norms: Vec<f64>,
    /// `s_t`, for each task; none where tasks are not scaled.
    pub task_scales: Vec<f64>,
    /// For each task the share of its output shift, or of its `dW`, that its directions keep.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient, beside rows and columns of zeros.
    pub rank_deficient: bool,
}

/// The concatenations of L layers of one shape, and how they are fused.
pub(super) struct Concatenations<'a, T> {
    /// `E_cat^T`, `L x s x d_out`.
    pub left: &'a T,
    /// `A_cat`, `L x s x d_in`.
    pub right: &'a T,
    /// What the rows of the orthogonalised `A_cat` are multiplied by, `L x s x 1`.
    pub weights: Option<&'a T>,
    /// Rows of the concatenations with those that are null and left out.
    pub directions: usize,
    /// How they are orthogonalised.
    pub fusion: Fusion,
    /// Whether the product is multiplied by the mean singular values of both.
    pub mean_sigma: bool,
    /// Constant factor of the product.
    pub gain: f64,
    /// Of the polar factors.
    pub accuracy: Accuracy,
}

/// Merged deltas, of which some may have to be mended.
pub(super) struct Fused<T> {
    /// `L x d_out x d_in`
    pub deltas: T,
    /// [`PendingPolar::checks`] of the left and the right factors.
    pub checks: [T; 2],
}

/// Merged deltas as products, of which some may have to be mended.
pub(super) struct FusedFactors<T> {
    /// `L x s x d_out`
    pub left: T,
    /// `L x s x d_in`, with all that multiplies the product: `dW = left^T right`.
    pub right: T,
    /// As those of [`Fused`].
    pub checks: [T; 2],
}

/// Orthogonalised concatenations.
struct Factor<T> {
    values: T,
    /// `sum(S)`, `L x 1 x 1`.
    nuclear_norms: T,
}

impl<T: Tensor> Concatenations<'_, T> {
    /// `gain mean(S_E) mean(S_A) polar(E_cat)^T diag(w) polar(A_cat)`, as far as `fusion` and `mean_sigma` ask for it. The host
    /// waits for nothing (a QR factorization apart, which is made there): layers whose concatenations are rank-deficient are
    /// wrong until [`Self::mend`] has seen the checks.
    pub async fn fuse<B: Backend<Tensor = T>>(&self, backend: &B) -> Result<Fused<T>> {
        let ([left, right], checks) = self.orthogonalized(backend).await?;
        Ok(Fused { deltas: self.product(backend, &left, right, self.weights)?, checks })
    }

    /// Computes layers again whose polar iterations failed by their `checks`, and says which these are.
    pub async fn mend<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        deltas: &mut T,
        checks: [&[f32]; 2],
    ) -> Result<Vec<bool>> {
        let unfinished = self.unfinished(checks);
        let mut deficient = vec![false; unfinished.len()];
        for l in (0..deficient.len()).filter(|&l| unfinished[l]) {
            let ([left, right], weights);
            ([left, right], weights, deficient[l]) = self.layer_with_care(backend, l).await?;
            let delta = self.product(backend, &left, right, weights.as_ref())?;
            let Shape { rows, cols, .. } = delta.shape();
            backend.copy_block(&delta, [0, 0, 0], deltas, [l, 0, 0], [1, rows, cols])?;
        }
        Ok(deficient)
    }

    /// [`fuse`](Self::fuse) without the product.
    pub async fn fuse_factors<B: Backend<Tensor = T>>(&self, backend: &B) -> Result<FusedFactors<T>> {
        let ([left, right], checks) = self.orthogonalized(backend).await?;
        let right = self.scaled_right(backend, &left, right, self.weights)?;
        Ok(FusedFactors { left: left.values, right, checks })
    }

    /// [`mend`](Self::mend) for factors.
    pub async fn mend_factors<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        fused: &mut FusedFactors<T>,
        checks: [&[f32]; 2],
    ) -> Result<Vec<bool>> {
        let unfinished = self.unfinished(checks);
        let mut deficient = vec![false; unfinished.len()];
        for l in (0..deficient.len()).filter(|&l| unfinished[l]) {
            let ([left, right], weights);
            ([left, right], weights, deficient[l]) = self.layer_with_care(backend, l).await?;
            let right = self.scaled_right(backend, &left, right, weights.as_ref())?;
            for (from, to) in [(&left.values, &mut fused.left), (&right, &mut fused.right)] {
                let Shape { rows, cols, .. } = from.shape();
                backend.copy_block(from, [0, 0, 0], to, [l, 0, 0], [1, rows, cols])?;
            }
        }
        Ok(deficient)
    }

    /// Both sides, and their checks.
    async fn orthogonalized<B: Backend<Tensor = T>>(&self, backend: &B) -> Result<([Factor<T>; 2], [T; 2])> {
        let (left, left_checks) = self.orthogonalize(backend, self.left).await?;
        let (right, right_checks) = self.orthogonalize(backend, self.right).await?;
        Ok(([left, right], [left_checks, right_checks]))
    }

    /// The layers of which one side's polar iteration failed.
    fn unfinished(&self, checks: [&[f32]; 2]) -> Vec<bool> {
        let [left, right] = checks.map(|checks| unfinished(self.accuracy, checks));
        left.zip(right).map(|(left, right)| left || right).collect()
    }

    /// Both sides of one layer, whatever their ranks, its weights, and whether one of them is rank-deficient.
    async fn layer_with_care<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        l: usize,
    ) -> Result<([Factor<T>; 2], Option<T>, bool)> {
        let layer = |x: &T| backend.slice(x, l..l + 1, 0..x.shape().rows, 0..x.shape().cols);
        let (left, of_left) = self.orthogonalize_with_care(backend, &layer(self.left)?).await?;
        let (right, of_right) = self.orthogonalize_with_care(backend, &layer(self.right)?).await?;
        Ok(([left, right], self.weights.map(layer).transpose()?, of_left || of_right))
    }

    /// The right factor with all that multiplies the product.
    fn scaled_right<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        left: &Factor<T>,
        mut right: Factor<T>,
        weights: Option<&T>,
    ) -> Result<T> {
        if let Some(weights) = weights {
            backend.scale_rows(&mut right.values, weights)?;
        }
        let (gain, with_means) = self.gain(left.values.shape().cols, right.values.shape().cols);
        let mut scaled = backend.zeros(right.values.shape())?;
        backend.axpby(gain as f32, &right.values, 0.0, &mut scaled)?;
        if with_means {
            backend.scale_batches(&mut right.nuclear_norms, &left.nuclear_norms)?;
            backend.scale_batches(&mut scaled, &right.nuclear_norms)?;
        }
        Ok(scaled)
    }

    /// The constant factor of the product, and whether the sums of singular values are others.
    fn gain(&self, d_out: usize, d_in: usize) -> (f64, bool) {
        let with_means = self.mean_sigma && self.fusion != Fusion::Concat;
        let thin = |d: usize| self.directions.min(d) as f64;
        (if with_means { self.gain / (thin(d_out) * thin(d_in)) } else { self.gain }, with_means)
    }

    /// Factors, and what is to be checked of them.
    async fn orthogonalize<B: Backend<Tensor = T>>(&self, backend: &B, m: &T) -> Result<(Factor<T>, T)> {
        if self.fusion == Fusion::Concat {
            let none = |n| backend.zeros(Shape::new(m.shape().batch, 1, n));
            return Ok((Factor { values: backend.duplicate(m)?, nuclear_norms: none(1)? }, none(CHECKS)?));
        }
        let PendingPolar { factor, nuclear_norms, checks } = pending_polar(backend, m, self.accuracy)?;
        Ok((Factor { values: self.factor(backend, m, factor).await?, nuclear_norms }, checks))
    }

    /// Factors of one layer that hold whatever its rank, and whether it is deficient.
    async fn orthogonalize_with_care<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        m: &T,
    ) -> Result<(Factor<T>, bool)> {
        let Polar { factor, nuclear_norms, rank_deficient } = polar(backend, m, self.accuracy).await?;
        let nuclear_norms: Vec<f32> = nuclear_norms.iter().map(|&norm| norm as f32).collect();
        let nuclear_norms = backend.upload(Shape::new(nuclear_norms.len(), 1, 1), &nuclear_norms)?;
        let values = self.factor(backend, m, factor).await?;
        Ok((Factor { values, nuclear_norms }, rank_deficient.contains(&true)))
    }

    /// The factor that is asked for.
    async fn factor<B: Backend<Tensor = T>>(&self, backend: &B, m: &T, polar: T) -> Result<T> {
        match self.fusion {
            Fusion::Qr => qr_rows(backend, m).await,
            _ => Ok(polar),
        }
    }

    fn product<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        left: &Factor<T>,
        mut right: Factor<T>,
        weights: Option<&T>,
    ) -> Result<T> {
        if let Some(weights) = weights {
            backend.scale_rows(&mut right.values, weights)?;
        }
        let (d_out, d_in) = (left.values.shape().cols, right.values.shape().cols);
        let (gain, with_means) = self.gain(d_out, d_in);
        let mut deltas = backend.zeros(Shape::new(left.values.shape().batch, d_out, d_in))?;
        backend.gemm(gain as f32, &left.values, Op::Transpose, &right.values, Op::None, 0.0, &mut deltas)?;
        if with_means {
            backend.scale_batches(&mut right.nuclear_norms, &left.nuclear_norms)?;
            backend.scale_batches(&mut deltas, &right.nuclear_norms)?;
        }
        Ok(deltas)
    }
}
