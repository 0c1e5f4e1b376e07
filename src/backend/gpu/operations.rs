//! [`Gpu`] as a [`Backend`].

use super::products::Product;
use super::reductions::Sum;
use super::split::{Bindings, Block, split};
use super::{Error, Gpu, GpuTensor, Result, Tuned};
use crate::backend::{Across, Backend, Chance, CountBy, Cut, Dtype, MagnitudeSum, Op, Polarity, Shape};
use crate::kernels::{
    self, CHOLESKY_PANEL, CholeskyScratch, EigenScratch, LARGEST_EIGENPROBLEM, Raw, Recorder, View,
    eigen_steps, eliminate, equilibrate, symmetric_eigen_step,
};
use std::ops::Range;

/// Operations of a dispatch, as the queue counts them, for every byte it moves: what limits it is memory.
pub(super) const FLOPS_PER_ELEMENT: u64 = 50;

impl Gpu {
    /// Memory for a tensor, holding anything.
    pub(super) fn allocate(&self, what: &'static str, shape: Shape) -> Result<GpuTensor> {
        Ok(GpuTensor { shape, memory: self.live().pool.allocate(what, shape.bytes())? })
    }

    pub(super) fn bindings(&self) -> Bindings {
        let live = self.live();
        let limits = live.context.kernels.limits();
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        Bindings { limit: live.context.binding_limit(), alignment }
    }

    /// Queues an operation on every part of `shape` that `fits`.
    pub(super) fn for_each_part(
        &self,
        shape: Shape,
        fits: &dyn Fn(&Block) -> bool,
        encode: impl Fn(&mut Recorder<'_>, &Block) -> kernels::Result<()>,
    ) -> Result<()> {
        if shape.is_empty() {
            return Ok(());
        }
        for block in split(shape, fits) {
            let flops = FLOPS_PER_ELEMENT * block.shape().len() as u64;
            self.live().queue.record(flops, |recorder| encode(recorder, &block))?;
        }
        Ok(())
    }

    /// Queues an operation that needs all of a matrix at once, on as many matrices as can be bound.
    fn for_each_matrix(
        &self,
        x: View<'_>,
        encode: impl Fn(&mut Recorder<'_>, &View<'_>) -> kernels::Result<()>,
    ) -> Result<()> {
        let bindings = self.bindings();
        let fits = |block: &Block| block.batches.len() == 1 || bindings.hold(&block.of(&x));
        self.for_each_part(x.shape, &fits, |recorder, block| encode(recorder, &block.of(&x)))
    }

    /// `x *= s`, where `part` is the part of `s` that belongs to a block of `x`.
    fn scale(
        &self,
        x: &GpuTensor,
        s: &GpuTensor,
        part: impl Fn(&Block) -> Block,
        kernel: fn(&mut Recorder<'_>, &View<'_>, &View<'_>) -> kernels::Result<()>,
    ) -> Result<()> {
        let s = s.view();
        let s = if s.shape.batch == 1 { s.repeated(x.shape.batch) } else { s };
        let (x, bindings) = (x.view(), self.bindings());
        let fits = |block: &Block| bindings.hold(&block.of(&x)) && bindings.hold(&part(block).of(&s));
        self.for_each_part(x.shape, &fits, |recorder, block| {
            kernel(recorder, &block.of(&x), &part(block).of(&s))
        })
    }

    /// 32-bit words for `len` numbers of 16 bits.
    fn words(&self, len: usize) -> Result<GpuTensor> {
        self.allocate("packed weights", Shape::matrix(1, len.div_ceil(2)))
    }
}

/// [`Error::Shape`] unless `condition` holds.
pub(super) fn require(condition: bool, operation: &'static str, shapes: &[Shape]) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::Shape { operation, shapes: shapes.to_vec() }) }
}

/// Whether a batch serves another.
fn broadcasts(batch: usize, to: usize) -> bool {
    batch == to || batch == 1
}

/// A view of a batch that one matrix may stand for.
fn broadcast(x: &GpuTensor, batch: usize) -> View<'_> {
    if x.shape.batch == batch { x.view() } else { x.view().repeated(batch) }
}

/// The part of a tensor from a corner on.
fn corner(x: &GpuTensor, [b, i, j]: [usize; 3], shape: Shape) -> View<'_> {
    x.view().block(b..b + shape.batch, i..i + shape.rows, j..j + shape.cols)
}

/// Flat elements of a packed tensor.
pub(super) fn flat(x: &GpuTensor) -> View<'_> {
    View::packed(x.buffer(), Shape::matrix(1, x.shape.len()))
}

impl Backend for Gpu {
    type Tensor = GpuTensor;

    fn name(&self) -> String {
        let live = self.live();
        let info = &live.context.info;
        format!(
            "{} ({}, {})",
            info.name,
            info.backend,
            format!("{} {}", info.driver, info.driver_info).trim()
        )
    }

    fn class(&self) -> String {
        format!("{}, {}", self.name(), self.live().pace)
    }

    fn max_tensor_bytes(&self) -> u64 {
        self.live().context.binding_limit().min(self.limits().max_buffer_size).min(self.slice_bytes.get())
    }

    fn batch_bytes(&self) -> u64 {
        let shortages = self.shortages.get().min(63);
        (self.live().pace.batch_bytes >> shortages).min(self.max_tensor_bytes())
    }

    fn pace(&self) -> Option<String> {
        Some(self.live().pace.to_string())
    }

    fn unpack(&self, shape: Shape, dtype: Dtype, bytes: &[u8]) -> Result<GpuTensor> {
        require(bytes.len() == shape.len() * dtype.size(), "unpack", &[shape])?;
        let out = self.allocate("weights", shape)?;
        if dtype == Dtype::F32 {
            self.live().queue.write(bytes, out.buffer())?;
            return Ok(out);
        }
        let words = self.words(shape.len())?;
        self.live().queue.write(bytes, words.buffer())?;
        let (to, bindings) = (flat(&out), self.bindings());
        self.for_each_part(to.shape, &|block| bindings.hold(&block.of(&to)), |recorder, block| {
            let part = &block.cols;
            let src = Raw { buffer: words.buffer(), offset: part.start as u64, len: part.len(), dtype };
            kernels::unpack(recorder, &src, &block.of(&to))
        })?;
        Ok(out)
    }

    fn zeros(&self, shape: Shape) -> Result<GpuTensor> {
        let out = self.allocate("a tensor", shape)?;
        if !shape.is_empty() {
            self.live().queue.encode(|encoder| encoder.clear_buffer(out.buffer(), 0, Some(shape.bytes())))?;
        }
        Ok(out)
    }

    fn tuning(&self) -> Vec<String> {
        let parts = |splits| if splits > 1 { format!(", depth in {splits} parts") } else { String::new() };
        let line = |t: &Tuned| format!("{}: {} tiles{}", t.class, t.choice.tile, parts(t.choice.splits));
        self.tuned().iter().map(line).collect()
    }

    async fn recover(&self, error: &Error) -> bool {
        self.try_recover(error).await
    }

    async fn download(&self, x: &GpuTensor) -> Result<Vec<f32>> {
        let bytes = self.read(x.buffer(), 4 * x.shape.len()).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    async fn download_all<const N: usize>(&self, x: [&GpuTensor; N]) -> Result<[Vec<f32>; N]> {
        let all = self.read_all(x.map(|x| (x.buffer(), 4 * x.shape.len()))).await?;
        Ok(all.map(|bytes| bytemuck::pod_collect_to_vec(&bytes)))
    }

    async fn pack(&self, x: &GpuTensor, dtype: Dtype) -> Result<Vec<u8>> {
        let bytes = x.shape.len() * dtype.size();
        if dtype == Dtype::F32 {
            return self.read(x.buffer(), bytes).await;
        }
        let words = self.words(x.shape.len())?;
        let (from, bindings) = (flat(x), self.bindings());
        // Parts start on whole words.
        let pairs = Shape::matrix(1, x.shape.len().div_ceil(2));
        let source = |block: &Block| Block {
            cols: 2 * block.cols.start..x.shape.len().min(2 * block.cols.end),
            ..block.clone()
        };
        self.for_each_part(pairs, &|block| bindings.hold(&source(block).of(&from)), |recorder, block| {
            let part = source(block);
            let dst =
                Raw { buffer: words.buffer(), offset: part.cols.start as u64, len: part.cols.len(), dtype };
            kernels::pack(recorder, &part.of(&from), &dst)
        })?;
        self.read(words.buffer(), bytes).await
    }

    fn slice(
        &self,
        x: &GpuTensor,
        batches: Range<usize>,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<GpuTensor> {
        let from = [batches.start, rows.start, cols.start];
        let extent = [batches.len(), rows.len(), cols.len()];
        let mut out = self.allocate("a slice", Shape::new(extent[0], extent[1], extent[2]))?;
        self.copy_block(x, from, &mut out, [0; 3], extent)?;
        Ok(out)
    }

    fn copy_block(
        &self,
        src: &GpuTensor,
        from: [usize; 3],
        dst: &mut GpuTensor,
        to: [usize; 3],
        extent: [usize; 3],
    ) -> Result<()> {
        let shape = Shape::new(extent[0], extent[1], extent[2]);
        let fits = |x: Shape, corner: [usize; 3]| {
            corner[0] + shape.batch <= x.batch
                && corner[1] + shape.rows <= x.rows
                && corner[2] + shape.cols <= x.cols
        };
        require(fits(src.shape, from) && fits(dst.shape, to), "copy_block", &[src.shape, shape, dst.shape])?;
        let (src, dst) = (corner(src, from, shape), corner(dst, to, shape));
        if src.is_packed() && dst.is_packed() && !shape.is_empty() {
            return self.live().queue.encode(|encoder| {
                encoder.copy_buffer_to_buffer(
                    src.buffer,
                    4 * src.offset,
                    dst.buffer,
                    4 * dst.offset,
                    shape.bytes(),
                );
            });
        }
        let bindings = self.bindings();
        let fits = |block: &Block| bindings.hold(&block.of(&src)) && bindings.hold(&block.of(&dst));
        self.for_each_part(shape, &fits, |recorder, block| {
            kernels::copy_block(recorder, &block.of(&src), &block.of(&dst))
        })
    }

    fn transpose(&self, x: &GpuTensor) -> Result<GpuTensor> {
        let Shape { batch, rows, cols } = x.shape;
        let out = self.allocate("a transposed matrix", Shape::new(batch, cols, rows))?;
        let (from, to, bindings) = (x.view(), out.view(), self.bindings());
        let target = |block: &Block| {
            to.batches(block.batches.clone()).rows(block.cols.clone()).cols(block.rows.clone())
        };
        let fits = |block: &Block| bindings.hold(&block.of(&from)) && bindings.hold(&target(block));
        self.for_each_part(x.shape, &fits, |recorder, block| {
            kernels::transpose(recorder, &block.of(&from), &target(block))
        })?;
        Ok(out)
    }

    fn random_normal(&self, shape: Shape, seed: u64, stream: u32) -> Result<GpuTensor> {
        let out = self.allocate("random numbers", shape)?;
        let (to, bindings) = (flat(&out), self.bindings());
        self.for_each_part(to.shape, &|block| bindings.hold(&block.of(&to)), |recorder, block| {
            kernels::random_normal(recorder, seed, stream, block.cols.start as u32, &block.of(&to))
        })?;
        Ok(out)
    }

    fn gemm(
        &self,
        alpha: f32,
        a: &GpuTensor,
        op_a: Op,
        b: &GpuTensor,
        op_b: Op,
        beta: f32,
        c: &mut GpuTensor,
    ) -> Result<()> {
        let ((m, k), (k_b, n)) = (op_a.apply(a.shape), op_b.apply(b.shape));
        let batch = a.shape.batch;
        let fits = k == k_b && c.shape == Shape::new(batch, m, n) && broadcasts(b.shape.batch, batch);
        require(fits, "gemm", &[a.shape, b.shape, c.shape])?;
        if c.shape.is_empty() {
            return Ok(());
        }
        let (a, b, c) = (a.view(), broadcast(b, batch), c.view());
        self.product(&Product { alpha, a, op_a, b, op_b, beta, c })
    }

    fn matmul(&self, a: &GpuTensor, op_a: Op, b: &GpuTensor, op_b: Op) -> Result<GpuTensor> {
        let shape = Shape::new(a.shape.batch, op_a.apply(a.shape).0, op_b.apply(b.shape).1);
        let mut c = self.allocate("a product", shape)?;
        self.gemm(1.0, a, op_a, b, op_b, 0.0, &mut c)?;
        Ok(c)
    }

    fn linear(&self, x: &GpuTensor, w: &GpuTensor, op_w: Op) -> Result<GpuTensor> {
        let (k, n) = op_w.apply(w.shape);
        let single = x.shape.batch == 1 && w.shape.batch == 1;
        require(single && x.shape.cols == k, "linear", &[x.shape, w.shape])?;
        let c = self.allocate("a product", Shape::matrix(x.shape.rows, n))?;
        if !c.shape.is_empty() {
            let (a, b) = (x.view(), w.view());
            let (op_a, alpha, beta) = (Op::None, 1.0, 0.0);
            self.product_in_order(&Product { alpha, a, op_a, b, op_b: op_w, beta, c: c.view() })?;
        }
        Ok(c)
    }

    fn syrk(&self, alpha: f32, x: &GpuTensor, op: Op, beta: f32, c: &mut GpuTensor) -> Result<()> {
        let n = op.apply(x.shape).0;
        require(c.shape == Shape::new(x.shape.batch, n, n), "syrk", &[x.shape, c.shape])?;
        if c.shape.is_empty() {
            return Ok(());
        }
        self.symmetric_product(alpha, x.view(), op, beta, c.view())
    }

    fn gram(&self, x: &GpuTensor, op: Op) -> Result<GpuTensor> {
        let n = op.apply(x.shape).0;
        let mut c = self.allocate("a Gram matrix", Shape::new(x.shape.batch, n, n))?;
        self.syrk(1.0, x, op, 0.0, &mut c)?;
        Ok(c)
    }

    fn axpby(&self, alpha: f32, x: &GpuTensor, beta: f32, y: &mut GpuTensor) -> Result<()> {
        let expected = Shape { batch: y.shape.batch, ..x.shape };
        require(
            broadcasts(x.shape.batch, y.shape.batch) && y.shape == expected,
            "axpby",
            &[x.shape, y.shape],
        )?;
        let (x, y, bindings) = (broadcast(x, y.shape.batch), y.view(), self.bindings());
        let fits = |block: &Block| bindings.hold(&block.of(&x)) && bindings.hold(&block.of(&y));
        self.for_each_part(y.shape, &fits, |recorder, block| {
            kernels::axpby(recorder, alpha, &block.of(&x), beta, &block.of(&y))
        })
    }

    fn scale_rows(&self, x: &mut GpuTensor, s: &GpuTensor) -> Result<()> {
        let fits =
            broadcasts(s.shape.batch, x.shape.batch) && s.shape == Shape::new(s.shape.batch, x.shape.rows, 1);
        require(fits, "scale_rows", &[x.shape, s.shape])?;
        self.scale(x, s, |block| Block { cols: 0..1, ..block.clone() }, kernels::scale_rows)
    }

    fn divide_rows(&self, x: &mut GpuTensor, s: &GpuTensor) -> Result<()> {
        let fits =
            broadcasts(s.shape.batch, x.shape.batch) && s.shape == Shape::new(s.shape.batch, x.shape.rows, 1);
        require(fits, "divide_rows", &[x.shape, s.shape])?;
        self.scale(x, s, |block| Block { cols: 0..1, ..block.clone() }, kernels::divide_rows)
    }

    fn scale_columns(&self, x: &mut GpuTensor, s: &GpuTensor) -> Result<()> {
        let fits =
            broadcasts(s.shape.batch, x.shape.batch) && s.shape == Shape::new(s.shape.batch, 1, x.shape.cols);
        require(fits, "scale_columns", &[x.shape, s.shape])?;
        self.scale(x, s, |block| Block { rows: 0..1, ..block.clone() }, kernels::scale_columns)
    }

    fn scale_batches(&self, x: &mut GpuTensor, s: &GpuTensor) -> Result<()> {
        let fits = broadcasts(s.shape.batch, x.shape.batch) && s.shape == Shape::new(s.shape.batch, 1, 1);
        require(fits, "scale_batches", &[x.shape, s.shape])?;
        let part = |block: &Block| Block { rows: 0..1, cols: 0..1, ..block.clone() };
        self.scale(x, s, part, kernels::scale_batches)
    }

    fn polarize(&self, v: &mut GpuTensor, exponent: f32, polarity: Polarity) -> Result<()> {
        self.for_each_matrix(v.view(), |recorder, v| kernels::polarize(recorder, v, exponent, polarity))
    }

    fn clear_small(&self, x: &mut GpuTensor, fraction: f32) -> Result<()> {
        self.for_each_matrix(x.view(), |recorder, x| kernels::clear_small(recorder, x, fraction))
    }

    fn power(&self, x: &mut GpuTensor, exponent: f32) -> Result<()> {
        let (x, bindings) = (flat(x), self.bindings());
        self.for_each_part(x.shape, &|block| bindings.hold(&block.of(&x)), |recorder, block| {
            kernels::power(recorder, &block.of(&x), exponent)
        })
    }

    fn unit_scale(&self, x: &mut GpuTensor) -> Result<()> {
        let (x, bindings) = (flat(x), self.bindings());
        self.for_each_part(x.shape, &|block| bindings.hold(&block.of(&x)), |recorder, block| {
            kernels::unit_scale(recorder, &block.of(&x))
        })
    }

    fn row_norms(&self, x: &GpuTensor) -> Result<GpuTensor> {
        self.sum_rows(Sum::norm(x.view()))
    }

    fn column_norms(&self, x: &GpuTensor) -> Result<GpuTensor> {
        self.sum_columns(Sum::norm(x.view()))
    }

    fn frobenius_norms(&self, x: &GpuTensor) -> Result<GpuTensor> {
        self.sum_matrices(x, None)
    }

    fn inner_products(&self, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
        require(x.shape == y.shape, "inner_products", &[x.shape, y.shape])?;
        self.sum_matrices(x, Some(y))
    }

    fn row_products(&self, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
        self.product_of_rows(x, y)
    }

    fn column_products(&self, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
        self.product_of_columns(x, y)
    }

    fn row_divergence(&self, base: &GpuTensor, delta: &GpuTensor) -> Result<GpuTensor> {
        self.diverge(base, delta)
    }

    async fn histogram(&self, x: &GpuTensor, by: &[CountBy]) -> Result<Vec<Vec<u32>>> {
        self.count(x, by).await
    }

    async fn magnitude_sums(&self, x: &GpuTensor) -> Result<Vec<MagnitudeSum>> {
        self.sum_magnitudes(x).await
    }

    fn trim(&self, x: &mut GpuTensor, by: Option<&GpuTensor>, cuts: &[(Cut, Cut)]) -> Result<()> {
        self.cut(x, by, cuts)
    }

    fn drop_out(
        &self,
        x: &mut GpuTensor,
        ranks: Option<&GpuTensor>,
        chances: &[Chance],
        first: usize,
    ) -> Result<()> {
        self.drop_some(x, ranks, chances, first)
    }

    fn row_ranks(&self, x: &GpuTensor) -> Result<GpuTensor> {
        self.rank_rows(x)
    }

    fn across(&self, x: &GpuTensor, rule: Across<'_>) -> Result<GpuTensor> {
        self.combine(x, rule)
    }

    fn inverse_cholesky_above(&self, g: &GpuTensor, smallest: f32) -> Result<GpuTensor> {
        require(g.shape.rows == g.shape.cols, "inverse_cholesky", &[g.shape])?;
        let (out, n) = (self.allocate("an inverse factor", g.shape)?, g.shape.rows);
        let longest = CholeskyScratch::lens(1, n).into_iter().max().unwrap_or_default();
        self.for_each_group(g, longest, |batches| {
            let lens = CholeskyScratch::lens(batches.len(), n);
            let [work, column, row, inverse] =
                lens.map(|len| self.allocate("a factorization", Shape::matrix(1, len)));
            let (work, column, row, inverse) = (work?, column?, row?, inverse?);
            let scratch = CholeskyScratch {
                work: work.buffer(),
                column: column.buffer(),
                row: row.buffer(),
                inverse: inverse.buffer(),
            };
            let (g, w) = (g.view().batches(batches.clone()), out.view().batches(batches.clone()));
            let elements = g.shape.len() as u64;
            self.live()
                .queue
                .record(FLOPS_PER_ELEMENT * elements, |recorder| equilibrate(recorder, &g, &scratch, &w))?;
            for start in (0..n).step_by(CHOLESKY_PANEL) {
                let flops = 2 * CHOLESKY_PANEL as u64 * elements;
                self.live()
                    .queue
                    .record(flops, |recorder| eliminate(recorder, &g, &scratch, &w, start, smallest))?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn symmetric_eigen(&self, a: &GpuTensor) -> Result<(GpuTensor, GpuTensor)> {
        let Shape { batch, rows: n, cols } = a.shape;
        require(n == cols && n <= LARGEST_EIGENPROBLEM, "symmetric_eigen", &[a.shape])?;
        let values = self.allocate("eigenvalues", Shape::new(batch, 1, n))?;
        let vectors = self.allocate("eigenvectors", a.shape)?;
        self.for_each_group(a, n * n, |batches| {
            let lens = EigenScratch::lens(batches.len(), n);
            let [work, rotations, polished, unsorted, rotated] =
                lens.map(|len| self.allocate("an eigenproblem", Shape::matrix(1, len)));
            let (work, rotations, polished) = (work?, rotations?, polished?);
            let (unsorted, rotated) = (unsorted?, rotated?);
            let scratch = EigenScratch {
                work: work.buffer(),
                rotations: rotations.buffer(),
                polished: polished.buffer(),
                values: unsorted.buffer(),
                rotated: rotated.buffer(),
            };
            let (a, values, vectors) = (a.view(), values.view(), vectors.view());
            let (a, values, vectors) = (
                a.batches(batches.clone()),
                values.batches(batches.clone()),
                vectors.batches(batches.clone()),
            );
            for step in eigen_steps(&self.live().context.kernels, n) {
                let flops = batches.len() as u64 * step.flops(n);
                self.live().queue.record(flops, |recorder| {
                    symmetric_eigen_step(recorder, step, &a, &scratch, &values, &vectors)
                })?;
            }
            Ok(())
        })?;
        Ok((values, vectors))
    }

    fn is_the_host(&self) -> bool {
        self.live().largest_eigenproblem <= super::ON_SOFTWARE
    }

    fn largest_eigenproblem(&self) -> usize {
        self.live().largest_eigenproblem
    }
}

impl Gpu {
    /// Calls `encode` for groups of matrices small enough to be bound together with `scratch` elements each.
    fn for_each_group(
        &self,
        x: &GpuTensor,
        scratch: usize,
        encode: impl Fn(Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let (view, bindings) = (x.view(), self.bindings());
        let fits = |block: &Block| {
            let batch = block.batches.len();
            batch == 1 || bindings.hold(&block.of(&view)) && 4 * (batch * scratch) as u64 <= bindings.limit
        };
        if x.shape.is_empty() {
            return Ok(());
        }
        split(x.shape, &fits).into_iter().try_for_each(|block| encode(block.batches))
    }
}
