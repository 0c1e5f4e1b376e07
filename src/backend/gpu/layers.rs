//! [`Gpu`] as [`Layers`].

use super::attention::Operands;
use super::operations::{flat, require};
use super::split::Block;
use super::{Gpu, GpuTensor, Result};
use crate::backend::layers::{Attention, Layers};
use crate::backend::{Backend, Op, Shape};
use crate::kernels::{self, Activation, View};

/// The first row of every segment, and the end of the last: on the host, and on the device as integers.
pub struct GpuSegments {
    pub(super) starts: Vec<usize>,
    buffer: GpuTensor,
}

impl GpuSegments {
    pub(super) fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn longest(&self) -> usize {
        self.starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0)
    }
}

/// Tokens whose Gram matrix is formed in f32 before it is added to the sum.
const GRAM_SLAB: usize = 128;

impl Gpu {
    /// A list of unsigned integers.
    fn integers(&self, values: &[u32]) -> Result<GpuTensor> {
        let out = self.allocate("a list", Shape::matrix(1, values.len()))?;
        self.live().queue.write(bytemuck::cast_slice(values), out.buffer())?;
        Ok(out)
    }

    /// Queues a kernel on parts of the flat elements of one or more tensors of one size.
    fn for_flat_parts<const N: usize>(
        &self,
        tensors: [&GpuTensor; N],
        encode: impl Fn(&mut kernels::Recorder<'_>, [View<'_>; N]) -> kernels::Result<()>,
    ) -> Result<()> {
        let (views, bindings) = (tensors.map(flat), self.bindings());
        let fits = |block: &Block| views.iter().all(|view| bindings.hold(&block.of(view)));
        self.for_each_part(views[0].shape, &fits, |recorder, block| {
            encode(recorder, views.map(|v| block.of(&v)))
        })
    }

    fn normalize(
        &self,
        x: &GpuTensor,
        weight: &GpuTensor,
        bias: Option<&GpuTensor>,
        epsilon: f32,
    ) -> Result<GpuTensor> {
        let out = self.allocate("normalised tokens", x.shape)?;
        let rows = Shape::matrix(x.shape.batch * x.shape.rows, x.shape.cols);
        let (from, to) = (View::packed(x.buffer(), rows), View::packed(out.buffer(), rows));
        let (weight, bias, bindings) = (weight.view(), bias.map(GpuTensor::view), self.bindings());
        let fits = |block: &Block| block.shape().rows <= 1 || bindings.hold(&block.of(&from));
        self.for_each_part(rows, &fits, |recorder, block| {
            kernels::layer_norm(recorder, &block.of(&from), &weight, bias.as_ref(), epsilon, &block.of(&to))
        })?;
        Ok(out)
    }
}

impl Layers for Gpu {
    type Segments = GpuSegments;

    fn segments(&self, lengths: &[usize]) -> Result<GpuSegments> {
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += length;
            end
        });
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let buffer = self.integers(&starts.iter().map(|&s| s as u32).collect::<Vec<_>>())?;
        Ok(GpuSegments { starts, buffer })
    }

    fn gather_rows(&self, x: &GpuTensor, rows: &[u32]) -> Result<GpuTensor> {
        let inside = rows.iter().all(|&row| (row as usize) < x.shape.rows);
        require(inside && x.shape.batch == 1, "gather_rows", &[x.shape, Shape::matrix(rows.len(), 1)])?;
        let out = self.allocate("gathered rows", Shape::matrix(rows.len(), x.shape.cols))?;
        let list = self.integers(rows)?;
        let (from, ids, to, bindings) = (x.view(), list.view(), out.view(), self.bindings());
        let fits = |block: &Block| block.shape().rows <= 1 || bindings.hold(&block.of(&to));
        self.for_each_part(to.shape, &fits, |recorder, block| {
            let (from, ids) = (from.cols(block.cols.clone()), ids.cols(block.rows.clone()));
            kernels::gather_rows(recorder, &from, &ids, &block.of(&to))
        })?;
        Ok(out)
    }

    fn patches(&self, images: &GpuTensor, channels: usize, size: usize) -> Result<GpuTensor> {
        let Shape { batch, rows, cols } = images.shape;
        let fits = channels > 0 && size > 0 && batch.is_multiple_of(channels);
        require(fits, "patches", &[images.shape, Shape::new(channels, size, size)])?;
        let patches = (rows / size) * (cols / size);
        let out =
            self.allocate("patches", Shape::matrix(batch / channels * patches, channels * size * size))?;
        if out.shape.is_empty() {
            return Ok(out);
        }
        let (from, to, bindings) = (images.view(), out.view(), self.bindings());
        // images are not cut: a part is some of the samples
        let source =
            |block: &Block| from.batches(block.batches.start * channels..block.batches.end * channels);
        let target = |block: &Block| to.rows(block.batches.start * patches..block.batches.end * patches);
        let whole = |block: &Block| {
            block.shape().batch <= 1 || bindings.hold(&source(block)) && bindings.hold(&target(block))
        };
        self.for_each_part(Shape::new(batch / channels, 1, 1), &whole, |recorder, block| {
            kernels::patches(recorder, &source(block), channels, size, &target(block))
        })?;
        Ok(out)
    }

    fn layer_norm(
        &self,
        x: &GpuTensor,
        weight: &GpuTensor,
        bias: &GpuTensor,
        epsilon: f32,
    ) -> Result<GpuTensor> {
        let row = Shape::matrix(1, x.shape.cols);
        require(
            weight.shape == row && bias.shape == row,
            "layer_norm",
            &[x.shape, weight.shape, bias.shape],
        )?;
        self.normalize(x, weight, Some(bias), epsilon)
    }

    fn rms_norm(&self, x: &GpuTensor, weight: &GpuTensor, epsilon: f32) -> Result<GpuTensor> {
        require(weight.shape == Shape::matrix(1, x.shape.cols), "rms_norm", &[x.shape, weight.shape])?;
        self.normalize(x, weight, None, epsilon)
    }

    fn add_bias(&self, x: &mut GpuTensor, bias: &GpuTensor) -> Result<()> {
        require(bias.shape == Shape::matrix(1, x.shape.cols), "add_bias", &[x.shape, bias.shape])?;
        // every row is a matrix of its own, to all of which the one bias is added
        let rows = Shape::new(x.shape.batch * x.shape.rows, 1, x.shape.cols);
        let (to, bindings) = (View::packed(x.buffer(), rows), self.bindings());
        let bias = bias.view().repeated(rows.batch);
        let fits = |block: &Block| bindings.hold(&block.of(&to)) && bindings.hold(&block.of(&bias));
        self.for_each_part(rows, &fits, |recorder, block| {
            kernels::axpby(recorder, 1.0, &block.of(&bias), 1.0, &block.of(&to))
        })
    }

    fn activate(&self, x: &mut GpuTensor, activation: Activation) -> Result<()> {
        self.for_flat_parts([x], |recorder, [x]| kernels::activate(recorder, &x, activation, None))
    }

    fn activate_gated(&self, gate: &mut GpuTensor, up: &GpuTensor, activation: Activation) -> Result<()> {
        require(gate.shape == up.shape, "activate_gated", &[gate.shape, up.shape])?;
        self.for_flat_parts([gate, up], |recorder, [gate, up]| {
            kernels::activate(recorder, &gate, activation, Some(&up))
        })
    }

    fn rotary(&self, x: &mut GpuTensor, cos: &GpuTensor, sin: &GpuTensor, head_dim: usize) -> Result<()> {
        let table = cos.shape;
        let fits = table == sin.shape && x.shape.batch == 1 && table.batch == 1 && table.rows == x.shape.rows;
        let heads = table.cols > 0 && head_dim >= 2 * table.cols && x.shape.cols.is_multiple_of(head_dim);
        require(fits && heads, "rotary", &[x.shape, cos.shape, sin.shape])?;
        let (to, cos, sin, bindings) = (x.view(), cos.view(), sin.view(), self.bindings());
        // rows are not cut: a pair lies in one
        let whole = |block: &Block| block.shape().rows <= 1 || bindings.hold(&block.of(&to));
        self.for_each_part(to.shape, &whole, |recorder, block| {
            let (cos, sin) = (cos.rows(block.rows.clone()), sin.rows(block.rows.clone()));
            kernels::rotary(recorder, &block.of(&to), &cos, &sin, head_dim)
        })
    }

    fn attention(
        &self,
        q: &GpuTensor,
        k: &GpuTensor,
        v: &GpuTensor,
        segments: &GpuSegments,
        attention: Attention,
        positions: Option<&GpuTensor>,
    ) -> Result<GpuTensor> {
        let shapes = [q.shape, k.shape, v.shape];
        let fits = attention.fits(shapes, positions.map(|p| p.shape), segments.longest());
        require(fits && segments.rows() == q.shape.rows, "attention", &shapes)?;
        self.attend(Operands { q, k, v, positions }, segments, attention)
    }

    fn mean_rows(&self, x: &GpuTensor, segments: &GpuSegments) -> Result<GpuTensor> {
        let samples = segments.starts.len() - 1;
        let fits = x.shape.batch == 1 && segments.rows() == x.shape.rows;
        require(fits, "mean_rows", &[x.shape, Shape::matrix(segments.rows(), samples)])?;
        let out = self.allocate("mean rows", Shape::matrix(samples, x.shape.cols))?;
        let (from, starts, to, bindings) = (x.view(), segments.buffer.view(), out.view(), self.bindings());
        // segments are not cut: a part is some of the columns
        let columns = Shape::matrix(1, x.shape.cols);
        let part = |block: &Block| from.cols(block.cols.clone());
        let fits = |block: &Block| block.shape().cols <= 1 || bindings.hold(&part(block));
        self.for_each_part(columns, &fits, |recorder, block| {
            kernels::mean_rows(recorder, &part(block), &starts, &to.cols(block.cols.clone()))
        })?;
        Ok(out)
    }

    fn accumulate_gram(&self, x: &GpuTensor, high: &mut GpuTensor, low: &mut GpuTensor) -> Result<()> {
        let square = Shape::matrix(x.shape.cols, x.shape.cols);
        let fits = x.shape.batch == 1 && high.shape == square && low.shape == square;
        require(fits, "accumulate_gram", &[x.shape, high.shape, low.shape])?;
        let (rows, cols) = (x.shape.rows, x.shape.cols);
        for first in (0..rows).step_by(GRAM_SLAB) {
            let slab = self.slice(x, 0..1, first..rows.min(first + GRAM_SLAB), 0..cols)?;
            let gram = self.gram(&slab, Op::Transpose)?;
            self.for_flat_parts([&gram, &*high, &*low], |recorder, [gram, high, low]| {
                kernels::add_exactly(recorder, &gram, &high, &low)
            })?;
        }
        Ok(())
    }
}
