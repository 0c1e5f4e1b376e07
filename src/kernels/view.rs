//! What a kernel sees of a buffer.

use crate::matrix::{Dtype, Shape};
use std::ops::Range;

/// A batch of f32 matrices somewhere in a buffer: rows are contiguous, all else is strides, counted in elements.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where the elements are.
    pub buffer: &'a wgpu::Buffer,
    /// Element of the buffer that is the view's first.
    pub offset: u64,
    /// How many matrices, rows and columns.
    pub shape: Shape,
    /// From one row to the next (the leading dimension).
    pub row_stride: usize,
    /// From one matrix to the next; 0 repeats one matrix (in operands that are only read).
    pub batch_stride: usize,
}

impl<'a> View<'a> {
    /// Matrices without gaps at the start of a buffer.
    pub fn packed(buffer: &'a wgpu::Buffer, shape: Shape) -> Self {
        View { buffer, offset: 0, shape, row_stride: shape.cols, batch_stride: shape.matrix_len() }
    }

    /// The view of a block.
    ///
    /// # Panics
    /// If the block reaches past the view.
    pub fn block(self, batches: Range<usize>, rows: Range<usize>, cols: Range<usize>) -> Self {
        let s = self.shape;
        assert!(
            batches.end <= s.batch && rows.end <= s.rows && cols.end <= s.cols,
            "a block outside its view"
        );
        let skipped = batches.start * self.batch_stride + rows.start * self.row_stride + cols.start;
        View {
            offset: self.offset + skipped as u64,
            shape: Shape::new(batches.len(), rows.len(), cols.len()),
            ..self
        }
    }

    /// The view of some of the matrices.
    pub fn batches(self, batches: Range<usize>) -> Self {
        self.block(batches, 0..self.shape.rows, 0..self.shape.cols)
    }

    /// The view of some rows of every matrix.
    pub fn rows(self, rows: Range<usize>) -> Self {
        self.block(0..self.shape.batch, rows, 0..self.shape.cols)
    }

    /// The view of some columns of every matrix.
    pub fn cols(self, cols: Range<usize>) -> Self {
        self.block(0..self.shape.batch, 0..self.shape.rows, cols)
    }

    /// One matrix seen as a batch of `batch` equal ones.
    pub fn repeated(self, batch: usize) -> Self {
        View { shape: Shape { batch, ..self.shape }, batch_stride: 0, ..self }
    }

    /// Elements from the first to the last, gaps included.
    pub fn span(&self) -> u64 {
        let s = self.shape;
        if s.is_empty() {
            return 0;
        }
        ((s.batch - 1) * self.batch_stride + (s.rows - 1) * self.row_stride + s.cols) as u64
    }

    /// Whether rows follow each other without gaps, and matrices too.
    pub fn is_packed(&self) -> bool {
        let s = self.shape;
        (s.rows <= 1 || self.row_stride == s.cols) && (s.batch <= 1 || self.batch_stride == s.matrix_len())
    }

    /// Whether all its rows start on multiples of four elements of a window's start, and are whole fours.
    pub(super) fn is_in_fours(&self) -> bool {
        let s = self.shape;
        let strides = [(s.rows, self.row_stride), (s.batch, self.batch_stride)];
        let aligned = strides.iter().all(|&(len, stride)| len <= 1 || stride.is_multiple_of(4));
        self.offset.is_multiple_of(4) && s.cols.is_multiple_of(4) && aligned
    }

    /// The elements of a packed view as one row.
    pub(crate) fn flat(self) -> Self {
        View { shape: Shape::matrix(1, self.shape.len()), row_stride: 0, batch_stride: 0, ..self }
    }
}

/// A buffer for so many f32 that a kernel works in.
pub(super) fn scratch(device: &wgpu::Device, elements: usize) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("scratch"),
        size: 4 * elements.max(1) as u64,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// Numbers of a checkpoint as they are stored: two 16-bit ones, or one f32, to a 32-bit word.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Where the numbers are.
    pub buffer: &'a wgpu::Buffer,
    /// Number of the buffer that is the first, in units of `dtype`.
    pub offset: u64,
    /// How many.
    pub len: usize,
    /// Their type.
    pub dtype: Dtype,
}
