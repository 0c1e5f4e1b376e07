//! dimforge's gemm: wgebra's WGSL, the fastest of its variants that is right on the shape.

use crate::ours::{bytes, floats};
use crate::shape::{Inputs, Shape};
use crate::timing::{self, Contender};
use crate::{Result, USAGE};
use wgcore::Shader;
use wgcore::kernel::CommandEncoderExt;
use wgcore::shapes::ViewShapeBuffers;
use wgcore::tensor::{GpuCube, TensorBuilder};
use wgebra::linalg::{Gemm, GemmVariant};
use wgpu24::BufferUsages;

pub struct Wgmath {
    device: wgpu24::Device,
    queue: wgpu24::Queue,
    gemm: Gemm,
    shapes: ViewShapeBuffers,
    ready: Option<Ready>,
}

/// Column-major, as wgebra has matrices.
struct Ready {
    shape: Shape,
    a: GpuCube<f32>,
    a_transposed: GpuCube<f32>,
    b: GpuCube<f32>,
    c: GpuCube<f32>,
    variant: GemmVariant,
}

const VARIANTS: [GemmVariant; 4] =
    [GemmVariant::Gemm, GemmVariant::GemmFast, GemmVariant::GemmTr, GemmVariant::GemmTrFast];

impl Wgmath {
    /// On the adapter of that name and driver, by its own version of wgpu.
    pub async fn new(name: &str, driver: &str) -> Result<Wgmath> {
        let instance = wgpu24::Instance::new(&wgpu24::InstanceDescriptor::default());
        let same = |adapter: &wgpu24::Adapter| {
            let info = adapter.get_info();
            info.name == name && info.driver == driver
        };
        let adapter = instance.enumerate_adapters(wgpu24::Backends::PRIMARY).into_iter().find(same);
        let adapter = adapter.ok_or("wgpu 24 does not see the adapter")?;
        let descriptor = wgpu24::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = adapter.request_device(&descriptor, None).await?;
        let gemm = Gemm::from_device(&device).map_err(|error| format!("{error:?}"))?;
        Ok(Wgmath { device, queue, gemm, shapes: ViewShapeBuffers::new(), ready: None })
    }

    fn cube(&self, shape: [usize; 3], values: &[f32]) -> GpuCube<f32> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let cube = TensorBuilder::tensor(shape.map(|n| n as u32), usage).build(&self.device);
        if !values.is_empty() {
            self.queue.write_buffer(cube.buffer(), 0, &bytes(values));
        }
        cube
    }

    /// Settles on a variant.
    fn choose(&mut self, inputs: &Inputs) -> Result<()> {
        let (mut best, mut least) = (GemmVariant::Gemm, f64::INFINITY);
        for variant in VARIANTS {
            self.ready.as_mut().ok_or(USAGE)?.variant = variant;
            self.run(1)?; // compiles
            let right = inputs.error(&self.product()?) < 1e-4;
            let seconds = timing::time(self, 1)?;
            if right && seconds < least {
                (best, least) = (variant, seconds);
            }
        }
        self.ready.as_mut().ok_or(USAGE)?.variant = best;
        Ok(())
    }
}

impl Contender for Wgmath {
    fn name(&self) -> String {
        "wgebra 0.2.0 (dimforge/wgmath 9553884, wgpu 24, the fastest of its right variants)".to_owned()
    }

    fn prepare(&mut self, inputs: &Inputs) -> Result<()> {
        let shape @ Shape { batch, m, n, k } = inputs.shape;
        let a = transposed(&inputs.a, batch, m, k);
        let b = transposed(&inputs.b, batch, k, n);
        self.ready = Some(Ready {
            shape,
            a: self.cube([m, k, batch], &a),
            a_transposed: self.cube([k, m, batch], &inputs.a),
            b: self.cube([k, n, batch], &b),
            c: self.cube([m, n, batch], &[]),
            variant: GemmVariant::Gemm,
        });
        self.choose(inputs)
    }

    fn run(&mut self, repetitions: usize) -> Result<()> {
        let Ready { a, a_transposed, b, c, variant, .. } = self.ready.as_ref().ok_or(USAGE)?;
        let a = match variant {
            GemmVariant::Gemm | GemmVariant::GemmFast => a,
            GemmVariant::GemmTr | GemmVariant::GemmTrFast => a_transposed,
        };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut pass = encoder.compute_pass("gemm", None);
        for _ in 0..repetitions {
            let (c, a, b) = (c.as_view(), a.as_view(), b.as_view());
            self.gemm.dispatch_generic(&self.device, &self.shapes, &mut pass, c, a, b, *variant);
        }
        drop(pass);
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu24::Maintain::Wait);
        Ok(())
    }

    fn product(&mut self) -> Result<Vec<f32>> {
        let Ready { shape, c, .. } = self.ready.as_ref().ok_or(USAGE)?;
        let size = c.buffer().size();
        let target = self.device.create_buffer(&wgpu24::BufferDescriptor {
            label: None,
            size,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(c.buffer(), 0, &target, 0, size);
        self.queue.submit([encoder.finish()]);
        target.slice(..).map_async(wgpu24::MapMode::Read, |_| ());
        self.device.poll(wgpu24::Maintain::Wait);
        let columns = floats(&target.slice(..).get_mapped_range());
        Ok(transposed(&columns, shape.batch, shape.n, shape.m))
    }
}

/// Every row-major matrix of a batch, the other way round.
fn transposed(values: &[f32], batch: usize, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for member in 0..batch {
        for row in 0..rows {
            for col in 0..cols {
                out[(member * cols + col) * rows + row] = values[(member * rows + row) * cols + col];
            }
        }
    }
    out
}
