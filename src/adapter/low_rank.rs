//! One pair of factors, and the difference they make.

use super::targets::Kind;
use super::{Factor, Linear};
use crate::backend::{self, Backend, Op, Shape, Tensor};
use crate::checkpoint::{Checkpoint, Error, Extent, LoraModule, widen};
use std::ops::Range;

/// How `B A` (`d_out x d_in`) lies in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// As it is: the weight of a linear layer, or of a convolution with its kernel flattened.
    Plain,
    /// Transposed, `d_in x d_out`: embeddings, and the `Conv1D` of GPT-2.
    Transposed,
}

/// The part of a module's products that a tensor holds, where a file keeps apart what the module has as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// One expert, and of how many; all, one below the other, if `None`.
    pub expert: Option<(usize, usize)>,
    /// The first row, and how many; all if `None`.
    pub rows: Option<(usize, usize)>,
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
    pub kind: Kind,
    /// Pairs of factors, one an expert of a mixture; else 1.
    pub experts: usize,
    /// Which of the products the tensor holds.
    pub window: Window,
    /// A tensor with one number that scales them, already in `scale`.
    pub alpha: Option<String>,
}

impl LowRank {
    /// The keys it comes from.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        [Some(&self.a), Some(&self.b), self.alpha.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// Rows and columns of `B A` as it lies in the tensor.
    fn product_shape(&self) -> (usize, usize) {
        match self.layout {
            Layout::Plain => (self.d_out, self.d_in),
            Layout::Transposed => (self.d_in, self.d_out),
        }
    }

    /// The first of those rows that the tensor holds, and how many.
    fn held(&self) -> (usize, usize) {
        self.window.rows.unwrap_or((0, self.product_shape().0))
    }

    /// The rows of the tensor, over all its matrices, that the flat `range` of its values touches.
    fn rows(&self, range: &Range<usize>) -> Range<usize> {
        let (_, columns) = self.product_shape();
        range.start / columns..range.end.div_ceil(columns)
    }

    /// The rows of `B` that are read for some rows of the tensor: those alone where each of its rows is one of `B`.
    fn rows_of_b(&self, rows: &Range<usize>) -> Range<usize> {
        match self.layout {
            Layout::Plain => self.held().0 + rows.start..self.held().0 + rows.end,
            Layout::Transposed => 0..self.d_out,
        }
    }

    /// Whether the tensor is the weight of a linear layer or an embedding, or some rows of one.
    pub fn is_linear(&self) -> bool {
        self.window.expert.is_none() && (self.layout == Layout::Plain || self.window.rows.is_none())
    }

    /// All of both factors: the rows of `B` that its tensor holds.
    pub fn linear(&self, file: &Checkpoint) -> Result<Linear, Error> {
        let [a, b] = self.extents(file, &(0..self.held().1 * self.d_in))?;
        let module = match (self.kind, self.layout) {
            (Kind::Embedding, _) => LoraModule::Embedding,
            (Kind::Linear, Layout::Transposed) => LoraModule::Across,
            (Kind::Linear, Layout::Plain) => LoraModule::Linear,
        };
        Ok(Linear { module, a, b, rank: self.rank, scale: self.scale })
    }

    /// What is read for the values `range` of the tensor: of `A`, and of `B`, whose rows hold those of all experts.
    pub fn extents(&self, file: &Checkpoint, range: &Range<usize>) -> Result<[Extent; 2], Error> {
        let (r, rows) = (self.rank * self.experts, self.rows_of_b(&self.rows(range)));
        let of_expert = self.rank * self.d_in;
        let a = match self.window.expert {
            Some((e, _)) => e * of_expert..(e + 1) * of_expert,
            None => 0..of_expert * self.experts,
        };
        Ok([file.values(&self.a, a)?, file.values(&self.b, rows.start * r..rows.end * r)?])
    }

    /// The values `range` of `s B A` in the tensor, as one row.
    pub fn difference<B: Backend>(
        &self,
        backend: &B,
        range: &Range<usize>,
        factors: [Factor; 2],
    ) -> backend::Result<B::Tensor> {
        let (rows, (_, columns)) = (self.rows(range), self.product_shape());
        let product = self.product(backend, rows.clone(), factors)?;
        let (first, len) = (range.start - rows.start * columns, rows.len() * columns);
        let flat = product.reshape(Shape::matrix(1, len))?;
        if (first, range.len()) == (0, len) {
            return Ok(flat);
        }
        backend.slice(&flat, 0..1, 0..1, first..first + range.len())
    }

    /// Some rows of the product that the tensor holds.
    fn product<B: Backend>(
        &self,
        backend: &B,
        rows: Range<usize>,
        [a, b]: [Factor; 2],
    ) -> backend::Result<B::Tensor> {
        let a = backend.unpack(Shape::matrix(self.rank, self.d_in), a.0, a.1)?;
        let shape = Shape::matrix(self.rows_of_b(&rows).len(), self.rank);
        let b = match self.window.expert {
            Some((e, experts)) if experts > 1 => {
                // column `j E + e` is column `j` of expert `e`'s
                let own: Vec<f32> = widen(b.0, b.1).into_iter().skip(e).step_by(experts).collect();
                backend.upload(shape, &own)?
            }
            _ => backend.unpack(shape, b.0, b.1)?,
        };
        let first = self.held().0;
        self.rows_of_product(backend, first + rows.start..first + rows.end, a, b)
    }

    /// Some rows of `s B A`, of which `b` has no others, or of `s A^T B^T`.
    fn rows_of_product<B: Backend>(
        &self,
        backend: &B,
        rows: Range<usize>,
        a: B::Tensor,
        b: B::Tensor,
    ) -> backend::Result<B::Tensor> {
        match self.layout {
            Layout::Plain => self.scaled(backend, (&b, Op::None), (&a, Op::None)),
            Layout::Transposed => {
                let whole = rows == (0..self.d_in);
                let a = if whole { a } else { backend.slice(&a, 0..1, 0..self.rank, rows)? };
                self.scaled(backend, (&a, Op::Transpose), (&b, Op::Transpose))
            }
        }
    }

    /// `s op(left) op(right)`
    fn scaled<B: Backend>(
        &self,
        backend: &B,
        (left, op_left): (&B::Tensor, Op),
        (right, op_right): (&B::Tensor, Op),
    ) -> backend::Result<B::Tensor> {
        let (rows, columns) = (op_left.apply(left.shape()).0, op_right.apply(right.shape()).1);
        let mut product = backend.zeros(Shape::matrix(rows, columns))?;
        backend.gemm(self.scale as f32, left, op_left, right, op_right, 0.0, &mut product)?;
        Ok(product)
    }
}
