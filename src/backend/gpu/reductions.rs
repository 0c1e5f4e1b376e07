//! Norms and inner products: sums in one step, or in two where rows or columns are long.

use super::split::{Block, split};
use super::{Gpu, GpuTensor, Result};
use crate::kernels::{Terms, View, column_chunk, reduce_columns, reduce_rows, row_chunk};
use crate::matrix::Shape;

/// Operands of a sum.
#[derive(Clone, Copy)]
pub(super) struct Sum<'a> {
    pub x: View<'a>,
    pub terms: Terms<'a>,
    /// Whether the root of the sum is wanted: of squares, a norm.
    pub root: bool,
}

impl<'a> Sum<'a> {
    /// A Euclidean norm.
    pub fn norm(x: View<'a>) -> Self {
        Sum { x, terms: Terms::Squares, root: true }
    }

    /// What the second step sums: norms of parts have squares that add up to the square of the whole's, and are within f32
    /// where their squares are not.
    fn of_partial(self, partial: &'a GpuTensor) -> Self {
        let terms = if self.root { Terms::Squares } else { Terms::Sums };
        Sum { x: partial.view(), terms, root: self.root }
    }

    fn part(&self, block: &Block) -> Self {
        let terms = match self.terms {
            Terms::Products(y) => Terms::Products(block.of(&y)),
            other => other,
        };
        Sum { x: block.of(&self.x), terms, root: self.root }
    }
}

impl Gpu {
    /// A sum for every row: `batch x rows x 1`.
    pub(super) fn sum_rows(&self, sum: Sum<'_>) -> Result<GpuTensor> {
        let shape = sum.x.shape;
        let out = self.allocate("row sums", Shape { cols: 1, ..shape })?;
        let chunk = row_chunk(shape.cols);
        let chunks = shape.cols.div_ceil(chunk).max(1);
        if chunks == 1 {
            self.sum_row_chunks(sum, chunk, &out.view())?;
        } else {
            let partial = self.allocate("partial sums", Shape { cols: chunks, ..shape })?;
            self.sum_row_chunks(sum, chunk, &partial.view())?;
            self.sum_row_chunks(sum.of_partial(&partial), chunks, &out.view())?;
        }
        Ok(out)
    }

    /// Sums every chunk of every row into a column of `out`.
    fn sum_row_chunks(&self, sum: Sum<'_>, chunk: usize, out: &View<'_>) -> Result<()> {
        let cols = sum.x.shape.cols;
        let source = |block: &Block| Block {
            cols: block.cols.start * chunk..cols.min(block.cols.end * chunk),
            ..block.clone()
        };
        for block in split(out.shape, &|block| self.holds(&sum.part(&source(block)), &block.of(out))) {
            let Sum { x, terms, root } = sum.part(&source(&block));
            self.live().queue.record(2 * x.shape.len() as u64, |recorder| {
                reduce_rows(recorder, &x, terms, chunk, root, &block.of(out))
            })?;
        }
        Ok(())
    }

    /// A sum for every column: `batch x 1 x cols`.
    pub(super) fn sum_columns(&self, sum: Sum<'_>) -> Result<GpuTensor> {
        let shape = sum.x.shape;
        let out = self.allocate("column sums", Shape { rows: 1, ..shape })?;
        let chunk = column_chunk(shape.rows).min(self.bindings().rows(shape.cols));
        let chunks = shape.rows.div_ceil(chunk).max(1);
        if chunks == 1 {
            self.sum_column_chunks(sum, chunk, &out.view())?;
        } else {
            let partial = self.allocate("partial sums", Shape { rows: chunks, ..shape })?;
            self.sum_column_chunks(sum, chunk, &partial.view())?;
            self.sum_column_chunks(sum.of_partial(&partial), chunks, &out.view())?;
        }
        Ok(out)
    }

    /// Sums every chunk of every column into a row of `out`.
    fn sum_column_chunks(&self, sum: Sum<'_>, chunk: usize, out: &View<'_>) -> Result<()> {
        let rows = sum.x.shape.rows;
        let source = |block: &Block| Block {
            rows: block.rows.start * chunk..rows.min(block.rows.end * chunk),
            ..block.clone()
        };
        for block in split(out.shape, &|block| self.holds(&sum.part(&source(block)), &block.of(out))) {
            let Sum { x, terms, root } = sum.part(&source(&block));
            self.live().queue.record(2 * x.shape.len() as u64, |recorder| {
                reduce_columns(recorder, &x, terms, chunk, root, &block.of(out))
            })?;
        }
        Ok(())
    }

    /// A sum for every matrix: `batch x 1 x 1`.
    pub(super) fn sum_matrices(&self, x: &GpuTensor, y: Option<&GpuTensor>) -> Result<GpuTensor> {
        let row = Shape::new(x.shape.batch, 1, x.shape.matrix_len());
        let flat = View::packed(x.buffer(), row);
        self.sum_rows(match y {
            Some(y) => Sum { x: flat, terms: Terms::Products(View::packed(y.buffer(), row)), root: false },
            None => Sum::norm(flat),
        })
    }

    /// Whether the operands can be bound.
    fn holds(&self, sum: &Sum<'_>, out: &View<'_>) -> bool {
        let bindings = self.bindings();
        let factor = match &sum.terms {
            Terms::Products(y) => bindings.hold(y),
            _ => true,
        };
        factor && bindings.hold(&sum.x) && bindings.hold(out)
    }
}
