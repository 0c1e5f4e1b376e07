//! An adapter under measurement: the kernels themselves, without the backend's splitting and batching.

use super::check::Ran;
use super::operands::{EPSILON, Operands, operands};
use super::{Case, Kernel, Peak, Result, Subject, algorithm};
use crate::backend::gpu::{Gpu, GpuTensor};
use crate::backend::{self, Backend, Shape, Tensor};
use crate::host::Instant;
use crate::kernels::{
    self, CholeskyScratch, EigenScratch, Raw, Recorder, Terms, View, column_chunk, row_chunk,
};

/// Seconds that a sample is long at least: by the device's clock, and by the host's.
const RESOLUTION: (f64, f64) = (1e-3, 20e-3);

/// Threads of the arithmetic peak: more than any device has at once. A round of all of them is 7e7 operations.
const THREADS: usize = 1 << 18;

/// Rounds of the arithmetic peak, at most: a tenth of a second on the fastest devices.
const ROUNDS: f64 = 65536.0;

/// Elements of the copy: more than caches hold, and half of what any device binds.
const COPY: usize = 16 << 20;

pub(super) struct OnGpu<'a> {
    gpu: &'a Gpu,
    clock: Option<Timestamps>,
    ready: Option<Ready>,
}

/// A case and its memory.
struct Ready {
    case: Case,
    operands: Operands<GpuTensor>,
    scratch: Vec<GpuTensor>,
}

impl<'a> OnGpu<'a> {
    pub fn new(gpu: &'a Gpu) -> Self {
        let device = gpu.device();
        let timed = device.features().contains(super::features());
        OnGpu { gpu, clock: timed.then(|| Timestamps::new(&device, &gpu.queue())), ready: None }
    }

    /// The seconds that what is encoded takes.
    async fn seconds(&self, encode: impl Fn(&mut Recorder<'_>) -> kernels::Result<()>) -> Result<f64> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.gpu.with_kernels(|kernels| {
            let mut recorder = match &self.clock {
                Some(clock) => kernels.record_timed(&mut encoder, clock.writes()),
                None => kernels.record(&mut encoder),
            };
            encode(&mut recorder)
        })?;
        if let Some(clock) = &self.clock {
            clock.resolve(&mut encoder);
        }
        let commands = encoder.finish();
        let started = Instant::now();
        self.gpu.queue().submit([commands]);
        self.gpu.settled().await?;
        let elapsed = started.elapsed().as_secs_f64();
        match &self.clock {
            Some(clock) => Ok(clock.read(self.gpu).await?.unwrap_or(elapsed)),
            None => Ok(elapsed),
        }
    }

    /// The least seconds that one of what is encoded takes.
    async fn fastest(
        &self,
        seconds: f64,
        encode: impl Fn(&mut Recorder<'_>) -> kernels::Result<()>,
    ) -> Result<f64> {
        let run = async |repetitions: usize| {
            let many = |r: &mut Recorder<'_>| (0..repetitions).try_for_each(|_| encode(r));
            Ok::<_, super::Error>(self.seconds(many).await? / repetitions as f64)
        };
        run(1).await?; // compiles
        let least = if self.clock.is_some() { RESOLUTION.0 } else { RESOLUTION.1 };
        let repetitions = (least / run(1).await?.max(1e-9)).ceil().clamp(1.0, 100.0) as usize;
        let (started, mut best) = (Instant::now(), run(repetitions).await?);
        while started.elapsed().as_secs_f64() < seconds {
            best = best.min(run(repetitions).await?);
        }
        Ok(best)
    }

    /// Waits until what is queued on the backend is done.
    async fn settle(&self) -> backend::Result<()> {
        self.gpu.download(&self.gpu.zeros(Shape::matrix(1, 1))?).await.map(drop)
    }
}

impl Subject for OnGpu<'_> {
    fn name(&self) -> String {
        self.gpu.name()
    }

    fn clock(&self) -> &'static str {
        if self.clock.is_some() { "device" } else { "host" }
    }

    fn resolution(&self, case: &Case) -> f64 {
        if self.clock.is_some() && !case.kernel.is_algorithm() { RESOLUTION.0 } else { RESOLUTION.1 }
    }

    async fn peak(&mut self, seconds: f64) -> Result<Peak> {
        let (threads, row) = (Shape::matrix(1, THREADS), Shape::matrix(1, COPY));
        let sums = self.gpu.zeros(threads)?;
        let (src, dst) = (self.gpu.random_normal(row, 1, 0)?, self.gpu.zeros(row)?);
        self.settle().await?;
        let sums = View::packed(sums.buffer(), threads);
        // As many rounds as make the start of a dispatch not count.
        let of_one = self.fastest(0.0, |recorder| kernels::peak_fma(recorder, 1, &sums)).await?;
        let rounds = (2.0 * RESOLUTION.0 / of_one.max(1e-9)).ceil().clamp(1.0, ROUNDS) as u32;
        let fma = self.fastest(seconds, |recorder| kernels::peak_fma(recorder, rounds, &sums)).await?;
        let (src, dst) = (View::packed(src.buffer(), row), View::packed(dst.buffer(), row));
        let copy = self.fastest(seconds, |recorder| kernels::peak_copy(recorder, &src, &dst)).await?;
        let flops = kernels::peak_fma_flops(rounds, THREADS);
        Ok(Peak { gflops: flops / fma / 1e9, gbytes: 2.0 * row.bytes() as f64 / copy / 1e9 })
    }

    async fn prepare(&mut self, case: &Case) -> Result<()> {
        self.ready = None; // gives its memory back first
        self.gpu.trim();
        let operands = operands(self.gpu, case).await?;
        let scratch = scratch_lens(case).into_iter().map(|len| self.gpu.zeros(Shape::matrix(1, len)));
        let scratch = scratch.collect::<backend::Result<_>>()?;
        self.settle().await?;
        self.ready = Some(Ready { case: *case, operands, scratch });
        Ok(())
    }

    async fn time(&mut self, repetitions: usize) -> Result<f64> {
        let Some(ready) = &self.ready else { return Ok(0.0) };
        if ready.case.kernel.is_algorithm() {
            let started = Instant::now();
            for _ in 0..repetitions {
                algorithm::run(self.gpu, &ready.case, &ready.operands.x).await?;
            }
            self.settle().await?;
            return Ok(started.elapsed().as_secs_f64());
        }
        self.seconds(|recorder| (0..repetitions).try_for_each(|_| ready.encode(recorder))).await
    }

    async fn once(&mut self) -> Result<Option<Ran>> {
        let Some(ready) = &self.ready else { return Ok(None) };
        let Ready { case, operands: Operands { x, y, out, stored }, .. } = ready;
        let before = self.gpu.download(out).await?;
        let made = match case.kernel.is_algorithm() {
            true => Some(algorithm::run(self.gpu, case, x).await?),
            false => None,
        };
        if made.is_none() {
            self.seconds(|recorder| ready.encode(recorder)).await?;
        }
        let out = self.gpu.download(made.as_ref().unwrap_or(out)).await?;
        let stored = match case.kernel {
            Kernel::Pack => bytemuck::cast_slice(&out).to_vec(),
            _ => stored.clone(),
        };
        Ok(Some(Ran { x: self.gpu.download(x).await?, y: self.gpu.download(y).await?, before, out, stored }))
    }
}

/// Elements of the buffers that a kernel works in.
fn scratch_lens(case: &Case) -> Vec<usize> {
    let Shape { batch, rows, cols } = case.shape();
    match case.kernel {
        Kernel::InverseCholesky => CholeskyScratch::lens(batch, rows).to_vec(),
        Kernel::SymmetricEigen => EigenScratch::lens(batch, rows).to_vec(),
        Kernel::ReduceRows => vec![batch * rows * cols.div_ceil(row_chunk(cols))],
        Kernel::ReduceColumns => vec![batch * rows.div_ceil(column_chunk(rows)) * cols],
        _ => Vec::new(),
    }
}

impl Ready {
    fn encode(&self, recorder: &mut Recorder<'_>) -> kernels::Result<()> {
        let shape = self.case.shape();
        let Operands { x, y, out, .. } = &self.operands;
        let (x_view, y_view, out_view) = (view(x), view(y), view(out));
        match self.case.kernel {
            Kernel::Gemm(op_a, op_b) => {
                kernels::gemm(recorder, 1.0, &x_view, op_a, &y_view, op_b, 0.0, &out_view)
            }
            Kernel::Syrk(op) => kernels::syrk(recorder, 1.0, &x_view, op, 0.0, &out_view),
            Kernel::Unpack => kernels::unpack(recorder, &self.stored(x), &out_view),
            Kernel::Pack => kernels::pack(recorder, &x_view, &self.stored(out)),
            Kernel::Axpby => kernels::axpby(recorder, 0.5, &x_view, 0.5, &out_view),
            Kernel::CopyBlock => kernels::copy_block(recorder, &x_view, &out_view),
            Kernel::ScaleRows => kernels::scale_rows(recorder, &out_view, &y_view),
            Kernel::ScaleColumns => kernels::scale_columns(recorder, &out_view, &y_view),
            Kernel::ReduceRows => self.norms(recorder, row_chunk(shape.cols), kernels::reduce_rows),
            Kernel::ReduceColumns => self.norms(recorder, column_chunk(shape.rows), kernels::reduce_columns),
            Kernel::RandomNormal => kernels::random_normal(recorder, 1, 1, 0, &out_view),
            Kernel::InverseCholesky => {
                let [work, column, row, inverse] = self.scratch()?;
                let scratch = CholeskyScratch { work, column, row, inverse };
                kernels::inverse_cholesky(
                    recorder,
                    &x_view,
                    &scratch,
                    &out_view,
                    kernels::gram_pivot(x_view.shape.rows),
                )
            }
            Kernel::SymmetricEigen => {
                let [work, rotations, polished, values, rotated] = self.scratch()?;
                let scratch = EigenScratch { work, rotations, polished, values, rotated };
                kernels::symmetric_eigen(recorder, &x_view, &scratch, &y_view, &out_view)
            }
            Kernel::LayerNorm => {
                kernels::layer_norm(recorder, &x_view, &y_view, Some(&y_view), EPSILON, &out_view)
            }
            // Run by the backend.
            Kernel::Attention | Kernel::OrthonormalizeRows | Kernel::LeadingEigenpairs | Kernel::Polar => {
                Ok(())
            }
        }
    }

    /// The numbers of a tensor of words.
    fn stored<'a>(&self, words: &'a GpuTensor) -> Raw<'a> {
        let (len, dtype) = (self.case.shape().len(), self.case.dtype);
        Raw { buffer: words.buffer(), offset: 0, len, dtype }
    }

    /// Norms in as many steps as their length needs.
    fn norms(&self, recorder: &mut Recorder<'_>, chunk: usize, reduce: Reduce) -> kernels::Result<()> {
        let Operands { x, out, .. } = &self.operands;
        let (shape, whole) = (x.shape(), out.shape());
        // The direction in which `out` is one long.
        let (len, partial) = match whole.rows {
            1 => (shape.rows, Shape { rows: shape.rows.div_ceil(chunk), ..whole }),
            _ => (shape.cols, Shape { cols: shape.cols.div_ceil(chunk), ..whole }),
        };
        if len <= chunk {
            return reduce(recorder, &view(x), Terms::Squares, chunk, true, &view(out));
        }
        let [sums] = self.scratch()?;
        let sums = View::packed(sums, partial);
        reduce(recorder, &view(x), Terms::Squares, chunk, true, &sums)?;
        reduce(recorder, &sums, Terms::Squares, len.div_ceil(chunk), true, &view(out))
    }

    fn scratch<const N: usize>(&self) -> kernels::Result<[&wgpu::Buffer; N]> {
        let buffers: Vec<&wgpu::Buffer> = self.scratch.iter().map(GpuTensor::buffer).collect();
        let missing = |_| kernels::Error::Operands { kernel: "bench", reason: "scratch is missing".into() };
        buffers.try_into().map_err(missing)
    }
}

/// `reduce_rows` or `reduce_columns`.
type Reduce = fn(&mut Recorder<'_>, &View<'_>, Terms<'_>, usize, bool, &View<'_>) -> kernels::Result<()>;

fn view(tensor: &GpuTensor) -> View<'_> {
    View::packed(tensor.buffer(), tensor.shape())
}

/// The device's own clock: the beginning and the end of a pass.
struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
}

impl Timestamps {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let buffer = |usage| {
            let descriptor =
                wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
            device.create_buffer(&descriptor)
        };
        Timestamps {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            period: f64::from(queue.get_timestamp_period()),
        }
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, 16);
    }

    /// The seconds of the last pass; none if the driver wrote nonsense.
    async fn read(&self, gpu: &Gpu) -> backend::Result<Option<f64>> {
        gpu.map(&self.readable).await?;
        let range = self.readable.get_mapped_range(..);
        let range = range.map_err(|e| backend::Error::Internal(e.to_string()))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&range[..]);
        drop(range);
        self.readable.unmap();
        let elapsed = ticks[1].checked_sub(ticks[0]).filter(|&ticks| ticks > 0);
        Ok(elapsed.map(|ticks| ticks as f64 * self.period * 1e-9))
    }
}
