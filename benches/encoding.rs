//! What a dispatch costs the host: chains of steps encoded, and nothing submitted. `cargo bench --bench encoding [-- SELECTOR]`.
//! The best of several runs, by the host's clock; encoding keeps one thread busy.

use esmerge::backend::Backend;
use esmerge::backend::gpu::Gpu;
use esmerge::kernels::{
    Checks, CholeskyScratch, EigenScratch, Kernels, Recorder, Result, Shape, View, axpby, inverse_cholesky,
    symmetric_eigen,
};
use esmerge::wgpu;
use std::time::Instant;

const RUNS: usize = 20;

/// Order of the matrices.
const N: usize = 512;

fn main() {
    let selector = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let gpu = pollster::block_on(Gpu::open(selector.as_deref())).unwrap_or_else(|e| panic!("{e}"));
    println!("{}, microseconds a dispatch", gpu.name());
    let device = gpu.device();
    let buffer = |elements: usize| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * elements as u64,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (a, b, values) = (buffer(N * N), buffer(N * N), buffer(N));
    let square = |buffer| View::packed(buffer, Shape::matrix(N, N));
    let (a, b) = (square(&a), square(&b));
    let values = View::packed(&values, Shape::matrix(1, N));
    let (eigen, cholesky) = (EigenScratch::allocate(&device, 1, N), CholeskyScratch::allocate(&device, 1, N));

    report(&gpu, "symmetric_eigen", 28 * (2 * N / 32 - 1) + 7, |recorder| {
        symmetric_eigen(recorder, &a, &EigenScratch::of(&eigen), &values, &b)
    });
    report(&gpu, "inverse_cholesky", 2 * N / 32 + N / 128, |recorder| {
        inverse_cholesky(recorder, &a, &CholeskyScratch::of(&cholesky), &b, 1e-6)
    });
    report(&gpu, "axpby, of other rows each time", N, |recorder| {
        (0..N).try_for_each(|i| axpby(recorder, 1.0, &a.rows(i..i + 1), 1.0, &b.rows(i..i + 1)))
    });
}

fn report(gpu: &Gpu, name: &str, dispatches: usize, encode: impl Fn(&mut Recorder<'_>) -> Result<()>) {
    let run = |kernels: &Kernels| {
        let started = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encode(&mut kernels.record(&mut encoder)).expect("the views fit");
        drop(encoder.finish());
        started.elapsed().as_secs_f64()
    };
    let kernels = Kernels::new(&gpu.device(), Checks::default());
    let best = (0..RUNS).map(|_| run(&kernels)).fold(f64::INFINITY, f64::min);
    println!("  {name}: {:.2}", best / dispatches as f64 * 1e6);
}
