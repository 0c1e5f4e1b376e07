//! `esmerge::kernels`.

use crate::shape::{Inputs, Shape};
use crate::timing::Contender;
use crate::{Result, USAGE};
use esmerge::kernels::{self, Checks, Kernels, Op, View, gemm};

pub struct Ours {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
    ready: Option<Ready>,
}

struct Ready {
    shape: Shape,
    a: wgpu::Buffer,
    b: wgpu::Buffer,
    c: wgpu::Buffer,
}

impl Ours {
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Ours {
        let kernels = Kernels::new(device, Checks::Off);
        Ours { device: device.clone(), queue: queue.clone(), kernels, ready: None }
    }

    fn buffer(&self, len: usize, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * len as u64,
            usage,
            mapped_at_creation: false,
        })
    }

    fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }
}

impl Contender for Ours {
    fn name(&self) -> String {
        "esmerge (this checkout)".to_owned()
    }

    fn prepare(&mut self, inputs: &Inputs) -> Result<()> {
        let Shape { batch, m, n, .. } = inputs.shape;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let a = self.buffer(inputs.a.len(), usage);
        let b = self.buffer(inputs.b.len(), usage);
        let c = self.buffer(batch * m * n, usage);
        self.queue.write_buffer(&a, 0, &bytes(&inputs.a));
        self.queue.write_buffer(&b, 0, &bytes(&inputs.b));
        self.ready = Some(Ready { shape: inputs.shape, a, b, c });
        Ok(())
    }

    fn run(&mut self, repetitions: usize) -> Result<()> {
        let ready = self.ready.as_ref().ok_or(USAGE)?;
        let Shape { batch, m, n, k } = ready.shape;
        let a = View::packed(&ready.a, kernels::Shape::new(batch, m, k));
        let b = View::packed(&ready.b, kernels::Shape::new(batch, k, n));
        let c = View::packed(&ready.c, kernels::Shape::new(batch, m, n));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut recorder = self.kernels.record(&mut encoder);
        for _ in 0..repetitions {
            gemm(&mut recorder, 1.0, &a, Op::None, &b, Op::None, 0.0, &c)?;
        }
        drop(recorder);
        self.queue.submit([encoder.finish()]);
        self.wait()
    }

    fn product(&mut self) -> Result<Vec<f32>> {
        let c = &self.ready.as_ref().ok_or(USAGE)?.c;
        let len = c.size() as usize / 4;
        let target = self.buffer(len, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(c, 0, &target, 0, c.size());
        self.queue.submit([encoder.finish()]);
        target.map_async(wgpu::MapMode::Read, .., |_| ());
        self.wait()?;
        Ok(floats(&target.get_mapped_range(..)?))
    }
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect()
}
