//! Inner products of whole tensors, from which methods of angles take all they need: the result of each is a linear combination of
//! its inputs.

use super::elementwise::Slabs;
use crate::backend::{Backend, Result, Shape, Tensor};

/// Inner products of vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    n: usize,
    values: Vec<f64>,
}

impl Gram {
    /// Of `n` vectors of which nothing is known yet.
    pub fn zeros(n: usize) -> Gram {
        Gram { n, values: vec![0.0; n * n] }
    }

    /// How many vectors.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// `<x_i, x_j>`
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// `||x_i||`
    pub fn norm(&self, i: usize) -> f64 {
        self.at(i, i).max(0.0).sqrt()
    }

    fn add(&mut self, i: usize, j: usize, product: f64) {
        self.values[i * self.n + j] += product;
        if i != j {
            self.values[j * self.n + i] += product;
        }
    }

    /// `<sum_i a_i x_i, sum_j b_j x_j>`
    pub fn product(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |i: usize| b.iter().enumerate().map(|(j, b)| b * self.at(i, j)).sum::<f64>();
        a.iter().enumerate().filter(|(_, a)| **a != 0.0).map(|(i, a)| a * row(i)).sum()
    }

    /// Of the weights `W_t = W_0 + dW_t`, where these are the base and the differences.
    pub fn of_weights(&self) -> Gram {
        let mut weights = Gram::zeros(self.n - 1);
        for i in 1..self.n {
            for j in i..self.n {
                weights.add(i - 1, j - 1, self.at(0, 0) + self.at(0, i) + self.at(0, j) + self.at(i, j));
            }
        }
        weights
    }

    /// Of the differences alone.
    pub fn of_deltas(&self) -> Gram {
        let mut deltas = Gram::zeros(self.n - 1);
        for i in 1..self.n {
            for j in i..self.n {
                deltas.add(i - 1, j - 1, self.at(i, j));
            }
        }
        deltas
    }
}

/// Along which vectors inner products are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// The whole tensor is one vector.
    All,
    /// Every row is.
    Rows,
    /// Every column is.
    Columns,
}

/// Of the base and the differences of all models over a whole tensor.
pub async fn of_tensor<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
) -> std::result::Result<Gram, S::Error> {
    Ok(over_slabs(backend, slabs, Along::All).await?.pop().unwrap_or_else(|| Gram::zeros(0)))
}

/// The same of every column, from slabs of whole rows.
pub async fn of_columns<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
) -> std::result::Result<Vec<Gram>, S::Error> {
    over_slabs(backend, slabs, Along::Columns).await
}

async fn over_slabs<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    along: Along,
) -> std::result::Result<Vec<Gram>, S::Error> {
    let mut grams: Vec<Gram> = Vec::new();
    for index in 0..slabs.count() {
        let slab = slabs.slab(index).await?;
        let of_slab = products(backend, &slab.base, &slab.deltas, along).await?;
        if grams.is_empty() {
            grams = of_slab;
            continue;
        }
        for (gram, own) in grams.iter_mut().zip(&of_slab) {
            gram.values.iter_mut().zip(&own.values).for_each(|(sum, own)| *sum += own);
        }
    }
    Ok(grams)
}

/// Of the base and the differences of a slab: of all of it, or of each of its rows or columns.
pub async fn products<B: Backend>(
    backend: &B,
    base: &B::Tensor,
    deltas: &B::Tensor,
    along: Along,
) -> Result<Vec<Gram>> {
    let Shape { batch: tasks, rows, cols } = deltas.shape();
    let member = |i: usize| match i {
        0 => backend.duplicate(base),
        _ => backend.slice(deltas, i - 1..i, 0..rows, 0..cols),
    };
    let members = (0..=tasks).map(member).collect::<Result<Vec<_>>>()?;
    let count = match along {
        Along::All => 1,
        Along::Rows => rows,
        Along::Columns => cols,
    };
    let mut grams = vec![Gram::zeros(tasks + 1); count];
    for i in 0..=tasks {
        for j in i..=tasks {
            let products = match along {
                Along::All => backend.inner_products(&members[i], &members[j])?,
                Along::Rows => backend.row_products(&members[i], &members[j])?,
                Along::Columns => backend.column_products(&members[i], &members[j])?,
            };
            let products = backend.download(&products).await?;
            grams.iter_mut().zip(products).for_each(|(gram, product)| gram.add(i, j, product.into()));
        }
    }
    Ok(grams)
}
