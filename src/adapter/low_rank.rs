//! One pair of factors, and the difference they make.

use super::Factor;
use crate::backend::{self, Backend, Op, Shape};
use crate::checkpoint::{Checkpoint, Error, Extent, widen};
use std::ops::Range;

/// How `B A` (`d_out x d_in`) lies in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// As it is: the weight of a linear layer, or of a convolution with its kernel flattened.
    Plain,
    /// Transposed, `d_in x d_out`: embeddings, and the `Conv1D` of GPT-2.
    Transposed,
}

/// `s B A` in a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LowRank {
    /// Key of `A`, `r x d_in`; of several experts one below the other.
    pub a: String,
    /// Key of `B`, `d_out x r`; of several experts column by column, those of one rank side by side.
    pub b: String,
    /// `r`, of each expert.
    pub rank: usize,
    /// Rows of `B`.
    pub d_out: usize,
    /// Columns of `A`.
    pub d_in: usize,
    /// `s`
    pub scale: f64,
    pub layout: Layout,
    /// Matrices in the tensor: its first dimension where that counts the experts of a mixture, else 1.
    pub experts: usize,
    /// A tensor with one number that scales them, already in `scale`.
    pub alpha: Option<String>,
}

impl LowRank {
    /// The keys it comes from.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        [Some(&self.a), Some(&self.b), self.alpha.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// Rows and columns of one matrix of the tensor.
    fn matrix(&self) -> (usize, usize) {
        match self.layout {
            Layout::Plain => (self.d_out, self.d_in),
            Layout::Transposed => (self.d_in, self.d_out),
        }
    }

    /// The rows, over all matrices of the tensor, that the flat `range` of its values touches.
    fn rows(&self, range: &Range<usize>) -> Range<usize> {
        let (_, columns) = self.matrix();
        range.start / columns..range.end.div_ceil(columns)
    }

    /// Whether the tensor's rows are rows of `B`, of which only those needed are read.
    fn has_rows_of_b(&self) -> bool {
        self.layout == Layout::Plain && self.experts == 1
    }

    /// What is read for the values `range` of the tensor: of `A`, and of `B`.
    pub fn extents(&self, file: &Checkpoint, range: &Range<usize>) -> Result<[Extent; 2], Error> {
        let r = self.rank * self.experts;
        let rows = if self.has_rows_of_b() { self.rows(range) } else { 0..self.d_out };
        Ok([file.values(&self.a, 0..r * self.d_in)?, file.values(&self.b, rows.start * r..rows.end * r)?])
    }

    /// The values `range` of `s B A` in the tensor, as one row.
    pub fn difference<B: Backend>(
        &self,
        backend: &B,
        range: &Range<usize>,
        factors: [Factor; 2],
    ) -> backend::Result<B::Tensor> {
        let (rows, (_, columns)) = (self.rows(range), self.matrix());
        let product = match self.experts {
            1 => self.product(backend, rows.clone(), factors)?,
            _ => self.products(backend, rows.clone(), factors)?,
        };
        let (first, len) = (range.start - rows.start * columns, rows.len() * columns);
        let flat = reshaped(product, len)?;
        if (first, range.len()) == (0, len) {
            return Ok(flat);
        }
        backend.slice(&flat, 0..1, 0..1, first..first + range.len())
    }

    /// Some rows of `s B A`, or of its transpose.
    fn product<B: Backend>(
        &self,
        backend: &B,
        rows: Range<usize>,
        [a, b]: [Factor; 2],
    ) -> backend::Result<B::Tensor> {
        let (r, d_out, d_in) = (self.rank, self.d_out, self.d_in);
        let a = backend.unpack(Shape::matrix(r, d_in), a.0, a.1)?;
        match self.layout {
            Layout::Plain => {
                let b = backend.unpack(Shape::matrix(rows.len(), r), b.0, b.1)?;
                self.scaled(backend, (&b, Op::None), (&a, Op::None))
            }
            Layout::Transposed => {
                let b = backend.unpack(Shape::matrix(d_out, r), b.0, b.1)?;
                let a = if rows.len() == d_in { a } else { backend.slice(&a, 0..1, 0..r, rows)? };
                self.scaled(backend, (&a, Op::Transpose), (&b, Op::Transpose))
            }
        }
    }

    /// Some rows of the matrices of a mixture, one below the other. `A` holds the experts' one below the other; column `j E + e`
    /// of `B` is column `j` of expert `e`'s.
    fn products<B: Backend>(
        &self,
        backend: &B,
        rows: Range<usize>,
        [a, b]: [Factor; 2],
    ) -> backend::Result<B::Tensor> {
        let (height, columns) = self.matrix();
        let (a, b) = (widen(a.0, a.1), widen(b.0, b.1));
        let (r, d_out, d_in, experts) = (self.rank, self.d_out, self.d_in, self.experts);
        let mut all = backend.zeros(Shape::matrix(rows.len(), columns))?;
        for e in rows.start / height..rows.end.div_ceil(height) {
            let own_b: Vec<f32> = (0..d_out)
                .flat_map(|i| (0..r).map(move |j| (i * r + j) * experts + e))
                .map(|k| b[k])
                .collect();
            let own_a = backend.upload(Shape::matrix(r, d_in), &a[e * r * d_in..(e + 1) * r * d_in])?;
            let own_b = backend.upload(Shape::matrix(d_out, r), &own_b)?;
            let whole = match self.layout {
                Layout::Plain => self.scaled(backend, (&own_b, Op::None), (&own_a, Op::None))?,
                Layout::Transposed => {
                    self.scaled(backend, (&own_a, Op::Transpose), (&own_b, Op::Transpose))?
                }
            };
            let (first, end) = ((e * height).max(rows.start), ((e + 1) * height).min(rows.end));
            let (from, to) = ([0, first - e * height, 0], [0, first - rows.start, 0]);
            backend.copy_block(&whole, from, &mut all, to, [1, end - first, columns])?;
        }
        Ok(all)
    }

    /// `s op(left) op(right)`
    fn scaled<B: Backend>(
        &self,
        backend: &B,
        (left, op_left): (&B::Tensor, Op),
        (right, op_right): (&B::Tensor, Op),
    ) -> backend::Result<B::Tensor> {
        use crate::backend::Tensor;
        let (rows, columns) = (op_left.apply(left.shape()).0, op_right.apply(right.shape()).1);
        let mut product = backend.zeros(Shape::matrix(rows, columns))?;
        backend.gemm(self.scale as f32, left, op_left, right, op_right, 0.0, &mut product)?;
        Ok(product)
    }
}

fn reshaped<T: backend::Tensor>(x: T, len: usize) -> backend::Result<T> {
    x.reshape(Shape::matrix(1, len))
}
