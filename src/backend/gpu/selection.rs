//! Ranks, chance, and what tasks make of an element together. Every member of a batch is a packed row of its own.

use super::operations::{flat, require};
use super::reductions::Sum;
use super::split::{Block, split};
use super::{Gpu, GpuTensor, Result};
use crate::backend::{Across, Backend, Chance, CountBy, Cut, MagnitudeSum, Shape, Tensor};
use crate::kernels::{self, MAGNITUDE_PIECES, MOST_MAGNITUDES, Recorder, Terms, View};

impl Gpu {
    /// Queues an operation on parts of the numbers of member `b` of some tensors of one shape; it is told where a part begins.
    fn for_each_piece<const N: usize>(
        &self,
        b: usize,
        tensors: [&GpuTensor; N],
        most: usize,
        encode: impl Fn(&mut Recorder<'_>, [View<'_>; N], usize) -> kernels::Result<()>,
    ) -> Result<()> {
        let bindings = self.bindings();
        let rows = tensors.map(|x| x.view().batches(b..b + 1).flat());
        let Some(first) = rows.first() else { return Ok(()) };
        let fits = |block: &Block| {
            block.shape().len() <= most && rows.iter().all(|row| bindings.hold(&block.of(row)))
        };
        self.for_each_part(first.shape, &fits, |recorder, block| {
            encode(recorder, rows.map(|row| block.of(&row)), block.cols.start)
        })
    }

    pub(super) async fn count(&self, x: &GpuTensor, by: &[CountBy]) -> Result<Vec<Vec<u32>>> {
        require(by.len() == x.shape().batch, "histogram", &[x.shape()])?;
        let len = x.shape().matrix_len();
        let most = by.iter().map(|by| by.counts(len)).max().unwrap_or(0);
        let counts = self.zeros(Shape::new(by.len(), 1, most))?;
        for (b, &by) in by.iter().enumerate() {
            let to = counts.view().batches(b..b + 1);
            self.for_each_piece(b, [x], usize::MAX, |recorder, [x], first| {
                kernels::histogram(recorder, &x, first, by, &to)
            })?;
        }
        let words = self.read_words(&counts).await?;
        let of = |(words, by): (&[u32], &CountBy)| words[..by.counts(len)].to_vec();
        Ok(words.chunks(most.max(1)).zip(by).map(of).collect())
    }

    pub(super) async fn sum_magnitudes(&self, x: &GpuTensor) -> Result<Vec<MagnitudeSum>> {
        let Shape { batch, .. } = x.shape();
        let parts = x.shape().matrix_len().div_ceil(MOST_MAGNITUDES).max(1);
        let sums = self.zeros(Shape::new(batch, parts, MAGNITUDE_PIECES))?;
        for b in 0..batch {
            // a piece of the numbers never reaches past the part that it begins in
            let row = x.view().batches(b..b + 1).flat();
            for part in 0..parts {
                let begin = part * MOST_MAGNITUDES;
                let end = row.shape.cols.min(begin + MOST_MAGNITUDES);
                let own = row.cols(begin..end);
                let to = sums.view().block(b..b + 1, part..part + 1, 0..MAGNITUDE_PIECES);
                let bindings = self.bindings();
                self.for_each_part(own.shape, &|block| bindings.hold(&block.of(&own)), |recorder, block| {
                    kernels::magnitude_sums(recorder, &block.of(&own), &to)
                })?;
            }
        }
        let words = self.read_words(&sums).await?;
        let of_member = |words: &[u32]| {
            let mut sum = MagnitudeSum::zero();
            words.chunks(MAGNITUDE_PIECES).for_each(|pieces| sum.add_pieces(pieces.iter().copied()));
            sum
        };
        Ok(words.chunks(parts * MAGNITUDE_PIECES).map(of_member).collect())
    }

    /// Reads integers back.
    async fn read_words(&self, x: &GpuTensor) -> Result<Vec<u32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.read(x.buffer(), 4 * x.shape().len()).await?))
    }

    pub(super) fn cut(&self, x: &GpuTensor, by: Option<&GpuTensor>, cuts: &[(Cut, Cut)]) -> Result<()> {
        let Shape { batch, .. } = x.shape();
        let fits = cuts.len() == batch && by.is_none_or(|by| by.shape() == Shape { batch: 1, ..x.shape() });
        require(fits, "trim", &[x.shape()])?;
        for (b, &cuts) in cuts.iter().enumerate() {
            match by {
                None => self.for_each_piece(b, [x], usize::MAX, |recorder, [x], first| {
                    kernels::trim(recorder, &x, None, first, cuts)
                })?,
                Some(by) => {
                    let (x, by, bindings) = (x.view().batches(b..b + 1).flat(), flat(by), self.bindings());
                    let fits = |block: &Block| bindings.hold(&block.of(&x)) && bindings.hold(&block.of(&by));
                    self.for_each_part(x.shape, &fits, |recorder, block| {
                        let by = block.of(&by);
                        kernels::trim(recorder, &block.of(&x), Some(&by), block.cols.start, cuts)
                    })?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn drop_some(
        &self,
        x: &GpuTensor,
        ranks: Option<&GpuTensor>,
        chances: &[Chance],
        first: usize,
    ) -> Result<()> {
        let Shape { batch, cols, .. } = x.shape();
        let fits = chances.len() == batch && ranks.is_none_or(|ranks| ranks.shape() == x.shape());
        require(fits, "drop_out", &[x.shape()])?;
        for (b, &chance) in chances.iter().enumerate() {
            match ranks {
                None => self.for_each_piece(b, [x], usize::MAX, |recorder, [x], at| {
                    kernels::drop_out(recorder, &x, None, first + at, chance)
                })?,
                Some(ranks) => {
                    self.for_each_piece(b, [x, ranks], usize::MAX, |recorder, [x, ranks], at| {
                        kernels::drop_out(recorder, &x, Some((&ranks, cols)), first + at, chance)
                    })?
                }
            }
        }
        Ok(())
    }

    pub(super) fn rank_rows(&self, x: &GpuTensor) -> Result<GpuTensor> {
        let out = self.allocate("ranks", x.shape())?;
        let Shape { batch, rows, cols } = x.shape();
        // whole rows, with scratch of twice their size
        let bindings = self.bindings();
        let all = Shape::matrix(batch * rows, cols);
        let (from, to) = (View::packed(x.buffer(), all), View::packed(out.buffer(), all));
        let fits = |block: &Block| {
            let rows = block.rows.len();
            rows == 1 || bindings.hold(&block.of(&from)) && rows <= bindings.rows(2 * cols)
        };
        if all.is_empty() {
            return Ok(out);
        }
        for block in split(all, &fits) {
            let order = self.allocate("an order", Shape::new(2, block.rows.len(), cols))?;
            let flops = 400 * block.shape().len() as u64;
            self.live().queue.record(flops, |recorder| {
                kernels::row_ranks(recorder, &block.of(&from), &order.view(), &block.of(&to))
            })?;
        }
        Ok(out)
    }

    pub(super) fn diverge(&self, base: &GpuTensor, delta: &GpuTensor) -> Result<GpuTensor> {
        require(base.shape() == delta.shape(), "row_divergence", &[base.shape(), delta.shape()])?;
        let out = self.allocate("divergences", Shape { cols: 1, ..base.shape() })?;
        let (b, d, to, bindings) = (base.view(), delta.view(), out.view(), self.bindings());
        let fits = |block: &Block| block.shape().matrix_len() <= b.shape.cols || bindings.hold(&block.of(&b));
        self.for_each_part(b.shape, &fits, |recorder, block| {
            let to = Block { cols: 0..1, ..block.clone() }.of(&to);
            kernels::row_divergence(recorder, &block.of(&b), &block.of(&d), &to)
        })?;
        Ok(out)
    }

    pub(super) fn combine(&self, x: &GpuTensor, rule: Across<'_>) -> Result<GpuTensor> {
        let (shape, factors) = (x.shape(), rule.factors());
        require(shape.batch > 0 && factors.len() == rule.needs(shape.batch), "across", &[shape])?;
        let out = self.allocate("a sum over tasks", Shape { batch: 1, ..shape })?;
        let given = self.upload(
            Shape::matrix(1, factors.len().max(1)),
            if factors.is_empty() { &[0.0] } else { factors },
        )?;
        let (from, to, bindings) = (
            View::packed(x.buffer(), Shape::new(shape.batch, 1, shape.matrix_len())),
            flat(&out),
            self.bindings(),
        );
        let flops = 4 * shape.len() as u64;
        if bindings.hold(&from) {
            if !shape.is_empty() {
                self.live()
                    .queue
                    .record(flops, |recorder| kernels::across(recorder, &from, &rule, &given.view(), &to))?;
            }
            return Ok(out);
        }
        // the batch is too large to be bound: a few columns of all its members are, moved together
        let width = bindings.rows(shape.batch).min(to.shape.cols);
        for begin in (0..to.shape.cols).step_by(width) {
            let end = to.shape.cols.min(begin + width);
            let part = self.allocate("a part of all tasks", Shape::new(shape.batch, 1, end - begin))?;
            for b in 0..shape.batch {
                let (own, into) = (from.batches(b..b + 1).cols(begin..end), part.view().batches(b..b + 1));
                self.live().queue.encode(|encoder| {
                    encoder.copy_buffer_to_buffer(
                        own.buffer,
                        4 * own.offset,
                        into.buffer,
                        4 * into.offset,
                        own.shape.bytes(),
                    );
                })?;
            }
            self.live().queue.record(flops, |recorder| {
                kernels::across(recorder, &part.view(), &rule, &given.view(), &to.cols(begin..end))
            })?;
        }
        Ok(out)
    }

    pub(super) fn product_of_rows(&self, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
        require(x.shape() == y.shape(), "row_products", &[x.shape(), y.shape()])?;
        self.sum_rows(Sum { x: x.view(), terms: Terms::Products(y.view()), root: false })
    }

    pub(super) fn product_of_columns(&self, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
        require(x.shape() == y.shape(), "column_products", &[x.shape(), y.shape()])?;
        self.sum_columns(Sum { x: x.view(), terms: Terms::Products(y.view()), root: false })
    }
}
