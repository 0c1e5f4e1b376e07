//! Methods that merge every tensor for itself, element by element, in slabs.

use super::Streamed;
use super::held::Held;
use super::spectral::batched;
use super::values::Values;
use crate::backend::{self, Across, Backend, Result, Shape, Tensor};
use std::rc::Rc;

/// Some values of a tensor, in order. Methods that look at rows get whole rows of the tensor's last axis; others get one row.
pub struct Slab<T> {
    /// Of the base, `1 x rows x cols`.
    pub base: Rc<T>,
    /// Differences of T models to it, `T x rows x cols`.
    pub deltas: T,
    /// Place of the first value in the tensor.
    pub first: usize,
}

/// A tensor as its slabs.
#[allow(async_fn_in_trait)] // driven on the calling thread, as the backend's futures are
pub trait Slabs<B: Backend> {
    /// What may go wrong, beside the device.
    type Error: From<backend::Error>;

    /// How many slabs there are.
    fn count(&self) -> usize;

    /// Values of the whole tensor.
    fn elements(&self) -> usize;

    /// One of them, kept until another is asked for.
    async fn slab(&mut self, index: usize) -> std::result::Result<&Slab<B::Tensor>, Self::Error>;
}

/// A method for one tensor, with its parameters.
#[allow(async_fn_in_trait)]
pub trait Elementwise: Sized {
    /// What is known of a tensor after a look at all of it.
    type Learned;

    /// The method with parameters.
    ///
    /// # Errors
    /// Says which do not go together.
    fn new(values: &Values) -> std::result::Result<Self, String>;

    /// Whether slabs must hold whole rows.
    fn by_rows(&self) -> bool {
        false
    }

    /// Looks at the whole tensor, as often as it takes.
    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Self::Learned, S::Error>;

    /// The merged delta of a slab, `1 x rows x cols`.
    async fn apply<B: Backend>(
        &self,
        backend: &B,
        learned: &Self::Learned,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor>;
}

/// The merged delta of matrices that are on the device already, `rows x cols` each.
pub async fn of_matrices<B: Backend>(
    backend: &B,
    method: &Streamed,
    base: B::Tensor,
    deltas: &[B::Tensor],
) -> Result<B::Tensor> {
    of_batch(backend, method, base, batched(backend, deltas)?).await
}

/// The same of a batch of differences, `T x rows x cols`, which it takes.
pub async fn of_batch<B: Backend>(
    backend: &B,
    method: &Streamed,
    base: B::Tensor,
    deltas: B::Tensor,
) -> Result<B::Tensor> {
    let shape = base.shape();
    let mut held = Held::of(base, deltas, method.by_rows())?;
    let learned = method.learn::<B, _>(backend, &mut held).await?;
    method.apply(backend, &learned, held.into_slab()).await?.reshape(shape)
}

/// `dW = base W_0 + sum_t models_t dW_t`.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Factor of the base.
    pub base: f64,
    /// Factors of the differences.
    pub models: Vec<f64>,
}

impl Combination {
    /// Of differences alone.
    pub fn of_deltas(models: Vec<f64>) -> Combination {
        Combination { base: 0.0, models }
    }

    /// The sum `sum_t c_t W_t` of weights as a difference to the base.
    pub fn of_weights(models: Vec<f64>) -> Combination {
        Combination { base: models.iter().sum::<f64>() - 1.0, models }
    }

    /// The sum of a slab.
    pub fn apply<B: Backend>(&self, backend: &B, slab: &Slab<B::Tensor>) -> Result<B::Tensor> {
        let factors: Vec<f32> = self.models.iter().map(|&c| c as f32).collect();
        let mut sum = backend.across(&slab.deltas, Across::Weigh(&factors))?;
        if self.base != 0.0 {
            backend.axpby(self.base as f32, &slab.base, 1.0, &mut sum)?;
        }
        Ok(sum)
    }
}

/// The same with factors of their own for every row or every column: those of the base, then those of each model.
pub(super) fn combine_lines<B: Backend>(
    backend: &B,
    slab: &Slab<B::Tensor>,
    factors: &[Vec<f32>],
    columns: bool,
) -> Result<B::Tensor> {
    let Shape { rows, cols, .. } = slab.base.shape();
    let mut sum = backend.zeros(Shape::matrix(rows, cols))?;
    for (i, factors) in factors.iter().enumerate() {
        let mut member = match i {
            0 => backend.duplicate(&slab.base)?,
            _ => backend.slice(&slab.deltas, i - 1..i, 0..rows, 0..cols)?,
        };
        if columns {
            backend.scale_columns(&mut member, &backend.upload(Shape::matrix(1, cols), factors)?)?;
        } else {
            backend.scale_rows(&mut member, &backend.upload(Shape::matrix(rows, 1), factors)?)?;
        }
        backend.axpby(1.0, &member, 1.0, &mut sum)?;
    }
    Ok(sum)
}

/// `x`, multiplied.
pub(super) fn scaled<B: Backend>(backend: &B, mut x: B::Tensor, factor: f64) -> Result<B::Tensor> {
    if factor != 1.0 {
        let factors = vec![factor as f32; x.shape().batch];
        backend.scale_batches(&mut x, &backend.upload(Shape::new(factors.len(), 1, 1), &factors)?)?;
    }
    Ok(x)
}

/// The members of a batch, each multiplied by its own factor.
pub(super) fn scale_each<B: Backend>(backend: &B, x: &mut B::Tensor, factors: &[f64]) -> Result<()> {
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(());
    }
    let factors: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
    backend.scale_batches(x, &backend.upload(Shape::new(factors.len(), 1, 1), &factors)?)
}

/// In f32, as the device takes them.
pub(super) fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|&number| number as f32).collect()
}

/// `1 / sum`, where a sum of weights is as good as zero 1.
pub(super) fn normalizer(weights: &[f64]) -> f64 {
    let sum: f64 = weights.iter().sum();
    if sum.abs() < 1e-8 { 1.0 } else { sum.recip() }
}
